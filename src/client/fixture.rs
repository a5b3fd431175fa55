//! For unit tests of other parts: a connection that is live, and its client's end of the socket.

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::address::Peer;
use super::close::CloseReason;
use super::connection::Connection;
use super::frame::Frame;
use super::gate::{DeliveryGate, Finish};
use super::handshake::Accepted;
use super::outbox::Outbox;
use super::token::Identity;
use super::{ConnectionObserver, Context, OverUserLimit, Route};
use crate::config::{Limits, load};
use crate::ids::{ConnectionId, UserId};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::services::fake::FakeServices;
use crate::threads::semaphore::Semaphore;

/// How long a frame or a catch-up is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a wait for a frame lasts before it looks whether catch-up was requested.
const LOOK: Duration = Duration::from_millis(5);

/// What connections use of a gateway that has these services.
pub(super) fn context(services: &Arc<FakeServices>) -> Context {
    Context {
        config: load::parse("test", "", [], None).unwrap(),
        services: Arc::clone(services) as _,
        observer: Arc::new(Nobody),
        metrics: Arc::new(Metrics::new(&[])),
        drain: Arc::default(),
        pacing: Semaphore::new(1),
        validating: Semaphore::new(1),
        pages: Vec::new(),
        echo: false,
    }
}

struct Nobody;

impl ConnectionObserver for Nobody {
    fn connected(&self, _: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        Ok(Route::Away)
    }

    fn disconnected(&self, _: &Connection) {}
}

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
        client.connection.gate.routed();
        assert!(client.connection.gate.take_request());
        assert_eq!(client.connection.gate.finish(true), Finish::Settled);
        assert!(client.connection.gate.is_live());
        client
    }

    /// Connects and registers; its route is not bound yet.
    pub fn connect(registry: &Registry, user: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let accepted = Arc::new(accepted);
        let outbox = Outbox::new(accepted, Frame::raw(b""), 1_024, 1 << 20);
        // Nothing is unread here, so nothing may be left to a later page.
        let gate = DeliveryGate::new(usize::MAX, usize::MAX / 2);
        let accepted = Accepted {
            identity: Identity {
                user: UserId::new(user).unwrap(),
                expires_at: 0,
            },
            token: "token".into(),
            switching: String::new(),
        };
        let id = ConnectionId::random();
        let connection = Arc::new(Connection::new(
            id,
            &accepted,
            Peer::Socket(peer.ip()),
            outbox,
            gate,
        ));
        connection.outbox.write_behind([]);
        let limits = Limits {
            max_connections_per_user: usize::MAX,
            ..Limits::default()
        };
        registry.admit(&connection, &limits).unwrap();
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
        if !self.connection.gate.take_request() {
            return;
        }
        while let Finish::Pushes(held) = self.connection.gate.finish(true) {
            let frames = held.into_iter().map(|push| push.frame);
            self.connection.outbox.write_behind(frames);
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

    /// Reads and keeps all that comes, until [`Client::has_read`].
    pub fn reads_all(&self) -> JoinHandle<Vec<u8>> {
        let mut socket = self.socket.try_clone().unwrap();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).map(|_| bytes).unwrap()
        })
    }

    /// Ends the connection. Answers all that came.
    pub fn has_read(&self, reader: JoinHandle<Vec<u8>>) -> String {
        self.connection.close(CloseReason::Shutdown(Duration::ZERO));
        self.connection.outbox.abort();
        String::from_utf8_lossy(&reader.join().unwrap()).into_owned()
    }

    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.connection.outbox.closing()
    }

    pub fn leave(&self, registry: &Registry) {
        registry.remove(&self.connection);
    }
}
