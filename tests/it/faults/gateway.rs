//! A gateway dies, or is told to go.

use std::time::{Duration, Instant};

use crate::scenarios::flow::Load;
use crate::scenarios::gateway;
use crate::support::broker::Broker;
use crate::support::{Cluster, Settings};

const LOAD: Load = Load {
    users: 10,
    messages: 2_000,
    rate: 200,
};

#[test]
fn a_gateway_that_is_killed_loses_nothing() {
    gateway::killed(LOAD).assert_sound();
}

#[test]
fn a_gateway_that_is_killed_while_the_broker_is_away_loses_nothing() {
    gateway::killed_with_the_broker_away(LOAD).assert_sound();
}

#[test]
fn a_gateway_that_is_stopped_loses_nothing() {
    gateway::stopped(LOAD).assert_sound();
}

/// alice, bob and carol are friends; bob is on a gateway that lives.
fn friends() -> Settings {
    let all = ["alice", "bob", "carol"];
    Settings::new().users(all).group("friends", all)
}

#[test]
fn users_who_do_not_return_go_offline_at_the_restart() {
    let mut cluster = Cluster::on(Broker::shared(), &friends(), 2);
    let mut bob = cluster.connect(1, "bob");
    let (_alice, _carol) = (cluster.connect(0, "alice"), cluster.connect(0, "carol"));
    for user in ["alice", "carol"] {
        bob.expect_presence(user, "online");
    }
    cluster.gateways[0].kill();
    cluster.start_again(0);
    let restarted = Instant::now();
    let _carol = cluster.gateways[0].connect_cold("carol");
    bob.expect_presence("alice", "offline");
    // Far sooner than the lease, which is 60 s.
    println!("offline {:?} after the restart", restarted.elapsed());
    // The lease of the one that was killed held carol, too; the new one holds her again.
    bob.expect_presence("carol", "offline");
    bob.expect_presence("carol", "online");
}

#[test]
fn users_of_a_gateway_that_stays_away_go_offline_when_the_lease_ends() {
    const LEASE: Duration = Duration::from_secs(3);
    let settings = friends().set("presence.lease", "3s");
    let mut cluster = Cluster::on(Broker::shared(), &settings, 2);
    let mut bob = cluster.connect(1, "bob");
    let _alice = cluster.connect(0, "alice");
    bob.expect_presence("alice", "online");
    cluster.gateways[0].kill();
    let killed = Instant::now();
    bob.expect_presence("alice", "offline");
    let took = killed.elapsed();
    println!("offline {took:?} after the end, with a lease of {LEASE:?}");
    assert!(took <= LEASE + Duration::from_secs(1), "{took:?}");
}
