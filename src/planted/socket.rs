//! A client's socket with a defect planted: what it is sent is rewritten, frame by frame ([`frames`]).
//!
//! [`frames`]: super::frames

use std::io;
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::Planted;
use super::frames::Frames;
use crate::client::address::Peer;
use crate::client::transport::{Socket, Transport};

pub struct PlantedSocket {
    socket: Socket,
    planted: Arc<Planted>,
    stream: Mutex<Stream>,
    /// How many bytes that it was given are in what has not left.
    begun: AtomicUsize,
    /// How many bytes have left that are not counted.
    uncounted: AtomicU64,
}

#[derive(Default)]
struct Stream {
    frames: Frames,
    /// Whoever sends has it in hand meanwhile: one at a time does.
    rewritten: Rewritten,
}

/// What is sent in place of `given` bytes. It counts once it has left entirely, so that all that comes
/// is whole frames.
#[derive(Default)]
struct Rewritten {
    given: usize,
    bytes: Vec<u8>,
    /// How much of it has left.
    sent: usize,
}

impl PlantedSocket {
    pub fn new(socket: Socket, planted: Arc<Planted>) -> Self {
        Self {
            socket,
            planted,
            stream: Mutex::default(),
            begun: AtomicUsize::new(0),
            uncounted: AtomicU64::new(0),
        }
    }

    /// What waits to leave, or else what is to be sent in place of `bytes`.
    fn rewrite(&self, bytes: &[u8]) -> Rewritten {
        let mut stream = self.stream.lock();
        let waiting = mem::take(&mut stream.rewritten);
        if waiting.given > 0 {
            return waiting;
        }
        Rewritten {
            given: bytes.len(),
            bytes: stream.frames.rewrite(bytes, &self.planted),
            sent: 0,
        }
    }
}

impl AsFd for PlantedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for PlantedSocket {
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
        self.socket.read(into, may_block)
    }

    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
        let mut rewritten = self.rewrite(bytes);
        let sent = match &rewritten.bytes[rewritten.sent..] {
            // Nothing at all is for the transport's own output.
            [] if rewritten.given > 0 => Ok(0),
            unsent => self.socket.send(unsent, may_block),
        };
        rewritten.sent += *sent.as_ref().unwrap_or(&0);
        if rewritten.sent == rewritten.bytes.len() {
            self.begun.store(0, Relaxed);
            self.uncounted.store(0, Relaxed);
            return sent.map(|_| rewritten.given);
        }
        self.begun.store(rewritten.given, Relaxed);
        self.uncounted.store(rewritten.sent as u64, Relaxed);
        self.stream.lock().rewritten = rewritten;
        sent.map(|_| 0)
    }

    fn has_output(&self) -> bool {
        self.socket.has_output()
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

    fn shutdown(&self, how: Shutdown) {
        self.socket.shutdown(how);
    }

    fn in_flight(&self) -> u64 {
        let uncounted = self.uncounted.load(Relaxed);
        self.socket.in_flight().saturating_sub(uncounted)
    }

    fn has_bytes(&self) -> bool {
        self.socket.has_bytes()
    }
}
