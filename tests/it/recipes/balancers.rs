//! nginx and HAProxy as the recipes configure them, in front of gateways: clients chat through them,
//! keep quiet for longer than a timeout, are told apart, and move on when a gateway stops.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::balancer::{Start, TIMEOUT, haproxy, nginx};
use crate::support::broker::{Broker, free_port};
use crate::support::client::Ended;
use crate::support::cluster::remote;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::settings::token_of;
use crate::support::{Client, Cluster, Event, Gateway, Settings, wait_until};

fn settings() -> Settings {
    Settings::new()
        .users(["alice", "bob"])
        .set("listen.trusted_proxies", vec!["127.0.0.1"])
        .set("limits.max_connections_per_user", 50)
}

/// Reads for so long, and fails when a connection ends meanwhile.
fn stays_connected(clients: &mut [&mut Client], how_long: Duration) {
    let end = Instant::now() + how_long;
    while Instant::now() < end {
        for client in &mut *clients {
            let event = client.next_event(Duration::from_millis(50));
            assert!(!matches!(event, Event::End(_)), "{client}: {event:?}");
        }
    }
}

fn users_chat_through_it_and_may_be_quiet(start: Start) {
    let cluster = Cluster::on(
        Broker::shared(),
        &settings().set("session.ping_interval", "400ms"),
        2,
    );
    let balancer = start([cluster.gateways[0].addr, cluster.gateways[1].addr]);
    let (mut alice, mut bob) = (balancer.connect("alice"), balancer.connect("bob"));
    assert_ne!(
        alice.hello["gateway_id"], bob.hello["gateway_id"],
        "a connection goes to the gateway that holds fewest"
    );
    for client in [&mut alice, &mut bob] {
        client.expect("offline_complete");
    }
    let id = alice.send_message("bob", "before");
    bob.expect_message(&id);
    stays_connected(&mut [&mut alice, &mut bob], TIMEOUT * 3 / 2);
    let id = bob.send_message("alice", "behind");
    alice.expect_message(&id);
}

#[test]
fn users_chat_through_nginx_and_may_be_quiet() {
    users_chat_through_it_and_may_be_quiet(nginx);
}

#[test]
fn users_chat_through_haproxy_and_may_be_quiet() {
    users_chat_through_it_and_may_be_quiet(haproxy);
}

/// What `check` warns of, and the recipes have their timeouts for.
fn without_pings_silence_is_cut(start: Start) {
    let gateway = Gateway::start(&settings());
    let balancer = start([gateway.addr, gateway.addr]);
    let connected = Instant::now();
    assert_eq!(balancer.connect("alice").end(), Ended::Cut);
    assert!(connected.elapsed() >= TIMEOUT / 2);
}

#[test]
fn without_pings_nginx_cuts_silence() {
    without_pings_silence_is_cut(nginx);
}

#[test]
fn without_pings_haproxy_cuts_silence() {
    without_pings_silence_is_cut(haproxy);
}

fn clients_are_told_apart_and_cannot_lie(start: Start) {
    let gateway = Gateway::start(&settings().set("limits.max_connections_per_ip", 1));
    let balancer = start([gateway.addr, gateway.addr]);
    let bearer = format!("Bearer {}", token_of("alice"));
    let connect = |from: [u8; 4], more: &[(&str, &str)]| {
        let mut raw = Raw::connect_from(IpAddr::from(from), balancer.addr);
        let headers = [&UPGRADE[..], &[("Authorization", &bearer)], more].concat();
        (raw.get_with("/ws", &headers).status, raw)
    };
    let (status, _first) = connect([127, 0, 0, 2], &[]);
    assert_eq!(status, 101);
    assert_eq!(connect([127, 0, 0, 2], &[]).0, 429, "its second one");
    for lie in ["203.0.113.7", "127.0.0.1", "203.0.113.7, 127.0.0.1"] {
        assert_eq!(
            connect([127, 0, 0, 2], &[("X-Forwarded-For", lie)]).0,
            429,
            "{lie}"
        );
    }
    let (status, _other) = connect([127, 0, 0, 3], &[]);
    assert_eq!(status, 101, "another client");
}

#[test]
fn clients_are_told_apart_behind_nginx_and_cannot_lie() {
    clients_are_told_apart_and_cannot_lie(nginx);
}

#[test]
fn clients_are_told_apart_behind_haproxy_and_cannot_lie() {
    clients_are_told_apart_and_cannot_lie(haproxy);
}

fn a_gateway_that_stops_refuses_nobody(start: Start) {
    let mut cluster = Cluster::start(&settings());
    let balancer = start([cluster.gateways[0].addr, cluster.gateways[1].addr]);
    let mut alice = balancer.connect("alice");
    // The cluster names its gateways g0 and g1.
    let number = usize::from(alice.hello["gateway_id"] == "g1");
    let stopping = cluster.gateways.remove(number);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let newcomers = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::SeqCst) {
                // Refused, it would panic.
                balancer.connect("bob").close();
                count += 1;
            }
            count
        });
        stopping.stop_with_clients(&mut [&mut alice]);
        let mut again = balancer.connect("alice");
        assert_ne!(again.hello["gateway_id"], alice.hello["gateway_id"]);
        again.expect("offline_complete");
        is_over.store(true, Ordering::SeqCst);
        let count = newcomers.join().expect("nobody is refused");
        assert!(count > 0);
    });
}

#[test]
fn behind_nginx_a_gateway_that_stops_refuses_nobody() {
    a_gateway_that_stops_refuses_nobody(nginx);
}

#[test]
fn behind_haproxy_a_gateway_that_stops_refuses_nobody() {
    a_gateway_that_stops_refuses_nobody(haproxy);
}

fn tokens_are_not_logged(start: Start) {
    let gateway = Gateway::start(&settings());
    let balancer = start([gateway.addr, gateway.addr]);
    let token = token_of("alice");
    let mut raw = Raw::connect(balancer.addr);
    let answer = raw.get_with(&format!("/ws?token={token}"), &UPGRADE);
    assert_eq!(answer.status, 101);
    drop(raw);
    // Both log a connection when it has ended.
    wait_until("it is logged", || balancer.logged().contains("GET /ws"));
    let said = [balancer.logged(), balancer.process.stderr()].concat();
    assert!(!said.contains(&token), "{said}");
}

#[test]
fn nginx_logs_no_token() {
    tokens_are_not_logged(nginx);
}

#[test]
fn haproxy_logs_no_token() {
    tokens_are_not_logged(haproxy);
}

/// A gateway that has no broker answers, and is not ready.
#[test]
fn haproxy_sends_nobody_to_a_gateway_that_is_not_ready() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let unready = remote(&settings(), &nobody, "amqp://127.0.0.1:1");
    let unready = Gateway::start(&unready);
    let gateway = Gateway::start(&settings().set("gateway.id", "ready"));
    let balancer = haproxy([unready.addr, gateway.addr]);
    balancer.process.stderr_line("Server gateways/g1 is DOWN");
    let clients: Vec<_> = (0..4).map(|_| balancer.connect("alice")).collect();
    for client in clients {
        assert_eq!(client.hello["gateway_id"], "ready");
    }
}
