//! A client's socket with TLS on it.
//!
//! Reader and writer thread share one TLS session. Its lock covers encrypting into a buffer and
//! decrypting out of one, never a call to the socket below: so neither ever waits for the other's
//! client, and nothing can stand still in a circle.
//!
//! What is encrypted has to leave in that order and whole, or the client's TLS cannot go on. So what
//! the socket below does not take at once is kept as [`Sealed`], and goes out before anything else.

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::{Error, InvalidMessage, ServerConfig, ServerConnection};

use super::handshakes::Handshakes;
use crate::client::address::Peer;
use crate::client::transport::{Socket, Transport};

/// What one read takes of the socket, in bytes. A record is at most 16 KiB long (RFC 8446, section
/// 5.1), and so much always finds room behind one that is not whole yet; what clients send is short.
const READ_BUFFER: usize = 512;
/// The same in the handshake, whose messages are longer.
const HANDSHAKE_BUFFER: usize = 1536;
/// How many bytes may come without any plaintext, such as empty records, before it is enough: more
/// than the longest handshake, and than the longest record.
const MAX_FRUITLESS: usize = 64 << 10;
/// What one send encrypts at most, in bytes: as much as the outbox has written with one system call.
const MAX_SEALED: usize = 128 << 10;
/// The most plaintext that a record carries, in bytes.
const MAX_RECORD: usize = 16 << 10;

pub(super) struct TlsSocket {
    socket: Socket,
    session: Arc<Mutex<Session>>,
    handshakes: Handshakes,
    /// How much plaintext is in what is [`Sealed`].
    begun: AtomicUsize,
    /// How much of what is [`Sealed`] the socket below has taken.
    uncounted: AtomicU64,
    /// Bytes that came since there was plaintext.
    fruitless: AtomicUsize,
}

struct Session {
    tls: ServerConnection,
    /// Whoever sends has it in hand meanwhile: one at a time does.
    sealed: Sealed,
}

/// Records that have not left entirely.
#[derive(Default)]
struct Sealed {
    records: Vec<u8>,
    /// How much of them has left.
    sent: usize,
    /// How much plaintext they carry; none where they are TLS' own.
    plaintext: usize,
}

impl TlsSocket {
    /// The handshake is a part of the first reads and sends.
    pub fn new(socket: Socket, config: Arc<ServerConfig>, handshakes: Handshakes) -> Self {
        let tls = ServerConnection::new(config);
        let mut tls = tls.expect("a configuration without a size of fragments cannot be wrong");
        // Whatever is encrypted is taken out at once.
        tls.set_buffer_limit(None);
        Self {
            socket,
            session: Arc::new(Mutex::new(Session {
                tls,
                sealed: Sealed::default(),
            })),
            handshakes,
            begun: AtomicUsize::new(0),
            uncounted: AtomicU64::new(0),
            fruitless: AtomicUsize::new(0),
        }
    }

    /// Reads the socket below once, and decrypts what comes. Answers how much that was; 0 is the end.
    fn read_records(&self, may_block: bool) -> io::Result<usize> {
        let mut records = [0; READ_BUFFER];
        let read = self.socket.read(&mut records, may_block)?;
        self.session.lock().decrypt(&records[..read])?;
        Ok(read)
    }

    /// As [`Self::read_records`], for the handshake.
    ///
    /// Not inlined: its frame would stay on the stack of a connection that waits.
    #[inline(never)]
    fn shake_hands(&self, may_block: bool) -> io::Result<usize> {
        let mut records = vec![0; HANDSHAKE_BUFFER];
        let read = self.socket.read(&mut records, may_block)?;
        records.truncate(read);
        let session = Arc::clone(&self.session);
        let decrypted = self
            .handshakes
            .run(move || session.lock().decrypt(&records));
        decrypted.unwrap_or_else(|| Err(ErrorKind::NotConnected.into()))?;
        Ok(read)
    }

    fn count(&self, sealed: &Sealed) {
        self.begun.store(sealed.plaintext, Relaxed);
        self.uncounted.store(sealed.sent as u64, Relaxed);
    }
}

impl Session {
    /// What is decrypted already, 0 being the end; or nothing.
    fn plaintext(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.tls.reader().read(into) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn decrypt(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let too_much = |error| io::Error::new(ErrorKind::InvalidData, error);
            if self.tls.read_tls(&mut records).map_err(too_much)? == 0 {
                // Nothing counts behind a close_notify.
                break;
            }
            let processed = self.tls.process_new_packets();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, explained(&error)))?;
        }
        Ok(())
    }

    /// What waits to leave; or else TLS' own output and then as much of `bytes` as one send carries.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<Sealed> {
        let mut sealed = mem::take(&mut self.sealed);
        if !sealed.records.is_empty() {
            return Ok(sealed);
        }
        if self.tls.is_handshaking() && !bytes.is_empty() {
            return Err(ErrorKind::NotConnected.into());
        }
        self.take_records(&mut sealed.records)?;
        for record in bytes[..bytes.len().min(MAX_SEALED)].chunks(MAX_RECORD) {
            sealed.plaintext += self.tls.writer().write(record)?;
            self.take_records(&mut sealed.records)?;
        }
        Ok(sealed)
    }

    fn take_records(&mut self, records: &mut Vec<u8>) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(records)?;
        }
        Ok(())
    }
}

/// An error with its likely cause, where there is one.
fn explained(error: &Error) -> String {
    let cause = match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "; it may speak plain ws:// to what is wss:// here"
        }
        Error::AlertReceived(_) => "; it may not trust the certificate, or not for this name",
        _ => "",
    };
    format!("TLS with the client failed: {error}{cause}")
}

impl AsFd for TlsSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for TlsSocket {
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
        let is_handshaking = {
            let mut session = self.session.lock();
            if let Some(read) = session.plaintext(into)? {
                return Ok(read);
            }
            session.tls.is_handshaking()
        };
        let read = match is_handshaking {
            true => self.shake_hands(may_block)?,
            false => self.read_records(may_block)?,
        };
        if read == 0 {
            // Without a close_notify as well: a WebSocket has a Close of its own.
            return Ok(0);
        }
        if let Some(plaintext) = self.session.lock().plaintext(into)? {
            self.fruitless.store(0, Relaxed);
            return Ok(plaintext);
        }
        let fruitless = self.fruitless.fetch_add(read, Relaxed) + read;
        let error = match fruitless > MAX_FRUITLESS {
            true => io::Error::new(ErrorKind::InvalidData, "TLS without any plaintext"),
            false => ErrorKind::Interrupted.into(),
        };
        Err(error)
    }

    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
        let mut sealed = self.session.lock().seal(bytes)?;
        let sent = match &sealed.records[sealed.sent..] {
            [] => Ok(0),
            unsent => self.socket.send(unsent, may_block),
        };
        sealed.sent += *sent.as_ref().unwrap_or(&0);
        if sealed.sent == sealed.records.len() {
            self.count(&Sealed::default());
            return Ok(sealed.plaintext);
        }
        self.count(&sealed);
        self.session.lock().sealed = sealed;
        // Nothing counts before all of it has left.
        sent.map(|_| 0)
    }

    fn has_output(&self) -> bool {
        let session = self.session.lock();
        session.tls.wants_write() || !session.sealed.records.is_empty()
    }

    fn begun(&self) -> usize {
        self.begun.load(Relaxed)
    }

    fn client(&self) -> Option<Peer> {
        self.socket.client()
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout)
    }

    /// The end of sending is told with a close_notify (RFC 8446, section 6.1), if there is room for it.
    fn shutdown(&self, how: Shutdown) {
        if how == Shutdown::Write {
            self.session.lock().tls.send_close_notify();
            let _ = self.send(&[], false);
        }
        self.socket.shutdown(how);
    }

    /// Of what is counted.
    fn in_flight(&self) -> u64 {
        let uncounted = self.uncounted.load(Relaxed);
        self.socket.in_flight().saturating_sub(uncounted)
    }

    fn has_bytes(&self) -> bool {
        let state = self.session.lock().tls.process_new_packets();
        state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0) || self.socket.has_bytes()
    }
}
