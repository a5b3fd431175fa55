//! What is written down while it happens, and read afterwards: by each client, by whoever changes
//! tokens and groups, and by whoever makes the faults.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use serde_json::Value;
use ws_gateway::services::proto::Message;

use super::series::{ClientFault, Fault};

/// Since the start of the run.
pub type Moment = Duration;

/// The clock of a run.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Moment {
        self.0.elapsed()
    }

    pub fn sleep_until(self, moment: Moment) {
        std::thread::sleep(moment.saturating_sub(self.now()));
    }
}

/// From one moment to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Moment,
    pub until: Moment,
}

impl Span {
    pub fn new(from: Moment, until: Moment) -> Self {
        Self { from, until }
    }

    pub fn meets(self, other: Self) -> bool {
        self.from <= other.until && other.from <= self.until
    }
}

/// What one device did and saw, in order.
#[derive(Debug)]
pub struct History {
    pub device: String,
    pub user: String,
    /// Acknowledges only what all devices of its user have: then each of them must get everything.
    pub waits_for_others: bool,
    pub events: Vec<(Moment, Event)>,
}

#[derive(Debug, Clone)]
pub enum Event {
    /// It asks a gateway to let it in.
    Connecting {
        gateway: usize,
        token: String,
    },
    /// By this status; `None`: nobody answered.
    Refused(Option<u16>),
    Connected,
    /// A push of a chat message.
    Pushed(Pushed),
    OfflineComplete {
        count: usize,
    },
    Presence {
        user: String,
        online: bool,
    },
    Asked {
        request: String,
        what: Request,
    },
    Answered {
        request: String,
        answer: Answer,
    },
    /// By the gateway, with a Close frame of this code.
    Closed {
        code: u16,
    },
    /// Without one.
    Cut,
    /// By the client itself.
    Left,
    /// By the client, which has heard nothing for too long.
    GaveUp,
    Suffers(ClientFault),
    Recovers,
}

/// A request, as far as something is held against it.
#[derive(Debug, Clone)]
pub enum Request {
    Send(Draft),
    Ack(Vec<String>),
    History(Chat),
    /// `refresh_token`, with this one.
    Refresh(String),
    Ping,
}

#[derive(Debug, Clone)]
pub enum Answer {
    /// `message_sent`.
    Sent(String),
    Acked,
    History {
        messages: Vec<Pushed>,
        has_more: bool,
    },
    Refreshed,
    Pong,
    Error(String),
}

/// What a user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub to: To,
    pub client_message_id: String,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum To {
    User(String),
    Group(String),
}

/// Whose history is asked for.
pub type Chat = To;

/// A chat message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub id: String,
    /// Of all its fields.
    pub digest: u64,
}

impl Pushed {
    /// Of a frame of type `message` or `group_message`.
    pub fn of(frame: &Value) -> Self {
        let text = |field: &str| frame[field].as_str().unwrap_or_default().to_owned();
        let message = Message {
            id: text("id"),
            from_user_id: text("from_user_id"),
            to_user_id: text("to_user_id"),
            group_id: text("group_id"),
            content: text("content"),
            message_type: text("message_type"),
            timestamp: frame["timestamp"].as_i64().unwrap_or_default(),
            client_message_id: text("client_message_id"),
        };
        Self {
            digest: digest(&message),
            id: message.id,
        }
    }
}

pub fn digest(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{message:?}").hash(&mut hasher);
    hasher.finish()
}

/// What became of a token or of a membership. `from` is when it was begun, `until` when it was in
/// force for sure.
#[derive(Debug, Clone)]
pub struct Decree {
    pub within: Span,
    pub what: Decided,
}

#[derive(Debug, Clone)]
pub enum Decided {
    /// `None`: it does not expire.
    Issued {
        token: String,
        expires_in: Option<Duration>,
    },
    Revoked {
        user: String,
        token: String,
    },
    Joined {
        user: String,
        group: String,
    },
    Left {
        user: String,
        group: String,
    },
}

/// A fault, and from when to when what it was done to suffered from it.
#[derive(Debug, Clone)]
pub struct Suffered {
    pub fault: Fault,
    pub within: Span,
}

/// What the Message Service has in its database at the end.
#[derive(Debug, Default)]
pub struct Stored {
    /// In the order of commits.
    pub messages: Vec<Message>,
    /// (user, id).
    pub unread: HashSet<(String, String)>,
}

/// All that is known of a run.
#[derive(Debug, Default)]
pub struct Records {
    pub histories: Vec<History>,
    /// Each in the order of time.
    pub decrees: Vec<Decree>,
    pub faults: Vec<Suffered>,
    pub stored: Stored,
    /// What each process has said.
    pub said: Vec<String>,
    /// From then on all gateways were ready, and no fault happened any more.
    pub ready_at: Moment,
    /// Users whose live pushes went past what was unread, since the Message Service did not get on.
    pub went_past: HashSet<String>,
    /// What was looked at once all was over: what is not as it must be, by the sentence it breaks.
    pub findings: Vec<super::checker::Finding>,
}
