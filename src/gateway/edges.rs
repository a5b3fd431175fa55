//! What the core does without, each part a cargo feature: tied in around it here, and nowhere else.

#![cfg_attr(
    not(all(feature = "admin", feature = "reference")),
    allow(unused_variables, clippy::unused_self)
)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::StartError;
#[cfg(feature = "admin")]
use crate::admin::Admin;
use crate::broker::DeliveryContext;
use crate::broker::source::DeliverySource;
use crate::client::accept::Usage;
use crate::client::{ConnectionObserver, Context};
use crate::config::{Config, Mode};
use crate::http::Page;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
#[cfg(feature = "reference")]
use crate::reference::embedded;
use crate::registry::Registry;
use crate::services::Services;
use crate::threads::Fatal;

/// The services in this process, where they are.
pub(super) struct Embedded {
    /// Has deliveries come, once there is somebody to deliver them to.
    pub deliver: Deliver,
    /// The chat page.
    pub page: Option<Page>,
}

type Deliver = Box<dyn FnOnce(&Arc<DeliveryContext>) -> io::Result<Box<dyn DeliverySource>>>;

/// Starts them, and has `config` name them, if it wants them.
pub(super) fn embedded(config: &mut Config, fatal: &Fatal) -> Result<Option<Embedded>, StartError> {
    if config.backend.mode != Mode::Embedded {
        return Ok(None);
    }
    #[cfg(feature = "reference")]
    {
        let started = embedded::Embedded::start(config, fatal);
        let started = started.map_err(|error| StartError::Part(error.to_string()))?;
        let fatal = fatal.clone();
        Ok(Some(Embedded {
            deliver: Box::new(move |deliver| Ok(Box::new(started.consume(deliver, &fatal)?))),
            page: embedded::Embedded::page(config),
        }))
    }
    #[cfg(not(feature = "reference"))]
    {
        let reason = "backend.mode: this binary was built without the embedded services";
        Err(StartError::Part(reason.into()))
    }
}

/// The edges of one gateway.
pub(super) struct Edges {
    #[cfg(feature = "admin")]
    admin: Admin,
}

impl Edges {
    /// Binds their addresses. Nobody is answered yet.
    pub fn bind(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        #[cfg(feature = "admin")]
        let (key, addr) = ("admin.addr", config.admin.addr);
        Ok(Self {
            #[cfg(feature = "admin")]
            admin: Admin::bind(addr, Arc::clone(metrics)).map_err(|error| StartError::Listen {
                key,
                addr,
                error,
            })?,
        })
    }

    /// The services that are to be called in place of `services`.
    pub fn services(&self, services: Arc<dyn Services>) -> Arc<dyn Services> {
        #[cfg(feature = "admin")]
        let services = self.admin.measured(services);
        services
    }

    /// Who is to be told of connections in place of `observer`.
    pub fn observer(&self, observer: Arc<dyn ConnectionObserver>) -> Arc<dyn ConnectionObserver> {
        #[cfg(feature = "admin")]
        let observer = self.admin.noted(observer);
        observer
    }

    /// Answers from now on.
    pub fn start(
        &mut self,
        context: &Arc<Context>,
        registry: &Arc<Registry>,
        readiness: Arc<Readiness>,
        usage: impl Fn() -> Usage + Send + Sync + 'static,
        fatal: &Fatal,
    ) -> io::Result<()> {
        #[cfg(feature = "admin")]
        self.admin.start(
            Arc::clone(context),
            Arc::clone(registry),
            readiness,
            Box::new(usage),
            fatal,
        )?;
        Ok(())
    }

    /// Where operators ask, if anywhere.
    pub fn admin_url(&self) -> Option<String> {
        #[cfg(feature = "admin")]
        return self.admin.url();
        #[cfg(not(feature = "admin"))]
        None
    }

    /// Has nobody new find this gateway any more.
    pub fn deregister(&self, _deadline: Instant) {}

    /// Ends them, last of all: until then an operator sees how far the shutdown is.
    pub fn stop(self, deadline: Instant) {
        #[cfg(feature = "admin")]
        self.admin.stop(deadline);
    }
}
