//! What the core does without, each part a cargo feature: tied in around it here, and nowhere else.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use super::{StartError, Users};
#[cfg(feature = "admin")]
use crate::admin::console::{Console, Sources};
#[cfg(feature = "admin")]
use crate::admin::history::History;
#[cfg(feature = "admin")]
use crate::admin::listener::AdminListener;
#[cfg(feature = "admin")]
use crate::admin::measured::Measured;
use crate::client::Context;
use crate::client::accept::Listener;
use crate::config::Config;
#[cfg(feature = "discovery")]
use crate::discovery::Discovery;
use crate::metrics::Metrics;
use crate::readiness::{LastOutcome, Readiness};
use crate::registry::Registry;
use crate::services::{Services, Upstream};
use crate::threads::Fatal;

/// Who is told of connections.
#[cfg(feature = "admin")]
pub(super) type Observer = History;
#[cfg(not(feature = "admin"))]
pub(super) type Observer = Users;

/// What the edges look at, each at its own part.
#[cfg_attr(not(all(feature = "admin", feature = "discovery")), allow(dead_code))]
pub(super) struct Surroundings<'a> {
    pub context: &'a Arc<Context>,
    pub observer: Arc<Observer>,
    pub registry: &'a Arc<Registry>,
    pub readiness: Arc<Readiness>,
    pub listener: &'a Listener,
    pub broker: LastOutcome,
    pub upstreams: [Arc<Upstream>; 3],
}

/// The edges of a running gateway.
pub(super) struct Edges {
    #[cfg(feature = "admin")]
    admin: Option<AdminListener>,
    #[cfg(feature = "discovery")]
    discovery: Discovery,
}

/// The admin listener's socket, if there is to be one.
pub(super) fn bind_admin(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let (key, addr) = ("admin.addr", config.admin.addr);
    let bind = || TcpListener::bind(addr).map_err(|error| StartError::Listen { key, addr, error });
    cfg!(feature = "admin").then(bind).transpose()
}

#[cfg(feature = "admin")]
pub(super) fn measured(services: Arc<dyn Services>, metrics: &Arc<Metrics>) -> Arc<dyn Services> {
    Arc::new(Measured::new(services, Arc::clone(metrics)))
}

#[cfg(not(feature = "admin"))]
pub(super) fn measured(services: Arc<dyn Services>, _: &Arc<Metrics>) -> Arc<dyn Services> {
    services
}

#[cfg(feature = "admin")]
pub(super) fn observer(users: Users, metrics: &Arc<Metrics>) -> Arc<Observer> {
    Arc::new(History::new(Arc::new(users), Arc::clone(metrics)))
}

#[cfg(not(feature = "admin"))]
pub(super) fn observer(users: Users, _: &Arc<Metrics>) -> Arc<Observer> {
    Arc::new(users)
}

#[cfg_attr(
    not(all(feature = "admin", feature = "discovery")),
    allow(unused_variables, reason = "they are for the edge that is left out")
)]
impl Edges {
    pub fn start(
        admin: Option<TcpListener>,
        around: Surroundings<'_>,
        fatal: &Fatal,
    ) -> io::Result<Self> {
        #[cfg(feature = "discovery")]
        let discovery = {
            let admin = admin.as_ref().map(TcpListener::local_addr).transpose()?;
            let (config, addr) = (&around.context.config, around.listener.addr());
            let registry = around.registry;
            Discovery::start(config, addr, admin, registry, around.upstreams, fatal)?
        };
        #[cfg(feature = "discovery")]
        let on_drain = discovery.on_drain();
        #[cfg(not(feature = "discovery"))]
        let on_drain = |_: bool| {};
        #[cfg(feature = "admin")]
        let admin = {
            let context = around.context;
            let sources = Sources {
                config: context.config.clone(),
                registry: Arc::clone(around.registry),
                readiness: around.readiness,
                metrics: Arc::clone(&context.metrics),
                history: around.observer,
                drain: Arc::clone(&context.drain),
                limits: around.listener.limits(),
                broker: around.broker,
                on_drain: Box::new(on_drain),
            };
            let console = Arc::new(Console::new(sources));
            let admin = admin.map(|socket| AdminListener::start(socket, console, fatal));
            admin.transpose()?
        };
        Ok(Self {
            #[cfg(feature = "admin")]
            admin,
            #[cfg(feature = "discovery")]
            discovery,
        })
    }

    #[cfg(feature = "admin")]
    pub fn admin_url(&self) -> Option<String> {
        self.admin.as_ref().map(AdminListener::url)
    }

    #[cfg(not(feature = "admin"))]
    pub fn admin_url(&self) -> Option<String> {
        None
    }

    /// Has nobody new find this gateway any more.
    pub fn deregister(&self, deadline: Instant) {
        #[cfg(feature = "discovery")]
        self.discovery.deregister(deadline);
    }

    /// Ends them, last of all: until then an operator sees how far the shutdown is.
    pub fn stop(self, deadline: Instant) {
        #[cfg(feature = "discovery")]
        self.discovery.stop(deadline);
        #[cfg(feature = "admin")]
        if let Some(admin) = self.admin {
            admin.stop(deadline);
        }
    }
}
