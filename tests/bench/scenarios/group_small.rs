//! A small group that chats: what lies between the broker's bytes at the server's socket and the
//! client's read. What passes to a server says from then on that it was published as it passed: so
//! clients see how long the server has had it, without what the broker did before.

use std::time::Duration;

use super::{Bench, SIZE, Scenario, up_to};
use crate::clock;
use crate::results::Metric;
use crate::servers::{Kind, Server};
use crate::session::Session;
use crate::support::link::Link;

const CONNECTIONS: usize = 20;
/// Messages a second: 2,000 deliveries.
const RATE: f64 = 100.0;

pub const GROUP_SMALL: Scenario = Scenario {
    name: "group-small",
    about: "100 group messages a second to 20 connections, from the broker's bytes to the client's read",
    targets: &[
        up_to(Metric::P50, 0.15),
        up_to(Metric::P99, 0.3),
        up_to(Metric::Lost, 0.0),
    ],
    run: group_small,
};

fn group_small(bench: &mut Bench) {
    bench.end_sessions();
    let duration = Duration::from_secs(bench.effort.size(10, 5));
    let mut sessions = Kind::ALL.map(|kind| {
        let url = dating(bench.stand.url(kind));
        let server = Server::start_by_way_of(&url, &bench.stand, kind, CONNECTIONS);
        let session = Session::connect(&bench.stand, kind, server, CONNECTIONS);
        (kind, session)
    });
    for _ in 0..bench.effort.rounds {
        for (kind, session) in &mut sessions {
            let figures = bench.undisturbed(|_| session.paced(RATE, duration, SIZE));
            bench.add_paced(GROUP_SMALL.name, kind.name(), &figures);
        }
    }
    sessions.into_iter().for_each(|(_, session)| session.end());
}

/// Leads to the broker at `url`, `amqp://USER:PASSWORD@HOST:PORT/VHOST`, and dates what comes from it.
fn dating(url: &str) -> String {
    let (user, rest) = url.split_once('@').expect("a user");
    let (broker, vhost) = rest.split_once('/').expect("a virtual host");
    let broker = broker.parse().expect("an address");
    let link = Link::changing(broker, |bytes| clock::restamp(bytes, clock::now()));
    format!("{user}@{}/{vhost}", link.addr)
}
