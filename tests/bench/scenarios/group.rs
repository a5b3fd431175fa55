//! A group message to 1,000 connections: as many as it can, and 50,000 deliveries a second.

use std::time::Duration;

use super::{Bench, RAW, SIZE, Scenario, at_least, at_most, up_to};
use crate::results::Metric;
use crate::servers::Kind;

const CONNECTIONS: usize = 1_000;
/// Deliveries a second.
const PACE: f64 = 50_000.0;

pub const SATURATED: Scenario = Scenario {
    name: "group-saturated",
    about: "a burst of group messages to 1,000 connections, which waited for the server",
    targets: &[
        at_least(Metric::PerSecond, 8.0, Kind::PeerAwait.name()),
        at_least(Metric::PerSecond, 1.5, Kind::PeerTry.name()),
        at_most(Metric::CpuSaturated, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: saturated,
};

pub const PACED: Scenario = Scenario {
    name: "group-paced",
    about: "50 group messages a second to 1,000 connections",
    targets: &[
        at_most(Metric::CpuPaced, 0.9, Kind::PeerTry.name()),
        at_most(Metric::CpuPaced, 1.2, RAW),
        at_most(Metric::P50, 0.8, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: paced,
};

fn saturated(bench: &mut Bench) {
    let name = SATURATED.name;
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let count = match kind {
                Kind::PeerAwait => bench.effort.size(500, 200),
                // No fewer: the depth of what waits is what is measured.
                Kind::Gateway | Kind::PeerTry => 5_000,
            };
            let figures =
                bench.undisturbed(|bench| bench.session(kind, CONNECTIONS).saturated(count, SIZE));
            bench.add_saturated(name, kind.name(), &figures);
        }
        let count = bench.effort.size(500, 200);
        let figures = bench.undisturbed(|bench| bench.raw(CONNECTIONS).send(count, 0.0, SIZE));
        bench.add_saturated(name, RAW, &figures);
    }
}

fn paced(bench: &mut Bench) {
    let name = PACED.name;
    let seconds = bench.effort.size(5, 3);
    let rate = PACE / CONNECTIONS as f64;
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let figures = bench.undisturbed(|bench| {
                let session = bench.session(kind, CONNECTIONS);
                session.paced(rate, Duration::from_secs(seconds), SIZE)
            });
            bench.add_paced(name, kind.name(), &figures);
        }
        let count = (rate * seconds as f64) as u64;
        let figures = bench.undisturbed(|bench| bench.raw(CONNECTIONS).send(count, rate, SIZE));
        bench.add_paced(name, RAW, &figures);
    }
}
