//! TLS to a gateway, where this program is its client (`ws-gateway chat`).

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Error};

use super::amqp::TlsStream;
use super::client::{Trust, client_config, server_name};

/// The socket, once it is trusted. It may be non-blocking; what is said of `TlsStream` holds.
pub type ToGateway = TlsStream<TcpStream>;

/// Whom to trust, and as whom.
pub struct GatewayTrust {
    trust: Trust,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Why there is no TLS.
pub enum HandshakeFailure {
    /// The connection broke, or took too long.
    Broken(io::Error),
    /// The other end is not trusted, or does not speak TLS, in words for people.
    Distrusted(String),
}

impl GatewayTrust {
    /// `host` as the URL has it. `ca`: a PEM file; without one, the system's authorities. An error
    /// names the option that cannot be used.
    pub fn load(host: &str, ca: Option<&Path>) -> Result<Self, String> {
        let ca = ca.map_or_else(String::new, |file| file.display().to_string());
        let trust = Trust::load("--ca", &ca)?;
        let name = server_name(host).map_err(|error| format!("--url: {error}"))?;
        let config = Arc::new(client_config(Arc::clone(&trust.roots)));
        Ok(Self {
            trust,
            config,
            name,
        })
    }

    /// Blocks, for as long as the timeouts of `tcp` let it.
    pub fn handshake(&self, mut tcp: TcpStream) -> Result<ToGateway, HandshakeFailure> {
        let distrusted = |error: &Error| HandshakeFailure::Distrusted(self.trust.explain(error));
        let session = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let mut session = session.map_err(|error| distrusted(&error))?;
        while session.is_handshaking() {
            if let Err(error) = session.complete_io(&mut tcp) {
                let inner = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<Error>());
                return Err(match inner {
                    Some(inner) => distrusted(inner),
                    None if error.kind() == ErrorKind::WouldBlock => {
                        HandshakeFailure::Broken(ErrorKind::TimedOut.into())
                    }
                    None => HandshakeFailure::Broken(error),
                });
            }
        }
        Ok(TlsStream::new(tcp, session, self.trust.clone()))
    }
}
