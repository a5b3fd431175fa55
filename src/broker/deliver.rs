//! From a delivery to the outboxes of the connections that it is for: decode, look up, enqueue.
//! Knows no broker; the consumers of RabbitMQ and of the in-process bus use it alike.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};

use super::groups::Groups;
use super::{Delivery, KIND_GROUP_MEMBERS_CHANGED, KIND_MESSAGE, KIND_SESSION_REVOKED, Queue};
use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::protocol::Push;
use crate::ids::{GroupId, UserId};
use crate::registry::Registry;
use crate::services::proto::{
    GroupMembersChanged, Message, PresenceEvent, PresenceStatus, SessionRevoked,
};
use crate::services::{ServiceError, Services};

/// What became of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in the outboxes of all local recipients: acknowledge it.
    Done,
    /// It can never be delivered, for this reason: reject it, once.
    DeadLetter(String),
    /// The User Service is needed and out of reach: take the same delivery again after a while.
    Later(ServiceError),
}

/// What every consumer shares.
pub struct Deliver {
    registry: Arc<Registry>,
    groups: Groups,
}

impl Deliver {
    /// `cache_ttl`: how long a group's member list is used.
    pub fn new(registry: Arc<Registry>, services: Arc<dyn Services>, cache_ttl: Duration) -> Self {
        let groups = Groups::new(services, Arc::clone(&registry), cache_ttl);
        Self { registry, groups }
    }

    /// The delivering hand of `queue`'s consumer thread.
    pub fn hand(self: &Arc<Self>, queue: Queue) -> Hand {
        Hand {
            deliver: Arc::clone(self),
            queue,
            touched: Vec::new(),
            recipients: Vec::new(),
        }
    }
}

/// Delivers what one queue holds. [`Hand::take`] enqueues only; [`Hand::flush`] writes, so that a
/// consumer that is behind can take many deliveries for one system call to each connection.
pub struct Hand {
    deliver: Arc<Deliver>,
    queue: Queue,
    /// The connections whose outboxes wait for [`Hand::flush`].
    touched: Vec<Arc<Connection>>,
    /// Those whom the delivery in hand is for; kept for its memory alone.
    recipients: Vec<Arc<Connection>>,
}

/// Why a delivery is not done.
enum Undone {
    Garbage(String),
    Later(ServiceError),
}

impl From<&str> for Undone {
    fn from(reason: &str) -> Self {
        Self::Garbage(reason.into())
    }
}

impl Hand {
    /// Enqueues a delivery for its recipients. A panic makes it a dead letter.
    pub fn take(&mut self, delivery: &Delivery<'_>) -> Taken {
        // `recipients` is cleared before each use, and `touched` is whole after each push.
        let outcome = catch_unwind(AssertUnwindSafe(|| match self.queue {
            Queue::Single => self.single(delivery),
            Queue::Group => self.group(delivery),
            Queue::Presence => self.presence(delivery),
        }));
        let reason = match outcome {
            Ok(Ok(())) => return Taken::Done,
            Ok(Err(Undone::Later(error))) => return Taken::Later(error),
            Ok(Err(Undone::Garbage(reason))) => reason,
            Err(_) => {
                error!("delivering panicked queue={}", self.queue.name());
                "delivering it panicked".into()
            }
        };
        if self.queue == Queue::Presence {
            // It has no dead letters: RabbitMQ would fill them with expired presence.
            warn!("presence event ignored reason={reason:?}");
            return Taken::Done;
        }
        Taken::DeadLetter(reason)
    }

    /// Writes what is enqueued to the sockets, as far as they take it. Never blocks.
    pub fn flush(&mut self) {
        for connection in self.touched.drain(..) {
            connection.flush();
        }
    }

    fn single(&mut self, delivery: &Delivery<'_>) -> Result<(), Undone> {
        let user = user_of("user.", delivery)?;
        match delivery.kind {
            "" | KIND_MESSAGE => {
                let message: Message = decode(delivery)?;
                let (from, to) = (message.from_user_id.as_str(), message.to_user_id.as_str());
                if message.id.is_empty() || UserId::new(from).is_err() || UserId::new(to).is_err() {
                    return Err("a message without valid id, sender or recipient".into());
                }
                if user.as_str() != from && user.as_str() != to {
                    return Err("the routing key names neither sender nor recipient".into());
                }
                let own_copy = user.as_str() == from;
                self.find(iter::once(&user));
                self.enqueue_with(|| Push::message(&message, own_copy));
            }
            KIND_SESSION_REVOKED => {
                let revoked: SessionRevoked = decode(delivery)?;
                if revoked.user_id != user.as_str() {
                    return Err("the routing key names another user".into());
                }
                let connections = self.deliver.registry.connections_of(&user);
                info!(
                    "session revoked user_id={:?} connections={}",
                    user.as_str(),
                    connections.len()
                );
                for connection in connections {
                    connection.close(CloseReason::SessionRevoked);
                }
            }
            _ => return Err("unknown type".into()),
        }
        Ok(())
    }

    fn group(&mut self, delivery: &Delivery<'_>) -> Result<(), Undone> {
        let id = delivery
            .routing_key
            .strip_prefix("group.")
            .unwrap_or_default();
        let group = GroupId::new(id).map_err(|_| "not a group's routing key")?;
        match delivery.kind {
            "" | KIND_MESSAGE => {
                let message: Message = decode(delivery)?;
                let sender = UserId::new(&message.from_user_id);
                let (Ok(sender), false) = (sender, message.id.is_empty()) else {
                    return Err("a message without valid id or sender".into());
                };
                if message.group_id != group.as_str() {
                    return Err("the routing key names another group".into());
                }
                let members = match self.deliver.groups.fresh(&group) {
                    Some(members) => members,
                    None => self.fetch(&group)?,
                };
                self.find(members.iter());
                self.enqueue_group(&message, &sender);
            }
            KIND_GROUP_MEMBERS_CHANGED => {
                let changed: GroupMembersChanged = decode(delivery)?;
                if changed.group_id != group.as_str() {
                    return Err("the routing key names another group".into());
                }
                if self.deliver.groups.outdate(&group) {
                    self.fetch(&group)?;
                }
            }
            _ => return Err("unknown type".into()),
        }
        Ok(())
    }

    fn presence(&mut self, delivery: &Delivery<'_>) -> Result<(), Undone> {
        let user = user_of("presence.", delivery)?;
        let event: PresenceEvent = decode(delivery)?;
        if event.user_id != user.as_str() {
            return Err("the routing key names another user".into());
        }
        let online = match event.status() {
            PresenceStatus::Online => true,
            PresenceStatus::Offline => false,
            PresenceStatus::Unspecified => return Err("unknown status".into()),
        };
        // Nobody can be connected under an impossible id, so those are left out.
        let watchers: Vec<_> = event
            .watcher_ids
            .iter()
            .filter_map(|id| UserId::new(id).ok())
            .collect();
        self.find(watchers.iter());
        self.enqueue_with(|| Push::presence(&user, online, event.timestamp));
        Ok(())
    }

    /// Asks the User Service. It may take seconds, for which nothing enqueued may wait.
    fn fetch(&mut self, group: &GroupId) -> Result<super::groups::Members, Undone> {
        self.flush();
        self.deliver.groups.fetch(group).map_err(Undone::Later)
    }

    /// Looks up the connections here of `users`.
    fn find<'a>(&mut self, users: impl Iterator<Item = &'a UserId>) {
        self.recipients.clear();
        self.deliver
            .registry
            .recipients(users, &mut self.recipients);
    }

    /// Enqueues one push, encoded once, for all recipients, if there are any.
    fn enqueue_with(&mut self, push: impl FnOnce() -> Push) {
        if self.recipients.is_empty() {
            return;
        }
        let push = push();
        for connection in self.recipients.drain(..) {
            enqueue(&mut self.touched, connection, &push);
        }
    }

    /// The same for a group message: the sender's own devices get it as their own copy.
    fn enqueue_group(&mut self, message: &Message, sender: &UserId) {
        if self.recipients.is_empty() {
            return;
        }
        let push = Push::group_message(message);
        let own_copy = push.as_own_copy();
        for connection in self.recipients.drain(..) {
            let push = if connection.user() == sender {
                &own_copy
            } else {
                &push
            };
            enqueue(&mut self.touched, connection, push);
        }
    }
}

/// Remembers the connection if this was the first frame in its outbox; otherwise whoever put the
/// first one there flushes this one too.
fn enqueue(touched: &mut Vec<Arc<Connection>>, connection: Arc<Connection>, push: &Push) {
    if connection.push(push) {
        touched.push(connection);
    }
}

fn user_of(prefix: &str, delivery: &Delivery<'_>) -> Result<UserId, Undone> {
    let id = delivery
        .routing_key
        .strip_prefix(prefix)
        .unwrap_or_default();
    UserId::new(id).map_err(|_| "not a user's routing key".into())
}

/// An empty body is a valid protobuf message without any field; the checks of ids find it.
fn decode<M: prost::Message + Default>(delivery: &Delivery<'_>) -> Result<M, Undone> {
    M::decode(delivery.body).map_err(|error| Undone::Garbage(format!("does not parse: {error}")))
}
