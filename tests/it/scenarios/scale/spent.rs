//! What processes spend: processor time, and how often they are asked or deliver.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::Cluster;
use crate::support::broker::Broker;

/// Processor time so far: of the broker, of all gateways together, of the services.
fn spent(cluster: &Cluster) -> [Duration; 3] {
    let gateways = cluster.gateways.iter().map(|one| one.processor_time());
    [
        cluster.broker.processor_time(),
        gateways.sum(),
        cluster.services.processor_time(),
    ]
}

/// Processor time from a moment on.
pub struct Watch<'c> {
    cluster: &'c Cluster,
    pub began: Instant,
    before: [Duration; 3],
}

impl<'c> Watch<'c> {
    pub fn start(cluster: &'c Cluster) -> Self {
        Self {
            cluster,
            began: Instant::now(),
            before: spent(cluster),
        }
    }

    /// As [`spent`] orders them, in seconds; and how long it was watched.
    fn stop(&self) -> ([f64; 3], f64) {
        let now = spent(self.cluster);
        let since = |place: usize| (now[place] - self.before[place]).as_secs_f64();
        ([0, 1, 2].map(since), self.began.elapsed().as_secs_f64())
    }
}

/// What the processes spend when nothing is sent, in seconds of each second.
pub struct Idle(pub [f64; 3]);

impl Idle {
    pub fn watch(cluster: &Cluster, span: Duration) -> Self {
        let watch = Watch::start(cluster);
        thread::sleep(span);
        let (spent, span) = watch.stop();
        Self(spent.map(|time| time / span))
    }

    /// What is beyond that, in microseconds for each of `count`, written.
    pub fn beyond(&self, watch: &Watch<'_>, count: usize) -> String {
        let (spent, span) = watch.stop();
        let [broker, gateways, services] = [0, 1, 2].map(|place| {
            let beyond = spent[place] - self.0[place] * span;
            beyond.max(0.0) * 1e6 / count as f64
        });
        format!("broker {broker:.0} µs, gateways {gateways:.0} µs, services {services:.0} µs")
    }
}

/// How often gateways have asked who a group's members are.
pub fn looked_up(cluster: &Cluster) -> usize {
    const CALLS: &str = r#"gateway_rpc_seconds_count{code="OK",method="GetGroupMembers"}"#;
    let gateways = cluster.gateways.iter();
    gateways.map(|one| one.admin.metric(CALLS) as usize).sum()
}

/// How often the broker has delivered something to a consumer, by its own count.
pub fn delivered(broker: &Broker) -> usize {
    const COUNT: &str = "lists:sum([maps:get(messages_delivered_total, One, 0) \
                         || One <- maps:values(rabbit_global_counters:overview())]).";
    let said = broker.try_rabbitmqctl(&["eval", COUNT]);
    let count = said.and_then(|said| said.trim().parse().ok());
    count.expect("a number from rabbitmqctl")
}
