//! The broker dies, stalls, takes nothing, or forgets.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::figures::rounded;
use super::flow::{Flow, Load};
use super::{Drill, Figures};
use crate::support::broker::Broker;
use crate::support::client::Ended;
use crate::support::process::Signal;
use crate::support::wait::{DEADLINE, wait_until_within};
use crate::support::{Client, Cluster, Gateway, Settings};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "broker-killed",
        about: "the broker is killed with SIGKILL and started again while 20,000 messages flow",
        run: || killed(LARGE),
    },
    Drill {
        name: "broker-stalled",
        about: "the broker is stopped with SIGSTOP for 30 s, at the default heartbeat of 10 s",
        run: || stalled(LARGE, Duration::from_secs(10), Duration::from_secs(30)),
    },
    Drill {
        name: "broker-alarm",
        about: "the broker's memory alarm, and shutdowns during it",
        run: || alarm(LARGE, LARGE.messages / 4),
    },
    Drill {
        name: "broker-forgets",
        about: "queues deleted, connections closed by the operator, the broker's data wiped",
        run: || forgets(LARGE),
    },
];

/// From the broker's answer to deliveries as before.
const RECOVERY: Duration = Duration::from_secs(5);
/// `services.timeout`, the default: an answer within it is in time.
const ANSWER: Duration = Duration::from_secs(3);
const LARGE: Load = Load {
    users: 20,
    messages: 20_000,
    rate: 500,
};
/// How many messages at most pile up in the services' outbox while the broker is gone: publishing
/// them is the services' work, and takes no part of the gateway's time to recover.
const PILE: usize = 250;
/// Of the configuration that all tests share, `shutdown.drain`, and what a process needs to end.
const SHUTDOWN: Duration = Duration::from_secs(6);
/// How long a recovery is watched: whoever waits between tries comes back within it.
const WATCH: Duration = Duration::from_secs(6);
/// As long as the wait after a first failure: enough where the services lose nothing.
const SHORT_WATCH: Duration = Duration::from_secs(2);
/// Users who are not in the flow.
const LEAVER: &str = "leaver";

/// `kill -9`, and a restart at once.
pub fn killed(load: Load) -> Figures {
    killed_under(&Cluster::on(Broker::private(), &load.settings(), 2), load)
}

/// As [`killed`], of a cluster whose broker nobody else has.
pub fn killed_under(cluster: &Cluster, load: Load) -> Figures {
    let flow = Flow::start(cluster, load);
    flow.goes_on_for(load.messages / 8);
    flow.pause_after(PILE.min(load.messages / 2));
    cluster.broker.kill9();
    all_are_ready(cluster, false, DEADLINE);
    cluster.broker.restart();
    flow.resume();
    let recovered = flow.recovery(Instant::now(), WATCH);
    let mut figures = flow.finish(cluster);
    tell(cluster);
    figures.recovered = recovered;
    figures.demand_unnoticed();
    figures.demand_recovery_within(RECOVERY);
    figures.demand(figures.refused == 0, "every send is committed");
    figures
}

/// SIGSTOP for `stop` at least, and SIGCONT. Meanwhile a gateway is shut down; and once more, at the
/// end, the services.
pub fn stalled(load: Load, heartbeat: Duration, stop: Duration) -> Figures {
    let settings = with_leaver(load).set("broker.heartbeat", format!("{}s", heartbeat.as_secs()));
    let mut cluster = Cluster::on(Broker::private(), &settings, 2);
    let mut leaver = Leaver::start(&cluster);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 8);

    cluster.broker.stop_signal();
    let stopped = Instant::now();
    let patience = 2 * heartbeat + Duration::from_secs(1);
    // Looked at for longer, so that a failure says how much too long it took.
    let noticed = all_are_ready(&cluster, false, patience + DEADLINE);
    assert!(noticed <= patience, "noticed after {noticed:?}");
    let left = leaver.is_shut_down();
    let none_is_ready = || cluster.gateways.iter().all(|it| it.shows_ready(false));
    while stopped.elapsed() < stop {
        assert!(none_is_ready(), "ready after {:?}", stopped.elapsed());
        flow.goes_on_for(load.messages / 100);
    }
    assert!(none_is_ready());
    let (refused, slowest) = (flow.refused(), flow.slowest_answer());
    cluster.broker.cont_signal();
    let relief = Instant::now();
    let ready = all_are_ready(&cluster, true, DEADLINE * 2);
    let recovered = flow.recovery(relief, WATCH);
    let mut figures = flow.finish(&cluster);
    tell(&cluster);

    // The sketch lets nobody in whom it cannot bind.
    let sketch = &cluster.gateways[0].is_sketch;
    let early = sketch.then(|| cluster.connect(0, "user00"));
    cluster.broker.stop_signal();
    let mut sender = early.unwrap_or_else(|| cluster.connect(0, "user00"));
    let id = sender.send_message("user01", "?");
    let ended = services_are_shut_down(&mut cluster);
    cluster.broker.cont_signal();
    cluster.services.start_again();
    cluster.connect(1, "user01").expect_message(&id);

    figures.recovered = recovered;
    left.demand(&mut figures);
    figures.demand_unnoticed();
    figures.demand(refused == 0, "every send is committed meanwhile");
    figures.demand(slowest <= ANSWER, "and answered in time");
    let [noticed, ready, patience] = [noticed, ready, patience].map(rounded);
    figures.note(format!("noticed after {noticed}, of {patience} at most"));
    figures.note(format!("ready {ready} after SIGCONT"));
    figures.note(ended_meanwhile(left.took, ended));
    figures
}

/// The memory alarm while `during` messages are committed. Meanwhile a gateway is shut down, and the
/// services are.
pub fn alarm(load: Load, during: usize) -> Figures {
    let mut cluster = Cluster::on(Broker::private(), &with_leaver(load), 2);
    let mut leaver = Leaver::start(&cluster);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(during);

    cluster.broker.memory_alarm(true);
    flow.goes_on_for(during);
    let (refused, slowest) = (flow.refused(), flow.slowest_answer());
    let waiting = flow.waiting();
    assert!(waiting > during / 2, "{waiting} wait in the outbox");
    assert!(
        cluster.gateways.iter().all(|it| it.shows_ready(true)),
        "they only consume"
    );
    let left = leaver.is_shut_down();
    let ended = services_are_shut_down(&mut cluster);
    cluster.services.start_again();
    flow.goes_on_for(during / 4);

    cluster.broker.memory_alarm(false);
    let recovered = flow.recovery(Instant::now(), WATCH);
    let mut figures = flow.finish(&cluster);
    tell(&cluster);
    figures.recovered = recovered;
    left.demand(&mut figures);
    figures.demand_unnoticed();
    figures.demand(refused == 0, "every send is committed during the alarm");
    figures.demand(slowest <= ANSWER, "and answered in time");
    figures.note(format!("{waiting} messages waited in the services' outbox"));
    let slowest = rounded(slowest);
    figures.note(format!("answers during the alarm within {slowest}"));
    figures.note("what was refused was so while the services were shut down");
    figures.note(ended_meanwhile(left.took, ended));
    figures
}

/// Each queue of a gateway is deleted, the operator closes all connections, and the broker loses
/// all that it had.
pub fn forgets(load: Load) -> Figures {
    let cluster = Cluster::on(Broker::private(), &load.settings(), 2);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 8);
    let mut recovered = Vec::new();
    let mut recovers = |what: &str, watch| {
        let relief = Instant::now();
        all_are_ready(&cluster, true, DEADLINE * 2);
        let ready = relief.elapsed();
        let after = flow.recovery(relief, watch);
        recovered.push((what.to_owned(), after.map(|after| after.max(ready))));
    };

    for queue in ["single", "group", "presence"] {
        let name = format!("queue.gateway.g0.{queue}");
        cluster.amqp().delete_queue(&name);
        let gateway = &cluster.gateways[0];
        wait_until_within(DEADLINE, "its loss is noticed", || {
            gateway.shows_ready(false)
        });
        recovers(&format!("{queue} deleted"), SHORT_WATCH);
    }
    let notices =
        |gateway: &Gateway| gateway.is_sketch || gateway.stderr().contains("by the operator");
    let down = || cluster.gateways.iter().all(notices);
    cluster
        .broker
        .rabbitmqctl(&["close_all_connections", "--global", "by the operator"]);
    wait_until_within(DEADLINE, "the close is noticed", down);
    recovers("connections closed", WATCH);

    flow.pause_after(PILE.min(load.messages / 2));
    cluster.broker.kill9();
    cluster.broker.wipe();
    all_are_ready(&cluster, false, DEADLINE);
    cluster.broker.restart();
    flow.resume();
    recovers("data wiped", WATCH);

    let mut figures = flow.finish(&cluster);
    tell(&cluster);
    let all: Option<Vec<_>> = recovered.iter().map(|(_, after)| *after).collect();
    figures.recovered = all.and_then(|all| all.into_iter().max());
    figures.demand_unnoticed();
    figures.demand_recovery_within(RECOVERY);
    figures.demand(figures.refused == 0, "every send is committed");
    for (what, after) in recovered {
        let after = after.map_or("not".into(), |after| format!("in {}", rounded(after)));
        figures.note(format!("{what}: recovered {after}"));
    }
    figures
}

/// Waits until all gateways are ready, or none is. Returns how long that took.
fn all_are_ready(cluster: &Cluster, ready: bool, deadline: Duration) -> Duration {
    let what = format!("ready is {ready} everywhere");
    let as_wanted = |gateway: &Gateway| gateway.shows_ready(ready);
    wait_until_within(deadline, what, || cluster.gateways.iter().all(as_wanted))
}

/// Prints what the processes said of the broker and of ends: when a test fails, this says why.
fn tell(cluster: &Cluster) {
    let gateways = cluster.gateways.iter().map(|gateway| gateway.stderr());
    for log in gateways.chain([cluster.services.stderr()]) {
        let told = ["Broker ", "ublish", "Consumer "];
        let of_broker = |line: &&str| told.iter().any(|it| line.contains(it));
        log.lines()
            .filter(of_broker)
            .for_each(|line| println!("{line}"));
    }
}

/// The configuration for the flow and for one user besides.
fn with_leaver(load: Load) -> Settings {
    load.settings().users([LEAVER])
}

/// A gateway beside the flow, with one client, that is to be shut down.
struct Leaver {
    gateway: Gateway,
    client: Client,
}

impl Leaver {
    fn start(cluster: &Cluster) -> Self {
        let gateway = Gateway::start(&cluster.settings(LEAVER));
        gateway.wait_ready();
        let client = gateway.connect(LEAVER);
        Self { gateway, client }
    }

    /// SIGTERM; returns once it has ended.
    fn is_shut_down(&mut self) -> Left {
        let began = Instant::now();
        self.gateway.signal(Signal::TERM);
        let ended = self.client.end();
        let status = self.gateway.end_within(SHUTDOWN);
        let took = began.elapsed();
        Left {
            ended,
            status,
            took,
        }
    }
}

/// What became of a gateway that was told to end.
struct Left {
    /// Its client's connection.
    ended: Ended,
    status: ExitStatus,
    took: Duration,
}

impl Left {
    fn demand(&self, figures: &mut Figures) {
        let is_told = matches!(self.ended, Ended::Closed { code: 1012, .. });
        let clause = format!("a client is told of a shutdown: {:?}", self.ended);
        figures.demand(is_told, clause);
        let clause = format!("the gateway exits with 0, not {}", self.status);
        figures.demand(self.status.success(), clause);
    }
}

fn ended_meanwhile(gateway: Duration, services: Duration) -> String {
    let [gateway, services] = [gateway, services].map(rounded);
    format!("meanwhile a gateway was shut down in {gateway}, the services in {services}")
}

/// SIGTERM: the exit code is 0 in time. Returns how long it took.
fn services_are_shut_down(cluster: &mut Cluster) -> Duration {
    let began = Instant::now();
    cluster.services.signal(Signal::TERM);
    assert_eq!(cluster.services.exit_code_within(SHUTDOWN), 0);
    began.elapsed()
}
