//! Presence: who of this gateway's users is online, as the Presence Service is told.
//!
//! One thread tells it, several users at a time, in order for each of them, the newest state only,
//! and retries. It looks at the registry when a user's turn comes, so that it does not matter in
//! which order arrivals and departures reach it. A connect never waits for the Presence Service.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use parking_lot::{Condvar, Mutex};

use crate::client::failpoint;
use crate::config;
use crate::ids::UserId;
use crate::registry::Registry;
use crate::services::proto::{RenewLeaseRequest, UserOfflineRequest, UserOnlineRequest};
use crate::services::{ServiceError, Services};
use crate::threads::{Fatal, Threads, USUAL_STACK, supervise};

/// How often a lease is renewed before it would end. A Presence Service that was restarted has all
/// users again within a third of the lease: half of that finds the restart out, and half of it is
/// left to announce them.
const RENEWALS: u32 = 6;
/// Users of whom the Presence Service is told at a time. (2,000 who connect at once, or who are
/// announced again, cost it and this gateway half of what they do one by one.)
const AT_A_TIME: usize = 64;
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

/// A user whose turn it is, and when it was due: if that has changed since, another turn follows.
type Turn = (UserId, Instant);

/// What the thread does next.
enum Task {
    Look(Vec<Turn>),
    RenewLease,
    TakeOver,
    Stop,
}

impl Presence {
    /// Starts the thread. `gone` is told of each user that has been gone for the grace, and `fatal`
    /// if the thread cannot go on.
    pub fn start(
        registry: Arc<Registry>,
        services: Arc<dyn Services>,
        gateway_id: &str,
        config: &config::Presence,
        fatal: &Fatal,
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
            let (shared, fatal) = (Arc::clone(&shared), fatal.clone());
            move || supervise("presence", &fatal, || shared.run())
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
        self.look_at_overdue();
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
                Task::Look(turns) => self.look(turns),
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

    /// Whose turn was lost, should the thread have panicked, has another.
    fn look_at_overdue(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let overdue = state.users.iter().filter(|(_, user)| user.due <= now);
        for user in overdue.map(|(user, _)| user.clone()).collect::<Vec<_>>() {
            state.schedule(&user, now);
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
            let turns = state.turns(now);
            if !turns.is_empty() {
                return Task::Look(turns);
            }
            let next = state.agenda.peek().map(|Reverse((due, _))| *due);
            let wake_at = next.map_or(renew_at, |due| renew_at.min(due));
            self.changed.wait_until(&mut state, wake_at);
        }
    }

    /// Tells the Presence Service how it stands with these users, where it has not been told yet.
    fn look(&self, turns: Vec<Turn>) {
        for (user, _) in &turns {
            failpoint::reached("presence", user);
        }
        let (here, gone): (Vec<_>, Vec<_>) = turns
            .into_iter()
            .partition(|(user, _)| self.registry.holds(user));
        let unannounced = {
            let state = self.state.lock();
            let unannounced = |(user, _): &Turn| !state.is_announced(user);
            here.into_iter().filter(unannounced).collect::<Vec<_>>()
        };
        if unannounced.is_empty() && gone.is_empty() {
            return;
        }
        for (user, _) in &gone {
            (self.gone)(user);
        }
        let online = unannounced.iter().map(|(user, _)| UserOnlineRequest {
            user_id: user.as_str().into(),
            gateway_id: self.gateway_id.clone(),
        });
        let offline = gone.iter().map(|(user, _)| UserOfflineRequest {
            user_id: user.as_str().into(),
            gateway_id: self.gateway_id.clone(),
        });
        let online = self.services.users_online(online.collect());
        let offline = self.services.users_offline(offline.collect());
        let online = unannounced.iter().zip(online).map(|told| (told, true));
        let offline = gone.iter().zip(offline).map(|told| (told, false));
        let told: Vec<_> = online.chain(offline).collect();
        for (((user, _), _), here) in told.iter().filter(|((_, told), _)| told.is_ok()) {
            debug!("Presence told: user={user}, online={here}");
        }
        let mut failure = None;
        let mut state = self.state.lock();
        for ((turn, told), here) in told {
            match told {
                Ok(()) => state.told(turn, here),
                Err(error) => {
                    state.again(turn);
                    failure = Some(error);
                }
            }
        }
        drop(state);
        if self.heed(failure.map_or(Ok(()), Err)).is_none() {
            self.pause();
        }
    }

    /// Waits before anyone is told anything again.
    fn pause(&self) {
        let resume = Instant::now() + RETRY;
        let mut state = self.state.lock();
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
        let failure = told.as_ref().err().map(ServiceError::to_string);
        let before = std::mem::replace(&mut self.state.lock().failure, failure.clone());
        match failure {
            Some(error) if before.as_ref() != Some(&error) => {
                warn!("Presence Service fails, will be retried: error={error}");
            }
            None if before.is_some() => info!("Presence Service works again"),
            _ => {}
        }
        told.ok()
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

    /// Takes off the agenda whose turn it is by `now`, a few at a time.
    fn turns(&mut self, now: Instant) -> Vec<Turn> {
        let mut turns = Vec::new();
        while turns.len() < AT_A_TIME
            && let Some(Reverse((due, _))) = self.agenda.peek()
            && *due <= now
            && let Some(Reverse((due, user))) = self.agenda.pop()
        {
            if self.users.get(&user).is_some_and(|entry| entry.due == due) {
                turns.push((user, due));
            }
        }
        turns
    }

    fn is_announced(&self, user: &UserId) -> bool {
        self.users.get(user).is_some_and(|user| user.announced)
    }

    /// The Presence Service has been told that the user is here, or gone. Who came back meanwhile
    /// has another turn, and is not forgotten.
    fn told(&mut self, (user, due): &Turn, here: bool) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.announced = here;
            if !here && entry.due == *due {
                self.users.remove(user);
            }
        }
    }

    /// Telling failed: another turn, unless there is one already.
    fn again(&mut self, (user, due): &Turn) {
        if self.users.get(user).is_some_and(|entry| entry.due == *due) {
            self.schedule(user, Instant::now() + RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fixture::Client;
    use crate::services::ErrorCode;
    use crate::services::fake::FakeServices;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Scene {
        registry: Arc<Registry>,
        services: Arc<FakeServices>,
        presence: Arc<Presence>,
    }

    impl Scene {
        fn new() -> Self {
            let (registry, services) = (Arc::<Registry>::default(), Arc::<FakeServices>::default());
            let config = config::Presence {
                lease: Duration::from_secs(3_600),
                offline_grace: Duration::from_millis(1),
            };
            let (fatal, _died) = crossbeam::channel::unbounded();
            let (for_presence, told) = (Arc::clone(&registry), Arc::clone(&services) as _);
            let presence =
                Presence::start(for_presence, told, "g", &config, &fatal, |_| {}).unwrap();
            Self {
                registry,
                services,
                presence: Arc::new(presence),
            }
        }

        fn arrives(&self, user: &str) -> Client {
            let client = Client::join(&self.registry, user);
            self.presence.arrived(client.connection.user());
            client
        }

        fn leaves(&self, client: &Client) {
            client.leave(&self.registry);
            self.presence.left(client.connection.user());
        }

        /// Waits until the Presence Service was told `last`, and answers all that it was told.
        fn told(&self, last: &str) -> Vec<String> {
            let give_up = Instant::now() + PATIENCE;
            loop {
                let told = self.services.presence.lock().clone();
                if told.last().is_some_and(|told| told == last) {
                    return told;
                }
                assert!(Instant::now() < give_up, "not told {last}: {told:?}");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn the_service_is_told_of_each_user_once() {
        let scene = Scene::new();
        let alice = scene.arrives("alice");
        assert_eq!(scene.told("+alice"), ["+alice"]);
        let second = scene.arrives("alice");
        scene.leaves(&alice);
        let bob = scene.arrives("bob");
        assert_eq!(scene.told("+bob"), ["+alice", "+bob"]);
        scene.leaves(&bob);
        assert_eq!(scene.told("-bob"), ["+alice", "+bob", "-bob"]);
        scene.leaves(&second);
        scene.told("-alice");
    }

    #[test]
    fn more_users_than_are_told_of_at_a_time_are_all_told_of() {
        let scene = Scene::new();
        let users: Vec<_> = (0..3 * AT_A_TIME).map(|n| format!("u{n:03}")).collect();
        let _clients: Vec<_> = users.iter().map(|user| scene.arrives(user)).collect();
        let last = scene.arrives("last");
        let mut told = scene.told("+last");
        told.sort_unstable();
        let mut expected: Vec<_> = users.iter().map(|user| format!("+{user}")).collect();
        expected.insert(0, "+last".into());
        assert_eq!(told, expected);
        scene.leaves(&last);
        scene.told("-last");
    }

    #[test]
    fn who_returns_while_the_service_is_told_that_they_left_is_announced_again() {
        let scene = Scene::new();
        let alice = scene.arrives("alice");
        scene.told("+alice");
        let (presence, registry) = (Arc::clone(&scene.presence), Arc::clone(&scene.registry));
        let (returned, back) = crossbeam::channel::bounded(1);
        let returns = move || {
            let client = Client::join(&registry, "alice");
            presence.arrived(client.connection.user());
            returned.send(client).unwrap();
        };
        *scene.services.meanwhile.lock() = Some(Box::new(returns));
        scene.leaves(&alice);
        let _alice = back.recv_timeout(PATIENCE).unwrap();
        let give_up = Instant::now() + PATIENCE;
        while scene.services.presence.lock().len() < 3 {
            assert!(Instant::now() < give_up, "not announced again");
            std::thread::yield_now();
        }
        assert_eq!(scene.told("+alice"), ["+alice", "-alice", "+alice"]);
    }

    #[test]
    fn who_came_and_left_while_the_thread_panicked_is_told_of_all_the_same() {
        let scene = Scene::new();
        let bob = scene.arrives("bob");
        scene.told("+bob");
        *scene.services.meanwhile.lock() = Some(Box::new(|| panic!("as it is meant to")));
        scene.leaves(&bob);
        assert_eq!(scene.told("-bob"), ["+bob", "-bob"]);
        *scene.services.meanwhile.lock() = Some(Box::new(|| panic!("as it is meant to")));
        let _alice = scene.arrives("alice");
        scene.told("+alice");
    }

    #[test]
    fn a_service_that_fails_is_told_later() {
        let scene = Scene::new();
        scene.services.fail(ErrorCode::ServiceUnavailable);
        let _alice = scene.arrives("alice");
        let give_up = Instant::now() + PATIENCE;
        while scene.presence.state().is_ok() {
            assert!(Instant::now() < give_up, "no failure");
            std::thread::yield_now();
        }
        scene.services.fail(None);
        assert_eq!(scene.told("+alice"), ["+alice"]);
        while scene.presence.state().is_err() {
            assert!(Instant::now() < give_up, "it works, and nobody noticed");
            std::thread::yield_now();
        }
    }
}
