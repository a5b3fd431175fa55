//! Where deliveries come from: RabbitMQ, or services in this process, which plug in here.

use std::error::Error;
use std::time::Instant;

use super::supervisor::Supervisor;
use crate::config::Config;

/// What a gateway's deliveries come from.
pub trait DeliverySource: Send {
    /// Answers, whenever it is asked, why nothing comes, for `/readyz`.
    fn check(&self) -> Box<dyn Fn() -> Result<(), String> + Send + Sync>;
    /// Puts the tokens and groups of `config` in force, where the services are in this process.
    fn reload(&self, config: &Config) -> Result<(), ReloadError>;
    /// Ends by `deadline`, deliveries in hand included.
    fn stop(self: Box<Self>, deadline: Instant);
}

/// Why the tokens and groups from before are still in force, for whoever is to mend it.
pub type ReloadError = Box<dyn Error + Send + Sync>;

impl DeliverySource for Supervisor {
    fn check(&self) -> Box<dyn Fn() -> Result<(), String> + Send + Sync> {
        Box::new(Supervisor::check(self))
    }

    fn reload(&self, _: &Config) -> Result<(), ReloadError> {
        // They are the services' own, which are elsewhere: have those read them again.
        Err("only the embedded services have something to read again".into())
    }

    fn stop(self: Box<Self>, deadline: Instant) {
        Supervisor::stop(*self, deadline);
    }
}
