//! What the backend publishes: from RabbitMQ ([`amqp`]) or another [`source`] of deliveries, through
//! [`deliver`], into the outboxes of the connections that it is for.
//!
//! A *publication* goes to an exchange under a routing key. A *delivery* is one publication as a
//! consumer gets it from one of this gateway's three queues. *Acknowledging* a delivery says that
//! it is in the outboxes of all local recipients; a *dead letter* is one that does not parse.

pub mod amqp;
mod connection;
mod consume;
pub mod deliver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod groups;
#[cfg(test)]
mod rabbit_tests;
pub mod routes;
pub mod source;
pub mod supervisor;
#[cfg(test)]
pub(crate) mod support;
pub mod topology;
mod waiting;

use strum::IntoStaticStr;

pub use deliver::DeliveryContext;
pub use groups::Groups;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Queue {
    Single,
    Group,
    Presence,
}

impl Queue {
    pub const ALL: [Queue; 3] = [Queue::Single, Queue::Group, Queue::Presence];

    /// The last part of `queue.gateway.<gateway_id>.<name>`.
    pub fn name(self) -> &'static str {
        self.into()
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
