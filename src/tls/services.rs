//! TLS to the services: tonic's own, with whom the gateway trusts.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read, Write};
use std::iter::successors;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::Scheme;
use parking_lot::Mutex;
use rustls::{ClientConnection, RootCertStore};
use tonic::ConnectError;
use tonic::transport::{ClientTlsConfig, Endpoint};

use super::client::{Trust, client_config, server_name, without_brackets};
use crate::config::is_address;
use crate::services::Tls;

const KEY: &str = "services.ca";
/// Between two looks whether a server speaks TLS that is spoken to in the clear.
const LOOK: Duration = Duration::from_secs(1);
/// For each step of a look.
const PATIENCE: Duration = Duration::from_secs(1);

/// For the connections to `https://` addresses.
pub struct ServicesTls {
    ca: String,
    /// Loaded for the first of them: etcd may name it long after the start.
    trust: OnceLock<Trust>,
    /// At the addresses in the clear where calls fail.
    looks: Arc<Mutex<HashMap<String, Look>>>,
}

/// Whether a server speaks TLS, as was seen last.
struct Look {
    began: Instant,
    found_tls: bool,
}

impl ServicesTls {
    /// `ca`: a PEM file; empty: the system's authorities.
    pub fn new(ca: &str) -> Self {
        Self {
            ca: ca.to_owned(),
            trust: OnceLock::new(),
            looks: Arc::default(),
        }
    }

    fn trust(&self) -> Result<&Trust, String> {
        if let Some(trust) = self.trust.get() {
            return Ok(trust);
        }
        let trust = Trust::load(KEY, &self.ca)?;
        Ok(self.trust.get_or_init(|| trust))
    }

    /// What was seen last at an address in the clear; looks again, beside the calls.
    fn speaks_tls(&self, uri: &str) -> bool {
        let mut looks = self.looks.lock();
        let (found_tls, is_old) = match looks.get(uri) {
            Some(look) => (look.found_tls, look.began.elapsed() >= LOOK),
            None => (false, true),
        };
        if is_old {
            let (began, uri) = (Instant::now(), uri.to_owned());
            looks.insert(uri.clone(), Look { began, found_tls });
            let looks = Arc::clone(&self.looks);
            tokio::task::spawn_blocking(move || {
                let found_tls = speaks_tls(&uri);
                looks.lock().insert(uri, Look { began, found_tls });
            });
        }
        found_tls
    }
}

impl Tls for ServicesTls {
    fn encrypt(&self, endpoint: Endpoint) -> Result<Endpoint, String> {
        if endpoint.uri().scheme() != Some(&Scheme::HTTPS) {
            return Ok(endpoint);
        }
        let roots = self.trust()?.roots.roots.iter().cloned();
        let host = endpoint.uri().host().unwrap_or_default().to_owned();
        server_name(&host)?;
        let mut config = ClientTlsConfig::new()
            .domain_name(without_brackets(&host))
            .trust_anchors(roots);
        // Else a handshake that hangs would be waited for as long as the connection lives.
        if let Some(timeout) = endpoint.get_connect_timeout() {
            config = config.timeout(timeout);
        }
        let encrypted = endpoint.tls_config(config);
        encrypted.map_err(|error| error.to_string())
    }

    fn explain(&self, uri: &str, error: &tonic::transport::Error) -> Option<String> {
        let first: &(dyn Error + 'static) = error;
        let mut chain = successors(Some(first), |&error| error.source());
        if is_address("https", uri) {
            // An I/O error holds rustls's, and does not show it as its source.
            let mut inner = chain.filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref());
            let error = inner.find_map(|error| error.downcast_ref::<rustls::Error>())?;
            return Some(self.trust.get()?.explain(error));
        }
        // Nobody is there to speak it.
        let is_unreached = chain.any(|error| error.is::<ConnectError>());
        let found_tls = !is_unreached && self.speaks_tls(uri);
        found_tls.then(|| "the server speaks TLS: its address is to begin with https://".into())
    }
}

/// Whether the server at `http://host:port` answers TLS.
pub fn speaks_tls(uri: &str) -> bool {
    /// What a record begins with (RFC 8446, section 5.1).
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    let first_byte = || {
        let uri: Uri = uri.parse().ok()?;
        let host = without_brackets(uri.host()?);
        let mut addresses = (host, uri.port_u16().unwrap_or(80))
            .to_socket_addrs()
            .ok()?;
        let connect = |address| TcpStream::connect_timeout(&address, PATIENCE).ok();
        let mut stream = addresses.find_map(connect)?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let config = Arc::new(client_config(RootCertStore::empty()));
        let mut session = ClientConnection::new(config, server_name(host).ok()?).ok()?;
        let mut hello = Vec::new();
        session.write_tls(&mut hello).ok()?;
        stream.write_all(&hello).ok()?;
        let mut first = [0];
        stream.read_exact(&mut first).ok()?;
        Some(first[0])
    };
    matches!(first_byte(), Some(ALERT | HANDSHAKE))
}
