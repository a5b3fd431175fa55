//! For unit tests of other parts: a connection that is live, and its client's end of the socket.

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

pub(crate) struct Client {
    pub connection: Arc<Connection>,
    socket: TcpStream,
}

impl Client {
    /// Connects and registers; nothing is held back, since there is no catch-up.
    pub fn join(registry: &Registry, user: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let (accepted, patience) = (Arc::new(accepted), Duration::from_secs(10));
        let outbox = Outbox::new(accepted, patience, Frame::raw(b""), 1_024, 1 << 20);
        let hold = Hold::new(1_024, 1 << 20);
        assert!(hold.release().is_empty());
        let (id, user) = (ConnectionId::random(), UserId::new(user).unwrap());
        let connection = Arc::new(Connection::new(id, user, peer.ip(), 0, outbox, hold));
        connection.outbox.write_through([]);
        registry
            .admit(&connection, usize::MAX, OverLimit::Reject)
            .unwrap();
        Self { connection, socket }
    }

    /// The text of the next frame, waited for.
    pub fn next(&mut self) -> String {
        self.socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
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

    /// Whether nothing has been written that was not read.
    pub fn is_quiet(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false).unwrap();
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Whether catch-up was requested since the last call.
    pub fn takes_catch_up(&self) -> bool {
        self.connection.take_catch_up_request()
    }

    /// Waits until catch-up is requested.
    pub fn is_caught_up(&self) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !self.takes_catch_up() {
            assert!(Instant::now() < patience, "no catch-up");
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
