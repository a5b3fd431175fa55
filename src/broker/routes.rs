//! Which users' messages this gateway gets: bindings that follow the users connected here.
//!
//! A *route* is the binding of `user.<id>` to this gateway's queue. Connections ask for routes
//! ([`Routes::want`]), and the `routes` thread of the broker connection makes them
//! ([`Routes::serve`]), through a [`Binder`]: this file knows no AMQP.
//!
//! Invariants: a connection is in the registry before it asks, so an unbind that finds the user
//! there under the lock is not done; and one thread binds and unbinds in turn, so a user who
//! returns during an unbind is bound after it. Nobody waits here: a confirmed route starts
//! catch-up on the user's connections, because what was published before it went elsewhere.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::ids::UserId;
use crate::registry::Registry;

/// How many binds are sent before the broker is waited for: about 150 ms of its work.
const BURST: usize = 256;

/// Where a user's route stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Bound,
    /// Bound in a moment, and catch-up is requested then.
    Pending,
    /// The broker is away; the user is bound on its return, and catch-up is requested then.
    Away,
}

/// Makes and removes bindings.
pub trait Binder {
    type Error;
    /// Binds all of `users`, and returns once that is confirmed.
    fn bind(&mut self, users: &[UserId]) -> Result<(), Self::Error>;
    fn unbind(&mut self, user: &UserId) -> Result<(), Self::Error>;
}

/// The routes of one gateway.
pub struct Routes {
    registry: Arc<Registry>,
    /// `None`: there is no broker, and every user is reached.
    table: Option<Mutex<Table>>,
    /// There is work for the `routes` thread, or no work any more.
    work: Condvar,
}

/// Each user with a binding on the broker, or one on its way there or away. A user may be several
/// times in a queue: the step decides, and an entry whose step is another one by now is skipped.
#[derive(Default)]
struct Table {
    /// Whether a broker connection serves the routes.
    up: bool,
    steps: HashMap<UserId, Step>,
    binds: VecDeque<UserId>,
    unbinds: VecDeque<UserId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// To be bound, or being bound.
    Waiting,
    Bound,
    /// To be unbound, or being unbound.
    Leaving,
}

enum Work {
    Bind(Vec<UserId>),
    Unbind(UserId),
    Nothing,
}

impl Routes {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            table: Some(Mutex::default()),
            work: Condvar::new(),
        }
    }

    /// For the in-process bus, which reaches every user.
    pub fn local(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            table: None,
            work: Condvar::new(),
        }
    }

    /// Asks for the user's route. The connection that asks has registered before.
    pub fn want(&self, user: &UserId) -> Route {
        let Some(table) = &self.table else {
            return Route::Bound;
        };
        let mut table = table.lock();
        if !table.up {
            return Route::Away;
        }
        match table.steps.get(user) {
            Some(Step::Bound) => Route::Bound,
            Some(Step::Waiting) => Route::Pending,
            Some(Step::Leaving) | None => {
                table.queue_bind(user);
                drop(table);
                self.work.notify_one();
                Route::Pending
            }
        }
    }

    /// Gives the user's route up, unless they are connected here again.
    pub fn release(&self, user: &UserId) {
        let Some(table) = &self.table else { return };
        let mut table = table.lock();
        if table.up && table.steps.contains_key(user) && !self.registry.holds(user) {
            table.steps.insert(user.clone(), Step::Leaving);
            table.unbinds.push_back(user.clone());
            drop(table);
            self.work.notify_one();
        }
    }

    /// The broker is back: everyone who is connected here is to be bound, whatever was, and who
    /// left meanwhile is to be unbound.
    pub fn begin(&self) {
        let Some(table) = &self.table else { return };
        let mut table = table.lock();
        let before = mem::take(&mut *table);
        for user in self.registry.users() {
            table.queue_bind(&user);
        }
        for (user, _) in before.steps {
            if !table.steps.contains_key(&user) {
                table.steps.insert(user.clone(), Step::Leaving);
                table.unbinds.push_back(user);
            }
        }
        table.up = true;
    }

    /// The broker is gone, or to be left.
    pub fn end(&self) {
        let Some(table) = &self.table else { return };
        table.lock().up = false;
        self.work.notify_all();
    }

    /// Binds and unbinds between [`Self::begin`] and [`Self::end`]; the `routes` thread's work.
    pub fn serve<B: Binder>(&self, binder: &mut B) -> Result<(), B::Error> {
        loop {
            match self.next() {
                Work::Bind(users) => {
                    binder.bind(&users)?;
                    self.confirm(&users);
                }
                Work::Unbind(user) => {
                    binder.unbind(&user)?;
                    self.confirm_unbound(&user);
                }
                Work::Nothing => return Ok(()),
            }
        }
    }

    /// Waits for work: a burst of binds, or else one unbind.
    fn next(&self) -> Work {
        let Some(table) = &self.table else {
            return Work::Nothing;
        };
        let mut table = table.lock();
        loop {
            if !table.up {
                return Work::Nothing;
            }
            let burst = table.take_binds();
            if !burst.is_empty() {
                return Work::Bind(burst);
            }
            match table.unbinds.pop_front() {
                Some(user) if table.steps.get(&user) != Some(&Step::Leaving) => {}
                // Connected again, and about to ask.
                Some(user) if self.registry.holds(&user) => table.queue_bind(&user),
                Some(user) => return Work::Unbind(user),
                None => self.work.wait(&mut table),
            }
        }
    }

    /// The users' bindings stand. First the step, so that a connection that registers meanwhile
    /// either finds it or is found here.
    fn confirm(&self, users: &[UserId]) {
        let Some(table) = &self.table else { return };
        {
            let mut table = table.lock();
            for user in users {
                if let Some(step @ Step::Waiting) = table.steps.get_mut(user) {
                    *step = Step::Bound;
                }
            }
        }
        let mut connections = Vec::new();
        self.registry.recipients(users.iter(), &mut connections);
        for connection in connections {
            connection.request_catch_up();
        }
    }

    fn confirm_unbound(&self, user: &UserId) {
        let Some(table) = &self.table else { return };
        let mut table = table.lock();
        if table.steps.get(user) == Some(&Step::Leaving) {
            table.steps.remove(user);
        }
    }
}

impl Table {
    fn queue_bind(&mut self, user: &UserId) {
        self.steps.insert(user.clone(), Step::Waiting);
        self.binds.push_back(user.clone());
    }

    fn take_binds(&mut self) -> Vec<UserId> {
        let mut burst = Vec::new();
        while burst.len() < BURST
            && let Some(user) = self.binds.pop_front()
        {
            if self.steps.get(&user) == Some(&Step::Waiting) {
                burst.push(user);
            }
        }
        burst
    }
}
