//! Client send to `message_sent`: 200 clients, each of which waits for the answer before it sends
//! again, with the reference services behind each server.

use super::{Bench, Scenario, at_least, at_most, up_to};
use crate::cpu::Others;
use crate::results::Metric;
use crate::servers::Kind;

const CLIENTS: usize = 200;

pub const CLOSED_LOOP: Scenario = Scenario {
    name: "closed-loop",
    about: "200 clients that send, wait for message_sent, and send again",
    targets: &[
        at_least(Metric::PerSecond, 1.0, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run,
};

fn run(bench: &mut Bench) {
    let seconds = bench.effort.size(5, 3);
    let name = CLOSED_LOOP.name;
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let session = bench.session(kind, CLIENTS);
            let others = Others::watch();
            let report = session.exchange(seconds, u64::MAX);
            let others = 100.0 * others.share();
            eprintln!("  {name}: {}: {report}", kind.name());
            let number = |name: &str| report[name].as_f64().expect("a number");
            let failed = number("lost") + number("errors") + number("unanswered");
            bench.add(
                name,
                kind.name(),
                Metric::PerSecond,
                number("sent") / number("seconds"),
            );
            bench.add(name, kind.name(), Metric::P50, number("p50_us") / 1e3);
            bench.add(name, kind.name(), Metric::P99, number("p99_us") / 1e3);
            bench.add(name, kind.name(), Metric::Lost, failed);
            bench.add(name, kind.name(), Metric::Others, others);
        }
    }
}
