//! Where deliveries come from: RabbitMQ, or services in this process, which plug in here.

use std::error::Error;
use std::time::Instant;

use crate::config::Config;

/// What a gateway's deliveries come from.
pub trait DeliverySource: Send {
    /// Answers, whenever it is asked, why nothing comes, for `/readyz`.
    fn check(&self) -> Box<dyn Fn() -> Result<(), String> + Send + Sync>;
    /// Puts the tokens and groups of `config` in force.
    fn reload(&self, config: &Config) -> Result<(), ReloadError>;
    /// Ends by `deadline`, deliveries in hand included.
    fn stop(self: Box<Self>, deadline: Instant);
}

/// Why the tokens and groups from before are still in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// They are the services' own, which are elsewhere: have those read them again.
    #[error("only the embedded services have something to read again")]
    Elsewhere,
    /// The services in this process could not: mend what they name, and reload again.
    #[error("{0}")]
    Services(Box<dyn Error + Send + Sync>),
}
