//! A socket of a client: plain, or with TLS where the gateway that it is connected to has it.

use std::collections::HashSet;
use std::io::ErrorKind::{BrokenPipe, UnexpectedEof};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex};

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::certificates::{Authority, Identity};

/// Of all gateways with TLS, unless a test is about certificates; they are for localhost.
static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("The suite's"));
static IDENTITY: LazyLock<Identity> =
    LazyLock::new(|| AUTHORITY.sign(&["localhost", "127.0.0.1", "::1"]));
static TRUSTING: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(trusting(&AUTHORITY)));
/// Where TLS is spoken.
static WITH_TLS: LazyLock<Mutex<HashSet<SocketAddr>>> = LazyLock::new(Mutex::default);

/// The certificate of gateways whose clients are these.
pub fn identity() -> &'static Identity {
    &IDENTITY
}

/// Who has signed it.
pub fn identity_authority() -> &'static Authority {
    &AUTHORITY
}

/// Says whether TLS is spoken at `addr`.
pub fn speaks_tls(addr: SocketAddr, speaks: bool) {
    let mut with_tls = WITH_TLS.lock().expect("no panic");
    match speaks {
        true => with_tls.insert(addr),
        false => with_tls.remove(&addr),
    };
}

/// What a client is configured with that trusts `authority` alone.
pub fn trusting(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(authority.file()).expect("a certificate");
    roots.add(root).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("both");
    builder.with_root_certificates(roots).with_no_client_auth()
}

#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Stream {
    /// Over a socket that is connected, with what is spoken there.
    pub fn over(tcp: TcpStream) -> Self {
        let peer = tcp.peer_addr();
        let with_tls = WITH_TLS.lock().expect("no panic");
        let with_tls = peer.is_ok_and(|peer| with_tls.contains(&peer));
        let tls = with_tls.then(|| Self::session(&TRUSTING, "localhost"));
        Self { tcp, tls }
    }

    /// With TLS, whatever is spoken there.
    pub fn with_tls(tcp: TcpStream, config: &Arc<ClientConfig>, name: &str) -> Self {
        let tls = Some(Self::session(config, name));
        Self { tcp, tls }
    }

    /// Goes on with a session that is begun.
    pub fn of(tcp: TcpStream, tls: ClientConnection) -> Self {
        let tls = Some(Box::new(tls));
        Self { tcp, tls }
    }

    fn session(config: &Arc<ClientConfig>, name: &str) -> Box<ClientConnection> {
        let name = name.to_owned().try_into().expect("a name");
        Box::new(ClientConnection::new(Arc::clone(config), name).expect("a session"))
    }

    pub fn tls(&mut self) -> Option<&mut ClientConnection> {
        self.tls.as_deref_mut()
    }

    /// The socket below, and the session on it.
    pub fn into_parts(self) -> (TcpStream, Option<ClientConnection>) {
        (self.tcp, self.tls.map(|tls| *tls))
    }

    /// The socket below; what TLS has of it is lost.
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }
}

impl Deref for Stream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.read(into),
            Some(tls) => match rustls::Stream::new(tls.as_mut(), &mut self.tcp).read(into) {
                // Whoever cuts a connection says no goodbye, and takes nothing more of what is sent.
                Err(error) if [UnexpectedEof, BrokenPipe].contains(&error.kind()) => Ok(0),
                outcome => outcome,
            },
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.write(bytes),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.tcp).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.tcp).flush(),
        }
    }
}
