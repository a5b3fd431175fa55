//! What a gateway declares on the broker: exchanges, its three queues, the dead letters. The table
//! of DESIGN.md, section 5, as data.

use log::{error, warn};

use super::amqp::{AmqpError, Argument, Channel, ExchangeKind, Link, Result};
use super::{DIRECT_EXCHANGE, Queue, TOPIC_EXCHANGE};
use crate::ids::UserId;

/// Where bodies that do not parse go.
pub const DEAD_LETTER_EXCHANGE: &str = "im.dead-letter";
/// Where they stay; it is shared by all gateways.
pub const DEAD_LETTER_QUEUE: &str = "queue.dead-letter";

const MAX_DEAD_LETTERS: i64 = 10_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
/// Presence is stale a moment later anyway.
const PRESENCE_TTL_MS: i64 = 60_000;

/// Whatever the virtual host's default is: a quorum queue cannot be deleted `if-unused`, and knows
/// no exclusive consumer.
const CLASSIC: (&str, Argument) = ("x-queue-type", Argument::Text("classic"));
/// The exchanges whose bindings bring live messages.
const WATCHED: [&str; 2] = [DIRECT_EXCHANGE, TOPIC_EXCHANGE];

/// The names of what is one gateway's own.
#[derive(Debug, Clone)]
pub struct Topology {
    gateway_id: String,
}

impl Topology {
    pub fn new(gateway_id: impl Into<String>) -> Self {
        Self {
            gateway_id: gateway_id.into(),
        }
    }

    pub fn queue(&self, queue: Queue) -> String {
        format!("queue.gateway.{}.{}", self.gateway_id, queue.name())
    }

    /// Declares everything but the bindings of users. What exists with other arguments is
    /// `Refused`, with its name.
    pub fn declare(&self, link: &mut Link) -> Result<Watched> {
        let channel = declare_shared(link)?;
        // Before all bindings: who deletes an exchange after this takes its marker too.
        let watched = self.mark(link)?;
        self.declare_queues(&channel)?;
        Ok(watched)
    }

    fn declare_queues(&self, channel: &Channel) -> Result<()> {
        for queue in Queue::ALL {
            let name = self.queue(queue);
            channel.declare_queue(&name, &arguments(queue))?;
            if let Some(key) = fixed_key(queue) {
                channel.bind(&name, TOPIC_EXCHANGE, key)?;
            }
        }
        Ok(())
    }

    /// AMQP tells nobody that an exchange was deleted and that all its bindings went with it, and
    /// the next one who declares it, another gateway perhaps, hides it: hence the markers.
    fn mark(&self, link: &mut Link) -> Result<Watched> {
        let channel = link.channel()?;
        for exchange in WATCHED {
            match channel.declare_marker(&self.marker(exchange), exchange) {
                Err(AmqpError::Refused(reason)) => {
                    warn!("A deleted exchange is noticed only while it is missing: {reason}");
                    return Ok(Watched::Exchanges);
                }
                marked => marked?,
            }
        }
        Ok(Watched::Markers)
    }

    /// Looks whether the exchanges are those that were declared, and `Lost` says that one is not;
    /// everything else that may have been deleted is declared again.
    pub fn look(&self, link: &mut Link, watched: Watched) -> Result<()> {
        let channel = link.channel()?;
        for exchange in WATCHED {
            match watched {
                Watched::Markers => channel.expect_exchange(&self.marker(exchange)),
                Watched::Exchanges => channel.expect_exchange(exchange),
            }?;
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

    /// Deletes the three queues, with the bindings that a crash may have left; `InUse` when
    /// somebody consumes from one.
    pub fn delete(&self, channel: &Channel) -> Result<()> {
        Queue::ALL
            .into_iter()
            .try_for_each(|queue| channel.delete_unused_queue(&self.queue(queue)))
    }

    /// Deletes all that is this gateway's.
    pub fn delete_all(&self, channel: &Channel, watched: Watched) -> Result<()> {
        self.delete(channel)?;
        match watched {
            Watched::Markers => WATCHED
                .into_iter()
                .try_for_each(|exchange| channel.delete_exchange(&self.marker(exchange))),
            Watched::Exchanges => Ok(()),
        }
    }

    /// Named like the queues, for brokers where a gateway may declare nothing else.
    fn marker(&self, exchange: &str) -> String {
        format!("queue.gateway.{}.watches.{exchange}", self.gateway_id)
    }
}

/// What tells that an exchange was deleted.
#[derive(Debug, Clone, Copy)]
pub enum Watched {
    Markers,
    /// This gateway may not bind markers. Who declares an exchange anew before the next look hides
    /// that it was deleted.
    Exchanges,
}

/// Declares what all gateways and publishers share, so that none depends on another's start;
/// returns a channel.
pub fn declare_shared(link: &mut Link) -> Result<Channel> {
    let mut channel = link.channel()?;
    channel.declare_exchange(DIRECT_EXCHANGE, ExchangeKind::Direct)?;
    channel.declare_exchange(TOPIC_EXCHANGE, ExchangeKind::Topic)?;
    channel.declare_exchange(DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout)?;
    let arguments = [
        ("x-max-length", Argument::Number(MAX_DEAD_LETTERS)),
        CLASSIC,
    ];
    match channel.declare_queue(DEAD_LETTER_QUEUE, &arguments) {
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

/// What a queue is bound to [`TOPIC_EXCHANGE`] with; the bindings of `single` follow the users.
fn fixed_key(queue: Queue) -> Option<&'static str> {
    match queue {
        Queue::Single => None,
        Queue::Group => Some("group.#"),
        Queue::Presence => Some("presence.#"),
    }
}

fn arguments(queue: Queue) -> Vec<(&'static str, Argument)> {
    let ttl = if queue == Queue::Presence {
        PRESENCE_TTL_MS
    } else {
        DAY_MS
    };
    let mut arguments = vec![
        ("x-message-ttl", Argument::Number(ttl)),
        ("x-expires", Argument::Number(DAY_MS)),
        CLASSIC,
    ];
    // RabbitMQ dead-letters what expires as well, so presence must have no dead letters.
    if queue != Queue::Presence {
        arguments.push((
            "x-dead-letter-exchange",
            Argument::Text(DEAD_LETTER_EXCHANGE),
        ));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_named_after_the_gateway() {
        let names = Queue::ALL.map(|queue| Topology::new("g1").queue(queue));
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
            let arguments = arguments(queue);
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
