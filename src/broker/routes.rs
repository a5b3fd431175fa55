//! Which users' messages this gateway gets: bindings that follow the users connected here.
//!
//! A *route* is the binding of `user.<id>` to this gateway's queue. Connections ask for routes
//! ([`Routes::want`]), and the `routes` thread of the broker connection makes them
//! ([`Routes::serve`]): this file knows no AMQP.
//!
//! Invariants: a connection is in the registry before it asks, so an unbind that finds the user
//! there under the lock is not done; and one thread binds and unbinds in turn, so a user who
//! returns during an unbind is bound after it. Nobody waits here: a confirmed route starts
//! catch-up on the user's connections, because what was published before it went elsewhere.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use std::{iter, mem};

use parking_lot::{Condvar, Mutex};

use crate::client::Route;
use crate::ids::UserId;
use crate::metrics::{Metrics, observe};
use crate::registry::Registry;

/// How many binds are sent before the broker is waited for: about 150 ms of its work.
const BURST: usize = 256;

/// The routes of one gateway.
pub struct Routes {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
    /// There is work for the `routes` thread, or no work any more.
    work: Condvar,
}

/// A user may be in both queues, and several times: `wanted` decides, and an entry that it has
/// overtaken is skipped.
#[derive(Default)]
struct Table {
    /// Whether a broker connection serves the routes.
    up: bool,
    /// Who is to be bound, and since when that is awaited; `None` once it is confirmed.
    wanted: HashMap<UserId, Option<Instant>>,
    binds: VecDeque<UserId>,
    /// Whose binding is on the broker, or may be, and is wanted no more. The first of them stays until
    /// it is unbound.
    unbinds: VecDeque<UserId>,
}

/// What the `routes` thread is to do.
pub enum Work {
    Bind(Vec<UserId>),
    Unbind(UserId),
}

impl Routes {
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            table: Mutex::default(),
            work: Condvar::new(),
        }
    }

    /// Asks for the user's route. The connection that asks has registered before.
    pub fn want(&self, user: &UserId) -> Route {
        let mut table = self.table.lock();
        match table.wanted.get(user) {
            _ if !table.up => Route::Away,
            Some(None) => Route::Bound,
            Some(Some(_)) => Route::Pending,
            None => {
                table.queue_bind(user.clone());
                self.work.notify_one();
                Route::Pending
            }
        }
    }

    /// Gives the user's route up, unless they are connected here again.
    pub fn release(&self, user: &UserId) {
        let mut table = self.table.lock();
        if table.up && !self.registry.holds(user) && table.wanted.remove(user).is_some() {
            table.unbinds.push_back(user.clone());
            self.work.notify_one();
        }
    }

    /// The broker is back: everyone who is connected here is to be bound, whatever was, and who
    /// left meanwhile is to be unbound. Call it before anything is consumed: until their binding is
    /// confirmed and they are caught up, nobody is pushed what is newer than what they missed.
    pub fn begin(&self) {
        let connections = self.registry.connections();
        connections.iter().for_each(|one| one.unrouted());
        let mut table = self.table.lock();
        let before = mem::take(&mut *table);
        table.up = true;
        for user in self.registry.users() {
            table.queue_bind(user);
        }
        // Those who are here are skipped.
        table.unbinds = before.wanted.into_keys().chain(before.unbinds).collect();
    }

    /// The broker is gone, or to be left.
    pub fn end(&self) {
        self.table.lock().up = false;
        self.work.notify_all();
    }

    /// Has `perform` bind and unbind between [`Self::begin`] and [`Self::end`], and return once that
    /// is confirmed; the `routes` thread's work.
    pub fn serve<E>(&self, mut perform: impl FnMut(&Work) -> Result<(), E>) -> Result<(), E> {
        while let Some(work) = self.next() {
            perform(&work)?;
            match work {
                Work::Bind(users) => self.confirm(&users),
                Work::Unbind(_) => drop(self.table.lock().unbinds.pop_front()),
            }
        }
        Ok(())
    }

    /// Waits for work: a burst of binds, or else one unbind. `None`: there is none any more.
    fn next(&self) -> Option<Work> {
        let mut table = self.table.lock();
        while table.up {
            let burst = table.take_binds();
            if !burst.is_empty() {
                return Some(Work::Bind(burst));
            }
            let Some(user) = table.unbinds.front().cloned() else {
                self.work.wait(&mut table);
                continue;
            };
            if !table.wanted.contains_key(&user) {
                if !self.registry.holds(&user) {
                    return Some(Work::Unbind(user));
                }
                // Connected again, and about to ask.
                table.queue_bind(user);
            }
            table.unbinds.pop_front();
        }
        None
    }

    /// The users' bindings stand. First the table, so that a connection that registers meanwhile
    /// either finds it there or is found here.
    fn confirm(&self, users: &[UserId]) {
        let mut table = self.table.lock();
        for user in users {
            let awaited = table.wanted.get_mut(user).and_then(Option::take);
            awaited.inspect(|since| observe(&self.metrics.route, since.elapsed()));
        }
        drop(table);
        let connections = self.registry.connections_of(users);
        connections.iter().for_each(|one| one.routed());
    }
}

impl Table {
    fn queue_bind(&mut self, user: UserId) {
        self.wanted.insert(user.clone(), Some(Instant::now()));
        self.binds.push_back(user);
    }

    fn take_binds(&mut self) -> Vec<UserId> {
        let queued = iter::from_fn(|| self.binds.pop_front());
        let waiting = queued.filter(|user| matches!(self.wanted.get(user), Some(Some(_))));
        waiting.take(BURST).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use crossbeam::channel::{Receiver, Sender, bounded};

    use super::*;
    use crate::client::fixture::Client;

    /// A broker that does each thing when it is told to.
    struct Stage {
        registry: Arc<Registry>,
        routes: Arc<Routes>,
        bound: BTreeSet<String>,
        asked: Receiver<String>,
        answer: Sender<Result<(), ()>>,
        server: Option<thread::JoinHandle<Result<(), ()>>>,
    }

    struct StageBinder {
        ask: Sender<String>,
        answers: Receiver<Result<(), ()>>,
    }

    impl StageBinder {
        fn perform(&self, work: &Work) -> Result<(), ()> {
            let asked = match work {
                Work::Bind(users) => {
                    let mut names: Vec<_> = users.iter().map(UserId::as_str).collect();
                    names.sort_unstable();
                    format!("+{}", names.join("+"))
                }
                Work::Unbind(user) => format!("-{user}"),
            };
            self.ask.send(asked).unwrap();
            self.answers.recv().unwrap()
        }
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    impl Stage {
        fn new() -> Self {
            let registry = Arc::new(Registry::default());
            let routes = Arc::new(Routes::new(
                Arc::clone(&registry),
                Arc::new(Metrics::new(&[])),
            ));
            let (asked, answer) = (bounded(0).1, bounded(0).0);
            Self {
                registry,
                routes,
                bound: BTreeSet::new(),
                asked,
                answer,
                server: None,
            }
        }

        fn up(&mut self) {
            let ((ask, asked), (answer, answers)) = (bounded(1), bounded(1));
            (self.asked, self.answer) = (asked, answer);
            self.routes.begin();
            let routes = Arc::clone(&self.routes);
            let binder = StageBinder { ask, answers };
            let serve = move || routes.serve(|work| binder.perform(work));
            self.server = Some(thread::spawn(serve));
        }

        /// Waits until the thread has been asked for this, and lets it.
        fn lets(&mut self, expected: &str) {
            self.sees(expected);
            self.finishes();
        }

        fn sees(&mut self, expected: &str) {
            let asked = self
                .asked
                .recv_timeout(std::time::Duration::from_secs(20))
                .unwrap();
            assert_eq!(asked, expected);
            match expected.strip_prefix('-') {
                Some(name) => drop(self.bound.remove(name)),
                None => self
                    .bound
                    .extend(expected[1..].split('+').map(String::from)),
            }
        }

        fn finishes(&self) {
            self.answer.send(Ok(())).unwrap();
        }

        /// The connection breaks during what was seen last.
        fn breaks(&mut self) {
            self.answer.send(Err(())).unwrap();
            self.routes.end();
            assert!(self.server.take().unwrap().join().unwrap().is_err());
        }

        fn down(&mut self) {
            self.routes.end();
            assert!(self.server.take().unwrap().join().unwrap().is_ok());
        }

        fn settles(&self, name: &str, route: Route) {
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while self.routes.want(&user(name)) != route {
                assert!(
                    std::time::Instant::now() < patience,
                    "{name} never {route:?}"
                );
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_route_is_bound_once_and_its_confirmation_starts_catch_up() {
        let mut stage = Stage::new();
        stage.up();
        let alice = Client::join(&stage.registry, "alice");
        assert_eq!(stage.routes.want(&user("alice")), Route::Pending);
        stage.sees("+alice");
        let second = Client::join(&stage.registry, "alice");
        assert_eq!(stage.routes.want(&user("alice")), Route::Pending);
        assert!(!alice.takes_catch_up());
        stage.finishes();
        stage.settles("alice", Route::Bound);
        stage.down();
        assert!(alice.takes_catch_up() && second.takes_catch_up());
        assert_eq!(stage.routes.want(&user("alice")), Route::Away);
    }

    #[test]
    fn binds_go_together_and_before_unbinds() {
        let mut stage = Stage::new();
        stage.up();
        let first = Client::join(&stage.registry, "first");
        stage.routes.want(&user("first"));
        stage.lets("+first");
        stage.settles("first", Route::Bound);
        let clients = ["a", "b", "c"].map(|name| Client::join(&stage.registry, name));
        stage.routes.want(&user("a"));
        stage.sees("+a");
        first.leave(&stage.registry);
        stage.routes.release(&user("first"));
        stage.routes.want(&user("b"));
        stage.routes.want(&user("c"));
        stage.finishes();
        stage.lets("+b+c");
        stage.lets("-first");
        stage.down();
        assert!(clients.iter().all(Client::takes_catch_up));
    }

    #[test]
    fn who_is_connected_again_keeps_the_route() {
        let mut stage = Stage::new();
        stage.up();
        let alice = Client::join(&stage.registry, "alice");
        stage.routes.want(&user("alice"));
        stage.lets("+alice");
        stage.settles("alice", Route::Bound);
        stage.routes.release(&user("alice"));
        assert_eq!(
            stage.routes.want(&user("alice")),
            Route::Bound,
            "she never left"
        );

        let bob = Client::join(&stage.registry, "bob");
        stage.routes.want(&user("bob"));
        stage.sees("+bob");
        alice.leave(&stage.registry);
        stage.routes.release(&user("alice"));
        let _back = Client::join(&stage.registry, "alice");
        stage.finishes();
        // She is in the registry and has not asked yet: she is bound again, not unbound.
        stage.lets("+alice");
        stage.settles("alice", Route::Bound);
        drop(bob);
        stage.down();
    }

    #[test]
    fn who_returns_during_the_unbind_is_bound_after_it() {
        let mut stage = Stage::new();
        stage.up();
        let alice = Client::join(&stage.registry, "alice");
        stage.routes.want(&user("alice"));
        stage.lets("+alice");
        stage.settles("alice", Route::Bound);
        alice.leave(&stage.registry);
        stage.routes.release(&user("alice"));
        stage.sees("-alice");
        let back = Client::join(&stage.registry, "alice");
        assert_eq!(stage.routes.want(&user("alice")), Route::Pending);
        stage.finishes();
        stage.lets("+alice");
        stage.settles("alice", Route::Bound);
        back.is_caught_up();
        stage.down();
    }

    #[test]
    fn who_leaves_while_being_bound_is_unbound() {
        let mut stage = Stage::new();
        stage.up();
        let alice = Client::join(&stage.registry, "alice");
        stage.routes.want(&user("alice"));
        stage.sees("+alice");
        alice.leave(&stage.registry);
        stage.routes.release(&user("alice"));
        stage.finishes();
        stage.lets("-alice");
        stage.down();
        assert!(stage.bound.is_empty());
    }

    #[test]
    fn after_the_broker_was_away_everyone_here_is_bound_and_who_left_is_not() {
        let mut stage = Stage::new();
        stage.up();
        let [alice, bob] = ["alice", "bob"].map(|name| {
            let client = Client::join(&stage.registry, name);
            stage.routes.want(client.connection.user());
            client
        });
        let first = stage.asked.recv().unwrap();
        stage.finishes();
        if first != "+alice+bob" {
            stage.lets("+bob");
        }
        stage.settles("bob", Route::Bound);
        alice.is_caught_up();
        let carol = Client::join(&stage.registry, "carol");
        stage.routes.want(&user("carol"));
        stage.sees("+carol");
        stage.breaks();

        carol.leave(&stage.registry);
        stage.routes.release(&user("carol"));
        bob.leave(&stage.registry);
        let dave = Client::join(&stage.registry, "dave");
        assert_eq!(stage.routes.want(&user("dave")), Route::Away);
        stage.up();
        stage.lets("+alice+dave");
        let mut left = [stage.asked.recv().unwrap(), {
            stage.finishes();
            stage.asked.recv().unwrap()
        }];
        stage.finishes();
        left.sort();
        assert_eq!(left, ["-bob", "-carol"]);
        stage.down();
        assert!(alice.takes_catch_up() && dave.takes_catch_up());
    }

    #[test]
    fn bursts_are_bounded() {
        let mut stage = Stage::new();
        let clients: Vec<_> = (0..=BURST)
            .map(|number| Client::join(&stage.registry, &format!("u{number}")))
            .collect();
        stage.up();
        for _ in 0..2 {
            let burst = stage.asked.recv().unwrap();
            assert!(burst.matches('+').count() <= BURST);
            stage.finishes();
        }
        stage.down();
        assert!(clients.iter().all(Client::takes_catch_up));
    }
}
