//! RabbitMQ through amiquip, which is named in this file alone, so that it can be replaced; that
//! makes it longer than other files. What amiquip 0.4.2 would let happen, and this wrapper does
//! not: an `open`, `close` or drop that hangs on a broker that stalls, a connection without
//! heartbeats, an error that shows the password, a delivery that ends the connection.
//!
//! A [`Link`] is one connection, a [`Channel`] one channel of it. Calls that wait for the broker
//! have no timeout of their own: they end after two heartbeats without a sign of life, or at once
//! when the link is cut.

mod confirms;
mod error;
mod open;
mod resolve;
mod sanitize;
mod socket;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use amiquip::{
    AmqpProperties, AmqpValue, Auth, Confirm, ConfirmPayload, Connection,
    ConnectionBlockedNotification, ConnectionOptions, ConnectionTuning, ConsumerMessage,
    ConsumerOptions, Error, ExchangeDeclareOptions, ExchangeType, FieldTable, Publish,
    QueueDeclareOptions, QueueDeleteOptions,
};
use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError, bounded, select};

pub use confirms::Confirms;
pub use error::{AmqpError, Result};
pub use open::Opener;
pub use socket::Cutter;

use super::{Delivery, Publication};
use crate::threads::StopSignal;

impl amiquip::IoStream for socket::Socket {}

/// One connection to the broker.
pub struct Link {
    /// `None` only between `close` and drop.
    connection: Option<Connection>,
    cutter: Arc<Cutter>,
}

impl Link {
    pub fn channel(&mut self) -> Result<Channel> {
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| lost("the link is closed"))?;
        let channel = connection
            .open_channel(None)
            .map_err(|e| told(e, "opening a channel"))?;
        Ok(Channel(channel))
    }

    /// Tells, from now on, whether the broker takes no publications (a memory or disk alarm).
    pub fn alarm(&mut self) -> Result<Alarm> {
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| lost("the link is closed"))?;
        let news = connection
            .listen_for_connection_blocked()
            .map_err(|e| told(e, "listening for alarms"))?;
        Ok(Alarm {
            news,
            active: false,
        })
    }

    /// What ends the link at once, from any thread.
    pub fn cutter(&self) -> Arc<Cutter> {
        Arc::clone(&self.cutter)
    }

    /// Takes leave of the broker within `wait`, or else cuts the link. An error is the reason why
    /// the connection had ended before, if it had: amiquip tells it nowhere else.
    pub fn close(mut self, wait: Duration) -> Result<()> {
        let Some(connection) = self.connection.take() else {
            return Ok(());
        };
        let (result, closed) = bounded(1);
        let closer = thread::Builder::new()
            .name("amqp-close".into())
            .spawn(move || {
                // The receiver waits until this thread has ended.
                let _ = result.send(connection.close().map_err(|e| told(e, "connection")));
            });
        let Ok(closer) = closer else {
            return Err(lost("no thread for closing"));
        };
        let outcome = match closed.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {
                self.cutter.cut();
                Err(lost("no answer from the broker to close"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(lost("closing panicked")),
            Ok(outcome) => outcome,
        };
        // It ends now: it has answered, or its socket was cut.
        let _ = closer.join();
        outcome
    }
}

impl Drop for Link {
    /// Never waits for the broker: dropping amiquip's connection would.
    fn drop(&mut self) {
        self.cutter.cut();
    }
}

/// One channel. Its calls wait for the broker, save where they say otherwise; after an error it is
/// closed. Dropping it waits for the broker too, unless the link is closed or cut.
pub struct Channel(amiquip::Channel);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    Direct,
    Topic,
    Fanout,
}

/// The value of an `x-` argument of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    Number(i64),
    Text(&'static str),
}

impl Channel {
    /// Declares a durable exchange.
    pub fn declare_exchange(&self, name: &str, kind: ExchangeKind) -> Result<()> {
        let kind = match kind {
            ExchangeKind::Direct => ExchangeType::Direct,
            ExchangeKind::Topic => ExchangeType::Topic,
            ExchangeKind::Fanout => ExchangeType::Fanout,
        };
        let options = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let declared = self.0.exchange_declare(kind, name, options);
        declared
            .map(drop)
            .map_err(|e| told(e, &format!("declaring exchange {name}")))
    }

    /// Declares an exchange that nothing is published to, and that goes when `exchange` is deleted,
    /// also when that is declared again at once: it is its source, and has no other destination.
    pub fn declare_marker(&self, name: &str, exchange: &str) -> Result<()> {
        let options = ExchangeDeclareOptions {
            durable: false,
            auto_delete: true,
            internal: true,
            ..Default::default()
        };
        let declared = self.0.exchange_declare(ExchangeType::Fanout, name, options);
        declared
            .and_then(|_| self.0.exchange_bind(exchange, name, "", FieldTable::new()))
            .map_err(|e| told(e, &format!("declaring exchange {name}")))
    }

    /// `Lost` when there is no such exchange, which closes the channel.
    pub fn expect_exchange(&self, name: &str) -> Result<()> {
        let expected = self.0.exchange_declare_passive(name);
        expected
            .map(drop)
            .map_err(|e| told(e, &format!("looking for exchange {name}")))
    }

    /// Deletes the exchange, if there is one.
    pub fn delete_exchange(&self, name: &str) -> Result<()> {
        let deleted = self.0.exchange_delete(name, false);
        deleted.map_err(|e| told(e, &format!("deleting exchange {name}")))
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
        let declared = self.0.queue_declare(name, options);
        declared
            .map(drop)
            .map_err(|e| told(e, &format!("declaring queue {name}")))
    }

    /// Deletes the queue, if there is one; `InUse` when somebody consumes from it.
    pub fn delete_unused_queue(&self, name: &str) -> Result<()> {
        let options = QueueDeleteOptions {
            if_unused: true,
            if_empty: false,
        };
        let deleted = self.0.queue_delete(name, options);
        deleted
            .map(drop)
            .map_err(|e| told(e, &format!("deleting queue {name}")))
    }

    pub fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let bound = self.0.queue_bind(queue, exchange, key, FieldTable::new());
        bound.map_err(|e| told(e, &format!("binding queue {queue}")))
    }

    /// Binds without waiting. A refusal closes the channel, so that the next call that waits
    /// fails: one that succeeds confirms every bind before it.
    pub fn bind_nowait(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let sent = self
            .0
            .queue_bind_nowait(queue, exchange, key, FieldTable::new());
        sent.map_err(|e| told(e, &format!("binding queue {queue}")))
    }

    pub fn unbind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let unbound = self.0.queue_unbind(queue, exchange, key, FieldTable::new());
        unbound.map_err(|e| told(e, &format!("unbinding queue {queue}")))
    }

    /// Consumes from the queue alone, with at most `prefetch` deliveries not yet settled: amiquip
    /// keeps what comes in a queue without a bound of its own.
    pub fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer<'_>> {
        let what = format!("consuming from queue {queue}");
        self.0
            .qos(0, prefetch.max(1), false)
            .map_err(|e| told(e, &what))?;
        let options = ConsumerOptions {
            exclusive: true,
            ..Default::default()
        };
        let consumer = self
            .0
            .basic_consume(queue, options)
            .map_err(|e| told(e, &what))?;
        Ok(Consumer {
            channel: self,
            consumer,
        })
    }

    /// Publishes a persistent message without waiting.
    pub fn publish(&self, publication: &Publication) -> Result<()> {
        const PERSISTENT: u8 = 2;
        let properties = AmqpProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_type_(publication.kind.clone());
        let message =
            Publish::with_properties(&publication.body, &publication.routing_key, properties);
        let sent = self.0.basic_publish(&publication.exchange, message);
        sent.map_err(|e| {
            told(
                e,
                &format!("publishing to exchange {}", publication.exchange),
            )
        })
    }
}

/// The only consumer of a queue. It lends the channel, so a delivery can be settled only on the
/// channel that brought it, and never on the next connection's, where its tag names another one.
pub struct Consumer<'channel> {
    channel: &'channel Channel,
    consumer: amiquip::Consumer<'channel>,
}

/// What a consumer received.
#[expect(
    clippy::large_enum_variant,
    reason = "almost all that is received are deliveries"
)]
pub enum Received {
    Delivery(Inbound),
    /// Nothing, and the wait is over.
    Nothing,
    /// The signal to quit was given.
    Quit,
    /// After [`Consumer::cancel`]: this was all.
    End,
    /// The queue, the channel or the connection is gone.
    Lost(AmqpError),
}

impl Consumer<'_> {
    /// Receives `Nothing` when something comes through `woken`, too.
    pub fn receive(&self, quit: &StopSignal, woken: &Receiver<()>, wait: Duration) -> Received {
        select! {
            recv(self.consumer.receiver()) -> message => received(message.ok()),
            recv(quit.receiver()) -> _ => Received::Quit,
            recv(woken) -> _ => Received::Nothing,
            default(wait) => Received::Nothing,
        }
    }

    /// Receives without waiting.
    pub fn receive_now(&self) -> Received {
        match self.consumer.receiver().try_recv() {
            Err(TryRecvError::Empty) => Received::Nothing,
            message => received(message.ok()),
        }
    }

    /// Receives what came before the broker answered to [`Self::cancel`].
    pub fn receive_rest(&self) -> Received {
        received(self.consumer.receiver().recv().ok())
    }

    /// Acknowledges this delivery and all before it that are not settled, without waiting.
    pub fn ack_up_to(&self, last: Inbound) -> Result<()> {
        last.0
            .ack_multiple(&self.channel.0)
            .map_err(|e| told(e, "acknowledging"))
    }

    /// Hands the delivery to the queue's dead letters, without waiting.
    pub fn reject(&self, delivery: Inbound) -> Result<()> {
        delivery
            .0
            .reject(&self.channel.0, false)
            .map_err(|e| told(e, "rejecting"))
    }

    /// Asks the broker for no more deliveries.
    pub fn cancel(&self) -> Result<()> {
        self.consumer
            .cancel()
            .map_err(|e| told(e, "cancelling the consumer"))
    }
}

fn received(message: Option<ConsumerMessage>) -> Received {
    match message {
        Some(ConsumerMessage::Delivery(delivery)) => Received::Delivery(Inbound(delivery)),
        Some(ConsumerMessage::ClientCancelled) => Received::End,
        Some(ConsumerMessage::ServerCancelled) => Received::Lost(lost("the queue was deleted")),
        Some(
            ConsumerMessage::ServerClosedChannel(error)
            | ConsumerMessage::ServerClosedConnection(error),
        ) => Received::Lost(told(error, "consuming")),
        // A connection that breaks ends the receiver without a word.
        Some(ConsumerMessage::ClientClosedChannel | ConsumerMessage::ClientClosedConnection)
        | None => Received::Lost(lost("the connection ended")),
    }
}

/// A delivery that is to be settled.
pub struct Inbound(amiquip::Delivery);

impl Inbound {
    pub fn delivery(&self) -> Delivery<'_> {
        Delivery {
            routing_key: &self.0.routing_key,
            kind: self.0.properties.type_().as_deref().unwrap_or_default(),
            body: &self.0.body,
        }
    }
}

/// Whether the broker takes publications.
pub struct Alarm {
    news: Receiver<ConnectionBlockedNotification>,
    active: bool,
}

impl Alarm {
    pub fn is_active(&mut self) -> bool {
        for news in self.news.try_iter() {
            self.active = matches!(news, ConnectionBlockedNotification::Blocked(_));
        }
        self.active
    }
}

fn bad_login() -> AmqpError {
    AmqpError::Refused("login: wrong user or password, or no answer".into())
}

fn lost(text: &str) -> AmqpError {
    AmqpError::Lost(text.into())
}

/// Translates an error that came while `what` was being done. The variants of amiquip's errors
/// that hold a URL come from functions that are not used here.
fn told(error: Error, what: &str) -> AmqpError {
    match error {
        Error::ServerClosedChannel { code, message, .. }
        | Error::ServerClosedConnection { code, message } => {
            error::closed_by_broker(code, &message, what)
        }
        // amiquip says so of every connection that ends while the broker judges the login.
        Error::InvalidCredentials => bad_login(),
        other => AmqpError::Lost(format!("{what}: {other}")),
    }
}
