//! One run: the deployment comes up, everybody writes, faults happen, they end; then everybody listens,
//! most of them leave, and somebody looks around.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, fs};

use prost::Message as _;
use rusqlite::{Connection, OpenFlags};
use ws_gateway::services::proto::Message;

use super::checker::{self, Finding, PRESENCE, Sentence};
use super::deployment::{Deployment, is_ready};
use super::device::{Device, Seat};
use super::history::{Clock, Event, History, Records, Stored, Suffered};
use super::office::Office;
use super::people::{People, Phase, lock, seats};
use super::series::Fault;
use crate::support::Client;
use crate::support::process::Held;
use crate::support::wait::holds_within;

/// From the end of the last fault until all gateways are ready: a broker connection is tried again
/// after 20 s at the latest.
const READY: Duration = Duration::from_secs(30);
/// Everybody writes for so long once all is well again.
const TALK_ON: Duration = Duration::from_secs(5);
/// And then listens until all has arrived: a Message Service that answered with errors is asked again
/// after a minute at the latest.
const ARRIVE: Duration = Duration::from_secs(75);
/// At least for so long: what was due when all was well has happened by then.
const LISTEN: Duration = Duration::from_secs(10);
/// Until what the last connection needed is given back.
const GIVE_BACK: Duration = Duration::from_secs(20);
/// So many return in the end, and are seen to.
const RETURN: usize = 20;
/// There are many of them.
const STACK: usize = 512 << 10;

pub struct Run {
    pub seed: u64,
    pub length: Duration,
    pub gateways: usize,
    pub clients: usize,
    /// What is planted in the gateways.
    pub defect: Option<String>,
    /// The folder for what was seen and said.
    pub write: Option<PathBuf>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub findings: Vec<Finding>,
    committed: usize,
    pushed: usize,
    twice: usize,
    sessions: usize,
    took: Duration,
    recovered: Option<Duration>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            committed,
            pushed,
            twice,
            sessions,
            ..
        } = self;
        write!(
            f,
            "{committed} messages committed, {pushed} pushes, {twice} of them again, "
        )?;
        write!(f, "{sessions} connections")?;
        if let Some(recovered) = self.recovered {
            write!(
                f,
                "; ready {:.1} s after the last fault",
                recovered.as_secs_f64()
            )?;
        }
        write!(f, "; {:.0} s in all", self.took.as_secs_f64())
    }
}

impl Run {
    /// Lets it happen with these faults.
    pub fn happens(&self, faults: &[Fault]) -> Outcome {
        let clock = Clock::start();
        let seats = seats(self.clients);
        let mut users: Vec<(String, bool)> = seats
            .iter()
            .map(|seat| (seat.user.clone(), seat.brief))
            .collect();
        users.dedup();
        let office = Office::new(users, self.seed);
        let deployment = Deployment::start(&office, self.gateways, self.defect.as_deref());
        let baseline: Vec<Held> = (0..self.gateways)
            .map(|number| deployment.gateway(number).settled(0))
            .collect();

        let entrances = deployment.entrances();
        if self.defect.is_some() {
            // What is not as the document says is the checker's to find.
            entrances
                .iter()
                .for_each(|(addr, _)| crate::support::asyncapi::set_free(*addr, true));
        }
        let people = Arc::new(People::new(entrances, office, seats, Clock::start()));
        let scene = Scene {
            people,
            deployment: Arc::new(deployment),
            records: Records::default(),
        };
        let (records, recovered) = scene.plays(self, faults, &baseline);
        if let Some(folder) = &self.write {
            write(folder, &records);
        }
        let mut outcome = Outcome {
            findings: checker::check(&records),
            took: clock.now(),
            recovered,
            committed: records.stored.messages.len(),
            ..Outcome::default()
        };
        records
            .histories
            .iter()
            .for_each(|history| outcome.count(history));
        outcome
    }
}

impl Outcome {
    fn count(&mut self, history: &History) {
        let mut ids = HashSet::new();
        for (_, event) in &history.events {
            match event {
                Event::Connected => self.sessions += 1,
                Event::Pushed(pushed) => {
                    self.pushed += 1;
                    self.twice += usize::from(!ids.insert(&pushed.id));
                }
                _ => {}
            }
        }
    }
}

struct Scene {
    people: Arc<People>,
    deployment: Arc<Deployment>,
    records: Records,
}

impl Scene {
    fn plays(
        mut self,
        run: &Run,
        faults: &[Fault],
        baseline: &[Held],
    ) -> (Records, Option<Duration>) {
        let (people, deployment) = (Arc::clone(&self.people), Arc::clone(&self.deployment));
        let clock = people.clock;
        // Tokens count from now.
        people.office.begin(&deployment, clock);
        let wild = Arc::new(AtomicBool::new(true));
        let office = spawn("office", {
            let (people, deployment, wild) = (
                Arc::clone(&people),
                Arc::clone(&deployment),
                Arc::clone(&wild),
            );
            move || {
                let goes_on = || people.phase() != Phase::Over;
                people
                    .office
                    .work(&deployment, clock, goes_on, || wild.load(Ordering::SeqCst));
            }
        });
        let devices: Vec<_> = people
            .seats
            .iter()
            .map(|seat| {
                let device = Device::new(&people, seat, run.seed);
                (Arc::clone(seat), spawn(&seat.name, move || device.live()))
            })
            .collect();
        let faults: Vec<_> = faults
            .iter()
            .cloned()
            .map(|fault| {
                let (people, deployment) = (Arc::clone(&people), Arc::clone(&deployment));
                spawn(&fault.what.to_string(), move || {
                    let within = deployment.suffer(&fault, &people);
                    Suffered { fault, within }
                })
            })
            .collect();

        for fault in faults {
            let name = fault.thread().name().unwrap_or_default().to_owned();
            match join(fault) {
                Ok(suffered) => self.records.faults.push(suffered),
                Err(panicked) => self.finds(Sentence::Recovers, format!("{name}: {panicked}")),
            }
        }
        clock.sleep_until(run.length);
        wild.store(false, Ordering::SeqCst);
        let over = clock.now();
        let recovered = self.gateways_are_ready().then(|| clock.now() - over);
        self.records.ready_at = clock.now();
        clock.sleep_until(self.records.ready_at + TALK_ON);
        people.go_on_to(Phase::Listen);
        holds_within(ARRIVE, || {
            self.everybody_is_in() && people.outstanding() == 0
        });
        clock.sleep_until(self.records.ready_at + LISTEN);

        people.go_on_to(Phase::Leave);
        let (watch, leave): (Vec<_>, Vec<_>) =
            devices.into_iter().partition(|(seat, _)| seat.watches);
        self.collect(leave);
        self.presence_is_right();
        people.go_on_to(Phase::Over);
        self.collect(watch);
        if let Err(panicked) = join(office) {
            self.finds(
                Sentence::Recovers,
                format!("tokens and groups are not changed: {panicked}"),
            );
        }
        self.nothing_is_left(baseline);
        self.everything_ends();
        self.records.decrees = people.office.decrees();
        (self.records, recovered)
    }

    fn finds(&mut self, sentence: Sentence, seen: impl Into<String>) {
        self.records.findings.push(Finding::new(sentence, seen));
    }

    fn gateways_are_ready(&mut self) -> bool {
        let entrances = &self.people.entrances;
        let all = || entrances.iter().all(|(addr, _)| is_ready(*addr));
        if holds_within(READY, all) {
            return true;
        }
        for (number, (addr, _)) in entrances.iter().enumerate() {
            if !is_ready(*addr) {
                let gateway = self.deployment.gateway(number);
                let said = gateway.get("/readyz").body;
                drop(gateway);
                let seen = format!("g{number} is not ready {READY:?} after the last fault: {said}");
                self.records
                    .findings
                    .push(Finding::new(Sentence::Recovers, seen));
            }
        }
        false
    }

    fn everybody_is_in(&self) -> bool {
        self.people
            .seats
            .iter()
            .all(|seat| seat.settled.load(Ordering::SeqCst))
    }

    fn collect(&mut self, devices: Vec<(Arc<Seat>, JoinHandle<History>)>) {
        for (seat, device) in devices {
            match join(device) {
                Ok(history) => self.records.histories.push(history),
                Err(panicked) => {
                    self.finds(Sentence::Answered, format!("{}: {panicked}", seat.name))
                }
            }
        }
    }

    /// Who watches sees that the others have gone, and that some return.
    fn presence_is_right(&mut self) {
        let people = Arc::clone(&self.people);
        let watchers: Vec<_> = people.seats.iter().filter(|seat| seat.watches).collect();
        let away = |user: &String| !watchers.iter().any(|watcher| watcher.user == *user);
        let mates = |watcher: &Seat| {
            let members = people
                .office
                .members(&people.office.group_of(&watcher.user));
            members.into_iter().filter(away).collect::<Vec<_>>()
        };
        let wrong = |online: &dyn Fn(&str) -> bool| {
            watchers
                .iter()
                .flat_map(|watcher| {
                    let seen = lock(&watcher.presence).clone();
                    mates(watcher)
                        .into_iter()
                        .filter_map(move |mate| {
                            let (is, seen) = (online(&mate), seen.get(&mate).copied());
                            (seen != Some(is)).then(|| {
                                format!("{}: {mate} is online: {is}, seen: {seen:?}", watcher.name)
                            })
                        })
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        let mut look = |what: &str, online: &dyn Fn(&str) -> bool| {
            if !holds_within(PRESENCE, || wrong(online).is_empty()) {
                for seen in wrong(online) {
                    let seen = format!("{what}: {seen}");
                    self.records
                        .findings
                        .push(Finding::new(Sentence::PresenceRight, seen));
                }
            }
        };
        look("all have left", &|_| false);
        let users = people
            .office
            .users()
            .iter()
            .filter(|user| away(user))
            .take(RETURN);
        let back: Vec<(String, Option<Client>)> = users
            .enumerate()
            .map(|(number, user)| {
                let (addr, path) = &people.entrances[number % people.entrances.len()];
                let client = Client::attempt(*addr, path, &people.office.token(user), PRESENCE);
                (user.clone(), client.ok())
            })
            .collect();
        let is_back = |user: &str| {
            back.iter()
                .any(|(one, client)| one == user && client.is_some())
        };
        look("some are back", &is_back);
        back.into_iter()
            .filter_map(|(_, client)| client)
            .for_each(Client::close);
    }

    /// What the gateways hold once nobody is connected.
    fn nothing_is_left(&mut self, baseline: &[Held]) {
        let deployment = Arc::clone(&self.deployment);
        for (number, before) in baseline.iter().enumerate() {
            let mut gateway = deployment.gateway(number);
            if !gateway.is_running() {
                self.finds(Sentence::Recovers, format!("g{number} has ended by itself"));
                continue;
            }
            let connected =
                || ["gateway_connections", "gateway_users"].map(|name| gateway.admin.metric(name));
            let nobody = holds_within(GIVE_BACK, || connected() == [0.0, 0.0]);
            if !nobody {
                let seen = format!("g{number} counts {:?} connections and users", connected());
                self.finds(Sentence::NothingLeft, seen);
            }
            let held = || gateway.held();
            let same =
                |now: Held| (now.threads, now.descriptors) == (before.threads, before.descriptors);
            if !holds_within(GIVE_BACK, || same(held())) {
                let seen = format!("g{number} holds {:?}, and {before:?} before", held());
                self.finds(Sentence::NothingLeft, seen);
            }
        }
        if !holds_within(GIVE_BACK, || deployment.routes().is_empty()) {
            let seen = format!("routes are bound: {:?}", deployment.routes());
            self.finds(Sentence::NothingLeft, seen);
        }
    }

    fn everything_ends(&mut self) {
        let (database, complaints) = self.deployment.stop();
        for complaint in complaints {
            self.finds(Sentence::Recovers, complaint);
        }
        self.records.stored = read(&database);
        self.records.said = self.deployment.said();
        for text in self.records.said.clone() {
            for line in text.lines() {
                if line.contains("panicked") {
                    self.finds(Sentence::Recovers, line);
                }
                if line.contains("Live pushes go past what is unread")
                    && let Some((_, user)) = line.split_once("user=")
                {
                    let user = user.split(',').next().unwrap_or_default();
                    self.records.went_past.insert(user.to_owned());
                }
            }
        }
    }
}

/// Of each device a file with what it saw, of each process one with what it said.
fn write(folder: &Path, records: &Records) {
    let put = |name: &str, lines: Vec<String>| {
        fs::write(folder.join(name), lines.join("\n")).expect("a file in --write");
    };
    fs::create_dir_all(folder).expect("the folder of --write");
    for history in &records.histories {
        let events = history
            .events
            .iter()
            .map(|(at, event)| format!("{at:?} {event:?}"));
        put(&history.device.replace('/', "-"), events.collect());
    }
    for (number, said) in records.said.iter().enumerate() {
        put(&format!("process-{number}.log"), vec![said.clone()]);
    }
    put(
        "decrees",
        records
            .decrees
            .iter()
            .map(|decree| format!("{decree:?}"))
            .collect(),
    );
    put(
        "faults",
        records
            .faults
            .iter()
            .map(|fault| format!("{fault:?}"))
            .collect(),
    );
    put(
        "stored",
        records
            .stored
            .messages
            .iter()
            .map(|message| {
                let Message {
                    id,
                    from_user_id,
                    to_user_id,
                    group_id,
                    client_message_id,
                    ..
                } = message;
                format!("{id} {from_user_id} -> {to_user_id}{group_id} {client_message_id}")
            })
            .collect(),
    );
}

/// What the services have left on the disk.
fn read(database: &Path) -> Stored {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let connection = connection.expect("the services' database");
    let mut messages = connection
        .prepare("SELECT body FROM messages ORDER BY seq")
        .expect("SQL");
    let decode = |body: Vec<u8>| Message::decode(body.as_slice()).expect("a message");
    let messages = messages
        .query_map((), |row| row.get(0).map(decode))
        .expect("messages");
    let messages = messages.collect::<Result<_, _>>().expect("messages");
    let unread = "SELECT user, body FROM unread JOIN messages ON seq = message";
    let mut unread = connection.prepare(unread).expect("SQL");
    let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, decode(row.get(1)?).id));
    let unread = unread.query_map((), pair).expect("what is unread");
    let unread = unread.collect::<Result<_, _>>().expect("what is unread");
    Stored { messages, unread }
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let builder = thread::Builder::new().name(name.into()).stack_size(STACK);
    builder.spawn(run).expect("a thread")
}

/// The error is what it panicked with.
fn join<T>(thread: JoinHandle<T>) -> Result<T, String> {
    thread.join().map_err(|panicked| {
        let text = panicked.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panicked.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_default()
    })
}
