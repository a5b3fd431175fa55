//! The broker dies, stalls, takes nothing, or forgets.

use std::time::Instant;

use super::flow::{Flow, Load};
use super::{Drill, Figures};
use crate::support::Cluster;
use crate::support::broker::Broker;

pub const DRILLS: &[Drill] = &[Drill {
    name: "broker-killed",
    about: "the broker is killed with SIGKILL and started again while 20,000 messages flow",
    run: || {
        killed(Load {
            users: 20,
            messages: 20_000,
            rate: 500,
        })
    },
}];

/// `kill -9`, and a restart at once.
pub fn killed(load: Load) -> Figures {
    let broker = Broker::private();
    let cluster = Cluster::on(broker, &load.settings(), 2);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 8);
    cluster.broker.kill9();
    for gateway in &cluster.gateways {
        crate::support::wait_until("not ready", || !gateway.is_ready());
    }
    cluster.broker.restart();
    let relief = Instant::now();
    let again = flow.is_delivered_again();
    let mut figures = flow.finish(&cluster, Some(relief));
    figures.note(format!("first new push after {again:?}"));
    figures
}
