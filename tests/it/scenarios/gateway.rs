//! A gateway dies, or is told to go.

use std::time::{Duration, Instant};

use super::figures::rounded;
use super::flow::{Flow, Load};
use super::{Drill, Figures};
use crate::support::broker::Broker;
use crate::support::process::Signal;
use crate::support::sketch::patience;
use crate::support::wait::holds_within;
use crate::support::wire::{Way, Wire};
use crate::support::{Cluster, Gateway};

/// `shutdown.drain` of these gateways.
pub const DRAIN: Duration = Duration::from_secs(5);

/// How long a recovery is watched.
const WATCH: Duration = Duration::from_secs(4);

const LARGE: Load = Load {
    users: 20,
    messages: 20_000,
    rate: 500,
};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "gateway-killed",
        about: "the only gateway is killed with SIGKILL and started again while 20,000 messages flow",
        run: || killed(LARGE),
    },
    Drill {
        name: "gateway-broker-away",
        about: "the same while the broker is away: half of the clients are back before it",
        run: || killed_with_the_broker_away(LARGE),
    },
    Drill {
        name: "gateway-stopped",
        about: "one of two gateways is stopped with SIGTERM while 20,000 messages flow",
        run: || stopped(LARGE),
    },
];

/// `kill -9` of the only gateway, and a restart at once: everyone comes back to it.
pub fn killed(load: Load) -> Figures {
    let mut cluster = Cluster::on(Broker::shared(), &load.settings(), 1);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 4);
    cluster.gateways[0].kill();
    let down = Instant::now();
    cluster.start_again(0);
    let relief = Instant::now();
    let recovered = flow.recovery(relief, WATCH);
    let mut figures = flow.finish(&cluster);
    figures.recovered = recovered;
    figures.demand_whole();
    figures.demand(figures.disconnects >= load.users, "all lost their gateway");
    figures.note(format!("it was away for {}", rounded(relief - down)));
    figures
}

/// The same while the broker does not answer: half of them are back before it does, and in the
/// middle of what is unread when it does.
pub fn killed_with_the_broker_away(load: Load) -> Figures {
    let mut cluster = Cluster::on(Broker::shared(), &load.settings(), 1);
    let wire = Wire::to(cluster.broker.addr);
    let settings = cluster
        .settings("g0")
        .set("broker.url", wire.url(&cluster.url));
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 4);
    cluster.gateways[0].kill();
    wire.hold(Way::ToBroker);
    let addr = cluster.gateways[0].addr.to_string();
    let (process, directory) = Gateway::launch(&settings.set("listen.addr", addr), &[]);
    let some_are_back = holds_within(patience(), || flow.returned() >= load.users / 2);
    wire.release();
    cluster.gateways[0] = Gateway::listening(process, directory);
    let recovered = flow.recovery(Instant::now(), WATCH);
    let mut figures = flow.finish(&cluster);
    figures.recovered = recovered;
    figures.demand(some_are_back, "clients are let in while the broker is away");
    figures.demand_whole();
    figures.demand(
        figures.disconnects == load.users,
        "all lost their gateway once",
    );
    figures
}

/// SIGTERM to one of two gateways: its clients move to the other one.
pub fn stopped(load: Load) -> Figures {
    let mut cluster = Cluster::on(
        Broker::shared(),
        &load.settings().set("shutdown.drain", "5s"),
        2,
    );
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 4);
    let told = Instant::now();
    cluster.gateways[1].signal(Signal::TERM);
    let status = cluster.gateways[1].end_within(DRAIN * 2);
    let took = told.elapsed();
    let recovered = flow.recovery(told, WATCH);
    let mut figures = flow.finish(&cluster);
    figures.recovered = recovered;
    figures.demand_whole();
    figures.demand(figures.disconnects >= load.users, "its clients moved");
    figures.demand(status.success(), format!("it exits with 0, not {status}"));
    figures.demand(took <= DRAIN, "it ends within the drain time");
    let [took, drain] = [took, DRAIN].map(rounded);
    figures.note(format!("it ended after {took}, of {drain} at most"));
    figures
}
