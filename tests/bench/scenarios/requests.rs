//! Client send to `message_sent`, with the reference services behind each server: 200 clients, each
//! of which waits for the answer before it sends again, and 1,000 that send at their times, whatever
//! has been answered.
//!
//! A server that answers many requests while it lets the pushes that follow from them lie is quick
//! where clients wait; so it is said as well how many messages a second have come to their
//! recipients' and senders' devices, once all of them have.

use serde_json::Value;

use super::{Bench, Scenario, at_least, at_most, up_to};
use crate::cpu::Others;
use crate::results::Metric;
use crate::servers::Kind;
use crate::session::Session;

const CLIENTS: usize = 200;
const SCHEDULED_CLIENTS: usize = 1_000;
/// Requests a second of all clients together.
const RATE: u64 = 5_000;

pub const CLOSED_LOOP: Scenario = Scenario {
    name: "closed-loop",
    about: "200 clients that send, wait for message_sent, and send again",
    targets: &[
        at_least(Metric::PerSecond, 0.8, Kind::PeerTry.name()),
        at_most(Metric::CpuPerMessage, 1.3, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.3, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: closed_loop,
};

pub const PACED: Scenario = Scenario {
    name: "requests-paced",
    about: "5,000 requests a second by 1,000 clients, each at its time",
    targets: &[
        at_most(Metric::CpuPerMessage, 0.9, Kind::PeerTry.name()),
        at_most(Metric::P50, 1.0, Kind::PeerTry.name()),
        at_most(Metric::P99, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Lost, 0.0),
    ],
    run: paced,
};

fn closed_loop(bench: &mut Bench) {
    let seconds = bench.effort.size(5, 3);
    let name = CLOSED_LOOP.name;
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let report = measure(bench, name, kind, CLIENTS, |session| {
                session.exchange(seconds, u64::MAX)
            });
            let number = |name: &str| report[name].as_f64().expect("a number");
            let sent = number("sent");
            let mut add = |metric, value| bench.add(name, kind.name(), metric, value);
            add(Metric::PerSecond, sent / number("seconds"));
            add(Metric::DeliveredPerSecond, sent / number("pushed_s"));
        }
    }
}

fn paced(bench: &mut Bench) {
    let seconds = bench.effort.size(5, 3);
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            measure(bench, PACED.name, kind, SCHEDULED_CLIENTS, |session| {
                session.schedule(seconds, RATE)
            });
        }
    }
}

/// Has the clients send, and records what that costs; the report says more.
fn measure(
    bench: &mut Bench,
    name: &str,
    kind: Kind,
    clients: usize,
    send: impl FnOnce(&mut Session) -> Value,
) -> Value {
    let session = bench.session(kind, clients);
    let others = Others::watch();
    let cpu = session.processor_time();
    let report = send(session);
    let cpu = session.processor_time() - cpu;
    let others = 100.0 * others.share();
    eprintln!("  {name}: {}: {report}", kind.name());
    let number = |name: &str| report[name].as_f64().expect("a number");
    let failed = number("lost") + number("errors") + number("unanswered");
    let mut add = |metric, value| bench.add(name, kind.name(), metric, value);
    add(
        Metric::CpuPerMessage,
        cpu.as_secs_f64() * 1e6 / number("sent"),
    );
    add(Metric::P50, number("p50_us") / 1e3);
    add(Metric::P99, number("p99_us") / 1e3);
    add(Metric::Lost, failed);
    add(Metric::Others, others);
    report
}
