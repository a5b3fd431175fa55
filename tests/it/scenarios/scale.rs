//! The same users and the same messages on one, on two and on three gateways: what does one gateway
//! more cost the broker, and what the gateways?
//!
//! Messages are published to the exchanges as a Message Service does it, each at its own moment. What
//! is counted is processor time, since rates are the machine's, and the broker's own count of what it
//! delivered, which is exact: a single message goes to one gateway, whatever their number, and a group
//! message to each.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use ws_gateway::services::proto::Message;

use super::rebinds::settle;
use super::{Drill, Figures};
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::ledger::{Ledger, Report};
use crate::support::wait::wait_until_within;
use crate::support::{Client, Cluster, DEADLINE, Event, Settings, wait_until};

pub const DRILLS: &[Drill] = &[Drill {
    name: "scale",
    about: "600 users on one, two and three gateways: what messages cost the broker and the gateways",
    run: || {
        scale(&Size {
            users: 600,
            single: 12_000,
            group: 4_000,
            elsewhere: 8_000,
            behind: 20_000,
            unknown: 2_000,
            everybody: 100,
            rate: 1_000,
            idle: Duration::from_secs(10),
        })
    },
}];

/// What is done on each number of gateways.
pub struct Size {
    /// Each with one device; as many on each gateway.
    pub users: usize,
    /// Messages to one user each, so many to each: a multiple of `users`.
    pub single: usize,
    /// Messages to [`GROUP`].
    pub group: usize,
    /// Messages to [`ELSEWHERE`].
    pub elsewhere: usize,
    /// The same, as fast as they can be published.
    pub behind: usize,
    /// Messages to groups like that, each to another.
    pub unknown: usize,
    /// Messages to [`EVERYBODY`].
    pub everybody: usize,
    /// Single messages a second; see [`Size::phases`] for the others.
    pub rate: usize,
    /// For how long the processes are watched while nothing is sent.
    pub idle: Duration,
}

const MOST_GATEWAYS: usize = 3;
/// So many of the users, some on each gateway.
const GROUP: &str = "twenty";
const GROUP_SIZE: usize = 20;
/// Members who are not connected: what a message costs a gateway that it concerns not at all.
const ELSEWHERE: &str = "elsewhere";
/// With a number behind it: groups that no gateway knows the members of, who are not connected.
const UNKNOWN: &str = "unknown";
const EVERYBODY: &str = "everybody";
const SENDER: &str = "publisher";
/// 200 bytes and more of JSON, as in the benchmarks.
const CONTENT: &str =
    "A message of the length that people write to one another in a chat: two lines or so of text.";
/// As many a second as it goes.
const AT_ONCE: usize = usize::MAX;
/// Who connect at the same time.
const WORKERS: usize = 8;
/// For all users to be bound, on a machine that does other things as well.
const RETURN: Duration = Duration::from_secs(120);

/// Messages of one kind, one after the other.
struct Phase {
    name: &'static str,
    /// The group, or else each user in turn.
    group: Option<&'static str>,
    messages: usize,
    rate: usize,
    /// The first so many users are who gets each of them; of single messages, one of them does.
    recipients: usize,
}

impl Size {
    /// At most as many pushes a second as the clients of one process read easily.
    fn phases(&self) -> [Phase; 6] {
        let (single, users, rate) = (None, self.users, self.rate);
        let phase = |name, group, messages, rate, recipients| Phase {
            name,
            group,
            messages,
            rate,
            recipients,
        };
        [
            phase("single", single, self.single, rate, users),
            phase("group of 20", Some(GROUP), self.group, rate / 2, GROUP_SIZE),
            phase("group elsewhere", Some(ELSEWHERE), self.elsewhere, rate, 0),
            phase(
                "elsewhere, behind",
                Some(ELSEWHERE),
                self.behind,
                AT_ONCE,
                0,
            ),
            phase("groups unknown", Some(UNKNOWN), self.unknown, rate / 5, 0),
            phase(
                "group of all",
                Some(EVERYBODY),
                self.everybody,
                rate / 100,
                users,
            ),
        ]
    }
}

impl Phase {
    /// How many gateways the broker has to deliver each of them to.
    fn deliveries(&self, gateways: usize) -> usize {
        let each = if self.group.is_none() { 1 } else { gateways };
        self.messages * each
    }

    /// The first to a group whose members are asked for once.
    fn is_first_to_group(&self) -> bool {
        self.rate != AT_ONCE && self.group.is_some_and(|group| group != UNKNOWN)
    }

    /// How often gateways have to ask who a group's members are: each of them, of each that it has
    /// not heard of.
    fn look_ups(&self, gateways: usize) -> usize {
        if self.group == Some(UNKNOWN) {
            self.messages * gateways
        } else {
            0
        }
    }

    /// How many of them each recipient gets.
    fn for_each(&self) -> usize {
        if self.group.is_none() {
            self.messages / self.recipients
        } else {
            self.messages
        }
    }
}

fn name(user: usize) -> String {
    format!("user{user}")
}

fn unknown(group: usize) -> String {
    format!("{UNKNOWN}{group}")
}

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
struct Watch<'c> {
    cluster: &'c Cluster,
    began: Instant,
    before: [Duration; 3],
}

impl<'c> Watch<'c> {
    fn start(cluster: &'c Cluster) -> Self {
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
struct Idle([f64; 3]);

impl Idle {
    fn watch(cluster: &Cluster, span: Duration) -> Self {
        let watch = Watch::start(cluster);
        thread::sleep(span);
        let (spent, span) = watch.stop();
        Self(spent.map(|time| time / span))
    }

    /// What is beyond that, in microseconds for each of `count`, written.
    fn beyond(&self, watch: &Watch<'_>, count: usize) -> String {
        let (spent, span) = watch.stop();
        let [broker, gateways, services] = [0, 1, 2].map(|place| {
            let beyond = spent[place] - self.0[place] * span;
            beyond.max(0.0) * 1e6 / count as f64
        });
        format!("broker {broker:.0} µs, gateways {gateways:.0} µs, services {services:.0} µs")
    }
}

/// The same on one gateway, on two, and on three.
pub fn scale(size: &Size) -> Figures {
    assert_eq!(size.single % size.users, 0, "as many for each");
    let broker = Broker::private();
    let (mut whole, mut notes) = (Report::default(), Vec::new());
    let mut broken = Figures::default();
    for gateways in 1..=MOST_GATEWAYS {
        let ledger = Ledger::default();
        let found = on(&broker, gateways, size, &ledger);
        let report = ledger.report();
        broken.demand(
            report.stray.is_empty(),
            format!("strays: {:?}", report.stray),
        );
        whole.committed += report.committed;
        whole.delivered += report.delivered;
        whole.duplicated += report.duplicated;
        whole.lost.extend(report.lost);
        whole.missing.extend(report.missing);
        whole.disordered.extend(report.disordered);
        notes.extend(found.notes);
        broken.broken.extend(found.broken);
    }
    let mut figures = Figures::of(whole);
    figures.broken = broken.broken;
    figures.demand_unnoticed();
    figures.demand(figures.duplicated == 0, "nothing comes twice");
    figures.notes = notes;
    figures
}

/// On so many gateways; what is sent and received goes into the ledger.
fn on(broker: &Arc<Broker>, gateways: usize, size: &Size, ledger: &Ledger) -> Figures {
    let names: Vec<String> = (0..size.users).map(name).collect();
    let all = || names.iter().map(String::as_str);
    let away: Vec<String> = (0..GROUP_SIZE).map(|one| format!("away{one}")).collect();
    let mut settings = Settings::new()
        .users(all())
        .group(ELSEWHERE, away.iter().map(String::as_str))
        // Else it is members, pings and leases that are measured now and then.
        .set("groups.cache_ttl", "1h")
        .set("session.ping_interval", "1h")
        .set("session.idle_timeout", "2h")
        .set("log.level", "info");
    for group in 0..size.unknown {
        settings.put_group(&unknown(group), away.iter().map(String::as_str));
    }
    // Once all are there: who has nobody in common groups is nobody's presence.
    let grouped = settings
        .clone()
        .group(GROUP, all().take(GROUP_SIZE))
        .group(EVERYBODY, all());
    let cluster = Cluster::on(Arc::clone(broker), &settings, gateways);
    settle(&cluster);
    let idle = Idle::watch(&cluster, size.idle);
    let held = |cluster: &Cluster| {
        cluster
            .gateways
            .iter()
            .map(|one| one.held())
            .collect::<Vec<_>>()
    };
    let before = held(&cluster);

    let mut figures = Figures::default();
    let of = format!("{gateways} gateway{}", if gateways == 1 { "" } else { "s" });
    let connecting = Watch::start(&cluster);
    let mut clients = all_at_once(&cluster, &names);
    let bound = connecting.began.elapsed();
    settle(&cluster);
    let spent = idle.beyond(&connecting, size.users);
    figures.note(format!(
        "{of}: at rest, of a second: broker {:.1} ms, gateways {:.1} ms, services {:.1} ms",
        idle.0[0] * 1e3,
        idle.0[1] * 1e3,
        idle.0[2] * 1e3
    ));
    figures.note(format!(
        "{of}: a user who comes: {spent}; {:.0} a second connected and bound",
        size.users as f64 / bound.as_secs_f64()
    ));
    let after = held(&cluster);
    let grown = |what: fn(&crate::support::process::Held) -> usize| -> usize {
        let sum = |held: &[_]| held.iter().map(what).sum::<usize>();
        sum(&after).saturating_sub(sum(&before))
    };
    let threads = grown(|held| held.threads);
    figures.demand(
        threads == 2 * size.users,
        format!(
            "{of}: {threads} threads more with {} connections",
            size.users
        ),
    );
    figures.note(format!(
        "{of}: a connection holds {:.1} KiB resident, those that all gateways grew by among them",
        grown(|held| held.resident_kib) as f64 / size.users as f64
    ));

    for user in &names {
        ledger.device(user, user);
    }
    cluster.services.reload(&grouped);
    cluster.services.stderr_line("Tokens and groups read again");
    settle(&cluster);
    let amqp = cluster.amqp();
    for phase in size.phases().into_iter().filter(Phase::is_first_to_group) {
        // From now on each gateway knows the members.
        let messages = 1;
        send(
            &Phase {
                name: "first",
                messages,
                ..phase
            },
            &amqp,
            ledger,
            &mut clients,
        );
    }
    let mut before = delivered(broker);
    for phase in size.phases() {
        let asked = looked_up(&cluster);
        let watch = Watch::start(&cluster);
        send(&phase, &amqp, ledger, &mut clients);
        let look_ups = phase.look_ups(gateways);
        wait_until("the members of all groups are known", || {
            looked_up(&cluster) >= asked + look_ups
        });
        let spent = idle.beyond(&watch, phase.messages);
        let now = delivered(broker);
        let deliveries = now - before;
        before = now;
        let rate = match phase.rate {
            AT_ONCE => "at once".into(),
            rate => format!("at {rate} a second"),
        };
        figures.note(format!(
            "{of}: {}, {} {rate}, each: {spent}; {:.2} deliveries",
            phase.name,
            phase.messages,
            deliveries as f64 / phase.messages as f64,
        ));
        // The last of those that reach nobody is followed by one that does.
        let fence = if phase.recipients == 0 { gateways } else { 0 };
        let due = phase.deliveries(gateways) + fence;
        figures.demand(
            deliveries == due,
            format!(
                "{of}: {}: {deliveries} deliveries, due are {due}",
                phase.name
            ),
        );
        let asked = looked_up(&cluster) - asked;
        figures.demand(
            asked == look_ups,
            format!(
                "{of}: {}: {asked} look-ups of members, due are {look_ups}",
                phase.name
            ),
        );
    }
    for client in &mut clients {
        // What is on its way still, though nothing should be.
        let more = client.frames_until_pong();
        for frame in more.iter().filter(|frame| is_push(frame)) {
            ledger.received(&client.user, frame["id"].as_str().expect("an id"));
        }
    }
    figures
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

/// Publishes what a phase consists of, and returns once each device has all that it is to get.
fn send(phase: &Phase, amqp: &Amqp, ledger: &Ledger, clients: &mut [Client]) {
    let start = Instant::now();
    let pace = Duration::from_secs_f64(1.0 / phase.rate as f64);
    let publish = || {
        for number in 0..phase.messages {
            thread::sleep((pace * number as u32).saturating_sub(start.elapsed()));
            let id = format!("{} {:?} {number}", phase.name, phase.group);
            match phase.group {
                Some(UNKNOWN) => publish_to_group(amqp, ledger, &unknown(number), &id, 0),
                Some(group) => publish_to_group(amqp, ledger, group, &id, phase.recipients),
                None => publish_to(amqp, ledger, number % phase.recipients, &id),
            }
        }
        // A gateway takes what is in a queue in its order: behind this, it has taken all.
        if phase.recipients == 0 {
            publish_to_group(
                amqp,
                ledger,
                GROUP,
                &format!("{} {:?} fence", phase.name, phase.group),
                GROUP_SIZE,
            );
        }
    };
    let (recipients, each) = match phase.recipients {
        0 => (GROUP_SIZE, 1),
        some => (some, phase.for_each()),
    };
    let patience = DEADLINE + pace * phase.messages as u32;
    thread::scope(|scope| {
        for client in &mut clients[..recipients] {
            scope.spawn(move || read(client, each, patience, ledger));
        }
        publish();
    });
}

/// Has the ledger know the next `count` messages that come, if they do: what does not is missing.
fn read(client: &mut Client, mut count: usize, patience: Duration, ledger: &Ledger) {
    while count > 0 {
        match client.next_event(patience) {
            Event::Frame(frame) if is_push(&frame) => {
                ledger.received(&client.user, frame["id"].as_str().expect("an id"));
                count -= 1;
            }
            Event::Frame(_) => {}
            Event::Nothing | Event::End(_) => return,
        }
    }
}

fn publish_to(amqp: &Amqp, ledger: &Ledger, user: usize, id: &str) {
    let to = name(user);
    let message = Message {
        to_user_id: to.clone(),
        ..message(id)
    };
    ledger.committed(SENDER, &[&to], id);
    let (key, body) = (format!("user.{to}"), message.encode_to_vec());
    amqp.publish_ahead("im.direct", &key, "message", body);
}

/// The first so many users are members; a group without any is nobody's concern.
fn publish_to_group(amqp: &Amqp, ledger: &Ledger, group: &str, id: &str, members: usize) {
    let message = Message {
        group_id: group.into(),
        ..message(id)
    };
    if members > 0 {
        let names: Vec<String> = (0..members).map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        ledger.committed(SENDER, &names, id);
    }
    let (key, body) = (format!("group.{group}"), message.encode_to_vec());
    amqp.publish_ahead("im.topic", &key, "message", body);
}

fn message(id: &str) -> Message {
    Message {
        id: id.into(),
        from_user_id: SENDER.into(),
        content: CONTENT.into(),
        message_type: "text".into(),
        timestamp: 1_700_000_000,
        ..Message::default()
    }
}

/// How often gateways have asked who a group's members are.
fn looked_up(cluster: &Cluster) -> usize {
    const CALLS: &str = r#"gateway_rpc_seconds_count{code="OK",method="GetGroupMembers"}"#;
    let gateways = cluster.gateways.iter();
    gateways.map(|one| one.admin.metric(CALLS) as usize).sum()
}

/// How often the broker has delivered something to a consumer, by its own count.
fn delivered(broker: &Broker) -> usize {
    const COUNT: &str = "lists:sum([maps:get(messages_delivered_total, One, 0) \
                         || One <- maps:values(rabbit_global_counters:overview())]).";
    let said = broker.try_rabbitmqctl(&["eval", COUNT]);
    let count = said.and_then(|said| said.trim().parse().ok());
    count.expect("a number from rabbitmqctl")
}
