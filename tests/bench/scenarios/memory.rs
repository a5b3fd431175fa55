//! Resident memory of the gateway at 5,000 connections: idle, also with TLS beside the peer's, and
//! after each has sent and received 100 messages.

use std::thread;

use super::{Bench, Scenario, up_to, with_tls};
use crate::cpu::{resident_kib, settled_kib};
use crate::results::Metric;
use crate::servers::{Kind, Server};
use crate::session::{SETTLED, Session};

const CONNECTIONS: usize = 5_000;

pub const IDLE: Scenario = Scenario {
    name: "memory-idle",
    about: "resident memory per idle connection, at 5,000, beside the peer",
    targets: &[up_to(Metric::MemoryPerConnection, 22.0)],
    run: idle,
};

pub const IDLE_TLS: Scenario = Scenario {
    name: "memory-idle-tls",
    about: "memory-idle with TLS, beside the gateway without it",
    targets: &[with_tls(up_to(Metric::MemoryPerConnection, 40.0))],
    run: idle_tls,
};

pub const USED: Scenario = Scenario {
    name: "memory-used",
    about: "the same after each connection has sent and received 100 messages (quick: 10)",
    targets: &[
        up_to(Metric::MemoryPerConnection, 32.0),
        up_to(Metric::Lost, 0.0),
    ],
    run: used,
};

fn idle(bench: &mut Bench) {
    for kind in [Kind::Gateway, Kind::PeerTry] {
        measure(bench, IDLE.name, kind, 0);
    }
}

fn idle_tls(bench: &mut Bench) {
    for kind in Kind::TLS {
        measure(bench, IDLE_TLS.name, kind, 0);
    }
}

fn used(bench: &mut Bench) {
    let messages = bench.effort.size(100, 10);
    measure(bench, USED.name, Kind::Gateway, messages);
}

/// Once: memory does not depend on what else the machine does.
fn measure(bench: &mut Bench, scenario: &str, kind: Kind, messages: u64) {
    let name = kind.name();
    bench.end_sessions();
    let server = Server::start(&bench.stand, kind, CONNECTIONS);
    let before = resident_kib(&server.process);
    let mut session = Session::idle(&bench.stand, kind, server, CONNECTIONS);
    if messages > 0 {
        const UNTIL_ALL_ARE_SENT_S: u64 = 600;
        session.wait_routed();
        let report = session.exchange(UNTIL_ALL_ARE_SENT_S, messages);
        eprintln!("  {scenario}: {report}");
        let missing = CONNECTIONS as f64 * messages as f64 - report["sent"].as_f64().unwrap_or(0.0);
        let lost = report["lost"].as_f64().unwrap_or(f64::NAN);
        bench.add(scenario, name, Metric::Lost, lost + missing);
    }
    // What a catch-up remembers is forgotten by then.
    thread::sleep(SETTLED);
    let whole = settled_kib(&session.server.process);
    eprintln!(
        "  {scenario}: {name}: {before} KiB before, {whole} KiB with {CONNECTIONS} connections"
    );
    let connections = CONNECTIONS as f64;
    bench.add(
        scenario,
        name,
        Metric::MemoryPerConnection,
        (whole - before) / connections,
    );
    bench.add(scenario, name, Metric::MemoryWhole, whole / connections);
    session.end();
}
