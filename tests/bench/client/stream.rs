//! A connection's socket, with TLS on it where the server has it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// As much as one read takes of the socket: a server that is behind sends many frames at once.
pub const READ: usize = 256 * 1024;
/// What TLS may hold of the record before.
const RECORD: usize = 16 * 1024;
/// Room for what one [`Stream::read`] brings, and for what it is decrypted from.
pub const ROOM: usize = READ + RECORD + READ;

pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

/// What trusts the authority in the PEM file `ca` alone. No session is resumed, so that each
/// handshake is a whole one.
pub fn trusting(ca: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(ca).expect("a certificate");
    roots.add(root).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("both");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

impl Stream {
    /// Over a socket that does not block, and need not be connected yet.
    pub fn new(socket: TcpStream, tls: Option<&Arc<ClientConfig>>) -> Self {
        let session = |config| {
            let name = "localhost".try_into().expect("a name");
            Box::new(ClientConnection::new(Arc::clone(config), name).expect("a session"))
        };
        Self {
            socket,
            tls: tls.map(session),
        }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Writes, once TLS has shaken hands. What a client sends is far less than a socket takes: no
    /// room is an error.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return self.socket.write_all(bytes);
        };
        tls.writer().write_all(bytes)?;
        flush(tls, &mut self.socket)
    }

    /// Reads the socket once, and puts all that comes of it into `buffer`, which has [`ROOM`];
    /// `Ok(0)` is the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.read(&mut buffer[..READ]);
        };
        let (plaintext, records) = buffer.split_at_mut(READ + RECORD);
        let count = self.socket.read(&mut records[..READ])?;
        if count == 0 {
            return Ok(0);
        }
        let mut records = &records[..count];
        let mut end = 0;
        // Behind a close_notify nothing is taken any more.
        while !records.is_empty() && tls.read_tls(&mut records)? > 0 {
            let state = tls.process_new_packets();
            let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let ready = end + state.plaintext_bytes_to_read();
            tls.reader().read_exact(&mut plaintext[end..ready])?;
            end = ready;
        }
        flush(tls, &mut self.socket)?;
        match end {
            // Of the handshake, or a part of a record.
            0 => Err(ErrorKind::WouldBlock.into()),
            end => Ok(end),
        }
    }
}

fn flush(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(socket)?;
    }
    Ok(())
}
