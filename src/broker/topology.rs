//! What a gateway declares on the broker: exchanges, its three queues, the dead letters. The table
//! of DESIGN.md, section 5, as data.

use super::amqp::{Argument, Channel, ExchangeKind, Result};
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

/// The names of one gateway's queues.
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
    pub fn declare(&self, channel: &Channel) -> Result<()> {
        declare_shared(channel)?;
        for queue in Queue::ALL {
            let name = self.queue(queue);
            channel.declare_queue(&name, &arguments(queue))?;
            if let Some(key) = fixed_key(queue) {
                channel.bind(&name, TOPIC_EXCHANGE, key)?;
            }
        }
        Ok(())
    }

    /// Deletes the three queues, with the bindings that a crash may have left; `InUse` when
    /// somebody consumes from one.
    pub fn delete(&self, channel: &Channel) -> Result<()> {
        Queue::ALL
            .into_iter()
            .try_for_each(|queue| channel.delete_unused_queue(&self.queue(queue)))
    }
}

/// Declares what all gateways and publishers share, so that none depends on another's start.
pub fn declare_shared(channel: &Channel) -> Result<()> {
    channel.declare_exchange(DIRECT_EXCHANGE, ExchangeKind::Direct)?;
    channel.declare_exchange(TOPIC_EXCHANGE, ExchangeKind::Topic)?;
    channel.declare_exchange(DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout)?;
    let bound = [("x-max-length", Argument::Number(MAX_DEAD_LETTERS))];
    channel.declare_queue(DEAD_LETTER_QUEUE, &bound)?;
    channel.bind(DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "")
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
            let dead_letters = arguments
                .iter()
                .any(|(key, _)| *key == "x-dead-letter-exchange");
            assert_eq!(dead_letters, queue != Queue::Presence);
        }
    }
}
