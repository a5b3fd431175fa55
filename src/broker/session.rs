//! One broker connection's life: declare, consume, bind, watch, take leave.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select, tick};

use super::amqp::{AmqpError, Channel, Link};
use super::consume::{self, Ended};
use super::deliver::Deliver;
use super::routes::{Binder, Routes};
use super::topology::{Topology, Watched, user_key};
use super::{DIRECT_EXCHANGE, Queue};
use crate::ids::UserId;
use crate::threads::{StopGuard, StopSignal};

/// How long the threads of a session that failed may take to finish, and its connection to close,
/// before it is cut.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Channels that binds are dealt out to. RabbitMQ 3.10 takes 2,000 binds a second on one, 3,100 to
/// 4,300 on four, hardly more on sixteen; and half of that when each of them is waited for.
const LANES: usize = 4;
/// The three consumers and `routes`.
const THREADS: usize = Queue::ALL.len() + 1;

/// What a session works with.
pub struct Parts {
    pub topology: Topology,
    pub prefetch: u16,
    /// How often is looked whether the exchanges still are those that were declared.
    pub look_every: Duration,
    pub deliver: Arc<Deliver>,
    pub routes: Arc<Routes>,
}

/// What a thread of the session tells.
enum Event {
    /// A consumer has its queue.
    Started,
    Ended(Ended),
}

/// A session that has declared everything and consumes nothing yet.
pub struct Session<'p> {
    parts: &'p Parts,
    link: Link,
    watched: Watched,
}

impl<'p> Session<'p> {
    /// Declares the topology; `afresh` deletes the gateway's own queues first.
    pub fn declare(parts: &'p Parts, mut link: Link, afresh: bool) -> Result<Self, AmqpError> {
        if afresh {
            parts.topology.delete(&link.channel()?)?;
        }
        let watched = parts.topology.declare(&mut link)?;
        Ok(Self {
            parts,
            link,
            watched,
        })
    }

    /// Consumes until told to quit, and then deletes the queues; or until something is lost, which
    /// is the error. `up` is called once all queues are ours, and `lost` as soon as something is,
    /// before the threads are waited for, which may be in the middle of a call to a service.
    pub fn run(
        mut self,
        quit: &StopSignal,
        up: impl FnOnce(),
        lost: impl FnOnce(&AmqpError),
    ) -> Result<(), AmqpError> {
        let outcome = self.work(quit, up, lost);
        if outcome.is_ok() {
            // What they hold is unread in the Message Service. If this fails, they expire.
            let control = self.link.channel()?;
            self.parts.topology.delete_all(&control, self.watched)?;
        }
        let closed = self.link.close(LEAVE_WITHIN);
        // A connection that broke knows why; all that its threads saw is its end.
        outcome
            .and_then(|()| closed.clone())
            .map_err(|seen| closed.err().unwrap_or(seen))
    }

    /// Runs the threads and joins them.
    fn work(
        &mut self,
        quit: &StopSignal,
        up: impl FnOnce(),
        lost: impl FnOnce(&AmqpError),
    ) -> Result<(), AmqpError> {
        let (quitter, workers_quit) = StopSignal::pair();
        // Large enough for all that is told while nobody listens: no thread waits at its end.
        let (events, told) = bounded(4 * THREADS);
        let cutter = self.link.cutter();
        thread::scope(|scope| {
            let mut crew = Crew {
                parts: self.parts,
                scope,
                events,
                quit: workers_quit,
                alive: 0,
            };
            // Also after a panic: their thread would be waited for in vain.
            let routes = EndRoutes(&self.parts.routes);
            let outcome = crew.watch(&mut self.link, self.watched, &told, quit, up);
            drop(routes);
            if let Err(error) = &outcome {
                lost(error);
            }
            crew.dismiss(quitter, &told, outcome.is_err(), || cutter.cut());
            outcome
        })
    }
}

struct EndRoutes<'p>(&'p Routes);

impl Drop for EndRoutes<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The threads of a session.
struct Crew<'scope, 'env> {
    parts: &'env Parts,
    scope: &'scope Scope<'scope, 'env>,
    events: Sender<Event>,
    quit: StopSignal,
    alive: usize,
}

impl Crew<'_, '_> {
    /// Starts everything and waits: told to quit is `Ok`, anything lost an error.
    fn watch(
        &mut self,
        link: &mut Link,
        watched: Watched,
        told: &Receiver<Event>,
        quit: &StopSignal,
        up: impl FnOnce(),
    ) -> Result<(), AmqpError> {
        self.parts.routes.begin();
        for queue in Queue::ALL {
            self.start_consumer(queue, link.channel()?)?;
        }
        let lanes = (0..LANES).map(|_| link.channel());
        let binder = UserBinder {
            lanes: lanes.collect::<Result<_, _>>()?,
            queue: self.parts.topology.queue(Queue::Single),
        };
        let mut when_all_started = Some((up, binder));
        let mut started = 0;
        let look = tick(self.parts.look_every);
        loop {
            let event = select! {
                recv(told) -> event => event,
                recv(quit.receiver()) -> _ => return Ok(()),
                recv(look) -> _ => {
                    self.parts.topology.look(link, watched)?;
                    continue;
                }
            };
            match event {
                Ok(Event::Started) => {
                    started += 1;
                    if started >= Queue::ALL.len()
                        && let Some((up, binder)) = when_all_started.take()
                    {
                        self.start_routes(binder)?;
                        up();
                    }
                }
                Ok(Event::Ended(ended)) => {
                    self.alive -= 1;
                    return Err(match ended {
                        Ended::Lost(error) => error,
                        _ => AmqpError::Lost("a thread ended too early".into()),
                    });
                }
                // Not while this crew holds a sender.
                Err(_) => return Err(AmqpError::Lost("no thread left".into())),
            }
        }
    }

    fn start_consumer(&mut self, queue: Queue, channel: Channel) -> Result<(), AmqpError> {
        let name = self.parts.topology.queue(queue);
        let (prefetch, quit) = (self.parts.prefetch, self.quit.clone());
        let hand = self.parts.deliver.hand(queue);
        let events = self.events.clone();
        self.spawn(format!("consume-{}", queue.name()), move || {
            let started = || drop(events.send(Event::Started));
            consume::run(&channel, &name, prefetch, hand, &quit, started)
        })
    }

    fn start_routes(&mut self, mut binder: UserBinder) -> Result<(), AmqpError> {
        let routes = Arc::clone(&self.parts.routes);
        self.spawn("routes".into(), move || match routes.serve(&mut binder) {
            Ok(()) => Ended::Quit,
            Err(error) => Ended::Lost(error),
        })
    }

    /// `work` owns its channel, so that it is closed before the thread's end is told.
    fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce() -> Ended + Send + 'static,
    ) -> Result<(), AmqpError> {
        let events = self.events.clone();
        let run = move || {
            let ended = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Ended::Lost(AmqpError::Lost("a thread panicked".into())));
            // It is not told to nobody: the receiver lives until this thread is joined.
            let _ = events.send(Event::Ended(ended));
        };
        let spawned: io::Result<_> = thread::Builder::new()
            .name(name)
            .spawn_scoped(self.scope, run);
        spawned.map_err(|error| AmqpError::Lost(format!("no thread: {error}")))?;
        self.alive += 1;
        Ok(())
    }

    /// Tells the threads to quit and waits for them. After a failure they are not waited for long:
    /// then `cut` ends what they wait for. Otherwise whoever gave the signal to quit has a
    /// deadline of their own, and cuts.
    fn dismiss(self, quitter: StopGuard, told: &Receiver<Event>, failed: bool, cut: impl FnOnce()) {
        drop(quitter);
        if !failed {
            return;
        }
        let deadline = Instant::now() + LEAVE_WITHIN;
        let mut alive = self.alive;
        while alive > 0 {
            match told.recv_deadline(deadline) {
                Ok(Event::Ended(_)) => alive -= 1,
                Ok(Event::Started) => {}
                Err(_) => return cut(),
            }
        }
    }
}

/// Binds users to the `single` queue.
struct UserBinder {
    /// RabbitMQ works off each channel by itself.
    lanes: Vec<Channel>,
    queue: String,
}

impl Binder for UserBinder {
    type Error = AmqpError;

    /// All but each lane's last bind go without waiting. The last one is waited for; its channel's
    /// order makes it confirm the others.
    fn bind(&mut self, users: &[UserId]) -> Result<(), AmqpError> {
        let share = users.len().div_ceil(self.lanes.len()).max(1);
        let dealt = || self.lanes.iter().zip(users.chunks(share));
        for (lane, users) in dealt() {
            for user in &users[1..] {
                lane.bind_nowait(&self.queue, DIRECT_EXCHANGE, &user_key(user))?;
            }
        }
        for (lane, users) in dealt() {
            lane.bind(&self.queue, DIRECT_EXCHANGE, &user_key(&users[0]))?;
        }
        Ok(())
    }

    fn unbind(&mut self, user: &UserId) -> Result<(), AmqpError> {
        self.lanes[0].unbind(&self.queue, DIRECT_EXCHANGE, &user_key(user))
    }
}
