//! One device of one user: it does as the chapter on the protocol says, with shorter waits, and
//! writes down all that it sees.

mod talk;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::history::{Draft, Event, History, Moment, Request};
use super::people::{People, Phase};
use super::series::ClientFault;
use crate::support::Client;
use crate::support::client::Ended;
use crate::support::random::Random;

/// `session.ping_interval`: how often it pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(2);
/// After two and a half of them in silence it takes the connection for dead.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The waits before it comes back, where nobody said when, double from the first to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];
/// How long it looks at its socket before it looks around.
const LOOK: Duration = Duration::from_millis(20);
/// A slow client reads a frame this often.
const SLOW: Duration = Duration::from_millis(400);
/// Between two messages of a user, on average.
const PACE: Duration = Duration::from_millis(1_500);
/// How long it waits for what it asked before it leaves.
const LEAVE: Duration = Duration::from_secs(8);

/// What a device shares with those around it.
pub struct Seat {
    pub number: usize,
    pub name: String,
    pub user: String,
    /// Its user has another one as well, and each acknowledges only what both have.
    pub waits_for_others: bool,
    /// The user's token expires soon.
    pub brief: bool,
    /// The first of its user's devices: the one that writes.
    pub writes: bool,
    /// Stays when the others leave, and sees them go.
    pub watches: bool,
    /// The ids of what has been pushed to it.
    pub seen: Mutex<HashSet<String>>,
    /// Who is online, as far as it has heard.
    pub presence: Mutex<HashMap<String, bool>>,
    /// It has heard `offline_complete` on the connection that it has.
    pub settled: AtomicBool,
}

pub struct Device {
    people: Arc<People>,
    seat: Arc<Seat>,
    random: Random,
    events: Vec<(Moment, Event)>,
    client: Option<Client>,
    /// The gateway that it tries next.
    gateway: usize,
    token: String,
    /// Since a connection was last of use.
    failures: u32,
    back_at: Moment,
    heard_at: Moment,
    ping_at: Moment,
    /// When the token is exchanged for the next one, if the user does not let it expire.
    refresh_at: Option<Moment>,
    pending: VecDeque<(String, Request)>,
    /// What is being written, until it is answered; and when that may be sent, if not already.
    draft: Option<Draft>,
    draft_since: Moment,
    draft_at: Option<Moment>,
    written: usize,
    burst: usize,
    next_at: Moment,
    to_ack: Vec<String>,
    ack_at: Option<Moment>,
    /// Connections that were left behind without a word, until the fault is over.
    left_behind: Vec<(Moment, Client)>,
}

impl Device {
    pub fn new(people: &Arc<People>, seat: &Arc<Seat>, seed: u64) -> Self {
        let mut random = Random::seeded(seed.wrapping_mul(1_000) + seat.number as u64);
        let next_at = PACE * random.below(100) as u32 / 100;
        Self {
            people: Arc::clone(people),
            seat: Arc::clone(seat),
            gateway: seat.number,
            random,
            events: Vec::new(),
            client: None,
            token: String::new(),
            failures: 0,
            back_at: Moment::ZERO,
            heard_at: Moment::ZERO,
            ping_at: Moment::ZERO,
            refresh_at: None,
            pending: VecDeque::new(),
            draft: None,
            draft_since: Moment::ZERO,
            draft_at: None,
            written: 0,
            burst: 0,
            next_at,
            to_ack: Vec::new(),
            ack_at: None,
            left_behind: Vec::new(),
        }
    }

    /// Until the run is over. Answers what it has seen.
    pub fn live(mut self) -> History {
        loop {
            match self.people.phase() {
                Phase::Leave if !self.seat.watches => break self.leave(),
                Phase::Over => break self.leave(),
                _ => {}
            }
            self.suffer();
            let now = self.now();
            if self.client.is_some() {
                self.step();
            } else if now >= self.back_at {
                self.connect();
            } else {
                thread::sleep(LOOK.min(self.back_at - now));
            }
        }
        History {
            device: self.seat.name.clone(),
            user: self.seat.user.clone(),
            waits_for_others: self.seat.waits_for_others,
            events: self.events,
        }
    }

    fn now(&self) -> Moment {
        self.people.clock.now()
    }

    fn note(&mut self, event: Event) {
        let now = self.now();
        self.events.push((now, event));
    }

    /// What is done to clients right now.
    fn suffer(&mut self) {
        let now = self.now();
        self.left_behind.retain(|(until, _)| *until > now);
        let Some((fault, until)) = self.people.ailment(self.seat.number) else {
            return;
        };
        match fault {
            ClientFault::Frozen => {
                self.note(Event::Suffers(fault));
                self.people.clock.sleep_until(until);
                self.note(Event::Recovers);
                self.people.recovers(self.seat.number);
            }
            ClientFault::Slow => {
                self.note(Event::Suffers(fault));
                while self.client.is_some() && self.now() < until {
                    thread::sleep(SLOW);
                    self.read(Duration::ZERO);
                }
                self.note(Event::Recovers);
                self.people.recovers(self.seat.number);
            }
            ClientFault::HalfOpen | ClientFault::Gone => {
                if let Some(client) = self.client.take() {
                    self.note(Event::Suffers(fault));
                    self.note(Event::Left);
                    match fault {
                        ClientFault::HalfOpen => self.left_behind.push((until, client)),
                        _ if self.random.below(2) == 0 => client.reset(),
                        _ => drop(client),
                    }
                    self.note(Event::Recovers);
                    self.lost(None);
                }
                self.people.recovers(self.seat.number);
            }
        }
    }

    fn connect(&mut self) {
        let gateway = self.gateway % self.people.entrances.len();
        let token = self.people.office.token(&self.seat.user);
        self.gateway = gateway + 1;
        self.token.clone_from(&token);
        self.note(Event::Connecting {
            gateway,
            token: token.clone(),
        });
        let (addr, path) = &self.people.entrances[gateway];
        match Client::attempt(*addr, path, &token, CONNECT) {
            Ok(client) => {
                self.note(Event::Connected);
                let now = self.now();
                self.client = Some(client);
                self.heard_at = now;
                self.ping_at = now + PING_INTERVAL * self.random.below(100) as u32 / 100;
                let refreshes = self.seat.brief && self.random.below(2) == 0;
                self.refresh_at = refreshes.then(|| now + super::office::BRIEF / 2);
                if self.draft.is_some() {
                    self.draft_at = Some(now);
                }
            }
            Err(refused) => {
                let status = refused.map(|refused| refused.status);
                self.note(Event::Refused(status));
                if status == Some(401) {
                    self.people.office.renew(&self.seat.user, &token);
                }
                self.back_off();
            }
        }
    }

    /// The connection is gone. `after`: when to come back, where that was said.
    fn lost(&mut self, after: Option<Duration>) {
        self.client = None;
        self.seat.settled.store(false, Ordering::SeqCst);
        self.pending.clear();
        (self.draft_at, self.ack_at) = (None, None);
        self.to_ack.clear();
        match after {
            Some(after) => self.back_at = self.now() + after,
            None => self.back_off(),
        }
    }

    fn back_off(&mut self) {
        let [first, last] = BACKOFF;
        let wait = (first * 2_u32.pow(self.failures.min(10))).min(last);
        self.failures += 1;
        self.back_at = self.now() + wait * (50 + self.random.below(50) as u32) / 100;
    }

    /// Does what is due, and reads.
    fn step(&mut self) {
        let now = self.now();
        if now > self.heard_at + SILENCE {
            self.note(Event::GaveUp);
            return self.lost(None);
        }
        if now >= self.ping_at {
            self.ping_at = now + PING_INTERVAL;
            self.ask("ping", Value::Null, Request::Ping);
        }
        if self.ack_at.is_some_and(|at| now >= at) {
            self.ack_at = None;
            let ids = std::mem::take(&mut self.to_ack);
            self.ask("ack", json!({"message_ids": ids}), Request::Ack(ids));
        }
        if self.refresh_at.is_some_and(|at| now >= at) {
            self.people.office.renew(&self.seat.user, &self.token);
            let token = self.people.office.token(&self.seat.user);
            if token != self.token {
                self.refresh_at = Some(now + super::office::BRIEF / 2);
                self.token.clone_from(&token);
                let data = json!({"token": token});
                self.ask("refresh_token", data, Request::Refresh(token));
            }
        }
        self.write(now);
        self.read(LOOK);
    }

    fn ended(&mut self, ended: Ended) {
        let Ended::Closed { code, reason } = ended else {
            self.note(Event::Cut);
            return self.lost(None);
        };
        self.note(Event::Closed { code });
        if [4003, 4005].contains(&code) {
            self.people.office.renew(&self.seat.user, &self.token);
        }
        let told: Value = serde_json::from_str(&reason).unwrap_or_default();
        // A person logs in again where a client does not come back by itself.
        self.lost(told["after_ms"].as_u64().map(Duration::from_millis));
    }

    /// Waits for what it asked, and says goodbye.
    fn leave(&mut self) {
        let spread = self.seat.number as u32 * Duration::from_millis(15);
        let end = self.now() + LEAVE;
        let go = self.now() + spread;
        while self.client.is_some()
            && (self.now() < go || (!self.pending.is_empty() && self.now() < end))
        {
            self.read(LOOK);
        }
        if let Some(client) = self.client.take() {
            self.note(Event::Left);
            client.close();
        }
    }
}
