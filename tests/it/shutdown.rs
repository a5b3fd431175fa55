//! The way out: what a balancer, the clients, the log and the service manager are told, and when.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::chat;
use crate::support::process::Signal;
use crate::support::raw::Raw;
use crate::support::settings::token_of;
use crate::support::{Client, DEADLINE, Gateway, Settings, wait_until, watchdog};

/// How many milliseconds after its Close frame a client is to come back.
fn after_ms(client: &mut Client) -> u64 {
    let reason = client.expect_close(1012);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    assert_eq!(reason["reconnect"], true, "{reason}");
    reason["after_ms"].as_u64().expect("a number")
}

#[test]
fn newcomers_are_let_in_while_the_balancer_learns_of_it() {
    let settings = chat::settings()
        .set("shutdown.settle", "2s")
        .set("shutdown.drain", "6s");
    let mut gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let mut alice = gateway.connect("alice");
    let told = Instant::now();
    gateway.signal(Signal::TERM);
    wait_until("it is not ready", || !gateway.is_ready());
    let state = gateway.admin.get("/readyz").json()["checks"]["draining"].clone();
    assert_eq!(state["reason"], "the gateway is shutting down");
    let mut bob = gateway.connect("bob");
    assert!(
        told.elapsed() < Duration::from_secs(2),
        "it was tried in time"
    );
    assert!(gateway.admin.metric("gateway_drain_seconds") > 0.0);
    // Both are served until it has settled.
    let id = alice.send_message("bob", "hello");
    bob.expect_message(&id);
    for client in [&mut alice, &mut bob] {
        after_ms(client);
    }
    assert!(
        told.elapsed() >= Duration::from_secs(2),
        "{:?}",
        told.elapsed()
    );
    assert_eq!(gateway.exit_code(), 0);
    let log = gateway.stderr();
    let step = |text: &str| {
        let line = log
            .lines()
            .find(|line| line.contains(&format!("Shutdown step: {text}")));
        let line = line.unwrap_or_else(|| panic!("{text} is logged"));
        let seconds = line.rsplit_once("seconds=").expect("how long it took").1;
        seconds.parse::<f64>().expect("a number")
    };
    assert!(step("settled") >= 1.9, "{}", step("settled"));
    for text in [
        "deregistered",
        "connections closed, cut=0",
        "users offline",
        "deliveries ended",
        "threads joined",
    ] {
        assert!(step(text) < 3.0, "{text}");
    }
}

#[test]
fn whoever_comes_after_it_has_settled_is_refused() {
    // Somebody who does not take leave keeps it going for a while.
    let settings = chat::settings()
        .set("shutdown.drain", "5s")
        .set("session.write_timeout", "3s");
    let mut gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let _silent = gateway.raw_session("alice");
    gateway.signal(Signal::TERM);
    wait_until("newcomers are refused", || {
        let response = Raw::connect(gateway.addr).try_upgrade(&gateway.path, &token_of("bob"));
        response.status == 503
    });
    let refused = gateway.admin.json("/disconnects")["refused"][0].clone();
    assert_eq!(refused["reason"], "draining");
    assert_eq!(gateway.exit_code(), 0);
}

#[test]
fn clients_come_back_spread_as_dealt_out() {
    const CLIENTS: usize = 50;
    let users: Vec<String> = (0..CLIENTS).map(|number| format!("u{number}")).collect();
    let settings = Settings::new()
        .users(users.iter().map(String::as_str))
        .set("shutdown.reconnect_spread", "10s");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let mut clients: Vec<_> = users.iter().map(|user| gateway.connect(user)).collect();
    gateway.signal(Signal::TERM);
    let mut dealt: Vec<u64> = clients.iter_mut().map(after_ms).collect();
    dealt.sort_unstable();
    let expected: Vec<u64> = (0..CLIENTS as u64)
        .map(|share| share * 10_000 / CLIENTS as u64)
        .collect();
    assert_eq!(dealt, expected);
}

#[test]
fn a_settle_that_leaves_no_time_to_close_is_refused() {
    let settings = chat::settings()
        .set("shutdown.settle", "4s")
        .set("shutdown.drain", "6s");
    let (mut process, _) = Gateway::launch(&settings, &[]);
    assert_eq!(process.exit_code(), 2);
    assert!(
        process
            .stderr()
            .contains("shutdown.settle: must be half of shutdown.drain at most")
    );
}

/// What the service manager is told until it is this.
fn wait_told(socket: &UnixDatagram, wanted: &str) {
    let mut bytes = [0; 1024];
    loop {
        let length = socket
            .recv(&mut bytes)
            .unwrap_or_else(|error| panic!("{wanted}: {error}"));
        if bytes[..length]
            .split(|&byte| byte == b'\n')
            .any(|line| line == wanted.as_bytes())
        {
            return;
        }
    }
}

#[test]
fn the_service_manager_is_told() {
    let path = watchdog::directory("notify").join("socket");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("an option");
    let path = path.display().to_string();
    let variables = [("NOTIFY_SOCKET", &*path), ("WATCHDOG_USEC", "200000")];
    let (process, directory) = Gateway::launch(&chat::settings(), &variables);
    wait_told(&socket, "READY=1");
    let mut gateway = Gateway::listening(process, directory);
    for _ in 0..3 {
        wait_told(&socket, "WATCHDOG=1");
    }
    gateway.signal(Signal::TERM);
    wait_told(&socket, "STOPPING=1");
    assert_eq!(gateway.exit_code(), 0);
}
