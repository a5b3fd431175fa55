//! From the start of the process to the line that says where it listens, embedded, as shipped.

use std::time::Instant;

use super::{Bench, Scenario, up_to};
use crate::results::{GATEWAY, Metric};
use crate::support::{Gateway, Settings};

const SHIPPED: &str = include_str!("../../../gateway.toml");

pub const START: Scenario = Scenario {
    name: "start",
    about: "start to listening, embedded, with the shipped configuration",
    targets: &[up_to(Metric::StartMs, 100.0)],
    run,
};

fn run(bench: &mut Bench) {
    for _ in 0..bench.effort.size(20, 5) {
        let settings = Settings::from_text(SHIPPED).set("listen.addr", "127.0.0.1:0");
        let start = Instant::now();
        let (process, directory) = Gateway::launch(&settings, &[]);
        let gateway = Gateway::listening(process, directory);
        let millis = start.elapsed().as_secs_f64() * 1e3;
        bench.add(START.name, GATEWAY, Metric::StartMs, millis);
        drop(gateway);
    }
}
