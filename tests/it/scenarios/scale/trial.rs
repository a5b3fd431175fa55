//! What is done and counted on one number of gateways.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::messages::send;
use super::spent::{Idle, Watch, delivered, looked_up};
use super::{
    AT_ONCE, ELSEWHERE, EVERYBODY, Figures, GROUP, GROUP_SIZE, Phase, Size, name, unknown,
};
use crate::scenarios::rebinds::settle;
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::ledger::Ledger;
use crate::support::process::Held;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Cluster, Settings, wait_until};

/// Who connect at the same time.
const WORKERS: usize = 8;
/// For all users to be bound, on a machine that does other things as well.
const RETURN: Duration = Duration::from_secs(120);

pub struct Trial<'a> {
    cluster: &'a Cluster,
    /// What each note begins with.
    of: String,
    idle: Idle,
    ledger: &'a Ledger,
    figures: Figures,
}

impl<'a> Trial<'a> {
    /// On so many gateways; what is sent and received goes into the ledger.
    pub fn on(broker: &Arc<Broker>, gateways: usize, size: &Size, ledger: &'a Ledger) -> Figures {
        let names: Vec<String> = (0..size.users).map(name).collect();
        let settings = settings(&names, size.unknown);
        let cluster = Cluster::on(Arc::clone(broker), &settings, gateways);
        settle(&cluster);
        let plural = if gateways == 1 { "" } else { "s" };
        let mut trial = Trial {
            cluster: &cluster,
            of: format!("{gateways} gateway{plural}"),
            idle: Idle::watch(&cluster, size.idle),
            ledger,
            figures: Figures::default(),
        };
        let [broker_rests, gateways_rest, services_rest] = trial.idle.0.map(|time| time * 1e3);
        trial.note(format!(
            "at rest, of a second: broker {broker_rests:.1} ms, gateways {gateways_rest:.1} ms, \
             services {services_rest:.1} ms"
        ));
        let mut clients = trial.connects(&names);
        trial.groups(settings, &names);
        let amqp = cluster.amqp();
        for phase in size.phases().into_iter().filter(Phase::is_first_to_group) {
            // From now on each gateway knows the members.
            let first = Phase {
                name: "first",
                messages: 1,
                ..phase
            };
            send(&first, &amqp, ledger, &mut clients);
        }
        for phase in size.phases() {
            trial.sends(&phase, &amqp, &mut clients);
        }
        for client in &mut clients {
            // What is on its way still, though nothing should be.
            let more = client.frames_until_pong();
            for frame in more.iter().filter(|frame| is_push(frame)) {
                ledger.received(&client.user, frame["id"].as_str().expect("an id"));
            }
        }
        trial.figures
    }

    fn note(&mut self, note: String) {
        self.figures.note(format!("{}: {note}", self.of));
    }

    fn demand(&mut self, holds: bool, what: String) {
        self.figures.demand(holds, format!("{}: {what}", self.of));
    }

    /// All users come, and what they cost is noted.
    fn connects(&mut self, names: &[String]) -> Vec<Client> {
        let users = names.len();
        let before = held(self.cluster);
        let connecting = Watch::start(self.cluster);
        let clients = all_at_once(self.cluster, names);
        let bound = connecting.began.elapsed().as_secs_f64();
        settle(self.cluster);
        let spent = self.idle.beyond(&connecting, users);
        let a_second = users as f64 / bound;
        self.note(format!(
            "a user who comes: {spent}; {a_second:.0} a second connected and bound"
        ));
        let after = held(self.cluster);
        let grown = |what: fn(&Held) -> usize| -> usize {
            let sum = |held: &[Held]| held.iter().map(what).sum::<usize>();
            sum(&after).saturating_sub(sum(&before))
        };
        let threads = grown(|held| held.threads);
        let resident = grown(|held| held.resident_kib) as f64 / users as f64;
        self.demand(
            threads == 2 * users,
            format!("{threads} threads more with {users} connections"),
        );
        self.note(format!(
            "a connection holds {resident:.1} KiB resident, those that all gateways grew by among them"
        ));
        clients
    }

    /// The users get their groups. They have none before: who has nobody in common groups is nobody's
    /// presence.
    fn groups(&self, settings: Settings, names: &[String]) {
        for user in names {
            self.ledger.device(user, user);
        }
        let all = || names.iter().map(String::as_str);
        let grouped = settings
            .group(GROUP, all().take(GROUP_SIZE))
            .group(EVERYBODY, all());
        let services = &self.cluster.services;
        services.reload(&grouped);
        services.stderr_line("Tokens and groups read again");
        settle(self.cluster);
    }

    /// All messages of a phase, and what they cost.
    fn sends(&mut self, phase: &Phase, amqp: &Amqp, clients: &mut [Client]) {
        let (cluster, gateways) = (self.cluster, self.cluster.gateways.len());
        let (delivered_before, asked_before) = (delivered(&cluster.broker), looked_up(cluster));
        let watch = Watch::start(cluster);
        send(phase, amqp, self.ledger, clients);
        let look_ups = phase.look_ups(gateways);
        wait_until("the members of all groups are known", || {
            looked_up(cluster) >= asked_before + look_ups
        });
        let spent = self.idle.beyond(&watch, phase.messages);
        let deliveries = delivered(&cluster.broker) - delivered_before;
        let asked = looked_up(cluster) - asked_before;

        let Phase { name, messages, .. } = phase;
        let rate = match phase.rate {
            AT_ONCE => "at once".into(),
            rate => format!("at {rate} a second"),
        };
        let each = deliveries as f64 / *messages as f64;
        self.note(format!(
            "{name}, {messages} {rate}, each: {spent}; {each:.2} deliveries"
        ));
        // The last of those that reach nobody is followed by one that does.
        let fence = if phase.recipients == 0 { gateways } else { 0 };
        let due = phase.deliveries(gateways) + fence;
        self.demand(
            deliveries == due,
            format!("{name}: {deliveries} deliveries, due are {due}"),
        );
        self.demand(
            asked == look_ups,
            format!("{name}: {asked} look-ups of members, due are {look_ups}"),
        );
    }
}

/// Users without groups; and `unknown` groups of people who are not connected.
fn settings(names: &[String], unknown_groups: usize) -> Settings {
    let away: Vec<String> = (0..GROUP_SIZE).map(|one| format!("away{one}")).collect();
    let mut settings = Settings::new()
        .users(names.iter().map(String::as_str))
        .group(ELSEWHERE, away.iter().map(String::as_str))
        // Else it is members, pings and leases that are measured now and then.
        .set("groups.cache_ttl", "1h")
        .set("session.ping_interval", "1h")
        .set("session.idle_timeout", "2h")
        .set("log.level", "info");
    for group in 0..unknown_groups {
        settings.put_group(&unknown(group), away.iter().map(String::as_str));
    }
    settings
}

fn held(cluster: &Cluster) -> Vec<Held> {
    cluster.gateways.iter().map(|one| one.held()).collect()
}

/// Connects all of them, each at the next gateway, and returns once each one's route is bound.
fn all_at_once(cluster: &Cluster, users: &[String]) -> Vec<Client> {
    let connect = |worker: usize| -> Vec<(usize, Client)> {
        let mine = (worker..users.len()).step_by(WORKERS);
        mine.map(|user| {
            (
                user,
                cluster.connect(user % cluster.gateways.len(), &users[user]),
            )
        })
        .collect()
    };
    let mut clients: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || connect(worker)))
            .collect();
        let connected = workers
            .into_iter()
            .map(|worker| worker.join().expect("connects"));
        connected.flatten().collect()
    });
    wait_until_within(RETURN, "all users are bound", || {
        let metrics = cluster
            .gateways
            .iter()
            .map(|one| one.admin.metric("gateway_route_seconds_count"));
        metrics.sum::<f64>() >= users.len() as f64
    });
    clients.sort_by_key(|(user, _)| *user);
    clients.into_iter().map(|(_, client)| client).collect()
}
