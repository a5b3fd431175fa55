//! Presence: who of this gateway's users is online, as the Presence Service is told.
//!
//! One thread tells it, several users at a time, in order for each of them, the newest state only,
//! and retries. It looks at the registry when a user is due, so that it does not matter in
//! which order arrivals and departures reach it. A connect never waits for the Presence Service.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select};
use log::{debug, info, warn};
use parking_lot::Mutex;

use crate::config::{self, Config};
use crate::ids::UserId;
use crate::readiness::LastOutcome;
use crate::registry::Registry;
use crate::services::proto::{RenewLeaseRequest, UserOfflineRequest, UserOnlineRequest};
use crate::services::{ServiceError, Services};
use crate::threads::{Fatal, StopSignal, Worker, failpoint};

/// How often a lease is renewed before it would end. A Presence Service that was restarted has all
/// users again within a third of the lease: half of that finds the restart out, and half of it is
/// left to announce them.
const RENEWALS: u32 = 6;
/// Users of whom the Presence Service is told at a time. (2,000 who connect at once, or who are
/// announced again, cost it and this gateway half of what they do one by one.)
const AT_A_TIME: usize = 64;
/// The wait after a failed call.
const RETRY: Duration = Duration::from_secs(1);

/// The presence of this gateway's users.
pub struct Presence {
    registry: Arc<Registry>,
    services: Arc<dyn Services>,
    gateway_id: String,
    config: config::Presence,
    /// Told of each user that has been gone for `config.offline_grace`.
    gone: Box<dyn Fn(&UserId) + Send + Sync>,
    state: Mutex<State>,
    /// What the last call came to.
    pub last_call: LastOutcome,
    /// Has the thread look at the state again.
    changed: Sender<()>,
}

#[derive(Default)]
struct State {
    /// Who the Presence Service knows is online.
    announced: HashSet<UserId>,
    /// When who is to be looked at has their turn.
    due: HashMap<UserId, Instant>,
    /// The same in order. An entry stays until it is done with, also if the thread panics over it.
    timer_queue: BTreeSet<DueEntry>,
    /// A predecessor's lease is to be ended first.
    take_over: bool,
    /// The lease is this gateway's own, and not another one's with the same id.
    owned: bool,
}

/// When a user is to be looked at: if that has changed since, another one follows.
type DueEntry = (Instant, UserId);

impl Presence {
    /// Starts the thread. `gone` is told of each user that has been gone for the grace, and `fatal`
    /// if the thread cannot go on. Stopping it takes all of this gateway's users offline at once.
    pub fn start(
        registry: Arc<Registry>,
        services: Arc<dyn Services>,
        config: &Config,
        fatal: &Fatal,
        gone: impl Fn(&UserId) + Send + Sync + 'static,
    ) -> io::Result<(Arc<Self>, Worker)> {
        let (changed, wake) = bounded(1);
        let presence = Arc::new(Self {
            registry,
            services,
            gateway_id: config.gateway.id.clone(),
            config: config.presence.clone(),
            gone: Box::new(gone),
            state: Mutex::default(),
            last_call: LastOutcome::new(Ok(())),
            changed,
        });
        let run = Arc::clone(&presence);
        let thread = Worker::start("presence", fatal, move |stop| run.run(&wake, stop))?;
        Ok((presence, thread))
    }

    /// The user has a connection more.
    pub fn arrived(&self, user: &UserId) {
        self.change(|state| state.schedule(user, Instant::now()));
    }

    /// The user has a connection less.
    pub fn left(&self, user: &UserId) {
        // Whoever has come back meanwhile was scheduled, or will be.
        self.change(|state| {
            if !self.registry.holds(user) {
                state.schedule(user, Instant::now() + self.config.offline_grace);
            }
        });
    }

    /// This gateway's queues are its own: the lease of a predecessor that crashed is ended, so
    /// that its users who did not come back go offline.
    pub fn take_over(&self) {
        self.change(|state| (state.take_over, state.owned) = (true, true));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        // Full: the thread is about to look.
        let _ = self.changed.try_send(());
    }

    fn run(&self, wake: &Receiver<()>, stop: &StopSignal) {
        let mut renew_at = Instant::now();
        // Whether the Presence Service may have forgotten this gateway.
        let mut in_doubt = true;
        while !stop.is_given() {
            let take_over = self.state.lock().take_over;
            let entries = self.state.lock().entries();
            if take_over || renew_at <= Instant::now() {
                let known = self.record_result(self.keep_lease(take_over));
                if known.is_some_and(|known| !known || in_doubt) {
                    self.announce_everyone();
                }
                in_doubt = known.is_none();
                renew_at = Instant::now() + known.map_or(RETRY, |_| self.config.lease / RENEWALS);
                if take_over && in_doubt {
                    // Whoever was announced before it succeeds would go offline again; afterwards all are.
                    self.put_off(&entries);
                    stop.within(RETRY);
                }
            } else if !entries.is_empty() {
                if self.look(entries).is_none() {
                    stop.within(RETRY);
                }
            } else {
                let next = self.state.lock().timer_queue.first().map(|(due, _)| *due);
                let wake_at = next.map_or(renew_at, |due| renew_at.min(due));
                select! {
                    recv(wake) -> _ => {}
                    recv(stop.receiver()) -> _ => {}
                    default(wake_at.saturating_duration_since(Instant::now())) => {}
                }
            }
        }
        self.end_lease();
    }

    /// All of this gateway's users are offline with one call.
    fn end_lease(&self) {
        if !self.state.lock().owned {
            // It may be another gateway's, whose users stay.
            return warn!("Users not taken offline: the queues were never this gateway's own");
        }
        if let Err(error) = self.renew(Duration::ZERO) {
            warn!("Users not taken offline, their lease will end: error={error}");
        }
    }

    /// Renews the lease, and ends a predecessor's first. Answers whether the Presence Service knew
    /// this gateway.
    fn keep_lease(&self, take_over: bool) -> Result<bool, ServiceError> {
        if take_over {
            self.renew(Duration::ZERO)?;
            self.state.lock().take_over = false;
            info!("Presence taken over: gateway_id={}", self.gateway_id);
        }
        Ok(self.renew(self.config.lease)? && !take_over)
    }

    /// Nobody is told of these users now. Those who are gone give up their routes nevertheless.
    fn put_off(&self, entries: &[DueEntry]) {
        for entry in entries {
            if !self.registry.holds(&entry.1) {
                (self.gone)(&entry.1);
            }
            self.state.lock().end(entry);
        }
    }

    /// Tells the Presence Service how it stands with these users, where it has not been told yet.
    /// `None`: it failed.
    fn look(&self, entries: Vec<DueEntry>) -> Option<()> {
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        for entry in entries {
            failpoint::reached("presence", &entry.1);
            if !self.registry.holds(&entry.1) {
                gone.push(entry);
            } else if !self.state.lock().announced.contains(&entry.1) {
                come.push(entry);
            } else {
                self.state.lock().end(&entry);
            }
        }
        if come.is_empty() && gone.is_empty() {
            return Some(());
        }
        gone.iter().for_each(|(_, user)| (self.gone)(user));
        let online = come.iter().map(|(_, user)| UserOnlineRequest {
            user_id: user.to_string(),
            gateway_id: self.gateway_id.clone(),
        });
        let online = self.services.users_online(online.collect());
        let offline = gone.iter().map(|(_, user)| UserOfflineRequest {
            user_id: user.to_string(),
            gateway_id: self.gateway_id.clone(),
        });
        let offline = self.services.users_offline(offline.collect());
        let mut outcome = Ok(());
        for (entries, told, here) in [(come, online, true), (gone, offline, false)] {
            for (entry, told) in entries.iter().zip(told) {
                self.state.lock().record(entry, here, told.is_ok());
                if told.is_ok() {
                    debug!("Presence told: user={}, online={here}", entry.1);
                }
                // The last failure, if there was one.
                outcome = told.and(outcome);
            }
        }
        self.record_result(outcome)
    }

    fn announce_everyone(&self) {
        let users = self.registry.users();
        info!("Presence announced: users={}", users.len());
        let mut state = self.state.lock();
        state.announced.clear();
        let now = Instant::now();
        users.iter().for_each(|user| state.schedule(user, now));
    }

    fn renew(&self, lease: Duration) -> Result<bool, ServiceError> {
        self.services.renew_lease(RenewLeaseRequest {
            gateway_id: self.gateway_id.clone(),
            // The configuration keeps it within a day.
            ttl_seconds: i32::try_from(lease.as_secs()).unwrap_or(i32::MAX),
        })
    }

    /// Remembers whether the Presence Service works, and logs when that changes.
    fn record_result<T>(&self, told: Result<T, ServiceError>) -> Option<T> {
        let outcome = told.as_ref().map(drop).map_err(ServiceError::to_string);
        if self.last_call.record(&outcome) {
            match outcome {
                Err(error) => warn!("Presence Service fails, will be retried: error={error}"),
                Ok(()) => info!("Presence Service works again"),
            }
        }
        told.ok()
    }
}

impl State {
    /// When the user is due next, instead of any other time.
    fn schedule(&mut self, user: &UserId, due: Instant) {
        if let Some(before) = self.due.insert(user.clone(), due) {
            self.timer_queue.remove(&(before, user.clone()));
        }
        self.timer_queue.insert((due, user.clone()));
    }

    /// The entry is done with; whether the user has no other one by now.
    fn end(&mut self, entry: &DueEntry) -> bool {
        self.timer_queue.remove(entry) && self.due.remove(&entry.1).is_some()
    }

    /// Who is due by now, a few at a time.
    fn entries(&self) -> Vec<DueEntry> {
        let now = Instant::now();
        let due = self.timer_queue.iter().take_while(|(due, _)| *due <= now);
        due.take(AT_A_TIME).cloned().collect()
    }

    /// The Presence Service has been told that the user is here, or gone. If telling failed, the
    /// user is due again, unless they are already.
    fn record(&mut self, entry: &DueEntry, here: bool, is_told: bool) {
        let is_last = self.end(entry);
        let user = &entry.1;
        if is_told && here {
            self.announced.insert(user.clone());
        } else if is_told {
            self.announced.remove(user);
        } else if is_last {
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
        /// Whose routes are given up.
        gone: Receiver<UserId>,
        _thread: Worker,
    }

    impl Scene {
        fn new() -> Self {
            Self::with_grace(Duration::from_millis(1))
        }

        fn with_grace(offline_grace: Duration) -> Self {
            let (registry, services) = (Arc::<Registry>::default(), Arc::<FakeServices>::default());
            let mut config = Config::default();
            config.presence = config::Presence {
                lease: Duration::from_secs(3_600),
                offline_grace,
            };
            let (fatal, _died) = crossbeam::channel::unbounded();
            let (for_presence, told) = (Arc::clone(&registry), Arc::clone(&services) as _);
            let (give_up, gone) = crossbeam::channel::unbounded();
            let give_up = move |user: &UserId| give_up.send(user.clone()).unwrap();
            let (presence, thread) =
                Presence::start(for_presence, told, &config, &fatal, give_up).unwrap();
            Self {
                registry,
                services,
                presence,
                gone,
                _thread: thread,
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

        /// Waits until the Presence Service was heard to fail.
        fn notices_failure(&self) {
            let give_up = Instant::now() + PATIENCE;
            while self.presence.last_call.get().is_ok() {
                assert!(Instant::now() < give_up, "no failure");
                std::thread::yield_now();
            }
        }

        /// Waits until the Presence Service was told `last`, and answers all that it was told.
        fn record_told(&self, last: &str) -> Vec<String> {
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
        assert_eq!(scene.record_told("+alice"), ["+alice"]);
        let second = scene.arrives("alice");
        scene.leaves(&alice);
        let bob = scene.arrives("bob");
        assert_eq!(scene.record_told("+bob"), ["+alice", "+bob"]);
        scene.leaves(&bob);
        assert_eq!(scene.record_told("-bob"), ["+alice", "+bob", "-bob"]);
        scene.leaves(&second);
        scene.record_told("-alice");
    }

    #[test]
    fn more_users_than_are_told_of_at_a_time_are_all_told_of() {
        let scene = Scene::new();
        let users: Vec<_> = (0..3 * AT_A_TIME).map(|n| format!("u{n:03}")).collect();
        let _clients: Vec<_> = users.iter().map(|user| scene.arrives(user)).collect();
        let last = scene.arrives("last");
        let mut told = scene.record_told("+last");
        told.sort_unstable();
        let mut expected: Vec<_> = users.iter().map(|user| format!("+{user}")).collect();
        expected.insert(0, "+last".into());
        assert_eq!(told, expected);
        scene.leaves(&last);
        scene.record_told("-last");
    }

    #[test]
    fn who_returns_while_the_service_is_told_that_they_left_is_announced_again() {
        let scene = Scene::new();
        let alice = scene.arrives("alice");
        scene.record_told("+alice");
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
        assert_eq!(scene.record_told("+alice"), ["+alice", "-alice", "+alice"]);
    }

    #[test]
    fn who_is_back_is_announced_however_late_it_is_heard_that_they_left() {
        let scene = Scene::with_grace(2 * PATIENCE);
        scene.services.fail(ErrorCode::ServiceUnavailable);
        let alice = scene.arrives("alice");
        scene.notices_failure();
        scene.presence.left(alice.connection.user());
        scene.services.fail(None);
        scene.record_told("+alice");
    }

    #[test]
    fn who_came_and_left_while_the_thread_panicked_is_told_of_all_the_same() {
        let scene = Scene::new();
        let bob = scene.arrives("bob");
        scene.record_told("+bob");
        *scene.services.meanwhile.lock() = Some(Box::new(|| panic!("as it is meant to")));
        scene.leaves(&bob);
        assert_eq!(scene.record_told("-bob"), ["+bob", "-bob"]);
        *scene.services.meanwhile.lock() = Some(Box::new(|| panic!("as it is meant to")));
        let _alice = scene.arrives("alice");
        scene.record_told("+alice");
    }

    #[test]
    fn a_service_that_fails_is_told_later() {
        let scene = Scene::new();
        scene.services.fail(ErrorCode::ServiceUnavailable);
        let _alice = scene.arrives("alice");
        scene.notices_failure();
        scene.services.fail(None);
        assert_eq!(scene.record_told("+alice"), ["+alice"]);
        let give_up = Instant::now() + PATIENCE;
        while scene.presence.last_call.get().is_err() {
            assert!(Instant::now() < give_up, "it works, and nobody noticed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_lease_that_cannot_be_taken_over_is_tried_again_in_peace_and_before_all_else() {
        let scene = Scene::new();
        let _alice = scene.arrives("alice");
        scene.record_told("+alice");
        scene.services.fail(ErrorCode::ServiceUnavailable);
        scene.presence.take_over();
        scene.notices_failure();
        let _bob = scene.arrives("bob");
        let carol = scene.arrives("carol");
        scene.leaves(&carol);
        let gone = scene.gone.recv_timeout(PATIENCE);
        assert_eq!(gone.as_ref(), Ok(carol.connection.user()), "a route");
        scene.services.fail(None);
        let give_up = Instant::now() + PATIENCE;
        while scene.services.presence.lock().len() < 3 {
            assert!(Instant::now() < give_up, "not announced");
            std::thread::yield_now();
        }
        let mut told = scene.services.presence.lock().clone();
        told.sort_unstable();
        assert_eq!(told, ["+alice", "+alice", "+bob"]);
        let calls = scene.services.calls();
        assert!(calls < 10, "{calls} calls");
    }
}
