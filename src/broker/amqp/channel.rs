//! One channel of a connection: declare, bind, consume.

use amiquip::{
    AmqpValue, ConsumerMessage, ConsumerOptions, ExchangeDeclareOptions, FieldTable,
    QueueDeclareOptions, QueueDeleteOptions,
};
use crossbeam::channel::{Receiver, TryRecvError};

use super::error::{Result, during, lost};
use crate::broker::Delivery;

pub use amiquip::ExchangeType as ExchangeKind;

/// One channel. Its calls wait for the broker, save where they say otherwise; after an error it is
/// closed. Dropping it waits for the broker too, unless the connection is closed or cut.
pub struct Channel(pub(super) amiquip::Channel);

/// The value of an `x-` argument of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    Number(i64),
    Text(&'static str),
}

impl Channel {
    /// Declares a durable exchange.
    pub fn declare_exchange(&self, name: &str, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let declared = self.0.exchange_declare(kind, name, options).map(drop);
        declared.map_err(during(format_args!("declaring exchange {name}")))
    }

    /// Declares an exchange that nothing is published to, and that goes when `exchange` is deleted,
    /// also when that is declared again at once: it is its source, and has no other destination.
    pub fn declare_marker(&self, name: &str, exchange: &str) -> Result<()> {
        let options = ExchangeDeclareOptions {
            auto_delete: true,
            internal: true,
            ..Default::default()
        };
        let declared = self.0.exchange_declare(ExchangeKind::Fanout, name, options);
        declared
            .and_then(|_| self.0.exchange_bind(exchange, name, "", FieldTable::new()))
            .map_err(during(format_args!("declaring exchange {name}")))
    }

    /// `Lost` when there is no such exchange, which closes the channel.
    pub fn expect_exchange(&self, name: &str) -> Result<()> {
        let expected = self.0.exchange_declare_passive(name).map(drop);
        expected.map_err(during(format_args!("looking for exchange {name}")))
    }

    /// Deletes the exchange, if there is one.
    pub fn delete_exchange(&self, name: &str) -> Result<()> {
        let deleted = self.0.exchange_delete(name, false);
        deleted.map_err(during(format_args!("deleting exchange {name}")))
    }

    /// Declares a durable queue.
    pub fn declare_queue(&self, name: &str, arguments: &[(&str, Argument)]) -> Result<()> {
        let arguments = arguments.iter().map(|&(key, value)| {
            let value = match value {
                Argument::Number(number) => AmqpValue::LongLongInt(number),
                Argument::Text(text) => AmqpValue::LongString(text.into()),
            };
            (key.to_owned(), value)
        });
        let options = QueueDeclareOptions {
            durable: true,
            arguments: arguments.collect(),
            ..Default::default()
        };
        let declared = self.0.queue_declare(name, options).map(drop);
        declared.map_err(during(format_args!("declaring queue {name}")))
    }

    /// Deletes the queue, if there is one; `InUse` when somebody consumes from it.
    pub fn delete_unused_queue(&self, name: &str) -> Result<()> {
        let options = QueueDeleteOptions {
            if_unused: true,
            ..Default::default()
        };
        let deleted = self.0.queue_delete(name, options).map(drop);
        deleted.map_err(during(format_args!("deleting queue {name}")))
    }

    pub fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let bound = self.0.queue_bind(queue, exchange, key, FieldTable::new());
        bound.map_err(during(format_args!("binding queue {queue}")))
    }

    /// Binds without waiting. A refusal closes the channel, so that the next call that waits
    /// fails: one that succeeds confirms every bind before it.
    pub fn bind_nowait(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let arguments = FieldTable::new();
        let sent = self.0.queue_bind_nowait(queue, exchange, key, arguments);
        sent.map_err(during(format_args!("binding queue {queue}")))
    }

    pub fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let unbound = self.0.queue_unbind(queue, exchange, key, FieldTable::new());
        unbound.map_err(during(format_args!("unbinding queue {queue}")))
    }

    /// Consumes from the queue alone, with at most `prefetch` deliveries not yet settled: amiquip
    /// keeps what comes in a queue without a bound of its own.
    pub fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer<'_>> {
        let limited = self.0.qos(0, prefetch.max(1), false);
        let options = ConsumerOptions {
            exclusive: true,
            ..Default::default()
        };
        let consumer = limited.and_then(|()| self.0.basic_consume(queue, options));
        let consumer = consumer.map_err(during(format_args!("consuming from queue {queue}")));
        consumer.map(Consumer)
    }
}

/// The only consumer of a queue. It lends the channel, so a delivery can be settled only on the
/// channel that brought it, and never on the next connection's, where its tag names another one.
pub struct Consumer<'channel>(amiquip::Consumer<'channel>);

/// A delivery, if there is one. An error says that the queue, the channel or the connection is gone.
type Received = Result<Option<AmqpDelivery>>;

impl Consumer<'_> {
    /// Where [`Self::receive`] finds something, to wait for it.
    pub fn receiver(&self) -> &Receiver<ConsumerMessage> {
        self.0.receiver()
    }

    /// Receives a delivery, if there is one, without waiting.
    pub fn receive(&self) -> Received {
        match self.0.receiver().try_recv() {
            Err(TryRecvError::Empty) => Ok(None),
            message => received(message.ok()),
        }
    }

    /// Receives what came before the broker answered to [`Self::cancel`], and then `None`: only then
    /// may the consumer be dropped, or amiquip ends the connection.
    pub fn receive_rest(&self) -> Received {
        received(self.0.receiver().recv().ok())
    }

    /// Acknowledges this delivery and all before it that are not settled, without waiting.
    pub fn ack_up_to(&self, last: AmqpDelivery) -> Result<()> {
        self.0.ack_multiple(last.0).map_err(during("acknowledging"))
    }

    /// Hands the delivery to the queue's dead letters, without waiting.
    pub fn reject(&self, delivery: AmqpDelivery) -> Result<()> {
        let rejected = self.0.reject(delivery.0, false);
        rejected.map_err(during("rejecting"))
    }

    /// Asks the broker for no more deliveries.
    pub fn cancel(&self) -> Result<()> {
        self.0.cancel().map_err(during("cancelling the consumer"))
    }
}

/// `None`: a connection that breaks ends the receiver without a word.
fn received(message: Option<ConsumerMessage>) -> Received {
    match message.unwrap_or(ConsumerMessage::ClientClosedConnection) {
        ConsumerMessage::Delivery(delivery) => Ok(Some(AmqpDelivery(delivery))),
        // This was all.
        ConsumerMessage::ClientCancelled => Ok(None),
        ConsumerMessage::ServerCancelled => Err(lost("the queue was deleted")),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(during("consuming")(error)),
        ConsumerMessage::ClientClosedChannel | ConsumerMessage::ClientClosedConnection => {
            Err(lost("the connection ended"))
        }
    }
}

/// A delivery that is to be settled.
pub struct AmqpDelivery(amiquip::Delivery);

impl AmqpDelivery {
    pub fn delivery(&self) -> Delivery<'_> {
        Delivery {
            routing_key: &self.0.routing_key,
            kind: self.0.properties.type_().as_deref().unwrap_or_default(),
            body: &self.0.body,
        }
    }
}
