//! What a gateway declares on the broker: exchanges, its three queues, the dead letters.

use log::{error, warn};

use super::amqp::Argument::{self, Number, Text};
use super::amqp::{AmqpConnection, AmqpError, Channel, ExchangeKind, Result};
use super::{DIRECT_EXCHANGE, Queue, TOPIC_EXCHANGE};
use crate::ids::UserId;

/// Where bodies that do not parse go.
pub const DEAD_LETTER_EXCHANGE: &str = "im.dead-letter";
/// Where they stay; it is shared by all gateways.
pub const DEAD_LETTER_QUEUE: &str = "queue.dead-letter";

type QueueArgument = (&'static str, Argument);

const DAY_MS: Argument = Number(24 * 60 * 60 * 1_000);
const EXPIRES: QueueArgument = ("x-expires", DAY_MS);
const TTL: QueueArgument = ("x-message-ttl", DAY_MS);
/// Presence is stale a moment later anyway.
const PRESENCE_TTL: QueueArgument = ("x-message-ttl", Number(60_000));
const MAX_DEAD_LETTERS: QueueArgument = ("x-max-length", Number(10_000));
/// Whatever the virtual host's default is: a quorum queue cannot be deleted `if-unused`, and knows
/// no exclusive consumer.
const CLASSIC: QueueArgument = ("x-queue-type", Text("classic"));
/// RabbitMQ dead-letters what expires as well, so presence must have no dead letters.
const CHAT: &[QueueArgument] = &[TTL, EXPIRES, CLASSIC, DEAD_LETTERS];
const DEAD_LETTERS: QueueArgument = ("x-dead-letter-exchange", Text(DEAD_LETTER_EXCHANGE));

/// The exchanges whose bindings bring live messages.
const WATCHED: [&str; 2] = [DIRECT_EXCHANGE, TOPIC_EXCHANGE];

/// What is one gateway's own.
pub struct Topology {
    gateway_id: String,
    /// A deleted exchange is noticed by its marker, which went with it. Otherwise this gateway may
    /// not bind markers: who declares an exchange anew before the next look hides that it was
    /// deleted.
    marked: bool,
}

impl Topology {
    pub fn queue(&self, queue: Queue) -> String {
        format!("queue.gateway.{}.{}", self.gateway_id, queue.name())
    }

    /// Declares everything but the bindings of users; `afresh` deletes the gateway's own queues
    /// first. What exists with other arguments is `Refused`, with its name.
    pub fn declare(link: &mut AmqpConnection, gateway_id: &str, afresh: bool) -> Result<Self> {
        let mut topology = Self {
            gateway_id: gateway_id.into(),
            marked: false,
        };
        if afresh {
            topology.delete(&link.channel()?)?;
        }
        let channel = declare_shared(link)?;
        // Before all bindings: who deletes an exchange after this takes its marker too.
        topology.marked = topology.mark(&link.channel()?)?;
        topology.declare_queues(&channel)?;
        Ok(topology)
    }

    fn declare_queues(&self, channel: &Channel) -> Result<()> {
        for queue in Queue::ALL {
            let name = self.queue(queue);
            let (key, arguments) = declaration(queue);
            channel.declare_queue(&name, arguments)?;
            if let Some(key) = key {
                channel.bind(&name, TOPIC_EXCHANGE, key)?;
            }
        }
        Ok(())
    }

    /// AMQP tells nobody that an exchange was deleted and that all its bindings went with it, and
    /// the next one who declares it, another gateway perhaps, hides it: hence the markers. Answers
    /// whether they may be bound.
    fn mark(&self, channel: &Channel) -> Result<bool> {
        let mark = |exchange| channel.declare_marker(&self.marker(exchange), exchange);
        match WATCHED.into_iter().try_for_each(mark) {
            Err(AmqpError::Refused(reason)) => {
                warn!("A deleted exchange is noticed only while it is missing: {reason}");
                Ok(false)
            }
            marked => marked.map(|()| true),
        }
    }

    /// Looks whether the exchanges are those that were declared, and `Lost` says that one is not;
    /// everything else that may have been deleted is declared again.
    pub fn look(&self, link: &mut AmqpConnection) -> Result<()> {
        let channel = link.channel()?;
        for exchange in WATCHED {
            let marker = self.marked.then(|| self.marker(exchange));
            channel.expect_exchange(marker.as_deref().unwrap_or(exchange))?;
        }
        match declare_shared(link) {
            // Live messages do not depend on it.
            Err(AmqpError::Refused(reason)) => {
                error!("Dead letters may be lost: {reason}");
                Ok(())
            }
            shared => self.declare_queues(&shared?),
        }
    }

    /// Deletes the three queues, with the bindings that a crash may have left, and the markers that
    /// were declared; `InUse` when somebody consumes from a queue.
    pub fn delete(&self, channel: &Channel) -> Result<()> {
        for queue in Queue::ALL {
            channel.delete_unused_queue(&self.queue(queue))?;
        }
        let mut marked = WATCHED.into_iter().filter(|_| self.marked);
        marked.try_for_each(|exchange| channel.delete_exchange(&self.marker(exchange)))
    }

    /// Named like the queues, for brokers where a gateway may declare nothing else.
    fn marker(&self, exchange: &str) -> String {
        format!("queue.gateway.{}.watches.{exchange}", self.gateway_id)
    }
}

/// Declares what all gateways and publishers share, so that none depends on another's start;
/// returns a channel.
pub fn declare_shared(link: &mut AmqpConnection) -> Result<Channel> {
    let mut channel = link.channel()?;
    channel.declare_exchange(DIRECT_EXCHANGE, ExchangeKind::Direct)?;
    channel.declare_exchange(TOPIC_EXCHANGE, ExchangeKind::Topic)?;
    channel.declare_exchange(DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout)?;
    match channel.declare_queue(DEAD_LETTER_QUEUE, &[MAX_DEAD_LETTERS, CLASSIC]) {
        // It was made where another type is the default: any keeps dead letters, and deleting it
        // would lose them. A refusal closes the channel.
        Err(AmqpError::Refused(reason)) if reason.contains("'x-queue-type'") => {
            channel = link.channel()?;
        }
        declared => declared?,
    }
    channel.bind(DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "")?;
    Ok(channel)
}

/// The routing key of what concerns `user` alone.
pub fn user_key(user: &UserId) -> String {
    format!("user.{user}")
}

/// What a queue is bound to [`TOPIC_EXCHANGE`] with, and its arguments. The bindings of `single`
/// follow the users.
fn declaration(queue: Queue) -> (Option<&'static str>, &'static [QueueArgument]) {
    match queue {
        Queue::Single => (None, CHAT),
        Queue::Group => (Some("group.#"), CHAT),
        Queue::Presence => (Some("presence.#"), &[PRESENCE_TTL, EXPIRES, CLASSIC]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_named_after_the_gateway() {
        let topology = Topology {
            gateway_id: "g1".into(),
            marked: false,
        };
        let names = Queue::ALL.map(|queue| topology.queue(queue));
        assert_eq!(
            names,
            [
                "queue.gateway.g1.single",
                "queue.gateway.g1.group",
                "queue.gateway.g1.presence"
            ]
        );
    }

    #[test]
    fn presence_alone_has_no_dead_letters_and_a_short_life() {
        for queue in Queue::ALL {
            let (_, arguments) = declaration(queue);
            let ttl = if queue == Queue::Presence {
                60_000
            } else {
                86_400_000
            };
            assert!(arguments.contains(&("x-message-ttl", Argument::Number(ttl))));
            assert!(arguments.contains(&("x-expires", Argument::Number(86_400_000))));
            assert!(arguments.contains(&("x-queue-type", Argument::Text("classic"))));
            let dead_letters = arguments
                .iter()
                .any(|(key, _)| *key == "x-dead-letter-exchange");
            assert_eq!(dead_letters, queue != Queue::Presence);
        }
    }
}
