//! Connecting: look the name up, TCP, TLS where it is asked for, the upgrade. All of it may hang, so a
//! thread of its own does it, `chat-connect`; it ends by itself.

use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{AUTHORIZATION, RETRY_AFTER};
use tungstenite::{Error, HandshakeError};

use super::escape;
use super::frames::Frame;
use super::server::Server;
use super::socket::{Socket, Stream};
#[cfg(feature = "tls")]
use crate::tls::GatewayTrust;

/// How long an address may take to answer, and then each read and write until the upgrade.
const STEP_WITHIN: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is believed.
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Nobody answered.
    Unreachable(String),
    /// A later try may succeed, and when to make it if that was said.
    Busy(String, Option<Duration>),
    /// The token is good for nothing.
    Token(String),
    /// No further try would help.
    Final(String),
}

/// Knows the way.
pub(super) struct Dialer {
    way: Arc<Way>,
}

struct Way {
    server: Server,
    request: Request,
    #[cfg(feature = "tls")]
    trust: Option<GatewayTrust>,
}

impl Dialer {
    /// `ca`: whom to trust, a PEM file. An error names the option that cannot be used.
    pub fn new(server: Server, token: &str, ca: Option<&Path>) -> Result<Self, String> {
        let request = server.url.as_str().into_client_request();
        let mut request = request.map_err(|error| format!("--url: {error}"))?;
        let bearer = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer = bearer.map_err(|_| "--token: holds what no HTTP header can")?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        if ca.is_some() && !server.is_tls {
            return Err("--ca: is for wss://".into());
        }
        #[cfg(feature = "tls")]
        let trust = match server.is_tls {
            true => Some(GatewayTrust::load(&server.host, ca)?),
            false => None,
        };
        Ok(Self {
            way: Arc::new(Way {
                server,
                request,
                #[cfg(feature = "tls")]
                trust,
            }),
        })
    }

    pub fn server(&self) -> &Server {
        &self.way.server
    }

    /// Connects, and calls `tell` with what came of it.
    pub fn dial(
        &self,
        tell: impl FnOnce(Result<Socket, Refusal>) + Send + 'static,
    ) -> io::Result<()> {
        let way = Arc::clone(&self.way);
        let thread = Builder::new().name("chat-connect".into());
        thread.spawn(move || tell(way.connect())).map(drop)
    }
}

impl Way {
    fn connect(&self) -> Result<Socket, Refusal> {
        let tcp = self.tcp()?;
        let broken = |error: io::Error| Refusal::Unreachable(error.to_string());
        tcp.set_nodelay(true).map_err(broken)?;
        tcp.set_read_timeout(Some(STEP_WITHIN)).map_err(broken)?;
        tcp.set_write_timeout(Some(STEP_WITHIN)).map_err(broken)?;
        let stream = self.stream(tcp)?;
        match tungstenite::client(self.request.clone(), stream) {
            Ok((websocket, _)) => Socket::new(websocket).map_err(broken),
            Err(HandshakeError::Interrupted(_)) => Err(Refusal::Unreachable(format!(
                "no answer from {}",
                self.server
            ))),
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(self.refused(&answer)),
            Err(HandshakeError::Failure(Error::Io(error))) => Err(broken(error)),
            Err(HandshakeError::Failure(error)) => Err(Refusal::Final(format!(
                "{} is no WebSocket: {}{}",
                self.server,
                escape::line(&error.to_string()),
                if self.server.is_tls {
                    ""
                } else {
                    " (is it wss://?)"
                }
            ))),
        }
    }

    fn tcp(&self) -> Result<TcpStream, Refusal> {
        let Server { host, port, .. } = &self.server;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addrs = (bare, *port).to_socket_addrs();
        let addrs = addrs.map_err(|error| Refusal::Unreachable(format!("{host}: {error}")))?;
        let mut last = Refusal::Unreachable(format!("{host} has no address"));
        for addr in addrs {
            match TcpStream::connect_timeout(&addr, STEP_WITHIN) {
                Ok(tcp) => return Ok(tcp),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    last = Refusal::Unreachable(format!(
                        "nobody listens at {addr}: start the gateway, or name another one with --url"
                    ));
                }
                Err(error) => last = Refusal::Unreachable(format!("{addr}: {error}")),
            }
        }
        Err(last)
    }

    #[cfg(feature = "tls")]
    fn stream(&self, tcp: TcpStream) -> Result<Stream, Refusal> {
        use crate::tls::HandshakeFailure::{Broken, Distrusted};

        match &self.trust {
            None => Ok(plain(tcp)),
            Some(trust) => match trust.handshake(tcp) {
                Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
                Err(Broken(error)) => Err(Refusal::Unreachable(error.to_string())),
                Err(Distrusted(why)) => Err(Refusal::Final(why)),
            },
        }
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    fn stream(&self, tcp: TcpStream) -> Result<Stream, Refusal> {
        Ok(plain(tcp))
    }

    /// What an answer other than 101 means.
    fn refused(&self, answer: &Response) -> Refusal {
        let status = answer.status().as_u16();
        let body = answer.body().as_deref().unwrap_or_default();
        let told = str::from_utf8(body).ok().and_then(Frame::parse);
        let told = told.map_or_else(String::new, |told| escape::line(&told.message));
        let server = &self.server;
        let told = match told.as_str() {
            "" => format!("{server} answers {status}"),
            told => format!("{server} answers {status}, {told}"),
        };
        match status {
            401 => Refusal::Token(told),
            408 | 429 | 500..=599 => {
                let after = answer.headers().get(RETRY_AFTER);
                let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
                let after = after.map(Duration::from_secs);
                Refusal::Busy(told, after.map(|after| after.min(RETRY_LONGEST)))
            }
            _ => Refusal::Final(told),
        }
    }
}

fn plain(tcp: TcpStream) -> Stream {
    let is_full = false;
    Stream::Plain { tcp, is_full }
}
