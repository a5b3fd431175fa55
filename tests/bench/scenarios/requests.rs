//! Client send to `message_sent`: 200 clients, each of which waits for the answer before it sends
//! again, with the reference services behind each server. A server that answers many requests while
//! it lets the pushes that follow from them lie is quick in this; so it is said as well how many
//! messages a second have come to their recipients' and senders' devices, once all of them have.

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
            let cpu = session.processor_time();
            let report = session.exchange(seconds, u64::MAX);
            let cpu = session.processor_time() - cpu;
            let others = 100.0 * others.share();
            eprintln!("  {name}: {}: {report}", kind.name());
            let number = |name: &str| report[name].as_f64().expect("a number");
            let failed = number("lost") + number("errors") + number("unanswered");
            let sent = number("sent");
            let mut add = |metric, value| bench.add(name, kind.name(), metric, value);
            add(Metric::PerSecond, sent / number("seconds"));
            add(Metric::DeliveredPerSecond, sent / number("pushed_s"));
            add(Metric::CpuPerMessage, cpu.as_secs_f64() * 1e6 / sent);
            add(Metric::P50, number("p50_us") / 1e3);
            add(Metric::P99, number("p99_us") / 1e3);
            add(Metric::Lost, failed);
            add(Metric::Others, others);
        }
    }
}
