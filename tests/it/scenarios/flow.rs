//! Users who write to one another at a steady pace while something happens to what lies between
//! them, and the account of what became of their messages.
//!
//! Each user sends from one device, and has one at every gateway of the cluster. A request that is
//! refused is repeated with its `client_message_id`; a device whose connection ends comes back. What
//! has reached all devices of a user is acknowledged, so that it is not pushed again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Figures;
use crate::support::client::{Ended, is_push, sent};
use crate::support::ledger::Ledger;
use crate::support::settings::token_of;
use crate::support::sketch::patience;
use crate::support::wait::{holds_within, wait_until_within};
use crate::support::{Client, Cluster, DEADLINE, Event, Settings};

/// The group that all users are in. Every fourth message is for it.
const GROUP: &str = "all";
/// So many are acknowledged at a time.
const ACKED: usize = 50;
/// A device that reads looks up at least this often.
const LOOK: Duration = Duration::from_millis(50);

/// How much flows.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub users: usize,
    /// Messages at least, before the flow may end.
    pub messages: usize,
    /// Messages per second of all users together.
    pub rate: u32,
}

impl Load {
    fn names(self) -> Vec<String> {
        (0..self.users).map(|n| format!("user{n:02}")).collect()
    }

    /// The users and their group, for the cluster; no limit is in the way.
    pub fn settings(self) -> Settings {
        let names = self.names();
        let users = || names.iter().map(String::as_str);
        Settings::new()
            .users(users())
            .group(GROUP, users())
            .set("limits.rate", 100_000)
            .set("limits.burst", 100_000)
            .set("log.level", "info")
    }
}

pub struct Flow {
    load: Load,
    shared: Arc<Shared>,
    devices: Vec<JoinHandle<Client>>,
}

/// Where a device connects: one after the other, until one lets it in.
type Way = Vec<(SocketAddr, String)>;

#[derive(Default)]
struct Shared {
    ledger: Ledger,
    /// When each `message_sent` came, and each push: (id, when).
    committed_at: Mutex<BTreeMap<String, Instant>>,
    received_at: Mutex<Vec<(String, Instant)>>,
    committed: AtomicUsize,
    /// How many devices of the user each has reached: (user, id).
    reached: Mutex<HashMap<(String, String), usize>>,
    /// Devices that may send still.
    sending: AtomicUsize,
    refused: AtomicUsize,
    disconnects: AtomicUsize,
    /// Connections that took the place of those.
    returns: AtomicUsize,
    /// Messages that were sent, each time that they were.
    asked: AtomicUsize,
    slowest_answer: Mutex<Duration>,
    /// Of those who do as the Close frame says.
    returned: Mutex<Vec<Return>>,
    /// At so many committed messages the senders pause.
    limit: AtomicUsize,
    /// What could not be waited for to its end.
    broken: Mutex<Vec<String>>,
    /// No new message is begun.
    stop: AtomicBool,
    /// All have what they must get, or it is too late.
    end: AtomicBool,
}

/// A client that was closed, told when to come back, and did so.
#[derive(Debug, Clone, Copy)]
pub struct Return {
    pub closed: Instant,
    /// What it was told.
    pub after: Duration,
    /// When it was let in.
    pub back: Instant,
}

impl Flow {
    /// Connects one device of each user at a balancer, which do as Close frames tell them, and then
    /// begins.
    pub fn start_behind(balancer: SocketAddr, path: &str, load: Load) -> Self {
        let shared = Arc::new(Shared {
            limit: AtomicUsize::new(usize::MAX),
            ..Shared::default()
        });
        let names = load.names();
        let mut devices = Vec::new();
        for (number, user) in names.iter().enumerate() {
            shared.ledger.device(user, user);
            let client = Client::try_connect(balancer, path, &token_of(user));
            let mut client = client.unwrap_or_else(|refused| panic!("{user}: {refused:?}"));
            client.expect("offline_complete");
            devices.push(Device {
                name: user.clone(),
                user: user.clone(),
                number,
                names: names.clone(),
                way: vec![(balancer, path.to_owned())],
                sends: true,
                obeys: true,
                client,
                shared: Arc::clone(&shared),
                seen: HashSet::new(),
                to_ack: Vec::new(),
            });
        }
        Self::begin(load, shared, devices)
    }

    fn begin(load: Load, shared: Arc<Shared>, devices: Vec<Device>) -> Self {
        shared.sending.store(load.users, Ordering::SeqCst);
        let pause = Duration::from_secs(1) * load.users as u32 / load.rate;
        // There may be a thousand of them.
        let spawn = |device: Device| {
            let builder = thread::Builder::new().stack_size(256 << 10);
            let spawned = builder.spawn(move || device.live(pause));
            spawned.expect("a thread")
        };
        Self {
            load,
            shared,
            devices: devices.into_iter().map(spawn).collect(),
        }
    }

    /// Those who were told when to come back, and did, so far.
    pub fn returns(&self) -> Vec<Return> {
        self.shared.returned.lock().unwrap().clone()
    }

    /// Connects all devices, and then begins.
    pub fn start(cluster: &Cluster, load: Load) -> Self {
        let shared = Arc::new(Shared {
            limit: AtomicUsize::new(usize::MAX),
            ..Shared::default()
        });
        let names = load.names();
        let ways: Vec<_> = cluster
            .gateways
            .iter()
            .map(|gateway| (gateway.addr, gateway.path.clone()))
            .collect();
        let mut devices = Vec::new();
        for (number, user) in names.iter().enumerate() {
            for home in 0..ways.len() {
                let client = cluster.connect(home, user);
                let name = format!("{user}/{home}");
                shared.ledger.device(&name, user);
                let mut way = ways.clone();
                way.rotate_left(home);
                let sends = home == number % ways.len();
                let (shared, names) = (Arc::clone(&shared), names.clone());
                devices.push(Device {
                    name,
                    user: user.clone(),
                    number,
                    names,
                    way,
                    sends,
                    obeys: false,
                    client,
                    shared,
                    seen: HashSet::new(),
                    to_ack: Vec::new(),
                });
            }
        }
        Self::begin(load, shared, devices)
    }

    /// How many messages have been committed.
    pub fn committed(&self) -> usize {
        self.shared.committed.load(Ordering::SeqCst)
    }

    /// Waits until `count` more are committed.
    pub fn goes_on_for(&self, count: usize) {
        let goal = self.committed() + count;
        wait_until_within(DEADLINE * 6, format!("{goal} are committed"), || {
            self.committed() >= goal
        });
    }

    /// The senders pause once about `count` more are committed, however long the fault takes: what
    /// piles up does not depend on how fast this machine starts a broker.
    pub fn pause_after(&self, count: usize) {
        let limit = self.committed() + count;
        self.shared.limit.store(limit, Ordering::SeqCst);
    }

    pub fn resume(&self) {
        self.shared.limit.store(usize::MAX, Ordering::SeqCst);
    }

    /// Lets it flow until `watch` after `relief`, waits for what was committed by then, and
    /// answers how long at most a message waited for its first push, the time before `relief` not
    /// counted. `None`, which breaks the promise: some are pushed to nobody.
    pub fn recovery(&self, relief: Instant, watch: Duration) -> Option<Duration> {
        let until = relief + watch;
        thread::sleep(until.saturating_duration_since(Instant::now()));
        let all_are_pushed = || self.waits(relief, until).all(|wait| wait.is_some());
        if !self.holds_in_time(all_are_pushed) {
            let clause = "what was committed is pushed once the fault is over";
            self.shared.broken.lock().unwrap().push(clause.into());
            return None;
        }
        Some(
            self.waits(relief, until)
                .flatten()
                .max()
                .unwrap_or_default(),
        )
    }

    /// Whether `holds` before it is too late, or nothing has been pushed for so long that nothing more
    /// is to be expected.
    fn holds_in_time(&self, holds: impl Fn() -> bool) -> bool {
        let end = Instant::now() + DEADLINE * 2;
        let pushes = || self.shared.received_at.lock().unwrap().len();
        loop {
            let before = pushes();
            if holds_within(patience(), &holds) {
                return true;
            }
            if pushes() == before || Instant::now() > end {
                return false;
            }
        }
    }

    /// For each message that was committed before `until`, how long after `relief` and its commit
    /// it was first pushed, if it was.
    fn waits(&self, relief: Instant, until: Instant) -> impl Iterator<Item = Option<Duration>> {
        let mut first = HashMap::new();
        for (id, at) in self.shared.received_at.lock().unwrap().iter() {
            first.entry(id.clone()).or_insert(*at);
        }
        let committed = self.shared.committed_at.lock().unwrap().clone();
        let due = committed.into_iter().filter(move |(_, at)| *at < until);
        due.map(move |(id, at)| {
            let pushed = first.get(&id)?;
            Some(pushed.saturating_duration_since(at.max(relief)))
        })
    }

    /// How many messages have been committed and pushed to no device.
    pub fn waiting(&self) -> usize {
        let received = self.shared.received_at.lock().unwrap();
        let pushed: BTreeSet<_> = received.iter().map(|(id, _)| id.as_str()).collect();
        let committed = self.shared.committed_at.lock().unwrap();
        committed
            .keys()
            .filter(|id| !pushed.contains(id.as_str()))
            .count()
    }

    /// How many requests were answered with an error so far.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// How many connections that ended have another one in their place so far.
    pub fn returned(&self) -> usize {
        self.shared.returns.load(Ordering::SeqCst)
    }

    /// The longest wait for an answer so far.
    pub fn slowest_answer(&self) -> Duration {
        *self.shared.slowest_answer.lock().unwrap()
    }

    /// Ends it once enough has flowed, waits for what is under way, and counts. What some recipient
    /// has nowhere may be pushed when they connect next, at the first gateway.
    pub fn finish(mut self, cluster: &Cluster) -> Figures {
        let goal = self.load.messages;
        wait_until_within(DEADLINE * 12, format!("{goal} are committed"), || {
            self.committed() >= goal
        });
        let shared = Arc::clone(&self.shared);
        shared.stop.store(true, Ordering::SeqCst);
        wait_until_within(DEADLINE * 3, "all requests are answered", || {
            shared.sending.load(Ordering::SeqCst) == 0
        });
        // Too late is a finding, and no reason to fail here.
        self.holds_in_time(|| shared.ledger.report().missing.is_empty());
        shared.end.store(true, Ordering::SeqCst);
        for device in self.devices.drain(..) {
            device.join().expect("a device lives through it");
        }

        let live = shared.ledger.report();
        let mut figures = Figures {
            committed: live.committed,
            asked: shared.asked.load(Ordering::SeqCst),
            delivered: live.delivered,
            duplicated: live.duplicated,
            missing: live.missing,
            disordered: live.disordered,
            disconnects: shared.disconnects.load(Ordering::SeqCst),
            refused: shared.refused.load(Ordering::SeqCst),
            slowest_answer: Some(*shared.slowest_answer.lock().unwrap()),
            broken: shared.broken.lock().unwrap().clone(),
            ..Figures::default()
        };
        let strays = format!("nothing comes to the wrong device: {:?}", live.stray);
        figures.demand(live.stray.is_empty(), strays);
        let without: BTreeSet<_> = live.lost.into_iter().map(|(user, _)| user).collect();
        for user in without {
            next_connect(cluster, &user, &shared.ledger);
        }
        figures.lost = shared.ledger.report().lost;
        figures
    }
}

/// What is pushed to `user` on their next connect.
fn next_connect(cluster: &Cluster, user: &str, ledger: &Ledger) {
    let name = format!("{user}/next");
    ledger.device(&name, user);
    let mut client = cluster.connect(0, user);
    for push in client.take_held().iter().filter(|frame| is_push(frame)) {
        ledger.received(&name, push["id"].as_str().expect("an id"));
    }
}

/// One device of one user.
struct Device {
    name: String,
    user: String,
    number: usize,
    /// Of all users.
    names: Vec<String>,
    way: Way,
    sends: bool,
    /// It comes back when the Close frame says so; else at once.
    obeys: bool,
    client: Client,
    shared: Arc<Shared>,
    /// Ids that have been received.
    seen: HashSet<String>,
    /// Those that have reached all of the user's devices, this one last.
    to_ack: Vec<String>,
}

impl Device {
    fn live(mut self, pause: Duration) -> Client {
        // One after the other, not all at once.
        let mut next = Instant::now() + pause * self.number as u32 / self.names.len() as u32;
        let mut count = 0;
        while !self.shared.end.load(Ordering::SeqCst) {
            if self.to_ack.len() >= ACKED {
                // If it fails, they come again, and no more.
                let ids = std::mem::take(&mut self.to_ack);
                self.request("ack", &json!({"message_ids": ids}));
            } else if !self.sends {
                self.read(LOOK);
            } else if self.shared.stop.load(Ordering::SeqCst) {
                self.sends = false;
                self.shared.sending.fetch_sub(1, Ordering::SeqCst);
            } else if self.is_paused() {
                self.read(LOOK);
            } else if Instant::now() >= next {
                // Without making up for what it could not send in time.
                next = (next + pause).max(Instant::now());
                count += 1;
                self.send(count);
            } else {
                self.read((next - Instant::now().min(next)).min(LOOK));
            }
        }
        // What is on its way here is before the pong; a device that just lost its connection has
        // been counted.
        if let Some(frames) = self.client.try_frames_until_pong() {
            frames.into_iter().for_each(|frame| self.took(frame));
        }
        self.client
    }

    fn is_paused(&self) -> bool {
        let Shared {
            committed, limit, ..
        } = &*self.shared;
        committed.load(Ordering::SeqCst) >= limit.load(Ordering::SeqCst)
    }

    /// Sends one message, again and again until it is committed.
    fn send(&mut self, count: usize) {
        let to = &self.names[(self.number + 1 + count % (self.names.len() - 1)) % self.names.len()];
        let others = || self.names.iter().filter(|name| **name != self.user);
        let client_message_id = format!("{}-{count}", self.user);
        let (kind, recipients, data) = if count.is_multiple_of(4) {
            let data = json!({"group_id": GROUP, "content": client_message_id, "client_message_id": client_message_id});
            (
                "send_group_message",
                others().cloned().collect::<Vec<_>>(),
                data,
            )
        } else {
            let data = json!({"to_user_id": to, "content": client_message_id, "client_message_id": client_message_id});
            ("send_message", vec![to.clone()], data)
        };
        while !self.shared.end.load(Ordering::SeqCst) {
            let began = Instant::now();
            self.shared.asked.fetch_add(1, Ordering::SeqCst);
            let Some(answer) = self.request(kind, &data) else {
                continue;
            };
            let took = began.elapsed();
            let mut slowest = self.shared.slowest_answer.lock().unwrap();
            *slowest = (*slowest).max(took);
            drop(slowest);
            if answer["type"] == "error" {
                self.shared.refused.fetch_add(1, Ordering::SeqCst);
                self.read(LOOK);
                continue;
            }
            let id = sent(answer);
            let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
            self.shared.ledger.committed(&self.user, &recipients, &id);
            let mut committed_at = self.shared.committed_at.lock().unwrap();
            committed_at.insert(id, Instant::now());
            self.shared.committed.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }

    /// The answer to one request; `None` when the connection ended first.
    fn request(&mut self, kind: &str, data: &Value) -> Option<Value> {
        let id = self.client.try_send_request(kind, data.clone());
        let end = Instant::now() + DEADLINE;
        while let Some(id) = &id {
            match self.client.next_event(LOOK) {
                Event::Frame(frame) if frame["request_id"] == **id => return Some(frame),
                Event::Frame(frame) => self.took(frame),
                Event::Nothing => assert!(Instant::now() < end, "{} has no answer", self.name),
                Event::End(ended) => {
                    self.come_back(Some(ended));
                    return None;
                }
            }
        }
        self.come_back(None);
        None
    }

    fn read(&mut self, wait: Duration) {
        match self.client.next_event(wait) {
            Event::Frame(frame) => self.took(frame),
            Event::Nothing => {}
            Event::End(ended) => self.come_back(Some(ended)),
        }
    }

    fn took(&mut self, frame: Value) {
        if !is_push(&frame) {
            return;
        }
        let id = frame["id"].as_str().expect("an id");
        self.shared.ledger.received(&self.name, id);
        let mut received_at = self.shared.received_at.lock().unwrap();
        received_at.push((id.to_owned(), Instant::now()));
        drop(received_at);
        if self.seen.insert(id.to_owned()) {
            let mut reached = self.shared.reached.lock().unwrap();
            let devices = reached.entry((self.user.clone(), id.into())).or_default();
            *devices += 1;
            if *devices == self.way.len() {
                self.to_ack.push(id.to_owned());
            }
        }
    }

    /// The connection ended: another one, here or at the next gateway.
    fn come_back(&mut self, ended: Option<Ended>) {
        self.shared.disconnects.fetch_add(1, Ordering::SeqCst);
        if self.obeys {
            return self.do_as_told(ended);
        }
        let token = token_of(&self.user);
        while !self.shared.end.load(Ordering::SeqCst) {
            for (addr, path) in &self.way {
                if let Some(client) = Client::try_reach(*addr, path, &token) {
                    self.client = client;
                    self.shared.returns.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Comes back after as long as the Close frame says. Whoever is refused then is counted.
    fn do_as_told(&mut self, ended: Option<Ended>) {
        let closed = Instant::now();
        // A request that could not even be sent: the frame is still to be read.
        let ended = ended.unwrap_or_else(|| self.client.end());
        let Ended::Closed { code: 1012, reason } = ended else {
            panic!("{} is closed otherwise: {ended:?}", self.name);
        };
        let told: Value = serde_json::from_str(&reason).expect("JSON");
        let after = Duration::from_millis(told["after_ms"].as_u64().expect("a number"));
        thread::sleep(after);
        let (addr, path) = &self.way[0];
        while !self.shared.end.load(Ordering::SeqCst) {
            match Client::try_connect(*addr, path, &token_of(&self.user)) {
                Ok(client) => {
                    self.client = client;
                    self.shared.returns.fetch_add(1, Ordering::SeqCst);
                    let back = Instant::now();
                    let returned = Return {
                        closed,
                        after,
                        back,
                    };
                    self.shared.returned.lock().unwrap().push(returned);
                    return;
                }
                Err(_) => _ = self.shared.refused.fetch_add(1, Ordering::SeqCst),
            }
            thread::sleep(LOOK);
        }
    }
}
