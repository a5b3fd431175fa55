//! Who is in a group: the User Service's answers, kept for `groups.cache_ttl`.
//!
//! Between two answers a list may be out of date, and a message may have gone past a new member.
//! One rule makes that good: whenever a list is fetched, whoever is connected here and was not in
//! the list held before is caught up with what is unread. So an outdated list is kept for
//! comparing, also after it has expired. A group of which there was no list before compares with
//! nothing: nothing was delivered by an outdated list.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};
use parking_lot::Mutex;

use crate::ids::{GroupId, UserId};
use crate::registry::Registry;
use crate::services::proto::GetGroupMembersRequest;
use crate::services::{ErrorCode, ServiceError, Services};

/// Lists that no message used for so long are forgotten, at the next sweep.
const FORGET_AFTER: Duration = Duration::from_secs(600);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How many lists are held at most; the longest unused half goes first.
const MAX_GROUPS: usize = 10_000;
/// How long one group may fail, with a User Service that answers, before its messages no longer
/// hold up those of all other groups.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Members = Arc<BTreeSet<UserId>>;

/// The member lists of the groups with traffic. No lock is held while the service is asked.
pub struct Groups {
    services: Arc<dyn Services>,
    registry: Arc<Registry>,
    ttl: Duration,
    held: Mutex<Held>,
}

struct Held {
    lists: HashMap<GroupId, List>,
    swept: Instant,
}

struct List {
    /// `None`: never known, so there is nothing to compare with.
    members: Option<Members>,
    /// `None`: outdated, and held for comparing only.
    fresh_until: Option<Instant>,
    used: Instant,
    failing_since: Option<Instant>,
}

impl Groups {
    pub fn new(services: Arc<dyn Services>, registry: Arc<Registry>, ttl: Duration) -> Self {
        let held = Mutex::new(Held {
            lists: HashMap::new(),
            swept: Instant::now(),
        });
        Self {
            services,
            registry,
            ttl,
            held,
        }
    }

    /// The members, if a fresh list is held. Never blocks.
    pub fn fresh(&self, group: &GroupId) -> Option<Members> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let list = held.lists.get_mut(group)?;
        list.used = now;
        list.fresh_until
            .filter(|until| now < *until)
            .and(list.members.clone())
    }

    /// Marks the list as outdated; whether there is one.
    pub fn outdate(&self, group: &GroupId) -> bool {
        let mut held = self.held.lock();
        let list = held.lists.get_mut(group);
        list.map(|list| list.fresh_until = None).is_some()
    }

    /// Asks the User Service and starts catch-up for new members. An error means: try again later.
    pub fn fetch(&self, group: &GroupId) -> Result<Members, ServiceError> {
        let request = GetGroupMembersRequest {
            group_id: group.to_string(),
        };
        match self.services.group_members(request) {
            Ok(ids) => Ok(self.hold(group, valid(group, &ids))),
            // As a group without members: if it appears yet, all of them are new.
            Err(error) if error.code == ErrorCode::NotFound => {
                warn!("group does not exist group_id={:?}", group.as_str());
                Ok(self.hold(group, BTreeSet::new()))
            }
            Err(error) if error.is_out_of_reach() => Err(error),
            Err(error) => self.hold_on(group, error),
        }
    }

    /// Holds a fetched list and catches its new members up.
    fn hold(&self, group: &GroupId, members: BTreeSet<UserId>) -> Members {
        let members = Arc::new(members);
        let now = Instant::now();
        let list = List {
            members: Some(Arc::clone(&members)),
            fresh_until: Some(now + self.ttl),
            used: now,
            failing_since: None,
        };
        let before = {
            let mut held = self.held.lock();
            held.sweep(now);
            held.lists.insert(group.clone(), list)
        };
        if let Some(before) = before.and_then(|list| list.members) {
            let mut newcomers = Vec::new();
            self.registry
                .recipients(members.difference(&before), &mut newcomers);
            for connection in newcomers {
                connection.request_catch_up();
            }
        }
        members
    }

    /// The service answers, but with an error: the group's messages wait a while. Then they go to
    /// those who were members before; with the next list the others are caught up.
    fn hold_on(&self, group: &GroupId, error: ServiceError) -> Result<Members, ServiceError> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let list = held.lists.entry(group.clone()).or_insert_with(|| List {
            members: None,
            fresh_until: None,
            used: now,
            failing_since: None,
        });
        if now - *list.failing_since.get_or_insert(now) < PATIENCE {
            return Err(error);
        }
        list.fresh_until = Some(now + self.ttl);
        error!(
            "going on without group members group_id={:?} error={error}",
            group.as_str()
        );
        Ok(Arc::clone(list.members.get_or_insert_default()))
    }
}

impl Held {
    fn sweep(&mut self, now: Instant) {
        if now - self.swept < SWEEP_EVERY && self.lists.len() < MAX_GROUPS {
            return;
        }
        self.swept = now;
        self.lists.retain(|_, list| now - list.used < FORGET_AFTER);
        if self.lists.len() >= MAX_GROUPS {
            let mut used: Vec<_> = self.lists.values().map(|list| list.used).collect();
            let (_, &mut median, _) = used.select_nth_unstable(MAX_GROUPS / 2);
            self.lists.retain(|_, list| list.used > median);
        }
    }
}

/// Leaves out what cannot be a user: nobody can be connected under such an id, and the others'
/// messages must not wait for it.
fn valid(group: &GroupId, ids: &[String]) -> BTreeSet<UserId> {
    let members: BTreeSet<_> = ids.iter().filter_map(|id| UserId::new(id).ok()).collect();
    let impossible = ids.iter().filter(|id| UserId::new(id).is_err()).count();
    if impossible > 0 {
        warn!(
            "impossible members left out group_id={:?} count={impossible}",
            group.as_str()
        );
    }
    members
}
