//! One device of one user: it does as the chapter on the protocol says, with shorter waits, and
//! writes down all that it sees.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::history::{Answer, Chat, Draft, Event, History, Moment, Pushed, Request, Span, To};
use super::people::{Commit, People, Phase, lock};
use super::series::ClientFault;
use crate::support::client::{Ended, is_push};
use crate::support::random::Random;
use crate::support::{self, Client};

/// `session.ping_interval`: how often it pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(2);
/// After two and a half of them in silence it takes the connection for dead.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The waits before it comes back, where nobody said when, double from the first to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(3)];
/// What cannot be served now is asked for again after this.
const AGAIN: Duration = Duration::from_millis(300);
/// For so long it collects what to acknowledge.
const COLLECT: Duration = Duration::from_millis(200);
/// How long it looks at its socket before it looks around.
const LOOK: Duration = Duration::from_millis(20);
/// A slow client reads a frame this often.
const SLOW: Duration = Duration::from_millis(400);
/// Between two messages of a user, on average.
const PACE: Duration = Duration::from_millis(1_500);
/// Of so many messages one is the first of a burst of so many large ones, at once, to a group.
const BURSTS: usize = 60;
const BURST: usize = 20;
const LARGE: usize = 6_000;
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

    /// Sends what is to be sent, and thinks of something new.
    fn write(&mut self, now: Moment) {
        if let Some(draft) = self.draft.clone() {
            if self.draft_at.is_some_and(|at| now >= at) {
                self.draft_at = None;
                self.send(&draft);
            }
            return;
        }
        let is_time = now >= self.next_at || self.burst > 0;
        if !self.seat.writes || !is_time || self.people.phase() != Phase::Talk {
            return;
        }
        self.next_at = now + PACE * (self.random.below(200) as u32) / 100;
        if self.burst > 0 {
            self.burst -= 1;
        } else if self.random.below(BURSTS) == 0 {
            self.burst = BURST;
        } else if self.random.below(20) == 0 {
            return self.look_back();
        }
        let to = match self.random.below(4) {
            0 => self.group(),
            _ if self.burst > 0 => self.group(),
            _ => To::User(
                self.random
                    .pick(&self.people.contacts(&self.seat.user))
                    .clone(),
            ),
        };
        self.written += 1;
        let client_message_id = format!("{}-{}", self.seat.user, self.written);
        let length = if self.burst > 0 {
            LARGE
        } else {
            20 + self.random.below(200)
        };
        let content = format!("{client_message_id} {}", "x".repeat(length));
        let draft = Draft {
            to,
            client_message_id,
            content,
        };
        self.draft = Some(draft.clone());
        self.draft_since = now;
        self.send(&draft);
    }

    fn group(&mut self) -> To {
        To::Group(self.people.office.group_of(&self.seat.user))
    }

    fn send(&mut self, draft: &Draft) {
        let Draft {
            to,
            client_message_id,
            content,
        } = draft;
        let (kind, field, to) = match to {
            To::User(user) => ("send_message", "to_user_id", user),
            To::Group(group) => ("send_group_message", "group_id", group),
        };
        let data = json!({field: to, "content": content, "client_message_id": client_message_id});
        self.ask(kind, data, Request::Send(draft.clone()));
    }

    /// Asks for a history.
    fn look_back(&mut self) {
        let chat: Chat = match self.random.below(2) {
            0 => self.group(),
            _ => To::User(
                self.random
                    .pick(&self.people.contacts(&self.seat.user))
                    .clone(),
            ),
        };
        let (kind, field, of) = match &chat {
            To::User(user) => ("get_history", "user_id", user),
            To::Group(group) => ("get_group_history", "group_id", group),
        };
        let data = json!({field: of, "limit": super::checker::HISTORY_LIMIT});
        self.ask(kind, data, Request::History(chat));
    }

    fn ask(&mut self, kind: &str, data: Value, what: Request) {
        let Some(client) = &mut self.client else {
            return;
        };
        // Where it cannot be sent, what the gateway said before it went is still to be read.
        if let Some(request) = client.try_send_request(kind, data) {
            self.pending.push_back((request.clone(), what.clone()));
            self.note(Event::Asked { request, what });
        }
    }

    fn read(&mut self, wait: Duration) {
        let Some(client) = &mut self.client else {
            return;
        };
        match client.next_event(wait) {
            support::Event::Nothing => {}
            support::Event::End(ended) => self.ended(ended),
            support::Event::Frame(frame) => {
                self.heard_at = self.now();
                self.took(&frame);
            }
        }
    }

    fn took(&mut self, frame: &Value) {
        if is_push(frame) {
            let pushed = Pushed::of(frame);
            let id = pushed.id.clone();
            self.note(Event::Pushed(pushed));
            lock(&self.seat.seen).insert(id.clone());
            if self.people.may_acknowledge(&self.seat, &id) {
                self.to_ack.push(id);
                let at = self.now() + COLLECT;
                self.ack_at.get_or_insert(at);
            }
            return;
        }
        match frame["type"].as_str().unwrap_or_default() {
            "offline_complete" => {
                let count = frame["count"].as_u64().unwrap_or_default() as usize;
                self.failures = 0;
                self.note(Event::OfflineComplete { count });
                self.seat.settled.store(true, Ordering::SeqCst);
            }
            "presence" => {
                let user = frame["user_id"].as_str().unwrap_or_default().to_owned();
                let online = frame["status"] == "online";
                lock(&self.seat.presence).insert(user.clone(), online);
                self.note(Event::Presence { user, online });
            }
            _ => self.answered(frame),
        }
    }

    fn answered(&mut self, frame: &Value) {
        let request = frame["request_id"].as_str().unwrap_or_default().to_owned();
        let text = |field: &str| frame[field].as_str().unwrap_or_default().to_owned();
        let answer = match frame["type"].as_str().unwrap_or_default() {
            "message_sent" => Answer::Sent(text("id")),
            "acked" => Answer::Acked,
            "history" | "group_history" => {
                let messages = frame["messages"].as_array().cloned().unwrap_or_default();
                let messages = messages.iter().map(Pushed::of).collect();
                Answer::History {
                    messages,
                    has_more: frame["has_more"] == true,
                }
            }
            "token_refreshed" => Answer::Refreshed,
            "pong" => Answer::Pong,
            "error" => Answer::Error(text("code")),
            other => Answer::Error(format!("no answer is a {other}")),
        };
        self.note(Event::Answered {
            request: request.clone(),
            answer: answer.clone(),
        });
        let Some(place) = self.pending.iter().position(|(id, _)| *id == request) else {
            return;
        };
        let (_, what) = self.pending.remove(place).expect("it is there");
        let code = match &answer {
            Answer::Error(code) => code.clone(),
            _ => String::new(),
        };
        let again = [
            "RATE_LIMITED",
            "SERVICE_UNAVAILABLE",
            "DEADLINE_EXCEEDED",
            "INTERNAL",
        ];
        let at = self.now() + AGAIN;
        match (what, answer) {
            (Request::Send(_), _) if again.contains(&&*code) => self.draft_at = Some(at),
            (Request::Send(draft), answer) => {
                self.draft = None;
                if let Answer::Sent(id) = answer {
                    let within = Span::new(self.draft_since, self.now());
                    let from = self.seat.user.clone();
                    self.people.committed(Commit {
                        id,
                        from,
                        draft,
                        within,
                    });
                }
            }
            (Request::Ack(ids), _) if again.contains(&&*code) => {
                self.to_ack.extend(ids);
                self.ack_at = Some(at);
            }
            (Request::Refresh(_), Answer::Error(_)) => self.refresh_at = Some(at),
            _ => {}
        }
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
