//! Leases, watchers, and the events that are published.

use tonic::Code;

use super::*;
use crate::services::proto::{
    PresenceEvent, PresenceStatus, RenewLeaseRequest, UserOfflineRequest, UserOnlineRequest,
};

impl Rig {
    fn try_online(&self, user: &str, gateway: &str) -> Result<(), Status> {
        let request = UserOnlineRequest {
            user_id: user.into(),
            gateway_id: gateway.into(),
        };
        self.wait(self.presence.clone().user_online(request))
            .map(drop)
    }

    fn try_leave(&self, user: &str, gateway: &str) -> Result<(), Status> {
        let request = UserOfflineRequest {
            user_id: user.into(),
            gateway_id: gateway.into(),
        };
        self.wait(self.presence.clone().user_offline(request))
            .map(drop)
    }

    fn try_renew(&self, gateway: &str, ttl_seconds: i32) -> Result<bool, Status> {
        let request = RenewLeaseRequest {
            gateway_id: gateway.into(),
            ttl_seconds,
        };
        self.wait(self.presence.clone().renew_lease(request))
            .map(|answer| answer.known)
    }

    fn online(&self, user: &str, gateway: &str) {
        self.try_online(user, gateway).unwrap();
    }

    fn leave(&self, user: &str, gateway: &str) {
        self.try_leave(user, gateway).unwrap();
    }

    fn renew(&self, gateway: &str, ttl_seconds: i32) -> bool {
        self.try_renew(gateway, ttl_seconds).unwrap()
    }

    /// The next events, each as `user status watchers`, by user: what concerns one comes in
    /// order.
    fn events(&self, count: usize) -> Vec<String> {
        let event = |publication: Publication| {
            assert_eq!(publication.exchange, "im.topic");
            let event = PresenceEvent::decode(publication.body.as_slice()).unwrap();
            assert_eq!(
                publication.routing_key,
                format!("presence.{}", event.user_id)
            );
            assert!(event.timestamp > 0);
            let online = event.status() == PresenceStatus::Online;
            assert!(online || event.status() == PresenceStatus::Offline);
            let status = if online { "online" } else { "offline" };
            format!("{} {status} {}", event.user_id, event.watcher_ids.join(","))
        };
        let mut publications = self.published.take(count);
        publications.sort_by(|one, other| one.routing_key.cmp(&other.routing_key));
        publications.into_iter().map(event).collect()
    }
}

#[test]
fn events_come_with_real_changes_only() {
    let rig = Rig::new();
    rig.online("alice", "g1");
    rig.online("alice", "g1");
    rig.online("alice", "g2");
    rig.leave("alice", "g1");
    rig.leave("alice", "g1");
    rig.leave("alice", "g3");
    rig.leave("alice", "g2");
    rig.leave("alice", "g2");
    rig.online("alice", "g1");
    assert_eq!(
        rig.events(3),
        [
            "alice online bob,carol",
            "alice offline bob,carol",
            "alice online bob,carol"
        ]
    );
}

#[test]
fn every_newcomer_is_told_who_is_online() {
    let rig = Rig::new();
    rig.online("alice", "g1");
    rig.online("bob", "g2");
    assert_eq!(
        rig.events(3),
        [
            "alice online bob,carol",
            "alice online bob",
            "bob online alice,carol"
        ]
    );
    // Also who is announced again, and nobody else is told of it.
    rig.online("bob", "g2");
    rig.online("alice", "g2");
    rig.online("carol", "g1");
    assert_eq!(
        rig.events(5),
        [
            "alice online bob",
            "alice online carol",
            "bob online alice",
            "bob online carol",
            "carol online alice,bob"
        ]
    );
}

#[test]
fn watchers_share_a_group_or_have_chatted_and_are_never_the_user() {
    let mut embedded = sample(Path::new(":memory:"));
    group(&mut embedded, "pair", &["alice", "zoe"]);
    let rig = Rig::with(&embedded);
    rig.send("dave", "alice", "hi");
    rig.send("alice", "erin", "hi");
    rig.send("alice", "alice", "note");
    rig.send("bob", "frank", "none of alice's business");
    rig.published.take(7);

    rig.online("alice", "g1");
    rig.online("dave", "g1");
    assert_eq!(
        rig.events(3),
        [
            "alice online bob,carol,dave,erin,zoe",
            "alice online dave",
            "dave online alice"
        ]
    );
    // Nobody watches a stranger: nothing is published.
    rig.online("stranger", "g1");
    rig.leave("stranger", "g1");
    rig.leave("dave", "g1");
    assert_eq!(rig.events(1), ["dave offline alice"]);
}

#[test]
fn watchers_follow_a_reload() {
    let mut embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    group(&mut embedded, "team", &["alice", "bob"]);
    rig.reference.reload(&embedded).unwrap();
    rig.published.take(1);
    rig.online("alice", "g1");
    assert_eq!(rig.events(1), ["alice online bob"]);
}

#[test]
fn a_lease_is_known_after_a_renewal_and_until_it_ends() {
    let rig = Rig::new();
    assert!(!rig.renew("g1", 60));
    assert!(rig.renew("g1", 60));
    assert!(!rig.renew("g2", 60));
    assert!(!rig.renew("g1", 0));
    assert!(!rig.renew("g1", 60));
    // A first lease, which a user starts, is not known.
    rig.online("alice", "g3");
    assert!(!rig.renew("g3", 60));
    assert!(rig.renew("g3", 60));
}

#[test]
fn a_renewal_with_0_ends_the_lease_at_once() {
    let rig = Rig::new();
    rig.renew("g1", 60);
    rig.online("alice", "g1");
    rig.online("bob", "g1");
    rig.online("bob", "g2");
    rig.published.take(4);
    rig.renew("g1", 0);
    assert_eq!(rig.events(1), ["alice offline bob,carol"]);
    rig.leave("bob", "g2");
    assert_eq!(rig.events(1), ["bob offline alice,carol"]);
}

#[test]
fn a_lease_that_runs_out_takes_its_users_offline() {
    let rig = Rig::new();
    rig.renew("g2", 60);
    rig.renew("g1", 1);
    rig.online("alice", "g1");
    assert_eq!(rig.events(1), ["alice online bob,carol"]);
    assert_eq!(rig.events(1), ["alice offline bob,carol"]);
    assert!(!rig.renew("g1", 60));
}

#[test]
fn presence_waits_while_the_broker_is_away_and_comes_in_order() {
    let rig = Rig::new();
    rig.published.fail(20);
    rig.online("alice", "g1");
    rig.leave("alice", "g1");
    rig.online("alice", "g1");
    assert_eq!(
        rig.events(3),
        [
            "alice online bob,carol",
            "alice offline bob,carol",
            "alice online bob,carol"
        ]
    );
}

#[test]
fn a_restarted_service_forgets() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    rig.renew("g1", 60);
    rig.online("alice", "g1");
    drop(rig);
    let rig = Rig::with(&embedded);
    assert!(!rig.renew("g1", 60));
    rig.online("alice", "g1");
    assert_eq!(rig.events(1), ["alice online bob,carol"]);
}

#[test]
fn garbage_is_an_invalid_argument() {
    let rig = Rig::new();
    for bad in ["", "a\nb", &"u".repeat(201)] {
        for answer in [
            rig.try_online(bad, "g1"),
            rig.try_online("alice", bad),
            rig.try_leave(bad, "g1"),
            rig.try_leave("alice", bad),
            rig.try_renew(bad, 1).map(drop),
        ] {
            assert_eq!(code(answer), Code::InvalidArgument, "{bad:?}");
        }
    }
    assert_eq!(code(rig.try_renew("g1", -1)), Code::InvalidArgument);
    assert!(!rig.renew("g1", i32::MAX));
}
