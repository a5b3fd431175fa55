//! A panic while something is pushed to one connection, or written to it, ends that connection; the
//! others get it, and it is no dead letter.

use crate::support::broker::Broker;
use crate::support::client::ids;
use crate::support::{Cluster, Gateway, Settings};

/// As many as have the helpers of the fan-out take part.
const LARGE: usize = 300;

fn one_bad_connection_costs_itself(place: &str) {
    let many: Vec<_> = (0..LARGE).map(|number| format!("user{number}")).collect();
    let large = || many.iter().map(String::as_str);
    let settings = Settings::new()
        .users(["alice", "bob", "mallory"])
        .group("small", ["alice", "bob", "mallory"])
        .group(
            "large",
            ["alice", "bob", "mallory"].into_iter().chain(large()),
        );
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let asked = format!("{place}:mallory");
    let asks = [("WS_GATEWAY_PANIC", asked.as_str())];
    let (process, directory) = Gateway::launch(&cluster.settings("panics"), &asks);
    let gateway = Gateway::listening(process, directory);
    gateway.wait_ready();
    let [mut alice, mut bob] = ["alice", "bob"].map(|user| gateway.connect(user));
    // The first one ends when her presence is told; those that follow soon come and go unnoticed.
    for group in ["small", "large", "small", "large", "small"] {
        let mut mallory = gateway.connect_cold("mallory");
        let id = alice.send_group_message(group, "for all");
        assert_eq!(ids(&bob.messages_until(&id)), [id], "{place}, {group}");
        mallory.expect_close(1011);
        let next = alice.send_message("bob", "still here?");
        assert_eq!(ids(&bob.messages_until(&next)), [next]);
    }
    assert_eq!(cluster.amqp().ready("queue.dead-letter"), 0, "{place}");
    gateway.stop_with_clients(&mut [&mut alice, &mut bob]);
}

#[test]
fn a_connection_to_which_pushing_panics_costs_itself() {
    one_bad_connection_costs_itself("push");
}

#[test]
fn a_connection_to_which_flushing_panics_costs_itself() {
    one_bad_connection_costs_itself("flush");
}
