//! `/metrics`, as a real Prometheus reads it, and beside what clients counted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::chat;
use crate::support::prometheus::{Prometheus, promtool};
use crate::support::raw::{FIN, PING};
use crate::support::{Client, Cluster, Gateway, Settings, wait_until};

/// Every name that is promised, but what comes with TLS.
pub const NAMES: [&str; 36] = [
    "gateway_connections",
    "gateway_users",
    "gateway_connections_total",
    "gateway_disconnects_total",
    "gateway_rejected_total",
    "gateway_messages_received_total",
    "gateway_messages_pushed_total",
    "gateway_errors_total",
    "gateway_delivery_seconds",
    "gateway_rpc_seconds",
    "gateway_ping_seconds",
    "gateway_broker_up",
    "gateway_broker_reconnects_total",
    "gateway_dead_lettered_total",
    "gateway_send_queue_depth_max",
    "gateway_bytes_received_total",
    "gateway_bytes_sent_total",
    "gateway_fallbacks_total",
    "gateway_handshake_seconds",
    "gateway_route_seconds",
    "gateway_catch_up_seconds",
    "gateway_limit",
    "gateway_limit_used",
    "gateway_drain_seconds",
    "gateway_tls_certificate_expiry_seconds",
    "gateway_build_info",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
];

/// How many of each `type` came.
fn count(frames: &[Value], into: &mut BTreeMap<String, f64>) {
    for frame in frames {
        let kind = frame["type"].as_str().expect("a type");
        *into.entry(kind.into()).or_default() += 1.0;
    }
}

#[test]
fn prometheus_finds_every_name_and_the_figures_are_what_clients_counted() {
    let settings = Settings::new()
        .users(["alice", "bob", "carol"])
        .group("team", ["alice", "bob", "carol"])
        .set("session.ping_interval", "200ms")
        // It has a metric of its own.
        .tls();
    let cluster = Cluster::start(&settings);
    let (one, two) = (&cluster.gateways[0], &cluster.gateways[1]);
    let prometheus = Prometheus::start(&[one.admin.addr, two.admin.addr]);
    let mut pushed = BTreeMap::new();
    let mut alice = one.connect_cold("alice");
    let mut bob = two.connect_cold("bob");
    for number in 0..7 {
        let id = alice.send_message("bob", &format!("hello {number}"));
        bob.expect_message(&id);
        alice.expect_message(&id);
    }
    for number in 0..3 {
        let id = bob.send_group_message("team", &format!("hello all {number}"));
        alice.expect_message(&id);
        bob.expect_message(&id);
    }
    bob.expect_error("get_history", json!({ "user_id": "" }), "INVALID_MESSAGE");
    bob.expect_error("sing", json!({}), "UNKNOWN_MESSAGE_TYPE");
    // carol comes for the unread ones, and goes.
    let mut carol = one.connect_cold("carol");
    carol.expect("offline_complete");
    count(&carol.take_held(), &mut pushed);
    assert!(Client::try_connect(one.addr, &one.path, "wrong").is_err());
    // What is presence may still be under way; what has come is counted once it is quiet.
    wait_until("pings are answered, and presence has come", || {
        for client in [&mut alice, &mut bob, &mut carol] {
            count(&client.frames_until_pong(), &mut pushed);
        }
        let sum = |name: &str| one.admin.metric(name) + two.admin.metric(name);
        let presence = r#"gateway_messages_pushed_total{type="presence"}"#;
        let counted = pushed.get("presence").copied().unwrap_or(0.0);
        sum(presence) == counted && sum("gateway_ping_seconds_count") > 0.0
    });
    carol.close();

    prometheus.wait_for("sum(gateway_connections_total)", 3.0);
    prometheus.wait_for("sum(gateway_connections)", 2.0);
    prometheus.wait_for("sum(gateway_users)", 2.0);
    prometheus.wait_for(
        r#"sum(gateway_disconnects_total{reason="client_closed"})"#,
        1.0,
    );
    prometheus.wait_for(
        r#"sum(gateway_rejected_total{reason="unauthenticated"})"#,
        1.0,
    );
    // Seven to bob, seven own copies; carol had none of these to catch up on.
    for (kind, expected) in [("message", 14.0), ("group_message", 9.0)] {
        let query = format!(r#"sum(gateway_messages_pushed_total{{type="{kind}"}})"#);
        prometheus.wait_for(&query, expected);
    }
    for (kind, expected) in [
        ("send_message", 7.0),
        ("send_group_message", 3.0),
        ("invalid", 2.0),
    ] {
        let query = format!(r#"sum(gateway_messages_received_total{{type="{kind}"}})"#);
        prometheus.wait_for(&query, expected);
    }
    for code in ["INVALID_MESSAGE", "UNKNOWN_MESSAGE_TYPE"] {
        let query = format!(r#"sum(gateway_errors_total{{code="{code}"}})"#);
        prometheus.wait_for(&query, 1.0);
    }
    for (method, code, expected) in [
        ("SendMessage", "OK", 7.0),
        ("ValidateToken", "UNAUTHENTICATED", 1.0),
    ] {
        let query = format!(r#"sum(gateway_rpc_seconds_count{{method="{method}",code="{code}"}})"#);
        prometheus.wait_for(&query, expected);
    }
    prometheus.wait_for("sum(gateway_handshake_seconds_count)", 3.0);
    prometheus.wait_for("sum(gateway_catch_up_seconds_count)", 3.0);
    prometheus.wait_for("sum(gateway_route_seconds_count)", 3.0);
    prometheus.wait_for("min(gateway_broker_up)", 1.0);
    prometheus.wait_for(
        r#"max(gateway_limit{name="max_connections_per_user"})"#,
        5.0,
    );
    prometheus.wait_for(
        r#"max(gateway_limit_used{name="max_connections_per_user"})"#,
        1.0,
    );
    for name in NAMES {
        let is_there = |suffix: &str| !prometheus.query(&format!("{name}{suffix}")).is_empty();
        assert!(is_there("") || is_there("_bucket"), "{name}");
    }
}

#[test]
fn promtool_has_nothing_to_say() {
    let gateway = Gateway::start(&chat::settings());
    gateway.wait_ready();
    let mut alice = gateway.connect("alice");
    let id = alice.send_message("bob", "hello");
    alice.expect_message(&id);
    assert_eq!(gateway.get("/nowhere").status, 404);
    let scraped = gateway.admin.get("/metrics");
    let kind = scraped.header("content-type").expect("a type");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    assert_eq!(
        promtool(&["check", "metrics"], &scraped.body),
        (true, String::new())
    );
}

#[test]
fn bytes_are_those_on_the_wire() {
    let gateway = Gateway::start(&chat::settings().set("session.ping_interval", "59s"));
    gateway.wait_ready();
    let mut alice = gateway.raw_session("alice");
    assert_eq!(alice.json()["type"], "offline_complete");
    let before = [received(&gateway), sent(&gateway)];
    // A masked ping of 5 bytes, and its pong of 2 + 5.
    alice.frame(FIN | PING, "12345");
    assert_eq!(alice.try_read_frame().expect("a pong").payload, b"12345");
    wait_until("the bytes are counted", || {
        received(&gateway) == before[0] + 11.0
    });
    assert_eq!(sent(&gateway), before[1] + 7.0);
    // They stay counted once it is gone.
    drop(alice);
    wait_until("she is gone", || {
        gateway.admin.metric("gateway_connections") == 0.0
    });
    assert_eq!(received(&gateway), before[0] + 11.0);
}

fn received(gateway: &Gateway) -> f64 {
    gateway.admin.metric("gateway_bytes_received_total")
}

fn sent(gateway: &Gateway) -> f64 {
    gateway.admin.metric("gateway_bytes_sent_total")
}
