//! How the cost grows with the number of connections and with the size of a message, for the
//! gateway and for the better peer.

use std::time::Duration;

use super::{Bench, Scenario};
use crate::servers::Kind;

pub const CONNECTIONS: [usize; 4] = [10, 100, 1_000, 5_000];
pub const SIZES: [usize; 3] = [100, 1_000, 10_000];
const KINDS: [Kind; 2] = [Kind::Gateway, Kind::PeerTry];

/// Connections at which the size grows.
const AT_CONNECTIONS: usize = 1_000;
/// The size at which connections grow.
const AT_SIZE: usize = 200;

pub const NAME: &str = "growth";

pub const GROWTH: Scenario = Scenario {
    name: NAME,
    about: "10 to 5,000 connections, and messages of 100 B to 10 KB",
    targets: &[],
    run,
};

/// The name of a point under which its figures stand.
pub fn by_connections(connections: usize) -> String {
    format!("growth: {connections} connections, {AT_SIZE} B")
}

pub fn by_size(size: usize) -> String {
    format!("growth: {AT_CONNECTIONS} connections, {size} B")
}

fn run(bench: &mut Bench) {
    for size in SIZES {
        point(bench, &by_size(size), AT_CONNECTIONS, size);
    }
    for connections in CONNECTIONS {
        point(bench, &by_connections(connections), connections, AT_SIZE);
    }
}

fn point(bench: &mut Bench, name: &str, connections: usize, size: usize) {
    let seconds = bench.effort.size(3, 2);
    for _ in 0..bench.effort.rounds.min(3) {
        for kind in KINDS {
            let count = burst(connections, size);
            let figures =
                bench.undisturbed(|bench| bench.session(kind, connections).saturated(count, size));
            bench.add_saturated(name, kind.name(), &figures);
            let rate = rate(connections, size);
            let figures = bench.undisturbed(|bench| {
                let session = bench.session(kind, connections);
                session.paced(rate, Duration::from_secs(seconds), size)
            });
            bench.add_paced(name, kind.name(), &figures);
        }
    }
}

/// Messages of a burst: a second or two of work, of the broker's where connections are few.
fn burst(connections: usize, size: usize) -> u64 {
    let deliveries = match size {
        0..=200 => 4_000_000,
        201..=1_000 => 1_500_000,
        _ => 200_000,
    };
    (deliveries / connections as u64).clamp(100, 20_000)
}

/// Messages a second: 50,000 deliveries, fewer where the broker or the loopback would be behind.
fn rate(connections: usize, size: usize) -> f64 {
    let deliveries = if size > 1_000 { 10_000.0 } else { 50_000.0 };
    (deliveries / connections as f64).min(500.0)
}
