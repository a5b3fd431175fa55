//! Where the services publish, as they see it: [`rabbit`](super::rabbit) or the in-process
//! [`bus`](super::bus).

use std::fmt;
use std::time::Instant;

use crossbeam::channel::Receiver;

pub use crate::broker::amqp::Outcome;

/// Something to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// [`DIRECT_EXCHANGE`](crate::broker::DIRECT_EXCHANGE) or
    /// [`TOPIC_EXCHANGE`](crate::broker::TOPIC_EXCHANGE).
    pub exchange: String,
    pub routing_key: String,
    /// The AMQP `type` property.
    pub kind: String,
    pub body: Vec<u8>,
}

/// RabbitMQ or the in-process bus.
pub trait Publisher: Send {
    /// Publishes without waiting for the answer: [`outcomes`](Self::outcomes) tells it under
    /// `ticket`, a number of the caller's. It may have to connect first, which takes some seconds
    /// at most.
    ///
    /// After an error, nothing is told any more of what was published before: the caller
    /// publishes it again.
    fn publish(&mut self, ticket: u64, publication: &Publication) -> Result<(), PublishError>;

    /// What became of publications, in any order. Waits for the first answer until `deadline`, or
    /// until something can be received from `wake`, which it takes. An error is as above.
    fn outcomes(
        &mut self,
        deadline: Instant,
        wake: &Receiver<()>,
    ) -> Result<Vec<(u64, Outcome)>, PublishError>;
}

/// Publishing did not work, or was not answered in time: publish the same again later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishError(pub String);

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PublishError {}
