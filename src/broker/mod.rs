//! What the backend publishes: from RabbitMQ ([`amqp`]) or from the in-process bus ([`local`]),
//! through [`deliver`], into the outboxes of the connections that it is for.
//!
//! A *publication* goes to an exchange under a routing key. A *delivery* is one publication as a
//! consumer gets it from one of this gateway's three queues. *Acknowledging* a delivery says that
//! it is in the outboxes of all local recipients; a *dead letter* is one that does not parse.

pub mod amqp;
mod consume;
pub mod deliver;
#[cfg(test)]
pub(crate) mod fake;
mod fan_out;
mod groups;
pub mod local;
pub mod publisher;
#[cfg(test)]
mod rabbit_tests;
mod recipient;
pub mod routes;
mod session;
pub mod supervisor;
#[cfg(test)]
mod support;
pub mod topology;
mod waiting;

use std::fmt;
use std::time::Instant;

use crossbeam::channel::Receiver;

pub use deliver::Deliver;
pub use local::LocalBus;
pub use publisher::AmqpPublisher;
pub use routes::Routes;
pub use supervisor::{Settings, Supervisor};

pub use crate::config::Endpoint;

/// The direct exchange for what concerns one user, key `user.<user_id>`.
pub const DIRECT_EXCHANGE: &str = "im.direct";
/// The topic exchange for groups and presence, keys `group.<group_id>` and `presence.<user_id>`.
pub const TOPIC_EXCHANGE: &str = "im.topic";

/// The AMQP `type` property of a chat message. An empty one means the same.
pub const KIND_MESSAGE: &str = "message";
/// The AMQP `type` property of a [`SessionRevoked`](crate::services::proto::SessionRevoked) body.
pub const KIND_SESSION_REVOKED: &str = "session_revoked";
/// The AMQP `type` property of a
/// [`GroupMembersChanged`](crate::services::proto::GroupMembersChanged) body.
pub const KIND_GROUP_MEMBERS_CHANGED: &str = "group_members_changed";

/// The three queues of a gateway; each has a consumer thread of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    Single,
    Group,
    Presence,
}

impl Queue {
    pub const ALL: [Queue; 3] = [Queue::Single, Queue::Group, Queue::Presence];

    /// The last part of `queue.gateway.<gateway_id>.<name>`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Group => "group",
            Self::Presence => "presence",
        }
    }
}

/// One publication, as a consumer gets it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    pub routing_key: &'a str,
    /// The AMQP `type` property, empty where there is none.
    pub kind: &'a str,
    /// A protobuf message of the wire contract; `kind` and the queue say which.
    pub body: &'a [u8],
}

/// Something to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// [`DIRECT_EXCHANGE`] or [`TOPIC_EXCHANGE`].
    pub exchange: String,
    pub routing_key: String,
    /// The AMQP `type` property.
    pub kind: String,
    pub body: Vec<u8>,
}

/// Where the reference services publish: RabbitMQ or the in-process bus.
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

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in every queue that it is for.
    Published,
    /// Some queue that it is for had no room: to be published again after a while.
    Refused,
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
