//! Holds each sentence of the promise against what was written down.
//!
//! It knows nothing of how the gateway works, only what it promises; where a fault excuses something,
//! the sentence's own function says so.

mod access;
mod excuses;
mod messages;
mod requests;
mod session;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use strum::VariantArray;
use ws_gateway::services::proto::Message;

use super::deployment::LEASE;
use super::history::{Answer, Event, History, Moment, Records, Request, Span};
use super::office::Memberships;
use super::series::ClientFault;
use session::{ailments, sessions};

/// How many messages of a history are asked for.
pub const HISTORY_LIMIT: usize = 10;
/// After a fault, as long until what suffered from it is as before: a broker connection is tried again
/// after 20 s at the latest.
const AFTERMATH: Duration = Duration::from_secs(20);
/// What is due at a moment may come so much later: two cores have much to do.
const SLACK: Duration = Duration::from_secs(3);
/// A catch-up that took no longer has had its services all the time.
const CALM_CATCH_UP: Duration = Duration::from_secs(8);

/// What is promised, as far as it can be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, VariantArray)]
pub enum Sentence {
    Committed,
    NothingLost,
    EveryDevice,
    NothingInvented,
    NobodyElses,
    InOrder,
    UnreadFirst,
    Answered,
    Histories,
    LetIn,
    RevokedIsOut,
    ExpiredIsOut,
    ClosedWithCause,
    PresenceRight,
    Recovers,
    NothingLeft,
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "`message_sent` means that the message is committed, once",
            Self::NothingLost => "what is committed reaches each recipient, or is unread still",
            Self::EveryDevice => "and each of their devices, where none acknowledges it before",
            Self::NothingInvented => "what is pushed was committed, to the letter",
            Self::NobodyElses => "nobody gets what is not theirs",
            Self::InOrder => "what one user writes to one user or group comes in order",
            Self::UnreadFirst => "on a connect all that is unread comes first, once, in order",
            Self::Answered => "a request is answered once, in time, and refused for a reason",
            Self::Histories => "a history lacks nothing",
            Self::LetIn => "whoever has a token that holds is let in, unless something is down",
            Self::RevokedIsOut => "nobody stays whose token is revoked",
            Self::ExpiredIsOut => "nobody stays whose token has expired",
            Self::ClosedWithCause => "a connection ends for the reason that its code names",
            Self::PresenceRight => "presence is right within the lease at the end",
            Self::Recovers => "everything is as before once the faults are over",
            Self::NothingLeft => "threads, descriptors, connections, routes are at their baseline",
        })
    }
}

/// Something that breaks a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub sentence: Sentence,
    pub seen: String,
}

impl Finding {
    pub fn new(sentence: Sentence, seen: impl Into<String>) -> Self {
        Self {
            sentence,
            seen: seen.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sentence, self.seen)
    }
}

/// All that breaks a sentence.
pub fn check(records: &Records) -> Vec<Finding> {
    let checker = Checker::new(records);
    let mut findings = records.findings.clone();
    checker.committed(&mut findings);
    checker.nothing_lost(&mut findings);
    checker.nobody_elses_and_nothing_invented(&mut findings);
    for history in &records.histories {
        checker.in_order(history, &mut findings);
        for session in sessions(history) {
            checker.unread_first(history, &session, &mut findings);
            checker.answered(history, &session, &mut findings);
            checker.histories(history, &session, &mut findings);
            checker.out_in_time(history, &session, &mut findings);
            checker.closed_with_cause(history, &session, &mut findings);
        }
        checker.let_in(history, &mut findings);
    }
    findings
}

struct Checker<'a> {
    records: &'a Records,
    /// Of each id the message, and its place in the order of commits.
    stored: HashMap<&'a str, (usize, &'a Message)>,
    /// Of each (sender, client_message_id) from when it was first sent to its first `message_sent`.
    sent: HashMap<(&'a str, &'a str), Span>,
    /// Of each user, when each id was first asked to be acknowledged.
    acks: HashMap<(&'a str, &'a str), Moment>,
    memberships: Memberships,
    /// Of each user, what is for them.
    inboxes: HashMap<String, Vec<ForOne<'a>>>,
    /// Of each chat, what is stored of it.
    chats: HashMap<Chat<'a>, Vec<&'a Message>>,
    /// Of each device, what was done to it, and from when to when.
    ailments: HashMap<&'a str, Vec<(ClientFault, Span)>>,
    end: Moment,
}

/// A message that is for somebody.
struct ForOne<'a> {
    id: &'a str,
    committed: Span,
    /// When it was first asked to be acknowledged; never: the last moment that there is.
    acked: Moment,
}

/// A group, or two users in their order.
#[derive(PartialEq, Eq, Hash)]
enum Chat<'a> {
    Of(&'a str, &'a str),
    Group(&'a str),
}

impl<'a> Chat<'a> {
    fn between(one: &'a str, other: &'a str) -> Self {
        Self::Of(one.min(other), one.max(other))
    }

    fn of(message: &'a Message) -> Self {
        match message.group_id.as_str() {
            "" => Self::between(&message.from_user_id, &message.to_user_id),
            group => Self::Group(group),
        }
    }
}

impl<'a> Checker<'a> {
    fn new(records: &'a Records) -> Self {
        let messages = records.stored.messages.iter().enumerate();
        let stored = messages.map(|(place, message)| (message.id.as_str(), (place, message)));
        let mut checker = Self {
            records,
            stored: stored.collect(),
            sent: HashMap::new(),
            acks: HashMap::new(),
            memberships: Memberships::default(),
            inboxes: HashMap::new(),
            chats: HashMap::new(),
            ailments: HashMap::new(),
            end: Moment::ZERO,
        };
        for history in &records.histories {
            checker.read(history);
            let ailments = ailments(history);
            checker.ailments.insert(&history.device, ailments);
        }
        for decree in &records.decrees {
            checker.memberships.take_in(decree);
        }
        for message in &records.stored.messages {
            checker.file(message);
        }
        checker
    }

    /// Puts a stored message where it is looked for: in a run of an hour there are half a million.
    fn file(&mut self, message: &'a Message) {
        let chat = self.chats.entry(Chat::of(message)).or_default();
        chat.push(message);
        let Some(committed) = self.commit_of(message) else {
            return;
        };
        let id = message.id.as_str();
        let recipients = self.recipients(message).into_iter().map(str::to_owned);
        for user in Vec::from_iter(recipients) {
            let acked = self.acks.get(&(user.as_str(), id)).copied();
            let inbox = self.inboxes.entry(user).or_default();
            inbox.push(ForOne {
                id,
                committed,
                acked: acked.unwrap_or(Moment::MAX),
            });
        }
    }

    fn read(&mut self, history: &'a History) {
        let user = history.user.as_str();
        let mut asked = HashMap::new();
        for (at, event) in &history.events {
            self.end = self.end.max(*at);
            match event {
                Event::Asked { request, what } => {
                    asked.insert(request.as_str(), what);
                    match what {
                        Request::Send(draft) => {
                            let key = (user, draft.client_message_id.as_str());
                            let forever = Span::new(*at, Moment::MAX);
                            self.sent.entry(key).or_insert(forever);
                        }
                        Request::Ack(ids) => {
                            for id in ids {
                                let first = self.acks.entry((user, id)).or_insert(*at);
                                *first = (*first).min(*at);
                            }
                        }
                        _ => {}
                    }
                }
                Event::Answered {
                    request,
                    answer: Answer::Sent(_),
                } => {
                    if let Some(Request::Send(draft)) = asked.get(request.as_str())
                        && let Some(span) = self.sent.get_mut(&(user, &*draft.client_message_id))
                    {
                        span.until = span.until.min(*at);
                    }
                }
                _ => {}
            }
        }
    }

    /// When a stored message was committed: somewhere within this.
    fn commit_of(&self, message: &Message) -> Option<Span> {
        let key = (
            message.from_user_id.as_str(),
            message.client_message_id.as_str(),
        );
        self.sent.get(&key).copied()
    }

    /// Who has to get a message, for sure.
    fn recipients<'s>(&'s self, message: &'a Message) -> Vec<&'s str> {
        if message.group_id.is_empty() {
            let is_other = message.to_user_id != message.from_user_id;
            return Vec::from_iter(is_other.then_some(&*message.to_user_id));
        }
        let Some(commit) = self.commit_of(message) else {
            return Vec::new();
        };
        let members = self.memberships.throughout(&message.group_id, commit);
        members
            .filter(|user| *user != message.from_user_id)
            .collect()
    }

    fn is_recipient(&self, user: &str, message: &'a Message) -> bool {
        message.from_user_id != user
            && match message.group_id.as_str() {
                "" => message.to_user_id == user,
                group => {
                    let commit = self.commit_of(message);
                    let membership = self.memberships.of(user, group);
                    membership
                        .zip(commit)
                        .is_some_and(|(membership, commit)| membership.throughout(commit))
                }
            }
    }
}

/// How long presence may be wrong.
pub const PRESENCE: Duration = LEASE.saturating_add(SLACK);
