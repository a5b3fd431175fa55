//! A gateway dies, or is told to go.

use std::time::{Duration, Instant};

use super::flow::{Flow, Load};
use super::{Drill, Figures};
use crate::support::Cluster;
use crate::support::broker::Broker;
use crate::support::process::Signal;

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
    figures.recovered = Some(recovered);
    figures.note(format!("it was away for {:?}", relief - down));
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
    let code = cluster.gateways[1].exit_code_within(DRAIN * 2);
    let took = told.elapsed();
    assert_eq!(code, 0);
    assert!(took <= DRAIN, "it ended after {took:?}");
    let recovered = flow.recovery(told, WATCH);
    let mut figures = flow.finish(&cluster);
    figures.recovered = Some(recovered);
    figures.note(format!("it ended after {took:?} with {code}"));
    figures
}
