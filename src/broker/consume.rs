//! One queue's consumer thread: takes what RabbitMQ delivers, hands it on, acknowledges it.
//!
//! Invariant: a delivery is settled by the thread that received it, on the channel that brought
//! it. After a reconnect the same tag names another message, and acknowledging the old one would
//! lose that; here the [`Consumer`] borrows its channel and the deliveries in hand live in
//! [`ConsumerLoop`], so that all of them end with their connection.
//!
//! The thread waits for deliveries, and never long for anything else: what a delivery still needs from the
//! User Service is asked for, and the answer ends the wait.

use std::time::{Duration, Instant};

use log::warn;

use super::amqp::{AmqpDelivery, Consumer, Result};
use super::deliver::Deliverer;
use crate::threads::StopSignal;

/// How long a delivery may wait for its acknowledgement, which then goes for many.
const ACK_WITHIN: Duration = Duration::from_millis(50);
/// How many bytes of waiting deliveries are enqueued before the sockets are written to. Each counts as 1 KiB
/// at least, so that they are 250 at most. Both are below the defaults of `session.send_queue_bytes` and
/// `session.send_queue`: a connection that gets all of them still has room.
const BATCH: usize = 250 << 10;

/// A queue's consumer, with the deliveries that it has in hand.
pub struct ConsumerLoop<'channel> {
    queue: &'channel str,
    /// Dropped before the consumer, which waits for the broker: what is enqueued is written first.
    deliverer: Deliverer,
    consumer: Consumer<'channel>,
    /// How many deliveries are done and not yet acknowledged: all up to `last`.
    unacked: usize,
    last: Option<AmqpDelivery>,
    /// When they are to be acknowledged, if there are any.
    ack_by: Option<Instant>,
    ack_at: usize,
}

impl<'channel> ConsumerLoop<'channel> {
    /// Of `queue`, which `consumer` has with this `prefetch`.
    pub fn new(
        queue: &'channel str,
        consumer: Consumer<'channel>,
        prefetch: u16,
        deliverer: Deliverer,
    ) -> Self {
        Self {
            queue,
            deliverer,
            consumer,
            unacked: 0,
            last: None,
            ack_by: None,
            // A quarter: the broker sends on while the acknowledgement is under way.
            ack_at: usize::from(prefetch / 4).max(1),
        }
    }

    /// Consumes until told to quit, and then delivers and acknowledges what it had received; or until
    /// its queue, channel or connection is lost.
    pub fn run(mut self, quit: &StopSignal) -> Result<()> {
        while !quit.is_given() {
            let source = self.consumer.receiver();
            self.deliverer.wait(source, quit, self.ack_due_in());
            self.batch()?;
            if self.unacked >= self.ack_at || self.ack_due_in().is_zero() {
                self.ack()?;
            }
        }
        self.consumer.cancel()?;
        while let Some(delivery) = self.consumer.receive_rest()? {
            self.settle(delivery)?;
        }
        self.deliverer.flush();
        self.ack()
    }

    /// Enqueues what has been received, and then writes once.
    fn batch(&mut self) -> Result<()> {
        let mut bytes = 0;
        while bytes < BATCH
            && let Some(delivery) = self.consumer.receive()?
        {
            bytes += delivery.delivery().body.len().max(1 << 10);
            self.settle(delivery)?;
        }
        self.deliverer.flush();
        Ok(())
    }

    fn settle(&mut self, delivery: AmqpDelivery) -> Result<()> {
        match self.deliverer.enqueue(&delivery.delivery()) {
            Ok(()) => {
                let ack_by = || Instant::now() + ACK_WITHIN;
                self.ack_by.get_or_insert_with(ack_by);
                self.last = Some(delivery);
                self.unacked += 1;
                Ok(())
            }
            Err(reason) => {
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
