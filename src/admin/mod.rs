//! The admin listener: what an operator asks a running gateway. An edge: it
//! looks at the gateway through what `gateway/edges.rs` hands it, and nothing in the core knows it.
//!
//! A request comes in at the [`listener`], which has threads and limits of its own; [`guard`] says who
//! may ask; [`console`] answers. [`history`] and [`measured`] have decorators, of the
//! [`ConnectionObserver`] and of
//! [`Services`]: they note what [`scrape`] and the console show.

mod console;
mod guard;
mod history;
mod listener;
mod measured;
mod scrape;
mod sources;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use console::Console;
use history::{History, Noted};
use listener::AdminListener;
use measured::Measured;
pub use sources::Sources;

use crate::client::ConnectionObserver;
use crate::metrics::Metrics;
use crate::services::Services;
use crate::threads::Fatal;

/// The admin listener of one gateway.
pub struct Admin {
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    history: Arc<History>,
    /// Until it starts.
    socket: Option<TcpListener>,
    /// From then on.
    listener: Option<AdminListener>,
}

impl Admin {
    /// Binds `addr`. Operators wait in the backlog until the listener starts.
    pub fn bind(addr: SocketAddr, metrics: Arc<Metrics>) -> io::Result<Self> {
        let socket = TcpListener::bind(addr)?;
        Ok(Self {
            addr: socket.local_addr()?,
            history: Arc::new(History::new(Arc::clone(&metrics))),
            metrics,
            socket: Some(socket),
            listener: None,
        })
    }

    /// `services`, with each call counted.
    pub fn measured(&self, services: Arc<dyn Services>) -> Arc<dyn Services> {
        Arc::new(Measured::new(services, Arc::clone(&self.metrics)))
    }

    /// `observer`, with what it is told noted.
    pub fn noted(&self, observer: Arc<dyn ConnectionObserver>) -> Arc<dyn ConnectionObserver> {
        let history = Arc::clone(&self.history);
        Arc::new(Noted { observer, history })
    }

    /// Answers from now on what it finds in `sources`. `fatal` is told if that cannot go on.
    pub fn start(&mut self, sources: Sources, fatal: &Fatal) -> io::Result<()> {
        if let Some(socket) = self.socket.take() {
            let console = Arc::new(Console::new(sources));
            self.listener = Some(AdminListener::start(socket, console, fatal)?);
        }
        Ok(())
    }

    /// What was noted, and is.
    pub fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// The address that was really bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it listens.
    pub fn url(&self) -> Option<String> {
        self.listener.as_ref().map(AdminListener::url)
    }

    /// Ends it and its connections by `deadline`.
    pub fn stop(self, deadline: Instant) {
        if let Some(listener) = self.listener {
            listener.stop(deadline);
        }
    }
}
