//! An echo server on the gateway's own accept, reader, writer and outbox code, in this process: what
//! the WebSocket protocol itself is tried on. It answers every message with itself, binary ones too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Receiver;
use parking_lot::RwLockReadGuard;
use tonic::Code;
use ws_gateway::client::accept::Listener;
use ws_gateway::client::connection::Connection;
use ws_gateway::client::transport::{self, Opener};
use ws_gateway::client::{ConnectionObserver, Context, OverUserLimit, Route};
use ws_gateway::config;
use ws_gateway::metrics::Metrics;
use ws_gateway::services::grpc::Grpc;
use ws_gateway::threads::semaphore::Semaphore;

use super::backend::Backend;
use super::raw::Raw;
use super::settings::token_of;
use super::{DEADLINE, GATEWAY_THREADS, Settings, watchdog};

/// Of a message, and of what waits for a client: what the largest cases of the Autobahn suite need.
pub const LIMIT: usize = 16 << 20;

/// Whoever knocks is this user.
const USER: &str = "echo";

pub struct Echo {
    pub addr: SocketAddr,
    path: String,
    listener: Option<Listener>,
    /// Hears of a thread that cannot go on.
    died: Receiver<String>,
    _backend: Backend,
    _threads: RwLockReadGuard<'static, ()>,
}

impl Echo {
    pub fn start() -> Self {
        Self::start_over(transport::plain())
    }

    /// With sockets that this opens.
    pub fn start_over(opener: Opener) -> Self {
        let threads = GATEWAY_THREADS.read();
        let backend = Backend::start();
        // So nobody is ever told that what was unread is through, nor anything else.
        backend.fail("GetOfflineMessages", Code::Unavailable);
        let services = vec![backend.url()];
        let settings = Settings::new()
            .set("backend.mode", "remote")
            .set("services.user", services.clone())
            .set("services.message", services.clone())
            .set("services.presence", services)
            .set("limits.max_message_size", LIMIT as i64)
            .set("limits.max_connections_per_user", 1_000)
            .set("session.send_queue_bytes", LIMIT as i64)
            .set("limits.rate", 100_000)
            .set("limits.burst", 100_000)
            // A ping between the echoes is one frame too many.
            .set("session.ping_interval", "1h")
            .set("session.idle_timeout", "2h");
        let file = settings.write(&watchdog::directory("echo"));
        let config = config::load(Some(&file), None).expect("a configuration");
        let path = config.listen.path.clone();
        let grpc = Grpc::start(&config.services, None).expect("a runtime");
        let socket = Listener::bind(config.listen.addr).expect("a free port");
        let context = Context {
            config,
            services: Arc::new(grpc),
            observer: Arc::new(Nobody),
            metrics: Arc::new(Metrics::new(&[])),
            drain: Arc::default(),
            pacing: Semaphore::new(1),
            validating: Semaphore::new(1),
            pages: Vec::new(),
            echo: true,
        };
        let (fatal, died) = crossbeam::channel::unbounded();
        let listener = Listener::start(socket, opener, Arc::new(context), &fatal);
        let listener = listener.expect("its threads");
        Self {
            addr: listener.addr(),
            path,
            listener: Some(listener),
            died,
            _backend: backend,
            _threads: threads,
        }
    }

    /// With a token, since the suite sends no header of its own.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}{}", self.addr, self.target())
    }

    fn target(&self) -> String {
        format!("{}?token={}", self.path, token_of(USER))
    }

    /// A raw socket that is past the handshake.
    pub fn session(&self) -> Raw {
        let mut raw = Raw::connect(self.addr);
        let response = raw.get_with(&self.target(), &super::raw::UPGRADE);
        assert_eq!(response.status, 101, "{response:?}");
        raw.unchecked()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let listener = self.listener.take().expect("dropped once");
        let left = listener.stop(Instant::now() + DEADLINE);
        if !std::thread::panicking() {
            assert_eq!(left, 0, "connections that do not end");
            assert_eq!(self.died.try_recv().ok(), None);
        }
    }
}

/// Told of connections, and keeps no account of them.
struct Nobody;

impl ConnectionObserver for Nobody {
    fn connected(&self, _: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        Ok(Route::Bound)
    }

    fn disconnected(&self, _: &Connection) {}
}
