//! One queue's consumer thread: takes what RabbitMQ delivers, hands it on, acknowledges it.
//!
//! Invariant: a delivery is settled by the thread that received it, on the channel that brought
//! it. After a reconnect the same tag names another message, and acknowledging the old one would
//! lose that; here the [`Consumer`] borrows its channel and the deliveries in hand live in
//! [`ConsumerLoop`], so that all of them end with their connection.
//!
//! The thread waits for deliveries and for nothing else: what a delivery still needs from the User
//! Service is asked for, and the deliverer is woken when it is answered.

use std::time::{Duration, Instant};

use log::warn;

use super::amqp::{AmqpDelivery, Channel, Consumer, Result};
use super::deliver::{Deliverer, Disposition};
use crate::threads::StopSignal;

/// How long a delivery may wait for its acknowledgement, which then goes for many.
const ACK_WITHIN: Duration = Duration::from_millis(50);
/// How many waiting deliveries are enqueued before the sockets are written to. It stays below the
/// default `session.send_queue`: a connection that gets all of them still has room.
const BATCH: usize = 250;

/// Consumes until told to quit, and then delivers and acknowledges what it had received; or until its
/// queue, channel or connection is lost. Calls `started` once the queue is ours.
pub fn run(
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    deliverer: Deliverer,
    quit: &StopSignal,
    started: impl FnOnce(),
) -> Result<()> {
    let consumer = channel.consume(queue, prefetch)?;
    started();
    let mut run = ConsumerLoop {
        queue,
        consumer: &consumer,
        deliverer,
        unacked: 0,
        last: None,
        ack_by: None,
        // A quarter: the broker sends on while the acknowledgement is under way.
        ack_at: usize::from(prefetch / 4).max(1),
    };
    run.until(quit)?;
    run.finish()
}

struct ConsumerLoop<'c> {
    queue: &'c str,
    consumer: &'c Consumer<'c>,
    deliverer: Deliverer,
    /// How many deliveries are done and not yet acknowledged: all up to `last`.
    unacked: usize,
    last: Option<AmqpDelivery>,
    /// When they are to be acknowledged, if there are any.
    ack_by: Option<Instant>,
    ack_at: usize,
}

impl ConsumerLoop<'_> {
    fn until(&mut self, quit: &StopSignal) -> Result<()> {
        loop {
            let wait = self.ack_due_in().min(self.deliverer.due_in());
            match self.consumer.receive(quit, self.deliverer.woken(), wait)? {
                Some(first) => self.batch(first)?,
                None if quit.is_given() => return Ok(()),
                None => self.deliverer.flush(),
            }
            if self.unacked >= self.ack_at || self.ack_due_in().is_zero() {
                self.ack()?;
            }
        }
    }

    /// Takes no more, and delivers and acknowledges what has been received already.
    fn finish(&mut self) -> Result<()> {
        self.consumer.cancel()?;
        while let Some(delivery) = self.consumer.receive_rest()? {
            self.settle(delivery)?;
        }
        self.deliverer.flush();
        self.ack()
    }

    /// Enqueues this delivery and what waits behind it, and then writes once.
    fn batch(&mut self, first: AmqpDelivery) -> Result<()> {
        self.settle(first)?;
        for _ in 1..BATCH {
            match self.consumer.receive_now()? {
                Some(next) => self.settle(next)?,
                None => break,
            }
        }
        self.deliverer.flush();
        Ok(())
    }

    fn settle(&mut self, delivery: AmqpDelivery) -> Result<()> {
        match self.deliverer.enqueue(&delivery.delivery()) {
            Disposition::Ack => {
                let ack_by = || Instant::now() + ACK_WITHIN;
                self.ack_by.get_or_insert_with(ack_by);
                self.last = Some(delivery);
                self.unacked += 1;
                Ok(())
            }
            Disposition::Reject(reason) => {
                warn!("Dead letter: queue={}, reason={reason}", self.queue);
                // First what came before it, written and acknowledged: acknowledging up to a later
                // one covers only what is not settled yet, but up to an earlier one must not come
                // to cover this.
                self.deliverer.flush();
                self.ack()?;
                self.consumer.reject(delivery)
            }
        }
    }

    /// How long an acknowledgement may wait.
    fn ack_due_in(&self) -> Duration {
        let due_in = |by: Instant| by.saturating_duration_since(Instant::now());
        self.ack_by.map_or(Duration::MAX, due_in)
    }

    fn ack(&mut self) -> Result<()> {
        (self.unacked, self.ack_by) = (0, None);
        let last = self.last.take();
        last.map_or(Ok(()), |last| self.consumer.ack_up_to(last))
    }
}
