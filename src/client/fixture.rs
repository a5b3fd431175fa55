//! For unit tests of other parts: a connection that is live, and its client's end of the socket.

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::close::CloseReason;
use super::connection::Connection;
use super::frame::Frame;
use super::hold::Hold;
use super::outbox::Outbox;
use crate::config::OverLimit;
use crate::ids::{ConnectionId, UserId};
use crate::registry::Registry;

/// How long a frame or a catch-up is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a wait for a frame lasts before it looks whether catch-up was requested.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) struct Client {
    pub connection: Arc<Connection>,
    socket: TcpStream,
    /// A catch-up was done that nobody has asked about yet.
    caught_up: Cell<bool>,
}

impl Client {
    /// As [`Client::connect`], and caught up: nothing is held back until catch-up is requested.
    pub fn join(registry: &Registry, user: &str) -> Self {
        let client = Self::connect(registry, user);
        client.connection.hold.routed();
        assert!(client.connection.hold.take_request());
        assert!(client.connection.hold.release().is_empty());
        client
    }

    /// Connects and registers; its route is not bound yet.
    pub fn connect(registry: &Registry, user: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let accepted = Arc::new(accepted);
        let outbox = Outbox::new(accepted, PATIENCE, Frame::raw(b""), 1_024, 1 << 20);
        // Nothing is unread here, so nothing may be left to a later page.
        let hold = Hold::new(usize::MAX, usize::MAX / 2);
        let (id, user) = (ConnectionId::random(), UserId::new(user).unwrap());
        let connection = Arc::new(Connection::new(id, user, peer.ip(), 0, outbox, hold));
        connection.outbox.write_through([]);
        registry
            .admit(&connection, usize::MAX, OverLimit::Reject)
            .unwrap();
        Self {
            connection,
            socket,
            caught_up: Cell::new(false),
        }
    }

    /// The text of the next frame, waited for.
    pub fn next(&mut self) -> String {
        self.await_frame();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut header = [0; 2];
        self.socket.read_exact(&mut header).expect("a frame");
        assert_eq!(header[0], 0x81, "a text frame");
        let length = match header[1] {
            126 => {
                let mut length = [0; 2];
                self.socket.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            short => usize::from(short),
        };
        let mut text = vec![0; length];
        self.socket.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn await_frame(&self) {
        self.socket.set_read_timeout(Some(LOOK)).unwrap();
        let give_up = Instant::now() + PATIENCE;
        while let Err(error) = self.socket.peek(&mut [0]) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            assert!(Instant::now() < give_up, "no frame");
            self.catch_up();
        }
    }

    /// Does what the writer thread would, if catch-up was requested. Nothing is unread here, so
    /// what was held back is all there is to send; what was sent is remembered from then on.
    fn catch_up(&self) {
        if !self.connection.hold.take_request() {
            return;
        }
        loop {
            let held = self.connection.hold.release();
            if held.is_empty() {
                break;
            }
            self.connection.outbox.write_through(held);
        }
        self.caught_up.set(true);
    }

    /// Whether nothing has been written that was not read.
    pub fn is_quiet(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false).unwrap();
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether catch-up was requested since the last call.
    pub fn takes_catch_up(&self) -> bool {
        self.catch_up();
        self.caught_up.take()
    }

    /// Waits until catch-up is requested.
    pub fn is_caught_up(&self) {
        let give_up = Instant::now() + PATIENCE;
        while !self.takes_catch_up() {
            assert!(Instant::now() < give_up, "no catch-up");
            thread::yield_now();
        }
    }

    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.connection.outbox.closing()
    }

    pub fn leave(&self, registry: &Registry) {
        registry.remove(&self.connection);
    }
}
