//! Configuration keys that no other test shows to act.

use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::Value;
use ws_gateway::services::proto::Message;

use crate::chat;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::process::Signal;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Gateway, Settings, wait_until};

#[test]
fn listen_path_is_where_clients_connect() {
    let gateway = Gateway::start(&chat::settings().set("listen.path", "/chat/v1"));
    assert_eq!(gateway.path, "/chat/v1");
    gateway.connect("alice").close();
    assert_eq!(gateway.raw().get_with("/ws", &UPGRADE).status, 404);
}

#[test]
fn embedded_page_switches_the_chat_page() {
    let with = Gateway::start(&chat::settings()).get("/");
    assert_eq!(with.status, 200, "{with:?}");
    let kind = with.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/html"), "{kind}");
    assert!(with.body.contains("WebSocket"), "it connects");
    let without = Gateway::start(&chat::settings().set("embedded.page", false)).get("/");
    assert_eq!(without.status, 404, "{without:?}");
}

/// Settings under which nothing but what a test sets limits a client that does not read.
fn boundless() -> Settings {
    chat::settings()
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("limits.max_connections_per_user", 1)
        .set("session.send_queue", 100_000)
        .set("session.send_queue_bytes", 1 << 30)
}

/// bob, who reads nothing, with more on its way to him than the sockets hold.
fn stuck_bob(gateway: &Gateway) -> Raw {
    let bob = gateway.raw_session("bob");
    let mut alice = gateway.connect("alice");
    let content = "x".repeat(60_000);
    for _ in 0..200 {
        let id = alice.send_message("bob", &content);
        alice.expect_message(&id);
    }
    bob
}

fn try_bob(gateway: &Gateway) -> Option<Client> {
    Client::try_connect(gateway.addr, &gateway.path, &token_of("bob")).ok()
}

#[test]
fn session_write_timeout_ends_a_client_that_takes_nothing() {
    let gateway = Gateway::start(&boundless().set("session.write_timeout", "500ms"));
    let _bob = stuck_bob(&gateway);
    let took = wait_until_within(Duration::from_secs(8), "bob's place is free", || {
        try_bob(&gateway).is_some()
    });
    println!("free after {took:?}");

    let patient = Gateway::start(&boundless().set("session.write_timeout", "1h"));
    let mut bob = stuck_bob(&patient);
    assert!(try_bob(&patient).is_none(), "he still has his place");
    // And has lost nothing.
    for _ in 0..200 {
        bob.json_that(|frame| frame["type"] == "message");
    }
}

#[test]
fn session_send_queue_bytes_bounds_a_queue() {
    let settings = boundless().set("log.level", "info");
    for (bytes, falls_back) in [(200_000, true), (1 << 30, false)] {
        let gateway = Gateway::start(&settings.clone().set("session.send_queue_bytes", bytes));
        let mut bob = stuck_bob(&gateway);
        for _ in 0..200 {
            bob.json_that(|frame| frame["type"] == "message");
        }
        let log = gateway.stderr();
        assert_eq!(log.contains("Fell back to the inbox"), falls_back, "{log}");
    }
}

/// While it drains, a gateway is not ready, lets nobody in, and ends with `shutdown.drain`.
#[test]
fn shutdown_drain_bounds_the_end() {
    let settings = boundless()
        .set("session.write_timeout", "1h")
        .set("shutdown.drain", "3s");
    let mut gateway = Gateway::start(&settings);
    let _bob = stuck_bob(&gateway);
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    wait_until("it drains", || gateway.get("/readyz").status == 503);
    let refused = gateway
        .raw()
        .try_upgrade(&gateway.path.clone(), &token_of("carol"));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(gateway.exit_code(), 0);
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(6),
        "{took:?}"
    );

    let mut again = Gateway::start(&settings.set("shutdown.drain", "1h"));
    let _bob = stuck_bob(&again);
    again.signal(Signal::TERM);
    wait_until("it drains", || again.get("/readyz").status == 503);
    again.signal(Signal::TERM);
    wait_until("a second signal ends it at once", || !again.is_running());
}

/// Also when a call to a service would take longer.
#[test]
fn shutdown_drain_bounds_the_end_of_calls() {
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost())
        .set("services.timeout", "20s")
        .set("shutdown.drain", "2s");
    let mut gateway = Gateway::start(&settings);
    gateway.wait_ready();
    for call in ["RenewLease", "ValidateToken", "AckMessages"] {
        backend.slow(call, Duration::from_secs(60));
    }
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), 0);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

/// A handshake that began before, and ends when the last client has been told to go.
#[test]
fn nobody_is_let_in_while_it_drains() {
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost());
    let mut gateway = Gateway::start(&settings.set("services.timeout", "20s"));
    gateway.wait_ready();
    let mut late = gateway.raw();
    let target = format!("{}?token={}", gateway.path, token_of("alice"));
    let head = crate::support::raw::head("GET", &target, &UPGRADE);
    let (first, rest) = head.split_at(20);
    late.send(first);
    // The end waits for this call; half of shutdown.drain at most.
    backend.slow("RenewLease", Duration::from_secs(60));
    gateway.signal(Signal::TERM);
    wait_until("it drains", || gateway.get("/readyz").status == 503);
    late.send(rest);
    assert_eq!(late.response().status, 503);
    assert_eq!(gateway.exit_code(), 0);
}

#[test]
fn services_worker_threads_are_as_many() {
    let threads = |count: i64| {
        let gateway = Gateway::start(&chat::settings().set("services.worker_threads", count));
        gateway.connect("alice").close();
        wait_until("it is ready", || gateway.is_ready());
        let mut last = 0;
        wait_until("it settles", || {
            let now = gateway.held().threads;
            std::mem::replace(&mut last, now) == now
                && !gateway
                    .thread_names()
                    .iter()
                    .any(|name| name.starts_with("r-"))
        });
        last
    };
    assert_eq!(threads(1) + 3, threads(4));
}

#[test]
fn log_level_decides_what_is_logged() {
    let lines = |level: &str| {
        let mut gateway = Gateway::start(&chat::settings().set("log.level", level));
        let mut alice = gateway.connect("alice");
        // The request is logged, at debug, before it is answered.
        assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
        alice.close();
        gateway.signal(Signal::TERM);
        assert_eq!(gateway.exit_code(), 0);
        gateway.stderr()
    };
    assert_eq!(lines("off"), "");
    let (warn, info, debug) = (lines("warn"), lines("info"), lines("debug"));
    assert!(
        !warn.contains("INFO") && info.contains("INFO"),
        "{warn}\n---\n{info}"
    );
    assert!(
        !info.contains("DEBUG") && debug.contains("DEBUG"),
        "{info}\n---\n{debug}"
    );
}

/// What the broker was asked for, as the broker tells it.
#[test]
fn broker_prefetch_and_heartbeat_reach_the_broker() {
    let broker = Broker::private();
    let (url, backend) = (broker.vhost(), Backend::start());
    let settings = remote(&Settings::new(), &backend.url(), &url);
    let gateway = Gateway::start(
        &settings
            .set("broker.prefetch", 77)
            .set("broker.heartbeat", "7s"),
    );
    gateway.wait_ready();
    let consumers = broker.rabbitmqctl(&[
        "list_consumers",
        "-p",
        "v0",
        "prefetch_count",
        "ack_required",
        "--no-table-headers",
    ]);
    assert_eq!(consumers.lines().collect::<Vec<_>>(), ["true\t77"; 3]);
    let connections = broker.rabbitmqctl(&["list_connections", "timeout", "--no-table-headers"]);
    assert_eq!(connections.trim(), "7");
}

#[test]
fn groups_cache_ttl_is_how_long_members_are_believed() {
    let backend = Backend::start();
    let url = Broker::shared().vhost();
    let settings = remote(&Settings::new(), &backend.url(), &url).set("groups.cache_ttl", "400ms");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    let amqp = crate::support::amqp::Amqp::open(&url);
    let publish = |id: &str| {
        let message = Message {
            id: id.into(),
            from_user_id: "carol".into(),
            group_id: "team".into(),
            ..Message::default()
        };
        amqp.publish("im.topic", "group.team", "message", message.encode_to_vec());
    };
    let members = |users: &[&str]| {
        let users = users.iter().map(|&user| user.to_owned()).collect();
        backend.answer(|answers| _ = answers.members.insert("team".into(), users));
    };
    members(&["alice"]);
    publish("first");
    alice.expect_message("first");
    let calls = backend.calls("GetGroupMembers");
    members(&["alice", "bob"]);
    let mut number = 0;
    wait_until("the members are asked for again", || {
        number += 1;
        publish(&number.to_string());
        alice.expect_message(&number.to_string());
        backend.calls("GetGroupMembers") > calls
    });
    publish("fence");
    bob.expect_message("fence");
    assert!(number < 400, "{number} messages within 400 ms asked once");
    assert!(
        backend.calls("GetGroupMembers") < calls + number,
        "not with each message"
    );
}

#[test]
fn presence_lease_is_renewed_well_within_it() {
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost());
    let gateway = Gateway::start(&settings.set("presence.lease", "3s"));
    gateway.wait_ready();
    let _alice = gateway.connect("alice");
    let before = backend.calls("RenewLease");
    let took = wait_until_within(Duration::from_secs(10), "three renewals", || {
        backend.calls("RenewLease") >= before + 3
    });
    // A sixth of it lies between two of them.
    assert!(took > Duration::from_millis(900), "{took:?}");
    wait_until("alice is announced", || backend.calls("UserOnline") >= 1);
    let announced = backend.calls("UserOnline");
    backend.answer(|answers| answers.lease_unknown = true);
    wait_until("a service that forgot is told again", || {
        backend.calls("UserOnline") > announced
    });
}

/// A ping comes at once, the next ones at their interval.
#[test]
fn session_ping_interval_is_between_pings() {
    let settings = chat::settings()
        .set("session.ping_interval", "400ms")
        .set("session.idle_timeout", "30s");
    let gateway = Gateway::start(&settings);
    let mut alice = gateway.raw_session("alice");
    let mut times = Vec::new();
    while times.len() < 4 {
        if alice.read_frame().opcode == crate::support::raw::PING {
            times.push(Instant::now());
        }
    }
    for pair in times.windows(2) {
        let between = pair[1] - pair[0];
        assert!(
            between > Duration::from_millis(200) && between < Duration::from_secs(2),
            "{between:?}"
        );
    }
    alice.text(r#"{"type":"ping"}"#);
    assert_ne!(
        alice.json_that(|frame| frame["type"] == "pong"),
        Value::Null
    );
}
