//! The admin listener: what an operator asks a running gateway (DESIGN.md, section 7). An edge: it
//! looks at the gateway through what `gateway/edges.rs` hands it, and nothing in the core knows it.
//!
//! A request comes in at the [`listener`], which has threads and limits of its own; [`guard`] says who
//! may ask; [`console`] answers. [`history`] and [`measured`] have decorators, of the
//! [`ConnectionObserver`](crate::client::ConnectionObserver) and of
//! [`Services`](crate::services::Services): they note what [`scrape`] and the console show.

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
use sources::Sources;

use crate::client::accept::Usage;
use crate::client::{ConnectionObserver, Context};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::registry::Registry;
use crate::services::Services;
use crate::threads::Fatal;

/// The admin listener of one gateway.
pub struct Admin {
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
        Ok(Self {
            history: Arc::new(History::new(Arc::clone(&metrics))),
            metrics,
            socket: Some(TcpListener::bind(addr)?),
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

    /// Answers from now on what it finds in these. `fatal` is told if that cannot go on.
    pub fn start(
        &mut self,
        context: Arc<Context>,
        registry: Arc<Registry>,
        readiness: Arc<Readiness>,
        usage: Box<dyn Fn() -> Usage + Send + Sync>,
        fatal: &Fatal,
    ) -> io::Result<()> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        let console = Console::new(Sources {
            context,
            registry,
            readiness,
            history: Arc::clone(&self.history),
            usage,
            on_drain: Box::new(|_| {}),
        });
        self.listener = Some(AdminListener::start(socket, Arc::new(console), fatal)?);
        Ok(())
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
