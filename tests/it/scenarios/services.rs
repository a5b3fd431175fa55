//! Services die, and come back.

use std::time::{Duration, Instant};

use super::figures::rounded;
use super::flow::{Flow, Load};
use super::{Drill, Figures};
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::ledger::Ledger;
use crate::support::raw::Raw;
use crate::support::sketch::patience;
use crate::support::{Cluster, Gateway, Services, Settings};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "service-down",
        about: "the services are killed with SIGKILL and started again while 20,000 messages flow",
        run: || {
            killed(Load {
                users: 20,
                messages: 20_000,
                rate: 500,
            })
        },
    },
    Drill {
        name: "presence-restarted",
        about: "the Presence Service is killed and started again, at the default lease; 200 users",
        run: || presence_restarted(200, Duration::from_secs(60)),
    },
];

/// How long a recovery is watched.
const WATCH: Duration = Duration::from_secs(4);

/// `kill -9` of the services' process, and a restart at once.
pub fn killed(load: Load) -> Figures {
    let mut cluster = Cluster::on(Broker::shared(), &load.settings(), 2);
    let flow = Flow::start(&cluster, load);
    flow.goes_on_for(load.messages / 4);
    cluster.services.kill();
    crate::support::wait_until("the gateway is not ready", || {
        cluster.gateways[0].shows_ready(false)
    });
    cluster.services.start_again();
    let recovered = flow.recovery(Instant::now(), WATCH);
    let mut figures = flow.finish(&cluster);
    figures.recovered = recovered;
    figures.demand_unnoticed();
    figures.demand(figures.refused > 0, "sends meanwhile are refused");
    figures
}

/// The Presence Service, a process of its own here, forgets everyone. While it is away, a message
/// goes to the watcher for each user. `lease`: `presence.lease`, in whole seconds.
pub fn presence_restarted(count: usize, lease: Duration) -> Figures {
    let users: Vec<String> = (0..count).map(|number| format!("user{number}")).collect();
    let all = || {
        users
            .iter()
            .map(String::as_str)
            .chain(["watcher", "sender"])
    };
    let settings = Settings::new()
        .users(all())
        .group("all", all())
        .set("presence.lease", format!("{}s", lease.as_secs()))
        .set("session.send_queue", 4_096)
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000);
    let broker = Broker::shared().vhost();
    let services = Services::start(&settings, &broker);
    let mut presence = Services::start(&settings, &broker);
    let gateway = Gateway::start(
        &remote(&settings, &services.url(), &broker).set("services.presence", presence.url()),
    );
    gateway.wait_ready();
    let mut watcher = gateway.connect("watcher");
    let _here: Vec<Raw> = users.iter().map(|user| gateway.raw_session(user)).collect();
    for user in &users {
        watcher.expect_presence(user, "online");
    }
    let mut sender = gateway.connect("sender");
    let ledger = Ledger::default();
    ledger.device("watcher", "watcher");
    presence.kill();
    for _ in 0..count {
        let id = sender.send_message("watcher", "meanwhile");
        ledger.committed("sender", &["watcher"], &id);
        watcher.expect_message(&id);
        ledger.received("watcher", &id);
    }
    presence.start_again();
    let back = Instant::now();
    let is_back = |user: &String| watcher.tries_presence(user, "online", lease / 3 + patience());
    let all_are_back = users.iter().all(is_back);
    let took = back.elapsed();
    let offline = watcher
        .frames_until_pong()
        .into_iter()
        .filter(|frame| frame["type"] == "presence" && frame["status"] == "offline")
        .count();

    let mut figures = Figures::of(ledger.report());
    figures.recovered = all_are_back.then_some(took);
    figures.demand_unnoticed();
    figures.demand(all_are_back, "all are announced again");
    figures.demand(offline == 0, "nobody was offline");
    figures.demand_recovery_within(lease / 3);
    let lease = rounded(lease);
    if all_are_back {
        figures.note(format!(
            "recovered: all {count} are online again, with a lease of {lease}"
        ));
    }
    figures
}
