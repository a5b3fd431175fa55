//! Clients that vanish, that all come at once.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use ws_gateway::services::proto::Message;

use super::figures::rounded;
use super::{Drill, Figures};
use crate::support::backend::Backend;
use crate::support::broker::{Broker, free_port};
use crate::support::client::is_push;
use crate::support::cluster::remote;
use crate::support::ledger::Ledger;
use crate::support::process::Signal;
use crate::support::raw::{Raw, UPGRADE, head};
use crate::support::settings::token_of;
use crate::support::{DEADLINE, Gateway, Settings, puppet};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "client-vanishes",
        about: "200 clients are frozen without a FIN, and come back for what they missed",
        run: || vanish(200, 20, 100),
    },
    Drill {
        name: "reconnect-storm",
        about: "5,000 clients reconnect at once after the gateway was killed and started again",
        run: || storm(5_000),
    },
];

/// What each of a storm has unread.
const UNREAD: [&str; 2] = ["m1", "m2"];

pub fn users(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number:03}"))
        .collect()
}

/// `session.idle_timeout` where clients vanish.
pub const IDLE: Duration = Duration::from_secs(3);

/// So many clients, in one process, are stopped. Each misses so many messages of this length.
pub fn vanish(clients: usize, messages: usize, length: usize) -> Figures {
    let frozen = users("frozen", clients);
    let settings = Settings::new()
        .users(frozen.iter().map(String::as_str))
        .users(["alice"])
        .set("session.idle_timeout", "3s")
        .set("session.ping_interval", "250ms")
        .set("services.timeout", "2s")
        // Who is still in the registry keeps its user from coming back.
        .set("limits.max_connections_per_user", 1)
        .set("session.send_queue_bytes", 64 << 20)
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let mut alice = gateway.connect("alice");
    let before = gateway.settled(1);
    let ledger = Ledger::default();
    for user in &frozen {
        ledger.device(user, user);
    }

    let process = puppet::start(&gateway, &frozen);
    process.signal(Signal::STOP);
    let stopped = Instant::now();
    // As long as the gateway does not know, and after.
    let mut gone = HashMap::new();
    for _ in 0..messages {
        for user in &frozen {
            let id = alice.send_message(user, &"x".repeat(length));
            ledger.committed("alice", &[user], &id);
        }
        alice.take_held();
        note_gone(&gateway, stopped, &mut gone);
    }
    // A frozen client's host acknowledges what comes until its buffers are full: silent for certain it
    // is only from here on.
    let silent = stopped.elapsed();
    while gone.len() < clients {
        assert!(
            stopped.elapsed() < IDLE + DEADLINE,
            "{} of {clients} are gone",
            gone.len()
        );
        alice.request("ping", Value::Null);
        note_gone(&gateway, stopped, &mut gone);
        thread::sleep(Duration::from_millis(10));
    }
    let last = gone.values().max().copied().unwrap_or_default();
    let after = gateway.settled(1);

    for user in &frozen {
        let mut back = gateway.connect(user);
        for push in back.take_held().iter().filter(|frame| is_push(frame)) {
            ledger.received(user, push["id"].as_str().expect("an id"));
        }
        back.close();
    }
    drop(process);
    let ended_well = gateway.takes_its_leave();
    let mut figures = Figures::of(ledger.report());
    figures.demand_whole();
    figures.demand(ended_well, "the gateway ends with 0");
    figures.demand(figures.duplicated == 0, "each comes once");
    let in_time = last <= silent + IDLE + Duration::from_secs(1);
    figures.demand(in_time, "gone within idle timeout + 1 s");
    let (held, holds) = (
        (before.threads, before.descriptors),
        (after.threads, after.descriptors),
    );
    let baseline = format!("(threads, descriptors) as before: {held:?}, not {holds:?}");
    figures.demand(held == holds, baseline);
    let [last, silent, idle] = [last, silent, IDLE].map(rounded);
    figures.note(format!(
        "the last of {clients} was gone after {last}, with an idle timeout of {idle}; the messages \
         took {silent}"
    ));
    figures
}

/// Enters whose connection the gateway has said to be closed.
fn note_gone(gateway: &Gateway, since: Instant, gone: &mut HashMap<String, Duration>) {
    for line in gateway.stderr().lines() {
        if let Some((_, rest)) = line.split_once("Connection closed: user=frozen") {
            let user = rest.split(',').next().expect("a user").to_owned();
            gone.entry(user).or_insert_with(|| since.elapsed());
        }
    }
}

/// How soon all are to be back after a gateway's restart.
const ALL_BACK: Duration = Duration::from_secs(60);
/// `limits.max_handshakes`: the most calls at a time at the User Service, its probe's apart.
const MAX_HANDSHAKES: u64 = 256;
/// And of those whose route is bound, and whose token is validated once more.
const ROUTED: u64 = 32;

/// So many clients are connected; the gateway is killed and started again, and all come at once.
/// Each has one unread message.
pub fn storm(clients: usize) -> Figures {
    more_descriptors();
    let users = users("u", clients);
    let ledger = Ledger::default();
    let backend = Backend::start();
    // Long enough for handshakes to pile up.
    backend.slow("ValidateToken", Duration::from_millis(20));
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost())
        .set("gateway.id", "storm")
        .set("listen.addr", format!("127.0.0.1:{}", free_port()))
        .set("limits.max_handshakes", MAX_HANDSHAKES as i64)
        .set("log.level", "warn");
    let mut gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let first = come_at_once(&gateway, &users);
    gateway.kill();
    drop(first);
    backend.answer(|answers| {
        let unread = UNREAD.map(|id| Message {
            id: id.into(),
            from_user_id: "alice".into(),
            to_user_id: "you".into(),
            ..Message::default()
        });
        answers.offline.messages = unread.into();
    });
    let all: Vec<&str> = users.iter().map(String::as_str).collect();
    for id in UNREAD {
        ledger.committed("alice", &all, id);
    }

    let gateway = Gateway::start_at(gateway.addr, &settings);
    let before = backend.calls("ValidateToken");
    let start = Instant::now();
    let mut back = come_at_once(&gateway, &users);
    let connected = start.elapsed();
    let validated = backend.calls("ValidateToken") - before;
    for (raw, user) in back.iter_mut().zip(&users) {
        ledger.device(user, user);
        while let frame = raw.json()
            && frame["type"] != "offline_complete"
        {
            ledger.received(user, frame["id"].as_str().expect("a message"));
        }
    }
    let caught_up = start.elapsed();
    let at_a_time = backend.peak("ValidateToken");

    let mut figures = Figures::of(ledger.report());
    figures.recovered = Some(connected);
    figures.demand_whole();
    figures.demand_recovery_within(ALL_BACK);
    // The probe looks once a second at most.
    let bound = 2 * clients as u64 + ALL_BACK.as_secs();
    figures.demand(validated <= bound, "two calls for each at the User Service");
    let at_once = format!("{MAX_HANDSHAKES} + {ROUTED} calls at a time at most, and the probe's");
    figures.demand(at_a_time <= MAX_HANDSHAKES + ROUTED + 1, at_once);
    figures.note(format!(
        "recovered: all {clients} are let in; caught up within {}",
        rounded(caught_up)
    ));
    figures.note(format!(
        "the User Service had {validated} calls, {at_a_time} at a time at most"
    ));
    figures
}

/// All connect and send their request before the first one reads its answer; each must be let in.
/// They come from several addresses, each within its limit.
fn come_at_once(gateway: &Gateway, users: &[String]) -> Vec<Raw> {
    const PER_ADDRESS: usize = 500;
    let ask = |(number, user): (usize, &String)| {
        let from = Ipv4Addr::new(127, 0, 0, 1 + (number / PER_ADDRESS) as u8);
        let mut raw = Raw::connect_from(from.into(), gateway.addr);
        let bearer = format!("Bearer {}", token_of(user));
        let mut headers = UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        raw.send(head("GET", &gateway.path, &headers));
        raw
    };
    let mut all: Vec<Raw> = users.iter().enumerate().map(ask).collect();
    for raw in &mut all {
        let answer = raw.response();
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(raw.json()["type"], "connected");
    }
    all
}

/// Raises the limit of this process, which the gateways inherit.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("up to the hard limit");
}
