//! Holds each sentence of the promise against what was written down.
//!
//! It knows nothing of how the gateway works, only what it promises; where a fault excuses something,
//! the sentence's own function says so.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use strum::VariantArray;
use ws_gateway::services::proto::Message;

use super::deployment::{ANSWER, CACHE_TTL, LEASE};
use super::device::SILENCE;
use super::history::{
    Answer, Decided, Event, History, Moment, Pushed, Records, Request, Span, Suffered, To, digest,
};
use super::office::Membership;
use super::series::{ClientFault, GatewayFault, What};

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
    /// Of each user, who has which ids.
    has: HashMap<&'a str, HashSet<&'a str>>,
    memberships: HashMap<(&'a str, &'a str), Membership>,
    end: Moment,
}

/// From the request to be let in to the end.
struct Session<'a> {
    asked: Moment,
    gateway: usize,
    token: &'a str,
    connected: Moment,
    /// Behind `Connected`, the end included, if it has one.
    events: &'a [(Moment, Event)],
}

impl Session<'_> {
    fn end(&self) -> Option<&(Moment, Event)> {
        self.events.last().filter(|(_, event)| is_end(event))
    }
}

fn is_end(event: &Event) -> bool {
    matches!(
        event,
        Event::Closed { .. } | Event::Cut | Event::Left | Event::GaveUp
    )
}

fn sessions(history: &History) -> impl Iterator<Item = Session<'_>> {
    let events = &history.events;
    let begins = events.iter().enumerate();
    let begins = begins.filter(|(_, (_, event))| matches!(event, Event::Connected));
    begins.map(move |(place, (connected, _))| {
        let (asked, connecting) = &events[place - 1];
        let Event::Connecting { gateway, token } = connecting else {
            panic!(
                "{}: connected without asking: {connecting:?}",
                history.device
            );
        };
        let rest = &events[place + 1..];
        let length = rest.iter().position(|(_, event)| is_end(event));
        Session {
            asked: *asked,
            gateway: *gateway,
            token,
            connected: *connected,
            events: &rest[..length.map_or(rest.len(), |length| length + 1)],
        }
    })
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
            has: HashMap::new(),
            memberships: HashMap::new(),
            end: Moment::ZERO,
        };
        for history in &records.histories {
            checker.read(history);
        }
        let mut members = BTreeSet::new();
        for decree in &records.decrees {
            if let Decided::Joined { user, group } = &decree.what {
                members.insert((user.as_str(), group.as_str()));
            }
        }
        for (user, group) in members {
            let membership = Membership::of(&records.decrees, user, group);
            checker.memberships.insert((user, group), membership);
        }
        checker
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
                Event::Pushed(Pushed { id, .. }) => {
                    self.has.entry(user).or_default().insert(id);
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
    fn recipients(&self, message: &'a Message) -> Vec<&'a str> {
        if message.group_id.is_empty() {
            return vec![&message.to_user_id];
        }
        let Some(commit) = self.commit_of(message) else {
            return Vec::new();
        };
        let of_group = |(user, group): &&(&'a str, &'a str)| {
            *group == message.group_id
                && *user != message.from_user_id
                && self.memberships[&(*user, *group)].throughout(commit)
        };
        self.memberships
            .keys()
            .filter(of_group)
            .map(|(user, _)| *user)
            .collect()
    }

    fn is_recipient(&self, user: &str, message: &'a Message) -> bool {
        message.from_user_id != user
            && match message.group_id.as_str() {
                "" => message.to_user_id == user,
                group => {
                    let commit = self.commit_of(message);
                    let membership = self.memberships.get(&(user, group));
                    membership
                        .zip(commit)
                        .is_some_and(|(membership, commit)| membership.throughout(commit))
                }
            }
    }

    fn committed(&self, findings: &mut Vec<Finding>) {
        let mut find = |seen| findings.push(Finding::new(Sentence::Committed, seen));
        let mut of_clients = HashMap::new();
        for message in &self.records.stored.messages {
            let key = (&message.from_user_id, &message.client_message_id);
            if let Some(other) = of_clients.insert(key, &message.id) {
                find(format!(
                    "{key:?} is stored twice, as {other} and {}",
                    message.id
                ));
            }
            if self.commit_of(message).is_none() {
                find(format!(
                    "nobody sent {}, which is stored from {key:?}",
                    message.id
                ));
            }
        }
        for history in &self.records.histories {
            let mut asked = HashMap::new();
            for (at, event) in &history.events {
                match event {
                    Event::Asked {
                        request,
                        what: Request::Send(draft),
                    } => {
                        asked.insert(request, draft);
                    }
                    Event::Answered {
                        request,
                        answer: Answer::Sent(id),
                    } => {
                        let draft = asked.get(request);
                        let stored = self.stored.get(id.as_str());
                        let agrees = stored.zip(draft).is_some_and(|((_, message), draft)| {
                            let to = match &draft.to {
                                To::User(user) => (user.as_str(), ""),
                                To::Group(group) => ("", group.as_str()),
                            };
                            message.from_user_id == history.user
                                && (message.to_user_id.as_str(), message.group_id.as_str()) == to
                                && message.content == draft.content
                                && message.client_message_id == draft.client_message_id
                        });
                        if !agrees {
                            let device = &history.device;
                            find(format!(
                                "{device} was told at {at:?} that {id} is sent, and it is not"
                            ));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn nothing_lost(&self, findings: &mut Vec<Finding>) {
        let mut devices: BTreeMap<&str, Vec<(&History, HashSet<&str>)>> = BTreeMap::new();
        for history in &self.records.histories {
            let ids = history.events.iter().filter_map(|(_, event)| match event {
                Event::Pushed(pushed) => Some(pushed.id.as_str()),
                _ => None,
            });
            let of_user = devices.entry(&history.user).or_default();
            of_user.push((history, ids.collect()));
        }
        for message in &self.records.stored.messages {
            let id = message.id.as_str();
            for user in self.recipients(message) {
                let Some(of_user) = devices.get(user) else {
                    continue;
                };
                let is_unread = || {
                    self.records
                        .stored
                        .unread
                        .contains(&(user.to_owned(), id.to_owned()))
                };
                let acked = self.acks.contains_key(&(user, id));
                if !of_user.iter().any(|(_, ids)| ids.contains(id)) {
                    let seen = format!("{id} came to no device of {user}, unread: {}", is_unread());
                    findings.push(Finding::new(Sentence::NothingLost, seen));
                } else if !acked && !is_unread() {
                    let seen = format!("{id} is unread no more, and {user} never acknowledged it");
                    findings.push(Finding::new(Sentence::NothingLost, seen));
                }
                for (history, ids) in of_user {
                    if history.waits_for_others && !ids.contains(id) {
                        let seen = format!("{id} did not come to {}", history.device);
                        findings.push(Finding::new(Sentence::EveryDevice, seen));
                    }
                }
            }
        }
    }

    fn nobody_elses_and_nothing_invented(&self, findings: &mut Vec<Finding>) {
        let digests: HashMap<&str, u64> = self
            .stored
            .iter()
            .map(|(id, (_, message))| (*id, digest(message)))
            .collect();
        for history in &self.records.histories {
            let (device, user) = (&history.device, history.user.as_str());
            for (at, event) in &history.events {
                let Event::Pushed(pushed) = event else {
                    continue;
                };
                let id = pushed.id.as_str();
                if digests.get(id) != Some(&pushed.digest) {
                    let seen = format!("{device} got {id} at {at:?}, which is not stored so");
                    findings.push(Finding::new(Sentence::NothingInvented, seen));
                    continue;
                }
                let (_, message) = self.stored[id];
                let is_theirs = message.from_user_id == user
                    || match message.group_id.as_str() {
                        "" => message.to_user_id == user,
                        group => self.may_be_for(user, group, message, *at),
                    };
                if !is_theirs {
                    let seen = format!("{device} got {id} at {at:?}, which is for others");
                    findings.push(Finding::new(Sentence::NobodyElses, seen));
                }
            }
        }
    }

    /// Somebody who left is a member to a gateway for as long as it keeps the list, and has not heard.
    fn may_be_for(&self, user: &str, group: &str, message: &Message, at: Moment) -> bool {
        let Some(membership) = self.memberships.get(&(user, group)) else {
            return false;
        };
        let Some(commit) = self.commit_of(message) else {
            return false;
        };
        membership.at_all(Span::new(commit.from, at), CACHE_TTL + SLACK)
    }

    /// Own copies are nobody's unread: what was on its way to an earlier connection comes late, so they
    /// are in order on each connection.
    fn in_order(&self, history: &History, findings: &mut Vec<Finding>) {
        if self.records.went_past.contains(&history.user) {
            return;
        }
        let mut seen = HashSet::new();
        let mut last: HashMap<(&str, &str, &str), (usize, &str)> = HashMap::new();
        for (at, event) in &history.events {
            let Event::Pushed(Pushed { id, .. }) = event else {
                if matches!(event, Event::Connected) {
                    let is_own = |id: &&String| self.is_from(&history.user, id);
                    seen.retain(|id| !is_own(id));
                    last.retain(|(from, ..), _| *from != history.user);
                }
                continue;
            };
            let Some((place, message)) = self.stored.get(id.as_str()) else {
                continue;
            };
            // What was written to a group before somebody joined comes to them if it is published late.
            let is_theirs =
                message.from_user_id == history.user || self.is_recipient(&history.user, message);
            if !seen.insert(id) || !is_theirs {
                continue;
            }
            let pair = (
                &*message.from_user_id,
                &*message.to_user_id,
                &*message.group_id,
            );
            let (newest, newest_id) = last.entry(pair).or_insert((*place, id));
            // What another device has acknowledged is not among what is unread: it may come late here, or
            // not at all.
            let acked = self.acks.get(&(history.user.as_str(), id));
            if place < newest && acked.is_none_or(|acked| acked > at) {
                let seen = format!("{} got {id} at {at:?}, behind {newest_id}", history.device);
                findings.push(Finding::new(Sentence::InOrder, seen));
            } else if place > newest {
                (*newest, *newest_id) = (*place, id);
            }
        }
    }

    fn is_from(&self, user: &str, id: &str) -> bool {
        let stored = self.stored.get(id);
        stored.is_some_and(|(_, message)| message.from_user_id == user)
    }

    fn unread_first(&self, history: &History, session: &Session<'_>, findings: &mut Vec<Finding>) {
        let device = &history.device;
        let mut find = |seen| findings.push(Finding::new(Sentence::UnreadFirst, seen));
        let complete = session
            .events
            .iter()
            .position(|(_, event)| matches!(event, Event::OfflineComplete { .. }));
        let Some(complete) = complete else {
            return;
        };
        let (at, Event::OfflineComplete { count }) = &session.events[complete] else {
            return;
        };
        if at.saturating_sub(session.asked) > CALM_CATCH_UP {
            return;
        }
        let mut came = HashSet::new();
        let mut last = None;
        for (_, event) in &session.events[..complete] {
            let Event::Pushed(Pushed { id, .. }) = event else {
                continue;
            };
            if !came.insert(id.as_str()) {
                find(format!(
                    "{device} got {id} twice before offline_complete at {at:?}"
                ));
            }
            let Some((place, _)) = self.stored.get(id.as_str()) else {
                continue;
            };
            if last.is_some_and(|last| *place < last) {
                find(format!(
                    "{device} got {id} late before offline_complete at {at:?}"
                ));
            }
            last = Some(*place);
        }
        if *count != came.len() {
            find(format!(
                "{device} got {} and was told of {count} at {at:?}",
                came.len()
            ));
        }
        for message in &self.records.stored.messages {
            let id = message.id.as_str();
            let was_committed = self
                .commit_of(message)
                .is_some_and(|it| it.until < session.asked);
            let acked = self.acks.get(&(history.user.as_str(), id));
            let is_unread = acked.is_none_or(|acked| acked > at);
            if was_committed
                && is_unread
                && self.is_recipient(&history.user, message)
                && !came.contains(id)
            {
                find(format!(
                    "{device} connected at {:?} and did not get {id} first",
                    session.asked
                ));
            }
        }
    }

    fn answered(&self, history: &History, session: &Session<'_>, findings: &mut Vec<Finding>) {
        let device = &history.device;
        let mut find = |seen| findings.push(Finding::new(Sentence::Answered, seen));
        let mut pending: Vec<(&str, Moment, &Request)> = Vec::new();
        // One is served at a time.
        let mut free_at = Moment::ZERO;
        for (at, event) in session.events {
            match event {
                Event::Asked { request, what } => pending.push((request, *at, what)),
                Event::Answered { request, answer } => {
                    let Some((first, asked, what)) = pending.first().copied() else {
                        find(format!(
                            "{device}: {request} is answered at {at:?}, unasked or twice"
                        ));
                        continue;
                    };
                    if first != request {
                        find(format!(
                            "{device}: {request} is answered at {at:?} before {first}"
                        ));
                        pending.retain(|(pending, ..)| pending != request);
                        continue;
                    }
                    pending.remove(0);
                    let within = Span::new(asked.max(free_at), *at);
                    free_at = *at;
                    // An idempotent call is tried twice.
                    let limit = 2 * ANSWER + SLACK + self.frozen(history, session, within);
                    if within.until - within.from > limit {
                        find(format!(
                            "{device}: {request} took {:?}",
                            within.until - within.from
                        ));
                    }
                    if let Answer::Error(code) = answer
                        && !self.may_fail(what, code, Span::new(asked, *at))
                    {
                        find(format!(
                            "{device}: {what:?} at {at:?} is refused with {code}"
                        ));
                    }
                }
                Event::GaveUp => {
                    let within = Span::new(at.saturating_sub(2 * SILENCE), *at);
                    if self.frozen(history, session, within).is_zero()
                        && !self.gateway_suffers(session.gateway, within)
                    {
                        find(format!("{device} heard nothing until {at:?}"));
                    }
                }
                Event::Left if !self.was_cut_off(history, *at) && !pending.is_empty() => {
                    find(format!(
                        "{device} left at {at:?} without an answer to {pending:?}"
                    ));
                }
                _ => {}
            }
        }
    }

    /// Whether the client left because something was done to it.
    fn was_cut_off(&self, history: &History, at: Moment) -> bool {
        history.events.iter().any(|(when, event)| {
            *when <= at
                && at - *when < SLACK
                && matches!(
                    event,
                    Event::Suffers(ClientFault::Gone | ClientFault::HalfOpen)
                )
        })
    }

    fn may_fail(&self, what: &Request, code: &str, within: Span) -> bool {
        match (what, code) {
            (_, "SERVICE_UNAVAILABLE" | "DEADLINE_EXCEEDED" | "INTERNAL") => self
                .suffers(within, |what| {
                    matches!(what, What::Services(_) | What::Gateway(..))
                }),
            (Request::Send(draft), "PERMISSION_DENIED") => matches!(draft.to, To::Group(_)),
            (Request::History(chat), "PERMISSION_DENIED") => matches!(chat, To::Group(_)),
            // The services may have begun anew with it, or have it no more.
            (Request::Refresh(_), "UNAUTHENTICATED") => true,
            _ => false,
        }
    }

    /// Whether something like this was under way, or its aftermath was.
    fn suffers(&self, within: Span, is_it: impl Fn(What) -> bool) -> bool {
        self.faults(within, SLACK)
            .any(|suffered| is_it(suffered.fault.what))
    }

    fn faults(&self, within: Span, after: Duration) -> impl Iterator<Item = &Suffered> {
        self.records.faults.iter().filter(move |suffered| {
            let Span { from, until } = suffered.within;
            Span::new(from, until + after).meets(within)
        })
    }

    fn gateway_suffers(&self, gateway: usize, within: Span) -> bool {
        self.suffers(
            within,
            |what| matches!(what, What::Gateway(number, _) if number == gateway),
        )
    }

    /// For how long the gateway or the client was not itself.
    fn frozen(&self, history: &History, session: &Session<'_>, within: Span) -> Duration {
        let overlap = |span: Span| {
            span.until
                .min(within.until)
                .saturating_sub(span.from.max(within.from))
        };
        let of_gateway: Duration = self
            .faults(within, Duration::ZERO)
            .map(|suffered| match suffered.fault.what {
                What::Gateway(number, GatewayFault::Frozen) if number == session.gateway => {
                    overlap(suffered.within)
                }
                _ => Duration::ZERO,
            })
            .sum();
        of_gateway
            + ailments(history)
                .into_iter()
                .map(|(_, span)| overlap(span))
                .sum::<Duration>()
    }

    fn histories(&self, history: &History, session: &Session<'_>, findings: &mut Vec<Finding>) {
        let mut asked: HashMap<&str, (&To, Moment)> = HashMap::new();
        for (at, event) in session.events {
            match event {
                Event::Asked {
                    request,
                    what: Request::History(chat),
                } => {
                    asked.insert(request, (chat, *at));
                }
                Event::Answered {
                    request,
                    answer: Answer::History { messages, has_more },
                } => {
                    let Some((chat, since)) = asked.remove(request.as_str()) else {
                        continue;
                    };
                    if let Err(seen) =
                        self.is_whole(&history.user, chat, since, messages, *has_more)
                    {
                        let seen = format!("{} at {at:?}: {seen}", history.device);
                        findings.push(Finding::new(Sentence::Histories, seen));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a page is what was stored last at some moment since it was asked for.
    fn is_whole(
        &self,
        user: &str,
        chat: &To,
        since: Moment,
        page: &[Pushed],
        has_more: bool,
    ) -> Result<(), String> {
        let is_in = |message: &&Message| match chat {
            To::Group(group) => message.group_id == *group,
            To::User(other) => {
                let pair = (message.from_user_id.as_str(), message.to_user_id.as_str());
                message.group_id.is_empty() && (pair == (user, other) || pair == (other, user))
            }
        };
        let all: Vec<&Message> = self.records.stored.messages.iter().filter(is_in).collect();
        let until = match page.last() {
            None => 0,
            Some(last) => {
                let place = all.iter().position(|message| message.id == last.id);
                place.ok_or_else(|| format!("{} is not in the history of {chat:?}", last.id))? + 1
            }
        };
        let from = until.saturating_sub(HISTORY_LIMIT);
        let expected: Vec<Pushed> = all[from..until]
            .iter()
            .map(|message| Pushed {
                id: message.id.clone(),
                digest: digest(message),
            })
            .collect();
        if expected != page {
            let ids = |page: &[Pushed]| page.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
            let (ids, expected) = (ids(page), ids(&expected));
            return Err(format!(
                "the history of {chat:?} is {ids:?}, not {expected:?}"
            ));
        }
        if has_more != (from > 0) {
            return Err(format!(
                "the history of {chat:?} says has_more {has_more}, and {from} are older"
            ));
        }
        // What was committed before it was asked for is in it.
        let late = all[until..].iter().find(|message| {
            self.commit_of(message)
                .is_some_and(|commit| commit.until < since)
        });
        match late {
            None => Ok(()),
            Some(late) => Err(format!(
                "the history of {chat:?} lacks {} at its end",
                late.id
            )),
        }
    }

    /// Revocations and expiry.
    fn out_in_time(&self, history: &History, session: &Session<'_>, findings: &mut Vec<Finding>) {
        let device = &history.device;
        let until = session.end().map_or(self.end, |(at, _)| *at);
        let mut token = session.token;
        let mut since = session.connected;
        let mut refreshing = "";
        for (at, event) in session.events {
            match event {
                Event::Asked {
                    what: Request::Refresh(next),
                    ..
                } => refreshing = next,
                Event::Answered {
                    answer: Answer::Refreshed,
                    ..
                } => {
                    self.holds(history, session, token, Span::new(since, *at), findings);
                    (token, since) = (refreshing, *at);
                }
                _ => {}
            }
        }
        self.holds(history, session, token, Span::new(since, until), findings);
        for decree in &self.records.decrees {
            let Decided::Revoked { token: revoked, .. } = &decree.what else {
                continue;
            };
            if revoked != token {
                continue;
            }
            if session.asked > decree.within.until {
                let seen = format!(
                    "{device} is let in at {:?} with {token}, revoked at {:?}",
                    session.asked, decree.within.until
                );
                findings.push(Finding::new(Sentence::RevokedIsOut, seen));
            }
            let limit =
                self.calm_after(session.gateway, decree.within.until.max(session.connected));
            if limit.is_some_and(|limit| {
                until > limit + self.frozen(history, session, Span::new(limit, until))
            }) {
                let seen = format!(
                    "{device} stays until {until:?} with {token}, revoked at {:?}",
                    decree.within.until
                );
                findings.push(Finding::new(Sentence::RevokedIsOut, seen));
            }
        }
    }

    /// Whether `token` did for so long.
    fn holds(
        &self,
        history: &History,
        session: &Session<'_>,
        token: &str,
        within: Span,
        findings: &mut Vec<Finding>,
    ) {
        let issued = self
            .records
            .decrees
            .iter()
            .find_map(|decree| match &decree.what {
                Decided::Issued {
                    token: issued,
                    expires_in,
                } if issued == token => Some(*expires_in),
                _ => None,
            });
        // Rounded up to a second.
        let Some(expires_in) = issued
            .flatten()
            .map(|it| it + Duration::from_secs(1) + SLACK)
        else {
            return;
        };
        let limit = within.from + expires_in + self.frozen(history, session, within);
        if within.until > limit {
            let seen = format!(
                "{} stays with {token} from {:?} to {:?}",
                history.device, within.from, within.until
            );
            findings.push(Finding::new(Sentence::ExpiredIsOut, seen));
        }
    }

    /// When everything that concerns a gateway has been well for long enough after `since` that what was
    /// due must have happened.
    fn calm_after(&self, gateway: usize, since: Moment) -> Option<Moment> {
        const CALM: Duration = Duration::from_secs(6);
        let concerns = |what: What| match what {
            What::Broker(_) | What::Services(_) => true,
            What::Gateway(number, _) => number == gateway,
            What::Clients(..) => false,
        };
        let mut from = since;
        for suffered in &self.records.faults {
            let Span { from: begun, until } = suffered.within;
            if concerns(suffered.fault.what) && begun < from + CALM && until + AFTERMATH > from {
                from = from.max(until + AFTERMATH);
            }
        }
        let calm = from.min(since.max(self.records.ready_at)) + CALM;
        (calm < self.end).then_some(calm)
    }

    fn closed_with_cause(
        &self,
        history: &History,
        session: &Session<'_>,
        findings: &mut Vec<Finding>,
    ) {
        let Some((at, event)) = session.end() else {
            return;
        };
        let device = &history.device;
        let ago = |time: Duration| Span::new(at.saturating_sub(time), *at);
        let gateway = |within, is_it: fn(GatewayFault) -> bool| {
            self.suffers(within, |what| {
                matches!(what, What::Gateway(number, fault) if number == session.gateway && is_it(fault))
            })
        };
        let ails = |within: Span, is_it: fn(ClientFault) -> bool| {
            ailments(history)
                .iter()
                .any(|(fault, span)| is_it(*fault) && span.meets(within))
        };
        let was_revoked = || {
            self.records.decrees.iter().any(|decree| {
                matches!(&decree.what, Decided::Revoked { user, .. } if *user == history.user)
                    && decree.within.from <= *at
            })
        };
        let expires = || {
            self.records.decrees.iter().any(|decree| {
            matches!(&decree.what, Decided::Issued { token, expires_in: Some(_) } if token == session.token)
        })
        };
        let slow = |fault| matches!(fault, ClientFault::Frozen | ClientFault::Slow);
        let has_cause = match event {
            Event::Closed { code: 1012 } => gateway(ago(SLACK), |it| it == GatewayFault::Stopped),
            Event::Closed { code: 4001 } => ails(ago(Duration::from_secs(65)), slow),
            Event::Closed { code: 4002 } => ails(ago(2 * AFTERMATH), slow),
            Event::Closed { code: 4003 } => expires(),
            Event::Closed { code: 4005 } => was_revoked() || expires(),
            Event::Closed { .. } => false,
            Event::Cut => {
                gateway(ago(AFTERMATH), |it| {
                    matches!(it, GatewayFault::Killed | GatewayFault::Stopped)
                }) || ails(ago(AFTERMATH), slow)
            }
            _ => true,
        };
        if !has_cause {
            let seen = format!("{device} at g{}: {event:?} at {at:?}", session.gateway);
            findings.push(Finding::new(Sentence::ClosedWithCause, seen));
        }
    }

    fn let_in(&self, history: &History, findings: &mut Vec<Finding>) {
        for pair in history.events.windows(2) {
            let [
                (asked, Event::Connecting { gateway, token }),
                (at, Event::Refused(status)),
            ] = pair
            else {
                continue;
            };
            let within = Span::new(*asked, *at);
            let has_cause = match status {
                None => self.gateway_suffers(*gateway, within),
                Some(401) => !self.holds_for_sure(token, within),
                Some(503) => self.suffers(within, |what| match what {
                    What::Services(_) => true,
                    What::Gateway(number, _) => number == *gateway,
                    _ => false,
                }),
                Some(_) => false,
            };
            if !has_cause {
                let seen = format!(
                    "{} is refused at g{gateway} at {at:?} with {status:?}",
                    history.device
                );
                findings.push(Finding::new(Sentence::LetIn, seen));
            }
        }
    }

    fn holds_for_sure(&self, token: &str, within: Span) -> bool {
        let mut holds = false;
        for decree in &self.records.decrees {
            match &decree.what {
                Decided::Issued {
                    token: one,
                    expires_in,
                } if one == token => {
                    let until = expires_in.map_or(Moment::MAX, |it| decree.within.from + it);
                    holds = within.until < until;
                }
                Decided::Revoked { token: one, .. } if one == token => {
                    holds &= within.until < decree.within.from;
                }
                _ => {}
            }
        }
        holds
    }
}

/// What was done to a client, and from when to when.
fn ailments(history: &History) -> Vec<(ClientFault, Span)> {
    let mut ailments = Vec::new();
    let mut begun = None;
    for (at, event) in &history.events {
        match event {
            Event::Suffers(fault) => begun = Some((*fault, *at)),
            Event::Recovers => {
                if let Some((fault, from)) = begun.take() {
                    ailments.push((fault, Span::new(from, *at)));
                }
            }
            _ => {}
        }
    }
    if let Some((fault, from)) = begun {
        ailments.push((fault, Span::new(from, Moment::MAX)));
    }
    ailments
}

/// How long presence may be wrong.
pub const PRESENCE: Duration = LEASE.saturating_add(SLACK);
