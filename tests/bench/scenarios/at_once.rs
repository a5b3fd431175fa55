//! Group messages to 1,000 connections that have only just come. Within 5 s of a connect the gateway
//! compares what it pushes with what was unread, so that nothing comes twice: once where nothing
//! was unread, and once where something was.

use std::time::{Duration, Instant};

use super::{Bench, RAW, SIZE, Scenario, at_least, at_most, up_to};
use crate::results::{Metric, Target};
use crate::servers::{Kind, Server};
use crate::session::Session;
use crate::support::wait::wait_until_within;
use crate::window::Figures;

const CONNECTIONS: usize = 1_000;
/// What each of them has unread, where they have.
const UNREAD: u64 = 3;
/// How long a server may take to see that all have left.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until the gateway compares no more with what the first to connect had unread.
const COMPARED_S: f64 = 5.0;

const TARGETS: &[Target] = &[
    at_least(Metric::PerSecond, 1.5, Kind::PeerTry.name()),
    at_most(Metric::CpuSaturated, 1.0, Kind::PeerTry.name()),
    up_to(Metric::DoneAfter, COMPARED_S),
    up_to(Metric::Lost, 0.0),
];

pub const AT_ONCE: Scenario = Scenario {
    name: "group-at-once",
    about: "group-saturated within 5 s of the connects",
    targets: TARGETS,
    run: at_once,
};

pub const AT_ONCE_UNREAD: Scenario = Scenario {
    name: "group-at-once-unread",
    about: "the same where each of the 1,000 had 3 messages unread",
    targets: TARGETS,
    run: at_once_unread,
};

fn at_once(bench: &mut Bench) {
    measure(bench, AT_ONCE.name, 0);
}

fn at_once_unread(bench: &mut Bench) {
    measure(bench, AT_ONCE_UNREAD.name, UNREAD);
}

fn measure(bench: &mut Bench, name: &str, unread: u64) {
    bench.end_sessions();
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let figures = bench.undisturbed(|bench| once(bench, name, kind, unread));
            bench.add_saturated(name, kind.name(), &figures);
        }
        let count = bench.effort.size(500, 200);
        let figures = bench.undisturbed(|bench| bench.raw(CONNECTIONS).send(count, 0.0, SIZE));
        bench.add_saturated(name, RAW, &figures);
    }
}

/// On a server of its own: what it has compared once it does not compare again.
fn once(bench: &mut Bench, name: &str, kind: Kind, unread: u64) -> Figures {
    let mut server = Server::start(&bench.stand, kind, CONNECTIONS);
    if unread > 0 {
        server = leave_unread(bench, kind, server, unread);
    }
    // As many as are done in time.
    let count = match kind {
        Kind::PeerAwait => 200,
        _ => 3_000,
    };
    let first = Instant::now();
    let mut session = Session::idle(&bench.stand, kind, server, CONNECTIONS);
    let connected = first.elapsed().as_secs_f64();
    assert!(
        session.unread >= unread * CONNECTIONS as u64,
        "{} were unread",
        session.unread
    );
    session.form_group();
    let grouped = first.elapsed().as_secs_f64();
    let figures = session.saturated(count, SIZE);
    let done = first.elapsed().as_secs_f64();
    let who = kind.name();
    eprintln!(
        "  {name}: {who}: connected {connected:.2} s, grouped {grouped:.2} s, done {done:.2} s"
    );
    session.end();
    bench.add(name, kind.name(), Metric::DoneAfter, done);
    figures
}

/// Has each user get so many messages, which no device acknowledges, and all of them leave.
fn leave_unread(bench: &Bench, kind: Kind, server: Server, unread: u64) -> Server {
    const UNTIL_ALL_ARE_SENT_S: u64 = 60;
    let mut session = Session::idle(&bench.stand, kind, server, CONNECTIONS);
    session.wait_routed();
    let report = session.exchange(UNTIL_ALL_ARE_SENT_S, unread);
    assert_eq!(
        report["sent"],
        unread * CONNECTIONS as u64,
        "not all are sent: {report}"
    );
    let Session { server, client, .. } = session;
    let connected = server.process.held().descriptors;
    drop(client);
    wait_until_within(PATIENCE, "all have left", || {
        server.process.held().descriptors + CONNECTIONS <= connected
    });
    server
}
