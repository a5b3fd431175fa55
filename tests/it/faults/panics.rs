//! A panic inside one connection's handling ends that connection, and nothing else; one inside a
//! consumer ends nothing.

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::raw::{FIN, TEXT};
use crate::support::settings::token_of;
use crate::support::{Cluster, Gateway, Settings};

/// A gateway that panics at `place` of mallory's connections.
fn gateway(place: &str) -> Gateway {
    let settings = Settings::new()
        .users(["alice", "mallory"])
        // A place in the registry or a permit that is not given back is found out.
        .set("limits.max_connections_per_user", 1)
        .set("limits.max_connections", 2)
        .set("session.ping_interval", "300ms");
    let asked = format!("{place}:mallory");
    let (process, directory) = Gateway::launch(&settings, &[("WS_GATEWAY_PANIC", &asked)]);
    Gateway::listening(process, directory)
}

/// What a panic is to leave: alice, and threads and descriptors as before.
fn leaves_nothing_behind(place: &str, panics: impl Fn(&Gateway)) {
    let gateway = gateway(place);
    let mut alice = gateway.connect("alice");
    let before = gateway.settled(1);
    for _ in 0..3 {
        panics(&gateway);
        let after = gateway.settled(1);
        assert_eq!(
            (after.threads, after.descriptors),
            (before.threads, before.descriptors)
        );
    }
    let panicked = gateway.stderr().matches("a test asked for a panic").count();
    assert_eq!(panicked, 3);
    assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
    gateway.stop_with_clients(&mut [&mut alice]);
}

#[test]
fn a_panic_of_a_reader_thread_is_1011_and_leaves_nothing_behind() {
    leaves_nothing_behind("reader", |gateway| {
        let mut mallory = gateway.connect("mallory");
        mallory.send_text(r#"{"type":"ping"}"#);
        mallory.expect_close(1011);
    });
}

#[test]
fn a_panic_of_a_writer_thread_is_1011_and_leaves_nothing_behind() {
    leaves_nothing_behind("writer", |gateway| {
        // While the reader thread waits for the rest of a frame.
        let mut mallory = gateway.raw_session("mallory");
        mallory.send([FIN | TEXT, 0x80 | 100, 0]);
        assert_eq!(mallory.close_code(), Some(1011));
        mallory.expect_end();
    });
}

/// Before the upgrade there is no Close frame: the connection just ends.
#[test]
fn a_panic_in_a_handshake_leaves_nothing_behind() {
    leaves_nothing_behind("handshake", |gateway| {
        let bearer = format!("Bearer {}", token_of("mallory"));
        let mut headers = crate::support::raw::UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        let mut mallory = gateway.raw();
        mallory.send(crate::support::raw::head("GET", &gateway.path, &headers));
        mallory.expect_end();
    });
}

/// What is delivered then is a dead letter. It is unread, and all who are connected are caught up:
/// nobody misses it, and nobody is disconnected.
#[test]
fn a_panic_of_a_consumer_thread_loses_nothing_and_nobody() {
    let settings = Settings::new().users(["alice", "bob", "mallory"]);
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let panicking = [("WS_GATEWAY_PANIC", "deliver:mallory")];
    let (process, directory) = Gateway::launch(&cluster.settings("panics"), &panicking);
    let gateway = Gateway::listening(process, directory);
    gateway.wait_ready();
    let [mut alice, mut bob, mut mallory] =
        ["alice", "bob", "mallory"].map(|user| gateway.connect(user));
    let before = gateway.settled(3);
    for round in 1..=3 {
        let id = alice.send_message("mallory", "a bomb");
        mallory.expect_message(&id);
        mallory.ack(&[&id]);
        let letters = || cluster.amqp().ready("queue.dead-letter");
        crate::support::wait_until("it is a dead letter", || letters() == round);
        // The same consumer goes on for others.
        let id = alice.send_message("bob", "still here?");
        bob.expect_message(&id);
        bob.ack(&[&id]);
    }
    assert!(
        !mallory.frames_until_pong().iter().any(is_push),
        "each once"
    );
    let after = gateway.settled(3);
    assert_eq!(
        (after.threads, after.descriptors),
        (before.threads, before.descriptors)
    );
}
