//! Embedded mode: the reference services in the gateway's own process, publishing over the
//! in-process bus.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bus::LocalBus;
use super::{Reference, ReferenceError};
use crate::broker::DeliveryContext;
use crate::broker::source::DeliverySource;
use crate::config::Config;
use crate::readiness::LastOutcome;
use crate::threads::Fatal;

/// For what the bus holds when the services have taken all the time that there was.
const DELIVER_WITHIN: Duration = Duration::from_secs(1);

/// The services and the bus.
pub struct Embedded {
    bus: LocalBus,
    reference: Reference,
}

impl Embedded {
    /// Starts the services on a loopback port and points `config.services` to it. What they
    /// publish waits until somebody consumes.
    pub fn start(config: &mut Config, fatal: &Fatal) -> Result<Self, ReferenceError> {
        let bus = LocalBus::new();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let publisher = Box::new(bus.publisher());
        let reference = Reference::start(loopback, &config.embedded, publisher, fatal)?;
        let address = vec![format!("http://{}", reference.addr())];
        config.services.user = address.clone();
        config.services.message = address.clone();
        config.services.presence = address;
        Ok(Self { bus, reference })
    }

    /// Delivers from now on.
    pub fn consume(self, deliver: &Arc<DeliveryContext>, fatal: &Fatal) -> io::Result<Self> {
        let Self { bus, reference } = self;
        Ok(Self {
            bus: bus.start(deliver, fatal)?,
            reference,
        })
    }
}

impl DeliverySource for Embedded {
    fn state(&self) -> LastOutcome {
        LastOutcome::new(Ok(()))
    }

    fn reload(&self, config: &Config) -> Result<(), String> {
        let reloaded = self.reference.reload(&config.embedded);
        reloaded.map_err(|error| error.to_string())
    }

    fn stop(self: Box<Self>, deadline: Instant) {
        let Self { bus, mut reference } = *self;
        reference.stop(deadline);
        // What is in its queues is delivered in a moment.
        bus.stop(deadline.max(Instant::now() + DELIVER_WITHIN));
    }
}
