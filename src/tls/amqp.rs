//! TLS under AMQP: a stream over the non-blocking socket that the broker's I/O thread polls,
//! edge-triggered.
//!
//! Whoever polls so hears of the socket once, and then reads until it would block. So two things must
//! not happen. A read must not say that it would block while something is left on this side of the
//! socket: plaintext in the session, or ciphertext in the buffer. And ciphertext must not wait for a
//! socket that is full when nobody will come again once there is room: writability is asked for only
//! as long as a write said that it would block. So a write says so until the socket has taken all that
//! came of its bytes, and remembers how many of them are in it already.
//!
//! A read gives rise to ciphertext in the handshake alone, during which every write would block, so
//! that writability is asked for. (rustls answers a key update with the next write.)

#[cfg(test)]
mod tests;

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::mem;
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::ClientConnection;

use super::client::{Trust, client_config, server_name};
use crate::broker::amqp::{Stream, Wrap};
use crate::config::Endpoint;

/// Four records of the largest size and a bit; rustls itself reads 4 KiB at a time.
const BUFFER: usize = 72 << 10;

/// What encrypts connections to this broker, if its URL asks for it. `ca`: a PEM file; empty: the
/// system's authorities. Both are read now. An error names the key that cannot be used.
pub fn to_broker(endpoint: &Endpoint, ca: &str) -> Result<Option<Wrap>, String> {
    if !endpoint.is_tls {
        return Ok(None);
    }
    let name = server_name(&endpoint.host).map_err(|error| format!("broker.url: {error}"))?;
    let trust = Trust::load("broker.ca", ca)?;
    let config = Arc::new(client_config(Arc::clone(&trust.roots)));
    let wrap = move |socket: TcpStream| {
        let session = ClientConnection::new(Arc::clone(&config), name.clone());
        let session = session.map_err(|error| failed(trust.explain(&error)))?;
        Ok(Box::new(TlsStream::new(socket, session, trust.clone())) as Box<dyn Stream>)
    };
    Ok(Some(Arc::new(wrap)))
}

fn failed(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

/// A TLS session over a non-blocking socket.
pub struct TlsStream<S: Read + Write> {
    /// Its buffer holds ciphertext.
    socket: BufReader<S>,
    session: ClientConnection,
    /// For errors.
    trust: Trust,
    /// How many of the bytes that a write brought are encrypted, and not all of them in the socket: the
    /// next write brings them again.
    taken: usize,
}

impl<S: Read + Write> TlsStream<S> {
    pub(super) fn new(socket: S, session: ClientConnection, trust: Trust) -> Self {
        Self {
            socket: BufReader::with_capacity(BUFFER, socket),
            session,
            trust,
            taken: 0,
        }
    }

    /// Reads ciphertext and processes it; 0 at its end.
    fn fill_session(&mut self) -> io::Result<usize> {
        let read = self.session.read_tls(&mut self.socket)?;
        if let Err(error) = self.session.process_new_packets() {
            // The alert that tells the peer why; it may be gone.
            let _ = self.flush();
            return Err(failed(self.trust.explain(&error)));
        }
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(read),
        }
    }

    /// The socket below.
    #[cfg(feature = "chat")]
    pub fn get_ref(&self) -> &S {
        self.socket.get_ref()
    }

    /// Whether ciphertext waits for room in the socket.
    pub fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    /// What to poll for: beside what is asked for, room for the ciphertext that waits.
    fn interest(&self, asked_for: Ready) -> Ready {
        match self.wants_write() {
            true => asked_for | Ready::writable(),
            false => asked_for,
        }
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Without a goodbye. What is missing, AMQP's frames tell.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                outcome => return outcome,
            }
            if self.fill_session()? == 0 && self.session.is_handshaking() {
                return Err(failed(
                    "the server ended the connection in place of TLS".into(),
                ));
            }
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.session.is_handshaking() {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.taken == 0 {
            self.taken = self.session.writer().write(bytes)?;
        }
        self.flush()?;
        Ok(mem::take(&mut self.taken))
    }

    /// Writes ciphertext until there is none left.
    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(self.socket.get_mut())? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Takes leave of the peer, if the socket has room for that.
impl<S: Read + Write> Drop for TlsStream<S> {
    fn drop(&mut self) {
        self.session.send_close_notify();
        let _ = self.flush();
    }
}

impl<S: Read + Write + Evented> Evented for TlsStream<S> {
    fn register(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
        let socket = self.socket.get_ref();
        socket.register(p, t, self.interest(interest), how)
    }

    fn reregister(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
        let socket = self.socket.get_ref();
        socket.reregister(p, t, self.interest(interest), how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.get_ref().deregister(poll)
    }
}
