//! A panic inside one connection's handling ends that connection, and nothing else; one inside a
//! consumer ends nothing. One of a thread that serves everybody has it start again, or else the
//! process ends with an error: never does it look alive and serve nobody.

use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::raw::{FIN, Raw, TEXT};
use crate::support::settings::token_of;
use crate::support::{Client, Cluster, Gateway, Settings, wait_until};

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

/// Where the clients come from that make threads panic.
const BAD: &str = "127.0.0.66";

/// A gateway with one place, and with this panic.
fn crowded(panic: &str, places: i64) -> Gateway {
    let settings = Settings::new()
        .users(["alice", "bob", "mallory"])
        .group("team", ["alice", "bob", "mallory"])
        .set("limits.max_connections", places);
    let (process, directory) = Gateway::launch(&settings, &[("WS_GATEWAY_PANIC", panic)]);
    Gateway::listening(process, directory)
}

fn bad(gateway: &Gateway) -> Raw {
    Raw::connect_from(BAD.parse().expect("an address"), gateway.addr)
}

/// What the accept thread or the refuser does for one connection is that one's alone, however often
/// it panics.
#[test]
fn a_panic_over_a_newcomer_ends_that_one_alone() {
    for (place, places) in [("take", 1), ("answer", 1)] {
        let gateway = crowded(&format!("{place}:{BAD}"), places);
        let mut alice = gateway.connect("alice");
        for _ in 0..10 {
            // Both at once: the other one's answer is not lost.
            let mut other = gateway.raw();
            let mut bad = bad(&gateway);
            let _ = bad.try_send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            bad.expect_end();
            assert_eq!(other.get("/healthz").status, 200);
        }
        assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
        let told = || gateway.stderr().matches("a test asked for a panic").count();
        wait_until("each panic is told", || told() == 10);
        let log = gateway.stderr();
        assert!(!log.contains("runs again"), "{log}");
        gateway.stop_with_clients(&mut [&mut alice]);
    }
}

#[test]
fn a_thread_that_serves_everybody_runs_again_after_a_panic() {
    for place in ["accept", "refuser"] {
        let gateway = crowded(&format!("2*{place}:{BAD}"), 1);
        let mut alice = gateway.connect("alice");
        for round in 1..=2 {
            let mut other = gateway.raw();
            bad(&gateway).expect_end();
            let line = format!("Thread runs again after a panic: thread={place}");
            wait_until("it runs again", || {
                gateway.stderr().matches(&line).count() == round
            });
            // Neither who waits nor who comes notices.
            assert_eq!(other.get("/healthz").status, 200);
            assert_eq!(gateway.get("/healthz").status, 200);
            assert_eq!(
                gateway.raw().try_upgrade(&gateway.path, "bob-token").status,
                503
            );
        }
        alice.request("ping", Value::Null);
        gateway.stop_with_clients(&mut [&mut alice]);
    }
}

/// The process ends, says why, and has told its clients.
fn ends(mut gateway: Gateway, thread: &str, alice: &mut Client) {
    alice.expect_close(1012);
    assert_eq!(gateway.exit_code(), 1);
    let log = gateway.stderr();
    let last = log.lines().last().expect("a last line");
    assert!(
        last.starts_with("ws-gateway: ") && last.contains(thread) && last.contains("panics"),
        "{last}"
    );
}

#[test]
fn a_thread_that_goes_on_panicking_ends_the_process_with_an_error() {
    for (thread, places) in [("accept", 9), ("refuser", 1)] {
        let gateway = crowded(&format!("{thread}:{BAD}"), places);
        let mut alice = gateway.connect("alice");
        (0..3).for_each(|_| bad(&gateway).expect_end());
        ends(gateway, thread, &mut alice);
    }
    let gateway = crowded("presence:mallory", 9);
    let mut alice = gateway.connect("alice");
    let _mallory = gateway.connect_cold("mallory");
    ends(gateway, "presence", &mut alice);
}

#[test]
fn presence_goes_on_after_a_panic() {
    let gateway = crowded("2*presence:mallory", 9);
    let mut alice = gateway.connect("alice");
    let mut mallory = gateway.connect("mallory");
    alice.expect_presence("mallory", "online");
    mallory.request("ping", Value::Null);
    gateway.stop_with_clients(&mut [&mut alice, &mut mallory]);
}

#[test]
fn the_broker_thread_connects_again_after_a_panic() {
    let settings = Settings::new().users(["alice", "bob"]);
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let panicking = [("WS_GATEWAY_PANIC", "1*broker:up")];
    let (process, directory) = Gateway::launch(&cluster.settings("panics"), &panicking);
    let gateway = Gateway::listening(process, directory);
    gateway.wait_ready();
    assert!(gateway.stderr().contains("a test asked for a panic"));
    let (mut alice, mut bob) = (gateway.connect("alice"), cluster.connect(0, "bob"));
    let id = bob.send_message("alice", "still here?");
    alice.expect_message(&id);
    gateway.stop_with_clients(&mut [&mut alice]);
}
