//! A small group that chats: what lies between the broker's bytes at the server's socket and the
//! client's read.

use std::time::Duration;

use super::{Bench, SIZE, Scenario, up_to};
use crate::relay::Relay;
use crate::results::Metric;
use crate::servers::{Kind, Server};
use crate::session::Session;

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
        let relay = Relay::before(bench.stand.url(kind));
        let server = Server::start_by_way_of(&relay.url, &bench.stand, kind, CONNECTIONS);
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
