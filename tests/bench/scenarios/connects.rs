//! 2,000 clients that connect at once: the whole handshake, with token, presence and route.

use super::{Bench, Scenario, at_least, up_to};
use crate::client::Client;
use crate::cpu::Others;
use crate::results::Metric;
use crate::servers::{Kind, Server};

const CLIENTS: usize = 2_000;

pub const CONNECTS: Scenario = Scenario {
    name: "connects",
    about: "2,000 clients connect at once: token, presence, route, unread messages",
    targets: &[
        at_least(Metric::PerSecond, 1.0, Kind::PeerTry.name()),
        up_to(Metric::Refused, 0.0),
    ],
    run,
};

fn run(bench: &mut Bench) {
    bench.end_sessions();
    let name = CONNECTS.name;
    for _ in 0..bench.effort.rounds {
        for kind in Kind::ALL {
            let server = Server::start(&bench.stand, kind, CLIENTS);
            let mut client = Client::start(server.ca.as_deref());
            let others = Others::watch();
            let report = client.try_connect(server.addr, CLIENTS, CLIENTS);
            let others = 100.0 * others.share();
            eprintln!("  {name}: {}: {report}", kind.name());
            let number = |name: &str| report[name].as_f64().expect("a number");
            let rate = number("complete") / number("complete_s").max(1e-9);
            bench.add(name, kind.name(), Metric::PerSecond, rate);
            bench.add(
                name,
                kind.name(),
                Metric::ConnectedAfter,
                number("connected_s"),
            );
            bench.add(name, kind.name(), Metric::Refused, number("refused"));
            bench.add(name, kind.name(), Metric::Others, others);
            drop(client);
            bench.delete_queues(kind, &server.kill());
        }
    }
}
