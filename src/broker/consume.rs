//! One queue's consumer thread: takes what RabbitMQ delivers, hands it on, acknowledges it.
//!
//! Invariant: a delivery is settled by the thread that received it, on the channel that brought
//! it. After a reconnect the same tag names another message, and acknowledging the old one would
//! lose that; here the [`Consumer`] borrows its channel and the deliveries in hand live in
//! [`Run`], so that all of them end with their connection.
//!
//! The thread waits for deliveries and for nothing else: what a delivery still needs from the User
//! Service is asked for, and the hand is woken when it is answered.

use std::time::{Duration, Instant};

use log::warn;

use super::amqp::{AmqpError, Channel, Consumer, Inbound};
use super::deliver::{Hand, Taken};
use crate::threads::StopSignal;

/// How long a delivery may wait for its acknowledgement, which then goes for many.
const ACK_WITHIN: Duration = Duration::from_millis(50);
/// How many waiting deliveries are enqueued before the sockets are written to. It stays below the
/// default `session.send_queue`: a connection that gets all of them still has room.
const BATCH: usize = 250;

/// Why a consumer came to its end.
#[derive(Debug)]
pub enum Ended {
    /// It was told to; what it had received is delivered and acknowledged.
    Quit,
    /// Its queue, channel or connection is gone, or was not to be had.
    Lost(AmqpError),
}

/// Consumes until told to quit, or until the channel is lost. Calls `started` once the queue is
/// ours.
pub fn run(
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    hand: Hand,
    quit: &StopSignal,
    started: impl FnOnce(),
) -> Ended {
    let consumer = match channel.consume(queue, prefetch) {
        Ok(consumer) => consumer,
        Err(error) => return Ended::Lost(error),
    };
    started();
    let unacked = Unacked {
        consumer: &consumer,
        last: None,
        count: 0,
        since: Instant::now(),
    };
    // A quarter: the broker sends on while the acknowledgement is under way.
    let ack_at = usize::from(prefetch / 4).max(1);
    let mut run = Run {
        queue,
        consumer: &consumer,
        hand,
        quit,
        unacked,
        ack_at,
    };
    match run.until_quit() {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

/// The deliveries that are done and not yet acknowledged: all up to `last`.
struct Unacked<'c> {
    consumer: &'c Consumer<'c>,
    last: Option<Inbound>,
    count: usize,
    /// When the first of them was done.
    since: Instant,
}

impl Unacked<'_> {
    fn push(&mut self, inbound: Inbound) {
        if self.last.replace(inbound).is_none() {
            self.since = Instant::now();
        }
        self.count += 1;
    }

    /// How long the next receive may wait.
    fn due_in(&self) -> Duration {
        match self.last {
            Some(_) => ACK_WITHIN.saturating_sub(self.since.elapsed()),
            None => Duration::MAX,
        }
    }

    fn ack(&mut self) -> Result<(), AmqpError> {
        self.count = 0;
        self.last
            .take()
            .map_or(Ok(()), |last| self.consumer.ack_up_to(last))
    }
}

struct Run<'c> {
    queue: &'c str,
    consumer: &'c Consumer<'c>,
    hand: Hand,
    quit: &'c StopSignal,
    unacked: Unacked<'c>,
    ack_at: usize,
}

/// A step either leads to the next one or ends the consumer.
type Step<T> = Result<T, Ended>;

impl From<AmqpError> for Ended {
    fn from(error: AmqpError) -> Self {
        Self::Lost(error)
    }
}

impl Run<'_> {
    fn until_quit(&mut self) -> Step<std::convert::Infallible> {
        loop {
            let wait = self.unacked.due_in().min(self.hand.due_in());
            let woken = self.hand.woken();
            match self.consumer.receive(self.quit, woken, wait)? {
                Some(first) => self.batch(first)?,
                None if self.quit.is_given() => return Err(self.finish()?),
                None => self.hand.flush(),
            }
            if self.unacked.count >= self.ack_at || self.unacked.due_in().is_zero() {
                self.unacked.ack()?;
            }
        }
    }

    /// Enqueues this delivery and what waits behind it, and then writes once.
    fn batch(&mut self, first: Inbound) -> Step<()> {
        self.settle(first)?;
        for _ in 1..BATCH {
            match self.consumer.receive_now()? {
                Some(next) => self.settle(next)?,
                None => break,
            }
        }
        self.hand.flush();
        Ok(())
    }

    fn settle(&mut self, inbound: Inbound) -> Step<()> {
        match self.hand.take(&inbound.delivery()) {
            Taken::Done => self.unacked.push(inbound),
            Taken::DeadLetter(reason) => {
                warn!("Dead letter: queue={}, reason={reason}", self.queue);
                // First what came before it, written and acknowledged: acknowledging up to a later
                // one covers only what is not settled yet, but up to an earlier one must not come
                // to cover this.
                self.hand.flush();
                self.unacked.ack()?;
                self.consumer.reject(inbound)?;
            }
        }
        Ok(())
    }

    /// Takes no more, and delivers and acknowledges what has been received already.
    fn finish(&mut self) -> Step<Ended> {
        self.consumer.cancel()?;
        while let Some(inbound) = self.consumer.receive_rest()? {
            self.settle(inbound)?;
        }
        self.hand.flush();
        self.unacked.ack()?;
        Ok(Ended::Quit)
    }
}
