//! etcd, a real one: the gateway registers in it and follows the services' addresses in it, and serves
//! on whatever becomes of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ws_gateway::config;
use ws_gateway::discovery::Discovery;
use ws_gateway::services::grpc::Grpc;

use crate::chat;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::etcd::Etcd;
use crate::support::process::Signal;
use crate::support::raw::Raw;
use crate::support::wait::{DEADLINE, wait_until_within};
use crate::support::{Client, GATEWAY_THREADS, Gateway, Settings, wait_until, watchdog};

/// Of the lease, in these tests: the shortest that etcd grants.
const TTL: Duration = Duration::from_secs(2);
/// Beyond what is promised, for two cores that may be shared with a compiler.
const GRACE: Duration = Duration::from_secs(1);
/// Between two times that the connection count is written.
const REFRESH: Duration = Duration::from_secs(10);

fn key(id: &str) -> String {
    format!("/services/ws-gateway/{id}")
}

/// An embedded gateway that registers in `etcd`.
fn settings(etcd: &Etcd, id: &str) -> Settings {
    registering(chat::settings(), etcd).set("gateway.id", id)
}

fn registering(settings: Settings, etcd: &Etcd) -> Settings {
    settings
        .set("discovery.endpoints", vec![etcd.url()])
        .set("discovery.ttl", format!("{}s", TTL.as_secs()))
}

/// alice and bob chat: the gateway serves.
fn chats(alice: &mut Client, bob: &mut Client) {
    let id = alice.send_message("bob", "hello");
    alice.expect_message(&id);
    bob.expect_message(&id);
}

/// The entry stays for longer than its lease: somebody keeps that alive.
fn is_kept(etcd: &Etcd, key: &str) {
    let end = Instant::now() + TTL + TTL + GRACE;
    while Instant::now() < end {
        assert!(etcd.get(key).is_some(), "{key} is kept");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_gateway_is_registered_with_what_it_is_and_how_many_are_connected() {
    let etcd = Etcd::start();
    let mut gateway = Gateway::start(&settings(&etcd, "g1"));
    let entry = etcd.wait_for(&key("g1"));
    assert_ne!(entry.lease, 0, "{entry:?}");
    let value = entry.json();
    let admin = gateway.stdout_line("listening admin http://");
    assert_eq!(value["admin_address"], admin);
    assert_eq!(value["address"], gateway.addr.to_string());
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["connections"], 0);
    let _clients = ["alice", "bob", "bob"].map(|user| gateway.connect(user));
    let is_told = |connections: u64| {
        etcd.wait_for_within(REFRESH + GRACE, &key("g1"), |entry| {
            entry.json()["connections"] == connections
        })
    };
    assert_eq!(is_told(3).lease, entry.lease, "it is the same lease");
}

#[test]
fn prefix_and_address_are_the_configured_ones_and_the_lease_is_kept() {
    let etcd = Etcd::start();
    let settings = settings(&etcd, "g1")
        .set("discovery.prefix", "/im/eu")
        .set("discovery.advertise", "chat.example.com:443");
    let _gateway = Gateway::start(&settings);
    let entry = etcd.wait_for("/im/eu/ws-gateway/g1");
    assert_eq!(entry.json()["address"], "chat.example.com:443");
    is_kept(&etcd, "/im/eu/ws-gateway/g1");
    // An operator's mistake is put right as well.
    etcd.revoke(entry.lease);
    etcd.wait_for_within(TTL + GRACE, "/im/eu/ws-gateway/g1", |_| true);
}

#[test]
fn a_gateway_deregisters_before_its_clients_are_closed() {
    let etcd = Etcd::start();
    let mut gateways = ["g1", "g2"].map(|id| Gateway::start(&settings(&etcd, id)));
    etcd.wait_for(&key("g1"));
    etcd.wait_for(&key("g2"));
    let mut alice = gateways[0].connect("alice");
    gateways[0].signal(Signal::TERM);
    alice.expect_close(1012);
    assert_eq!(etcd.get(&key("g1")), None, "it is deregistered by then");
    assert_eq!(gateways[0].exit_code(), 0);
    assert!(etcd.get(&key("g2")).is_some(), "the other one is not");

    // One that is killed is gone with its lease; etcd looks at leases twice a second.
    gateways[1].kill();
    wait_until_within(TTL + 2 * GRACE, "the lease ends", || {
        etcd.get(&key("g2")).is_none()
    });
}

/// Something happens to etcd, and it returns; the gateway serves on meanwhile, and is registered
/// within the lease after that, for good.
fn outage(strike: impl FnOnce(&mut Etcd), heal: impl FnOnce(&mut Etcd)) {
    let mut etcd = Etcd::start();
    let gateway = Gateway::start(&settings(&etcd, "g1"));
    let before = etcd.wait_for(&key("g1"));
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    strike(&mut etcd);
    gateway.stderr_line("etcd fails, will be retried");
    chats(&mut alice, &mut bob);
    let _carol = gateway.connect("carol");
    assert!(gateway.is_ready(), "etcd is no part of readiness");
    heal(&mut etcd);
    // An etcd that kept its data still has the entry of before.
    assert_eq!(before.json()["connections"], 0);
    etcd.wait_for_within(TTL + GRACE, &key("g1"), |entry| {
        entry.json()["connections"] == 3
    });
    is_kept(&etcd, &key("g1"));
    chats(&mut alice, &mut bob);
}

#[test]
fn an_etcd_that_is_killed_costs_nothing() {
    outage(Etcd::kill9, Etcd::restart);
}

#[test]
fn an_etcd_that_loses_everything_is_told_again() {
    outage(Etcd::kill9, |etcd| {
        etcd.wipe();
        etcd.restart();
    });
}

#[test]
fn an_etcd_that_hangs_is_noticed() {
    outage(|etcd| etcd.stop_signal(), |etcd| etcd.cont_signal());
}

#[test]
fn of_several_endpoints_one_is_enough() {
    let (mut etcd, other, absent) = (Etcd::start(), Etcd::start(), Etcd::absent());
    let endpoints = vec![absent.url(), etcd.url(), other.url()];
    let settings = settings(&etcd, "g1").set("discovery.endpoints", endpoints);
    let _gateway = Gateway::start(&settings);
    etcd.wait_for(&key("g1"));
    assert_eq!(other.get(&key("g1")), None);
    etcd.kill9();
    other.wait_for(&key("g1"));
}

#[test]
fn a_gateway_starts_at_once_without_etcd_and_registers_later() {
    let mut etcd = Etcd::absent();
    let start = Instant::now();
    let gateway = Gateway::start(&settings(&etcd, "g1"));
    assert!(start.elapsed() < GRACE, "{:?}", start.elapsed());
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    chats(&mut alice, &mut bob);
    gateway.stderr_line("etcd fails, will be retried");
    etcd.restart();
    etcd.wait_for_within(TTL + GRACE, &key("g1"), |_| true);
}

#[test]
fn an_etcd_that_hangs_does_not_hold_up_the_end() {
    let etcd = Etcd::start();
    let mut gateway = Gateway::start(&settings(&etcd, "g1"));
    etcd.wait_for(&key("g1"));
    etcd.stop_signal();
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), 0);
    // An eighth of the drain of 5 s, and what the end takes anyway.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    gateway.stderr_line("Not deregistered, the lease ends without the gateway");
}

#[test]
fn a_gateway_that_drains_by_hand_is_not_registered() {
    let etcd = Etcd::start();
    let mut gateway = Gateway::start(&settings(&etcd, "g1"));
    etcd.wait_for(&key("g1"));
    let admin = gateway.stdout_line("listening admin http://");
    let addr: SocketAddr = admin.parse().expect("an address");
    let post = |path: &str| {
        let mut raw = Raw::connect(addr);
        raw.send(format!(
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nX-Gateway-Admin: it\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(raw.response().status, 200, "{path}");
    };
    post("/drain");
    wait_until("it is deregistered", || etcd.get(&key("g1")).is_none());
    post("/undrain");
    etcd.wait_for(&key("g1"));
    is_kept(&etcd, &key("g1"));
}

/// The gateway's side of etcd, in this process.
fn discovery(etcd: &Etcd) -> Discovery {
    let file = settings(etcd, "here").write(&watchdog::directory("here"));
    let config = config::load(Some(&file), None).expect("a configuration");
    let addr = ([10, 0, 0, 1], 8080).into();
    let admin = Some(([0, 0, 0, 0], 9090).into());
    let registry = Arc::default();
    let upstreams = Grpc::start(&config.services, None)
        .expect("a runtime")
        .upstreams();
    let (fatal, _died) = crossbeam::channel::unbounded();
    let started = Discovery::start(&config, addr, admin, &registry, upstreams, &fatal);
    started.expect("a thread")
}

#[test]
fn a_gateway_is_deregistered_and_registered_again_on_demand() {
    let _threads = GATEWAY_THREADS.read();
    let mut etcd = Etcd::start();
    let discovery = discovery(&etcd);
    let registration = discovery.registration().expect("it has endpoints");
    let value = etcd.wait_for(&key("here")).json();
    assert_eq!(value["admin_address"], "10.0.0.1:9090", "{value}");
    for _ in 0..20 {
        assert!(registration.deregister(DEADLINE));
        assert_eq!(etcd.get(&key("here")), None);
        assert!(registration.deregister(DEADLINE), "it is already");
        assert!(registration.register(DEADLINE));
        assert!(etcd.get(&key("here")).is_some());
        assert!(registration.register(DEADLINE), "it is already");
    }

    // What is wanted while etcd is away is done once it is back, and nobody waits for that.
    etcd.kill9();
    let start = Instant::now();
    wait_until("it is noticed", || !registration.deregister(DEADLINE));
    assert!(!registration.register(DEADLINE));
    assert!(!registration.deregister(DEADLINE));
    assert!(start.elapsed() < DEADLINE / 2, "{:?}", start.elapsed());
    etcd.restart();
    wait_until_within(TTL + GRACE, "it is deregistered", || {
        etcd.get(&key("here")).is_none()
    });
    assert!(registration.deregister(DEADLINE));
    assert!(registration.register(DEADLINE));
    assert!(etcd.get(&key("here")).is_some());

    // One that hangs is waited for as long as asked.
    etcd.stop_signal();
    let start = Instant::now();
    assert!(!registration.deregister(Duration::from_millis(100)));
    assert!(start.elapsed() < GRACE, "{:?}", start.elapsed());
    etcd.cont_signal();
    wait_until("it is deregistered", || etcd.get(&key("here")).is_none());

    // A shutdown is not taken back.
    assert!(registration.register(DEADLINE));
    discovery.deregister(Instant::now() + DEADLINE);
    assert_eq!(etcd.get(&key("here")), None);
    assert!(!registration.register(Duration::from_millis(100)));
    assert_eq!(etcd.get(&key("here")), None);
    discovery.stop(Instant::now() + DEADLINE);
}

/// A remote gateway that finds its services in `etcd`, each under a name of its own.
fn found_in(etcd: &Etcd) -> Settings {
    let users = Settings::new().users(["alice", "bob"]);
    let settings = remote(&users, "http://127.0.0.1:1", &Broker::shared().vhost());
    registering(settings, etcd)
        .set("services.user", "etcd:///user-service")
        .set("services.message", "etcd:///message-service")
        .set("services.presence", "etcd:///presence-service")
        .set("limits.rate", 1_000_000)
        .set("limits.burst", 1_000_000)
}

const NAMES: [&str; 3] = ["user-service", "message-service", "presence-service"];

/// All three are at `backend`, whose entry is called `entry`.
fn put(etcd: &Etcd, entry: &str, backend: &Backend) {
    for (name, value) in NAMES.iter().zip([
        backend.url(),
        backend.addr.to_string(),
        json!({"address": backend.url(), "weight": 7}).to_string(),
    ]) {
        etcd.put(&format!("/services/{name}/{entry}"), value);
    }
}

fn delete(etcd: &Etcd, entry: &str) {
    for name in NAMES {
        etcd.delete(&format!("/services/{name}/{entry}"));
    }
}

fn sends(client: &mut Client) {
    client.send_message("bob", "hello");
}

/// From now on, calls reach this one.
fn reaches(client: &mut Client, backend: &Backend) {
    let before = backend.calls("SendMessage");
    wait_until("its turn comes", || {
        sends(client);
        backend.calls("SendMessage") > before
    });
}

#[test]
fn services_that_move_are_followed_and_no_call_fails() {
    let etcd = Etcd::start();
    let gateway = Gateway::start(&found_in(&etcd));
    assert!(!gateway.is_ready(), "no address of a service is known");
    // Its name begins like one of them.
    etcd.put("/services/user-service-archive/a", "127.0.0.1:1");
    let mut backend = Backend::start();
    put(&etcd, "0", &backend);
    gateway.wait_ready();
    let (done, mut alice) = (AtomicBool::new(false), gateway.connect("alice"));
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !done.load(SeqCst) {
                sends(&mut alice);
            }
        });
        for entry in 1..=10 {
            let next = Backend::start();
            put(&etcd, &entry.to_string(), &next);
            wait_until("the new one is called", || next.calls("SendMessage") > 5);
            delete(&etcd, &(entry - 1).to_string());
            // What comes after the deletion has reached the gateway comes to the new one alone.
            let mut last = backend.calls("SendMessage");
            wait_until("the old one is left", || {
                let seen = next.calls("SendMessage");
                wait_until("calls go on", || next.calls("SendMessage") > seen + 20);
                std::mem::replace(&mut last, backend.calls("SendMessage")) == last
            });
            std::mem::replace(&mut backend, next).stop_gracefully();
        }
        done.store(true, SeqCst);
        sender.join().expect("no call failed");
    });
}

#[test]
fn what_is_known_of_a_service_stays_when_etcd_has_nothing_better() {
    let etcd = Etcd::start();
    let gateway = Gateway::start(&found_in(&etcd));
    let (first, second) = (Backend::start(), Backend::start());
    put(&etcd, "a", &first);
    gateway.wait_ready();
    let mut alice = gateway.connect("alice");
    delete(&etcd, "a");
    gateway.stderr_line("No service address in etcd: prefix=/services/message-service/");
    reaches(&mut alice, &first);

    put(&etcd, "b", &second);
    reaches(&mut alice, &second);
    for (number, broken) in ["", "hush-hush@:x", "{\"address\": 7}"].iter().enumerate() {
        etcd.put("/services/message-service/b", broken);
        let one_more = || {
            let log = gateway.stderr();
            log.matches("Service address not taken from etcd").count() > number
        };
        wait_until("it is logged", one_more);
        reaches(&mut alice, &second);
    }
    assert!(!gateway.stderr().contains("hush-hush"));
    // A broken one beside it does no harm.
    etcd.put("/services/message-service/a", "ftp://127.0.0.1:1");
    reaches(&mut alice, &second);
    etcd.put("/services/message-service/b", first.url());
    reaches(&mut alice, &first);
    assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
}

/// A service moves while nobody can tell the gateway.
fn moves_unseen(lose: impl FnOnce(&mut Etcd)) {
    let mut etcd = Etcd::start();
    let gateway = Gateway::start(&found_in(&etcd));
    let (first, second) = (Backend::start(), Backend::start());
    put(&etcd, "a", &first);
    gateway.wait_ready();
    let mut alice = gateway.connect("alice");
    reaches(&mut alice, &first);
    etcd.kill9();
    gateway.stderr_line("etcd fails, will be retried");
    reaches(&mut alice, &first);
    lose(&mut etcd);
    // It is not there to see it.
    gateway.signal(Signal::STOP);
    etcd.restart();
    put(&etcd, "a", &second);
    etcd.compact();
    gateway.signal(Signal::CONT);
    reaches(&mut alice, &second);
    let before = first.calls("SendMessage");
    (0..10).for_each(|_| sends(&mut alice));
    assert_eq!(
        first.calls("SendMessage"),
        before,
        "it is at the second alone"
    );
    // And the watch is alive.
    put(&etcd, "a", &first);
    reaches(&mut alice, &first);
}

#[test]
fn a_service_that_moves_while_etcd_is_away_is_found() {
    moves_unseen(|_| {});
}

#[test]
fn a_service_is_found_in_an_etcd_that_lost_everything() {
    // It counts its revisions from the beginning: a watch from the last one that was seen would wait.
    moves_unseen(|etcd| etcd.wipe());
}
