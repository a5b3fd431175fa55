//! Where deliveries come from: RabbitMQ, or services in this process, which plug in here.

use std::time::Instant;

use crate::config::Config;
use crate::readiness::LastOutcome;

/// What a gateway's deliveries come from.
pub trait DeliverySource: Send {
    /// Says, whenever it is asked, why nothing comes, for `/readyz`.
    fn state(&self) -> LastOutcome;
    /// Puts the tokens and groups of `config` in force, where it has any; the error says why those
    /// from before still are.
    fn reload(&self, _config: &Config) -> Result<(), String> {
        Ok(())
    }
    /// Ends by `deadline`, deliveries in hand included.
    fn stop(self: Box<Self>, deadline: Instant);
}
