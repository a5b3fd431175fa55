//! Presence: who of this gateway's users is online, as the Presence Service is told.
//!
//! One thread tells it, in order for each user, the newest state only, and retries. It looks at
//! the registry when a user's turn comes, so that it does not matter in which order arrivals and
//! departures reach it. A connect never waits for the Presence Service.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use parking_lot::{Condvar, Mutex};

use crate::config;
use crate::ids::UserId;
use crate::registry::Registry;
use crate::services::proto::{RenewLeaseRequest, UserOfflineRequest, UserOnlineRequest};
use crate::services::{ServiceError, Services};
use crate::threads::{Threads, USUAL_STACK};

/// How often a lease is renewed before it would end. A Presence Service that was restarted has all
/// users again within a third of the lease: half of that finds the restart out, and half of it is
/// left to announce them, one after the other.
const RENEWALS: u32 = 6;
/// The wait after a failed call.
const RETRY: Duration = Duration::from_secs(1);

/// Told when a user has been gone for the grace.
type Gone = Box<dyn Fn(&UserId) + Send + Sync>;

/// The presence of this gateway's users.
pub struct Presence {
    shared: Arc<Shared>,
    thread: Arc<Threads>,
}

struct Shared {
    registry: Arc<Registry>,
    services: Arc<dyn Services>,
    gateway_id: String,
    lease: Duration,
    grace: Duration,
    gone: Gone,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    users: HashMap<UserId, User>,
    /// Whose turn comes when; an entry that is not the user's `due` is out of date.
    agenda: BinaryHeap<Reverse<(Instant, UserId)>>,
    /// A predecessor's lease is to be ended first.
    take_over: bool,
    /// The lease is this gateway's own, and not another one's with the same id.
    owned: bool,
    /// Why the last call failed, if it did.
    failure: Option<String>,
    stopped: bool,
}

struct User {
    /// The Presence Service has been told that the user is online.
    announced: bool,
    due: Instant,
}

/// What the thread does next.
enum Task {
    Look(UserId),
    RenewLease,
    TakeOver,
    Stop,
}

impl Presence {
    /// Starts the thread. `gone` is told of each user that has been gone for the grace.
    pub fn start(
        registry: Arc<Registry>,
        services: Arc<dyn Services>,
        gateway_id: &str,
        config: &config::Presence,
        gone: impl Fn(&UserId) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            registry,
            services,
            gateway_id: gateway_id.into(),
            lease: config.lease,
            grace: config.offline_grace,
            gone: Box::new(gone),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread: Arc<Threads> = Arc::default();
        thread.spawn("presence".into(), USUAL_STACK, {
            let shared = Arc::clone(&shared);
            move || shared.run()
        })?;
        Ok(Self { shared, thread })
    }

    /// The user has a connection more.
    pub fn arrived(&self, user: &UserId) {
        self.shared.schedule(user, Instant::now());
    }

    /// The user has a connection less.
    pub fn left(&self, user: &UserId) {
        if !self.shared.registry.holds(user) {
            self.shared
                .schedule(user, Instant::now() + self.shared.grace);
        }
    }

    /// This gateway's queues are its own: the lease of a predecessor that crashed is ended, so
    /// that its users who did not come back go offline.
    pub fn take_over(&self) {
        let mut state = self.shared.state.lock();
        (state.take_over, state.owned) = (true, true);
        self.shared.changed.notify_one();
    }

    /// Whether the last call succeeded, and if not, why.
    pub fn state(&self) -> Result<(), String> {
        self.shared.state.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// All of this gateway's users go offline at once, and the thread ends. At `deadline` it is left
    /// to the call that it waits for.
    pub fn stop(&self, deadline: Instant) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_one();
        if self.thread.join(deadline) > 0 {
            warn!("Presence Service not waited for any longer");
        }
    }
}

impl Shared {
    fn schedule(&self, user: &UserId, due: Instant) {
        let mut state = self.state.lock();
        state.schedule(user, due);
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut renew_at = Instant::now();
        // Whether the Presence Service may have forgotten this gateway.
        let mut in_doubt = true;
        loop {
            match self.next(renew_at) {
                Task::Stop => break,
                Task::TakeOver => {
                    if self.heed(self.renew(Duration::ZERO)).is_some() {
                        info!("Presence taken over: gateway_id={}", self.gateway_id);
                        renew_at = Instant::now();
                    } else {
                        self.state.lock().take_over = true;
                    }
                    in_doubt = true;
                }
                Task::RenewLease => match self.heed(self.renew(self.lease)) {
                    Some(known) => {
                        renew_at = Instant::now() + self.lease / RENEWALS;
                        if !known || in_doubt {
                            self.announce_everyone();
                        }
                        in_doubt = false;
                    }
                    None => {
                        renew_at = Instant::now() + RETRY;
                        in_doubt = true;
                    }
                },
                Task::Look(user) => self.look(&user),
            }
        }
        if !self.state.lock().owned {
            // It may be another gateway's, whose users stay.
            return warn!("Users not taken offline: the queues were never this gateway's own");
        }
        // Ends the lease: all of this gateway's users are offline with one call.
        if let Err(error) = self.renew(Duration::ZERO) {
            warn!("Users not taken offline, their lease will end: error={error}");
        }
    }

    /// Waits for the next task.
    fn next(&self, renew_at: Instant) -> Task {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if state.stopped {
                return Task::Stop;
            }
            if std::mem::take(&mut state.take_over) {
                return Task::TakeOver;
            }
            if now >= renew_at {
                return Task::RenewLease;
            }
            match state.agenda.peek() {
                Some(Reverse((due, _))) if *due <= now => {
                    if let Some(user) = state.pop() {
                        return Task::Look(user);
                    }
                }
                Some(Reverse((due, _))) => {
                    let wake_at = renew_at.min(*due);
                    self.changed.wait_until(&mut state, wake_at);
                }
                None => {
                    self.changed.wait_until(&mut state, renew_at);
                }
            }
        }
    }

    /// Tells the Presence Service how it stands with `user`, if it has not been told yet.
    fn look(&self, user: &UserId) {
        let announced = self
            .state
            .lock()
            .users
            .get(user)
            .is_some_and(|user| user.announced);
        let here = self.registry.holds(user);
        let (user_id, gateway_id) = (user.as_str().into(), self.gateway_id.clone());
        let told = match (here, announced) {
            (true, true) => return,
            (true, false) => self.services.user_online(UserOnlineRequest {
                user_id,
                gateway_id,
            }),
            (false, _) => {
                (self.gone)(user);
                self.services.user_offline(UserOfflineRequest {
                    user_id,
                    gateway_id,
                })
            }
        };
        if self.heed(told).is_none() {
            return self.retry(user);
        }
        debug!("Presence told: user={user}, online={here}");
        let mut state = self.state.lock();
        if here {
            if let Some(user) = state.users.get_mut(user) {
                user.announced = true;
            }
        } else if state
            .users
            .get(user)
            .is_some_and(|user| user.due <= Instant::now())
        {
            state.users.remove(user);
        } else if let Some(user) = state.users.get_mut(user) {
            user.announced = false;
        }
    }

    /// Waits before anyone is told anything again, and puts `user` back.
    fn retry(&self, user: &UserId) {
        let mut state = self.state.lock();
        if state
            .users
            .get(user)
            .is_some_and(|user| user.due <= Instant::now())
        {
            state.schedule(user, Instant::now() + RETRY);
        }
        let resume = Instant::now() + RETRY;
        while !state.stopped && !self.changed.wait_until(&mut state, resume).timed_out() {}
    }

    fn announce_everyone(&self) {
        let users = self.registry.users();
        info!("Presence announced: users={}", users.len());
        let mut state = self.state.lock();
        let now = Instant::now();
        for user in users {
            if let Some(user) = state.users.get_mut(&user) {
                user.announced = false;
            }
            state.schedule(&user, now);
        }
    }

    fn renew(&self, lease: Duration) -> Result<bool, ServiceError> {
        self.services.renew_lease(RenewLeaseRequest {
            gateway_id: self.gateway_id.clone(),
            // The configuration keeps it within a day.
            ttl_seconds: i32::try_from(lease.as_secs()).unwrap_or(i32::MAX),
        })
    }

    /// Remembers whether the Presence Service works, and logs when that changes.
    fn heed<T>(&self, told: Result<T, ServiceError>) -> Option<T> {
        let mut state = self.state.lock();
        match told {
            Ok(answer) => {
                if state.failure.take().is_some() {
                    info!("Presence Service works again");
                }
                Some(answer)
            }
            Err(error) => {
                let before = state.failure.replace(error.to_string());
                if before != state.failure {
                    warn!("Presence Service fails, will be retried: error={error}");
                }
                None
            }
        }
    }
}

impl State {
    fn schedule(&mut self, user: &UserId, due: Instant) {
        let entry = self.users.entry(user.clone()).or_insert(User {
            announced: false,
            due,
        });
        entry.due = due;
        self.agenda.push(Reverse((due, user.clone())));
    }

    /// Takes the first entry off the agenda, unless it is out of date.
    fn pop(&mut self) -> Option<UserId> {
        let Reverse((due, user)) = self.agenda.pop()?;
        self.users
            .get(&user)
            .is_some_and(|entry| entry.due == due)
            .then_some(user)
    }
}
