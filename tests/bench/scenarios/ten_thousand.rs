//! 10,000 connections on one gateway, and a group message to all of them every second.

use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, SIZE, Scenario, up_to};
use crate::results::{GATEWAY, Metric};
use crate::servers::{Kind, Server};
use crate::session::{GROUP, Session};

const CONNECTIONS: usize = 10_000;
/// How long threads and descriptors may take to go.
const PATIENCE: Duration = Duration::from_secs(60);

pub const TEN_THOUSAND: Scenario = Scenario {
    name: "ten-thousand",
    about: "a group message to 10,000 connections every second, for 60 s (quick: 10 s)",
    targets: &[
        up_to(Metric::Lost, 0.0),
        up_to(Metric::P99, 300.0),
        up_to(Metric::ThreadsLeft, 0.0),
        up_to(Metric::DescriptorsLeft, 0.0),
    ],
    run,
};

/// Once: it is long.
fn run(bench: &mut Bench) {
    bench.end_sessions();
    let kind = Kind::Gateway;
    let name = TEN_THOUSAND.name;
    let server = Server::start(&bench.stand, kind, CONNECTIONS);
    let before = server.process.held();
    let mut session = Session::connect(&bench.stand, kind, server, CONNECTIONS);
    let duration = Duration::from_secs(bench.effort.size(60, 10));
    let figures = session.paced(1.0, duration, SIZE);
    bench.add_paced(name, GATEWAY, &figures);
    // Nobody is told that the others go: 10,000 times 10,000 events are not the question here.
    session.server.services.form_group(GROUP, 0);
    let Session { client, server, .. } = session;
    drop(client);
    let start = Instant::now();
    let mut after = server.process.held();
    while (after.threads > before.threads || after.descriptors > before.descriptors)
        && start.elapsed() < PATIENCE
    {
        thread::sleep(Duration::from_millis(100));
        after = server.process.held();
    }
    eprintln!("  {name}: before {before:?}, after {after:?}");
    let left = |before: usize, after: usize| after as f64 - before as f64;
    bench.add(
        name,
        GATEWAY,
        Metric::ThreadsLeft,
        left(before.threads, after.threads),
    );
    bench.add(
        name,
        GATEWAY,
        Metric::DescriptorsLeft,
        left(before.descriptors, after.descriptors),
    );
    bench.delete_queues(kind, &server.kill());
}
