//! Every key of the configuration has a test that shows that it acts; those that no other test shows
//! are shown here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::Value;
use toml::Table;
use ws_gateway::config::Config;
use ws_gateway::services::proto::Message;

use crate::chat;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::named;
use crate::support::process::Signal;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Gateway, Settings, wait_until};

/// Each key, and a test that fails if it does not act.
const SHOWN_BY: [(&str, &str); 51] = [
    (
        "listen.proxy_protocol",
        "proxy_protocol::whoever_the_header_names_is_the_client",
    ),
    (
        "tls.cert",
        "tls::a_new_certificate_is_shown_to_newcomers_and_a_bad_one_to_nobody",
    ),
    (
        "tls.key",
        "tls::a_new_certificate_is_shown_to_newcomers_and_a_bad_one_to_nobody",
    ),
    (
        "services.ca",
        "outward_tls::what_is_wrong_with_a_services_certificate_is_told_and_mended_without_a_restart",
    ),
    (
        "broker.ca",
        "outward_tls::what_is_wrong_with_the_brokers_certificate_is_told_and_mended_without_a_restart",
    ),
    ("gateway.id", "keys::gateway_id_names_the_queues"),
    ("listen.addr", "start::an_address_in_use_is_named"),
    ("listen.path", "keys::listen_path_is_where_clients_connect"),
    (
        "listen.allowed_origins",
        "http_errors::an_origin_that_is_not_allowed_is_403",
    ),
    (
        "listen.trusted_proxies",
        "http_errors::a_trusted_proxy_says_whose_limit_it_is",
    ),
    (
        "listen.handshake_timeout",
        "http_errors::a_head_that_takes_too_long_is_408",
    ),
    (
        "limits.max_connections",
        "http_errors::a_full_gateway_is_503_and_says_when_to_retry",
    ),
    (
        "limits.max_connections_per_user",
        "http_errors::a_user_over_the_limit_is_429",
    ),
    (
        "limits.over_limit",
        "close_codes::the_oldest_is_replaced_with_4004",
    ),
    (
        "limits.max_connections_per_ip",
        "http_errors::an_address_over_the_limit_is_429",
    ),
    (
        "limits.max_handshakes",
        "handshakes::who_gives_way_is_told_408",
    ),
    (
        "limits.max_message_size",
        "close_codes::a_message_over_the_limit_is_1009",
    ),
    (
        "limits.rate",
        "close_codes::a_rate_that_is_exceeded_and_exceeded_is_4006",
    ),
    (
        "limits.burst",
        "error_codes::tokens_groups_and_rates_have_codes_of_their_own",
    ),
    (
        "session.ping_interval",
        "keys::session_ping_interval_is_between_pings",
    ),
    (
        "session.idle_timeout",
        "close_codes::silence_is_4002_and_an_answered_ping_is_not_silence",
    ),
    (
        "session.write_timeout",
        "keys::session_write_timeout_ends_a_client_that_takes_nothing",
    ),
    (
        "session.send_queue",
        "keys::session_send_queue_bounds_a_queue",
    ),
    (
        "session.send_queue_bytes",
        "keys::session_send_queue_bytes_bounds_a_queue",
    ),
    (
        "backend.mode",
        "keys::each_service_and_the_broker_are_where_the_configuration_says",
    ),
    (
        "services.user",
        "keys::each_service_and_the_broker_are_where_the_configuration_says",
    ),
    (
        "services.message",
        "keys::each_service_and_the_broker_are_where_the_configuration_says",
    ),
    (
        "services.presence",
        "keys::each_service_and_the_broker_are_where_the_configuration_says",
    ),
    (
        "services.timeout",
        "http_errors::a_user_service_that_does_not_answer_is_503",
    ),
    (
        "services.worker_threads",
        "keys::services_worker_threads_are_as_many",
    ),
    (
        "broker.url",
        "keys::each_service_and_the_broker_are_where_the_configuration_says",
    ),
    (
        "broker.prefetch",
        "keys::broker_prefetch_and_heartbeat_reach_the_broker",
    ),
    (
        "broker.heartbeat",
        "keys::broker_prefetch_and_heartbeat_reach_the_broker",
    ),
    (
        "groups.cache_ttl",
        "keys::groups_cache_ttl_is_how_long_members_are_believed",
    ),
    (
        "presence.lease",
        "keys::presence_lease_is_renewed_well_within_it",
    ),
    (
        "presence.offline_grace",
        "embedded::a_flapping_user_stays_online",
    ),
    ("admin.addr", "exposure::what_is_listened_on_is_seen"),
    (
        "admin.token",
        "admin::a_token_is_asked_for_where_something_is_about_somebody",
    ),
    (
        "discovery.endpoints",
        "discovery::of_several_endpoints_one_is_enough",
    ),
    (
        "discovery.prefix",
        "discovery::prefix_and_address_are_the_configured_ones_and_the_lease_is_kept",
    ),
    (
        "discovery.ttl",
        "discovery::a_gateway_deregisters_before_its_clients_are_closed",
    ),
    (
        "discovery.advertise",
        "discovery::prefix_and_address_are_the_configured_ones_and_the_lease_is_kept",
    ),
    ("shutdown.drain", "keys::shutdown_drain_bounds_the_end"),
    (
        "shutdown.settle",
        "shutdown::newcomers_are_let_in_while_the_balancer_learns_of_it",
    ),
    (
        "shutdown.reconnect_spread",
        "shutdown::clients_come_back_spread_as_dealt_out",
    ),
    ("log.level", "keys::log_level_decides_what_is_logged"),
    (
        "log.file",
        "logs::a_log_file_is_started_anew_after_it_was_moved_away",
    ),
    ("embedded.database", "embedded::messages_outlive_a_restart"),
    (
        "embedded.page",
        "keys::embedded_page_switches_the_chat_page",
    ),
    (
        "embedded.tokens",
        "keys::embedded_tokens_and_groups_are_who_there_is",
    ),
    (
        "embedded.groups",
        "keys::embedded_tokens_and_groups_are_who_there_is",
    ),
];

/// The keys of a configuration, as `table.key`.
fn keys(config: &Table) -> BTreeSet<String> {
    let keys = config.iter().flat_map(|(name, table)| {
        let keys = table.as_table().expect("a table").keys();
        keys.map(move |key| format!("{name}.{key}"))
    });
    keys.collect()
}

fn defaults() -> Table {
    Table::try_from(Config::default()).expect("a table")
}

#[test]
fn the_shipped_file_is_every_key_with_its_default() {
    let text = include_str!("../../gateway.toml");
    let shipped: Table = text.parse().expect("TOML");
    assert_eq!(keys(&shipped), keys(&defaults()));
    let shipped: Config = toml::from_str(text).expect("a configuration");
    assert_eq!(Table::try_from(shipped), Ok(defaults()));
}

#[test]
fn every_key_has_a_test_that_shows_that_it_acts() {
    let shown: BTreeMap<&str, &str> = SHOWN_BY.into();
    assert_eq!(shown.len(), SHOWN_BY.len(), "each key once");
    let listed: BTreeSet<String> = shown.keys().map(|&key| key.to_owned()).collect();
    assert_eq!(
        listed,
        keys(&defaults()),
        "SHOWN_BY lists all keys and no others"
    );
    for (key, test) in shown {
        let found = named::find(test).unwrap_or_else(|| panic!("{key}: there is no {test}"));
        let variable = format!("GATEWAY_{}", key.replace('.', "__").to_uppercase());
        let names = |text: &str| text.contains(&format!("\"{key}\"")) || text.contains(&variable);
        assert!(
            names(&found.body) || names(&found.helpers),
            "{test} does not set {key}, and nothing does that its file has to help it"
        );
    }
}

/// Three services at three addresses, and a broker: each gets what is its own.
#[test]
fn each_service_and_the_broker_are_where_the_configuration_says() {
    let broker = Broker::private();
    let services = [(); 3].map(|()| Backend::start());
    let [user, message, presence] = &services;
    let settings = Settings::new()
        .set("backend.mode", "remote")
        .set("services.user", user.url())
        .set("services.message", message.url())
        .set("services.presence", presence.url())
        .set("broker.url", broker.vhost())
        .set("gateway.id", "here");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    gateway.connect("alice").send_message("bob", "hello");
    wait_until("presence is told", || presence.calls("UserOnline") > 0);
    for (call, owner) in [
        ("ValidateToken", user),
        ("SendMessage", message),
        ("GetOfflineMessages", message),
        ("RenewLease", presence),
    ] {
        for service in &services {
            let is_owner = std::ptr::eq(service, owner);
            assert_eq!(service.calls(call) > 0, is_owner, "{call}");
        }
    }
    let consumers = broker.rabbitmqctl(&["list_consumers", "-p", "v0", "--no-table-headers"]);
    assert_eq!(consumers.lines().count(), 3, "{consumers}");

    // Embedded, the same addresses are nobody's business.
    let before = services
        .each_ref()
        .map(|service| service.calls("ValidateToken"));
    let embedded = Gateway::start(&settings.users(["alice"]).set("backend.mode", "embedded"));
    embedded.connect("alice").close();
    let after = services
        .each_ref()
        .map(|service| service.calls("ValidateToken"));
    assert_eq!(before, after);
}

#[test]
fn gateway_id_names_the_queues() {
    let (broker, backend) = (Broker::private(), Backend::start());
    let settings = remote(&Settings::new(), &backend.url(), &broker.vhost());
    let gateway = Gateway::start(&settings.set("gateway.id", "eu-west 7"));
    gateway.wait_ready();
    assert_eq!(gateway.connect("alice").hello["gateway_id"], "eu-west 7");
    let queues = ["list_queues", "-p", "v0", "name", "--no-table-headers"];
    let queues = broker.rabbitmqctl(&queues);
    for queue in ["single", "group", "presence"] {
        let name = format!("queue.gateway.eu-west 7.{queue}");
        assert!(queues.lines().any(|line| line == name), "{queues}");
    }
}

#[test]
fn embedded_tokens_and_groups_are_who_there_is() {
    let table = |text: &str| text.parse::<Table>().expect("TOML");
    let settings = Settings::new()
        .set("embedded.tokens", table("t1 = 'ann'\nt2 = 'ben'"))
        .set(
            "embedded.groups",
            table("pair = ['ann', 'ben']\nother = ['ann']"),
        );
    let gateway = Gateway::start(&settings);
    let connect = |token: &str| Client::try_connect(gateway.addr, &gateway.path, token);
    let (mut ann, mut ben) = (connect("t1").expect("ann"), connect("t2").expect("ben"));
    assert_eq!((ann.user.as_str(), ben.user.as_str()), ("ann", "ben"));
    for unknown in ["alice-token", "ann-token", "ann"] {
        assert_eq!(
            connect(unknown).map(|_| ()).expect_err("refused").status,
            401
        );
    }
    let id = ann.send_group_message("pair", "hello");
    ben.expect_message(&id);
    ann.send_group_message("other", "hello");
    let other = ben.frames_until_pong();
    assert!(
        other.iter().all(|frame| frame["type"] != "group_message"),
        "{other:?}"
    );
    let to_team = serde_json::json!({"group_id": "team", "content": "hello"});
    ann.expect_error("send_group_message", to_team, "NOT_FOUND");
}

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

#[test]
fn session_send_queue_bounds_a_queue() {
    for (frames, falls_back) in [(4, true), (100_000, false)] {
        let gateway = Gateway::start(&boundless().set("session.send_queue", frames));
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

/// A ping comes at once, the next ones at their interval. Clients are told it in whole seconds, never 0.
#[test]
fn session_ping_interval_is_between_pings() {
    let settings = chat::settings()
        .set("session.ping_interval", "400ms")
        .set("session.idle_timeout", "30s");
    let gateway = Gateway::start(&settings);
    assert_eq!(gateway.connect("bob").hello["ping_interval"], 1);
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
