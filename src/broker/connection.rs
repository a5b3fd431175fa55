//! One broker connection's life: declare, consume, bind, watch, take leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select, tick};

use super::amqp::{AmqpConnection, Channel, Result, lost, no_thread};
use super::consume::ConsumerLoop;
use super::deliver::DeliveryContext;
use super::routes::{Routes, Work};
use super::topology::{Topology, user_key};
use super::{DIRECT_EXCHANGE, Queue};
use crate::ids::UserId;
use crate::threads::{StopGuard, StopSignal, Threads, USUAL_STACK, contain};

/// How long the threads of a connection that failed may take to finish, and it to close,
/// before it is cut.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Channels that binds are dealt out to. RabbitMQ 3.10 takes 2,000 binds a second on one, 3,100 to
/// 4,300 on four, hardly more on sixteen; and half of that when each of them is waited for.
const BIND_CHANNELS: usize = 4;

/// A connection and its threads.
pub struct BrokerConnection {
    link: AmqpConnection,
    topology: Topology,
    threads: Arc<Threads>,
    /// For the threads.
    stop: (StopGuard, StopSignal),
    /// From the threads. `Ok`: a consumer has its queue. `Err`: one has ended, and why.
    news: (Sender<Result<()>>, Receiver<Result<()>>),
}

impl BrokerConnection {
    /// Declares the topology; `afresh` deletes the gateway's own queues first.
    pub fn declare(mut link: AmqpConnection, gateway_id: &str, afresh: bool) -> Result<Self> {
        Ok(Self {
            topology: Topology::declare(&mut link, gateway_id, afresh)?,
            link,
            threads: Arc::default(),
            stop: StopSignal::pair(),
            // Room for all that the consumers and `routes` tell: none waits where nobody listens.
            news: bounded(2 * (Queue::ALL.len() + 1)),
        })
    }

    /// Starts the consumers, and returns once all queues are ours.
    pub fn start_consumers(&mut self, deliver: &Arc<DeliveryContext>, prefetch: u16) -> Result<()> {
        for queue in Queue::ALL {
            let (channel, name) = (self.link.channel()?, self.topology.queue(queue));
            let (stop, tell) = (self.stop.1.clone(), self.news.0.clone());
            let deliverer = deliver.deliverer(queue);
            self.spawn(&format!("consume-{}", queue.name()), move || {
                let consumer = channel.consume(&name, prefetch)?;
                // Nobody listens any more when another consumer has ended.
                let _ = tell.send(Ok(()));
                ConsumerLoop::new(&name, consumer, prefetch, deliverer).run(&stop)
            })?;
        }
        self.news.1.iter().take(Queue::ALL.len()).collect()
    }

    /// Starts the `routes` thread.
    pub fn start_routes(&mut self, routes: Arc<Routes>) -> Result<()> {
        let channels = (0..BIND_CHANNELS).map(|_| self.link.channel());
        let channels = channels.collect::<Result<Vec<_>>>()?;
        let queue = self.topology.queue(Queue::Single);
        self.spawn("routes", move || {
            routes.serve(|work| match work {
                Work::Bind(users) => bind(&channels, &queue, users),
                Work::Unbind(user) => channels[0].unbind(&queue, DIRECT_EXCHANGE, &user_key(user)),
            })
        })
    }

    /// Waits: told to stop is `Ok`, anything lost an error. Looks every so often whether an
    /// exchange was deleted.
    pub fn watch(&mut self, stop: &StopSignal, exchange_poll_interval: Duration) -> Result<()> {
        let look = tick(exchange_poll_interval);
        loop {
            select! {
                recv(self.news.1) -> ended => return ended.map_err(|_| lost("no thread left"))?,
                recv(stop.receiver()) -> _ => return Ok(()),
                recv(look) -> _ => self.topology.look(&mut self.link)?,
            }
        }
    }

    /// Ends the threads and the connection, and answers with `outcome`, or with why the connection
    /// broke. After an `Ok` the queues are deleted.
    pub fn leave(mut self, outcome: Result<()>) -> Result<()> {
        drop(self.stop.0);
        while self.threads.join(Instant::now() + LEAVE_WITHIN) > 0 {
            // Otherwise whoever gave the signal to stop has a deadline of their own, and cuts.
            if outcome.is_err() {
                self.link.abort_handle().abort();
            }
        }
        if outcome.is_ok() {
            // What they hold is unread in the Message Service. If this fails, they expire.
            self.topology.delete(&self.link.channel()?)?;
        }
        // A connection that broke knows why; all that its threads saw is its end.
        self.link.close(LEAVE_WITHIN).and(outcome)
    }

    /// `work` owns its channel, so that it is closed before the thread's end is told.
    fn spawn(&self, name: &str, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let tell = self.news.0.clone();
        let run = move || {
            let ended = contain(work).unwrap_or_else(|| Err(lost("a thread panicked")));
            // Too early, or else nobody listens any more.
            let _ = tell.send(ended.and_then(|()| Err(lost("a thread ended too early"))));
        };
        let spawned = self.threads.spawn(name.into(), USUAL_STACK, run);
        spawned.map_err(no_thread)
    }
}

/// Binds users to the queue. RabbitMQ works off each channel by itself. All but each channel's last
/// bind go without waiting. The last one is waited for; its channel's order makes it confirm the
/// others.
fn bind(channels: &[Channel], queue: &str, users: &[UserId]) -> Result<()> {
    let share = users.len().div_ceil(channels.len()).max(1);
    let dealt = || channels.iter().zip(users.chunks(share));
    for (channel, users) in dealt() {
        for user in &users[1..] {
            channel.bind_nowait(queue, DIRECT_EXCHANGE, &user_key(user))?;
        }
    }
    for (channel, users) in dealt() {
        channel.bind(queue, DIRECT_EXCHANGE, &user_key(&users[0]))?;
    }
    Ok(())
}
