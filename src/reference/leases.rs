//! Who is online: the leases of the gateways, and the users whom each of them holds.
//!
//! A user is online while at least one lease holds them. All of this is in memory: a service that
//! restarted answers the next renewals with `known = false` and is told everything again.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// The lease of a gateway that has not renewed yet.
pub(super) const FIRST_LEASE: Duration = Duration::from_secs(60);

/// Something that happened to a user's presence. Whom it concerns is found out when it is
/// published, so that no call waits for the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PresenceChange {
    pub user: String,
    pub what: Change,
    /// Unix time in seconds.
    pub timestamp: i64,
    /// See [`Leases::moment`].
    pub moment: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The user was offline before: their watchers are told, and they are told who is online.
    Online,
    /// One more gateway holds the user, or says so again: they are told who is online.
    Announced,
    /// Nobody holds the user any more: their watchers are told.
    Offline,
}

/// All leases. Time is a parameter throughout; [`expire`](Self::expire) goes before any other
/// call with the same `now`.
#[derive(Debug, Default)]
pub(super) struct Leases {
    gateways: HashMap<String, Lease>,
    online: HashMap<String, Online>,
    /// Counts the calls of [`user_online`](Self::user_online).
    moment: u64,
}

#[derive(Debug)]
struct Online {
    /// How many leases hold the user: never 0.
    holders: usize,
    /// The moment at which they came online.
    since: u64,
}

#[derive(Debug)]
struct Lease {
    ends: Instant,
    /// Whether the gateway has renewed it: only then does it know of the lease itself.
    renewed: bool,
    users: BTreeSet<String>,
}

impl Leases {
    /// The gateway holds the user from now on. Returns whether the user was offline before.
    pub fn user_online(&mut self, user: &str, gateway: &str, now: Instant) -> bool {
        self.moment += 1;
        let ends = now + FIRST_LEASE;
        let lease = self
            .gateways
            .entry(gateway.into())
            .or_insert_with(|| Lease {
                ends,
                renewed: false,
                users: BTreeSet::new(),
            });
        if !lease.renewed {
            lease.ends = ends;
        }
        if !lease.users.insert(user.into()) {
            return false;
        }
        let online = Online {
            holders: 0,
            since: self.moment,
        };
        let online = self.online.entry(user.into()).or_insert(online);
        online.holders += 1;
        online.holders == 1
    }

    /// The gateway no longer holds the user. Returns whether the user is offline now and was
    /// online before.
    pub fn user_offline(&mut self, user: &str, gateway: &str) -> bool {
        let held = self
            .gateways
            .get_mut(gateway)
            .is_some_and(|lease| lease.users.remove(user));
        held && self.release(user)
    }

    /// The lease holds for `ttl` from now on. Returns whether an earlier renewal still held.
    pub fn renew(&mut self, gateway: &str, ttl: Duration, now: Instant) -> bool {
        let lease = self
            .gateways
            .entry(gateway.into())
            .or_insert_with(|| Lease {
                ends: now,
                renewed: false,
                users: BTreeSet::new(),
            });
        lease.ends = now + ttl;
        std::mem::replace(&mut lease.renewed, true)
    }

    /// Ends a gateway's lease. Returns the users who went offline by it.
    pub fn end(&mut self, gateway: &str) -> Vec<String> {
        let users = self
            .gateways
            .remove(gateway)
            .map(|lease| lease.users)
            .unwrap_or_default();
        users
            .into_iter()
            .filter(|user| self.release(user))
            .collect()
    }

    /// Ends the leases that have run out. Returns the users who went offline by it.
    pub fn expire(&mut self, now: Instant) -> Vec<String> {
        let over = self.gateways.iter().filter(|(_, lease)| lease.ends <= now);
        let over: Vec<String> = over.map(|(gateway, _)| gateway.clone()).collect();
        over.iter().flat_map(|gateway| self.end(gateway)).collect()
    }

    /// When the next lease runs out; `None`: there is none.
    pub fn next_end(&self) -> Option<Instant> {
        self.gateways.values().map(|lease| lease.ends).min()
    }

    /// The moment of the last [`user_online`](Self::user_online).
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// Whether the user is online, and has been since before `moment`.
    pub fn was_online(&self, user: &str, moment: u64) -> bool {
        self.online
            .get(user)
            .is_some_and(|online| online.since < moment)
    }

    /// One lease less holds the user. Returns whether it was the last one.
    fn release(&mut self, user: &str) -> bool {
        match self.online.get_mut(user) {
            Some(online) if online.holders > 1 => {
                online.holders -= 1;
                false
            }
            _ => self.online.remove(user).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn a_user_is_online_while_any_gateway_holds_them() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        assert!(leases.user_online("alice", "g1", now));
        assert!(!leases.user_online("alice", "g1", now));
        assert!(!leases.user_online("alice", "g2", now));
        assert!(!leases.user_offline("alice", "g1"));
        assert!(!leases.user_offline("alice", "g1"));
        assert!(leases.was_online("alice", u64::MAX));
        assert!(leases.user_offline("alice", "g2"));
        assert!(!leases.user_offline("alice", "g2"));
        assert!(!leases.was_online("alice", u64::MAX));
    }

    #[test]
    fn who_comes_later_was_not_online_before() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.user_online("alice", "g1", now);
        let alice = leases.moment();
        leases.user_online("bob", "g1", now);
        let bob = leases.moment();
        assert!(leases.was_online("alice", bob) && !leases.was_online("bob", alice));
        leases.user_online("alice", "g2", now);
        assert!(
            leases.was_online("alice", bob),
            "another gateway changes nothing"
        );
    }

    #[test]
    fn a_first_lease_of_60_s_starts_with_a_user() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.user_online("alice", "g1", now);
        assert_eq!(leases.next_end(), Some(now + Duration::from_secs(60)));
        assert_eq!(leases.expire(now + Duration::from_secs(59)), [""; 0]);
        assert_eq!(leases.expire(now + Duration::from_secs(60)), ["alice"]);
        assert_eq!(leases.next_end(), None);
    }

    #[test]
    fn a_lease_is_known_only_while_an_earlier_renewal_holds() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.user_online("alice", "g1", now);
        assert!(!leases.renew("g1", TTL, now), "a first lease is not known");
        assert!(leases.renew("g1", TTL, now + Duration::from_secs(9)));
        let late = now + Duration::from_secs(19);
        assert_eq!(leases.expire(late), ["alice"]);
        assert!(!leases.renew("g1", TTL, late));
        assert_eq!(leases.end("g1"), [""; 0]);
        assert!(!leases.renew("g1", TTL, late));
    }

    #[test]
    fn a_user_does_not_prolong_a_renewed_lease() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.renew("g1", TTL, now);
        leases.user_online("alice", "g1", now + Duration::from_secs(5));
        assert_eq!(leases.next_end(), Some(now + TTL));
    }

    #[test]
    fn a_lease_that_ends_takes_only_users_whom_no_other_holds() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        for (user, gateway) in [
            ("alice", "g1"),
            ("bob", "g1"),
            ("bob", "g2"),
            ("carol", "g2"),
        ] {
            leases.user_online(user, gateway, now);
        }
        assert_eq!(leases.end("g1"), ["alice"]);
        assert!(leases.was_online("bob", u64::MAX));
        assert_eq!(leases.end("g2"), ["bob", "carol"]);
    }
}
