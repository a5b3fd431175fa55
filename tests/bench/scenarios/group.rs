//! A group message to 1,000 connections: as many as it can, and 50,000 deliveries a second; both
//! with TLS as well.

use std::time::Duration;

use super::{Bench, RAW, SIZE, Scenario, at_least, at_most, up_to, with_tls};
use crate::results::Metric;
use crate::servers::Kind;

const CONNECTIONS: usize = 1_000;
/// Messages a second: 50,000 deliveries.
const RATE: f64 = 50_000.0 / CONNECTIONS as f64;

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
        at_most(Metric::CpuPaced, 0.8, Kind::PeerTry.name()),
        at_most(Metric::CpuPaced, 1.2, RAW),
        at_most(Metric::P50, 0.8, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: paced,
};

pub const SATURATED_TLS: Scenario = Scenario {
    name: "group-saturated-tls",
    about: "group-saturated with TLS, beside the gateway without it",
    targets: &[
        with_tls(at_least(Metric::PerSecond, 1.0, Kind::PeerTryTls.name())),
        with_tls(at_most(Metric::CpuSaturated, 1.0, Kind::PeerTryTls.name())),
        with_tls(up_to(Metric::Lost, 0.0)),
    ],
    run: saturated_tls,
};

pub const PACED_TLS: Scenario = Scenario {
    name: "group-paced-tls",
    about: "group-paced with TLS, beside the gateway without it",
    targets: &[
        with_tls(at_most(Metric::CpuPaced, 0.9, Kind::PeerTryTls.name())),
        with_tls(at_most(Metric::P99, 1.0, Kind::PeerTryTls.name())),
        with_tls(up_to(Metric::Lost, 0.0)),
    ],
    run: paced_tls,
};

fn saturated(bench: &mut Bench) {
    let name = SATURATED.name;
    for _ in 0..bench.effort.rounds {
        saturate(bench, name, &Kind::ALL);
        let count = bench.effort.size(500, 200);
        let figures = bench.undisturbed(|bench| bench.raw(CONNECTIONS).send(count, 0.0, SIZE));
        bench.add_saturated(name, RAW, &figures);
    }
}

fn saturated_tls(bench: &mut Bench) {
    for _ in 0..bench.effort.rounds {
        saturate(bench, SATURATED_TLS.name, &Kind::TLS);
    }
}

fn paced(bench: &mut Bench) {
    let name = PACED.name;
    for _ in 0..bench.effort.rounds {
        pace(bench, name, &Kind::ALL);
        let count = (RATE * seconds(bench) as f64) as u64;
        let figures = bench.undisturbed(|bench| bench.raw(CONNECTIONS).send(count, RATE, SIZE));
        bench.add_paced(name, RAW, &figures);
    }
}

fn paced_tls(bench: &mut Bench) {
    for _ in 0..bench.effort.rounds {
        pace(bench, PACED_TLS.name, &Kind::TLS);
    }
}

/// A burst for each of `kinds`.
fn saturate(bench: &mut Bench, name: &str, kinds: &[Kind]) {
    for &kind in kinds {
        let count = match kind {
            Kind::PeerAwait => bench.effort.size(500, 200),
            // No fewer: the depth of what waits is what is measured.
            _ => 5_000,
        };
        let figures =
            bench.undisturbed(|bench| bench.session(kind, CONNECTIONS).saturated(count, SIZE));
        bench.add_saturated(name, kind.name(), &figures);
    }
}

/// A paced stream for each of `kinds`.
fn pace(bench: &mut Bench, name: &str, kinds: &[Kind]) {
    let duration = Duration::from_secs(seconds(bench));
    for &kind in kinds {
        let figures =
            bench.undisturbed(|bench| bench.session(kind, CONNECTIONS).paced(RATE, duration, SIZE));
        bench.add_paced(name, kind.name(), &figures);
    }
}

/// How long a stream is paced.
fn seconds(bench: &Bench) -> u64 {
    bench.effort.size(5, 3)
}
