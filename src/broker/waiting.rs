//! Group messages whose group's members are not known yet. The User Service is asked for them, and
//! meanwhile only these messages wait: the consumer goes on, whatever the service answers and
//! however late. Nobody waits for an answer: it is told to a channel, which wakes the consumer.
//!
//! They are acknowledged, for a message can be missed without being lost: it is unread for every
//! member but its sender, and catch-up brings what is unread. So when there is no room for more,
//! the groups that have messages here are *let go*: their messages are dropped, as are those that
//! follow, and once a group's members are known, all of them are caught up. The sender's own copy is
//! never unread; it needs no list, and is pushed when its message is dropped.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Select, Sender, bounded};
use log::{info, warn};
use scopeguard::guard;

use super::groups::Answer;
use crate::backoff::Backoff;
use crate::client::protocol::Push;
use crate::ids::{GroupId, UserId};
use crate::services::proto::GetGroupMembersRequest;
use crate::services::{ErrorCode, ServiceError, Services};

/// How many bytes of messages wait at most, of all groups together: half of the default
/// `session.send_queue_bytes`, should they all be of one sender when they are dropped. A frame's
/// fields alone are some 100 bytes, so that these are not many messages either.
pub const MAX_BYTES: usize = 512 << 10;
/// How long, where there is no room, the consumer waits for a group that has just been asked for: a
/// service that is well answers by then, and a busy group whose list has expired is not let go.
pub const LAST_WAIT: Duration = Duration::from_millis(100);
/// Groups that wait at most.
pub const MAX_GROUPS: usize = 10_000;
/// Groups that are asked for at the same time: so many may be answered late without keeping others
/// from being asked for.
pub const MAX_ASKED: usize = 256;
/// How many of them have failed before, so that there is always room for others.
pub const MAX_ASKED_AGAIN: usize = 32;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// A message with its sender.
pub type Sent = (UserId, Push);
pub type Answered = (GroupId, Answer);

/// What waits for the members of groups, and the questions for these.
pub struct Waiting {
    /// Each of them is to be asked for, or asked for, until it is answered.
    groups: HashMap<GroupId, Group>,
    /// Of all messages.
    bytes: usize,
    /// To be asked for, and when; behind all others those that have failed before.
    to_ask: BTreeSet<(bool, Instant, GroupId)>,
    /// How many are asked for: such that have not failed before, and others.
    asked: [usize; 2],
    answers: (Sender<Answered>, Receiver<Answered>),
}

/// What waits for one group's members.
#[derive(Default)]
pub struct Group {
    /// In their order.
    pub messages: Vec<Sent>,
    /// Some were dropped, and more are, until the members are known: all of these are to be caught
    /// up then.
    pub let_go: bool,
    /// Its members changed when it had been asked for, and so many messages had come: the answer
    /// may still name a member who is none any more, and is good for those messages alone.
    pub changed_after: Option<usize>,
    asked_at: Option<Instant>,
    /// It has failed.
    backoff: Option<Backoff>,
}

impl Waiting {
    pub fn new() -> Self {
        Self {
            groups: HashMap::new(),
            bytes: 0,
            to_ask: BTreeSet::new(),
            asked: [0; 2],
            // Room for all answers that can be on their way: whoever tells one never waits.
            answers: bounded(MAX_ASKED),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    #[cfg(test)]
    pub fn holds_messages(&self) -> bool {
        self.groups.values().any(|group| !group.messages.is_empty())
    }

    pub fn contains(&self, group: &GroupId) -> bool {
        self.groups.contains_key(group)
    }

    /// Whether one more group finds no room.
    pub fn is_crowded(&self) -> bool {
        self.groups.len() >= MAX_GROUPS
    }

    /// Whether a message to this group finds no room. One that is dropped needs none.
    pub fn is_full(&self, group: &GroupId, (_, push): &Sent) -> bool {
        let bytes = self.bytes + push.frame.len();
        let is_let_go = self.groups.get(group).is_some_and(|group| group.let_go);
        !is_let_go && bytes > MAX_BYTES && self.bytes > 0
    }

    /// Waits for an answer, if the one for `group` may be the next: it was asked for less than `wait`
    /// ago, and has not failed before. Answers whether one has come.
    pub fn await_answer(&self, group: &GroupId, wait: Duration) -> bool {
        let group = self.groups.get(group);
        let asked_at = group.and_then(|group| group.asked_at.filter(|_| group.backoff.is_none()));
        let left = asked_at.and_then(|at| wait.checked_sub(at.elapsed()));
        let mut answers = Select::new();
        answers.recv(&self.answers.1);
        left.is_some_and(|left| answers.ready_timeout(left).is_ok())
    }

    /// The group is to be asked for, if it is not yet.
    pub fn enter(&mut self, group: &GroupId) -> &mut Group {
        let entry = self.groups.entry(group.clone());
        entry.or_insert_with_key(|group| {
            self.to_ask.insert((false, Instant::now(), group.clone()));
            Group::default()
        })
    }

    /// Has a message wait for its group's members, or answers it: it is dropped, and its sender's
    /// copy is to be pushed.
    pub fn add(&mut self, group: &GroupId, message: Sent) -> Option<Sent> {
        let bytes = message.1.frame.len();
        let group = self.enter(group);
        if group.let_go {
            return Some(message);
        }
        group.messages.push(message);
        self.bytes += bytes;
        None
    }

    /// The group's members have changed: what comes from now on is for those who are asked for from
    /// now on.
    pub fn members_changed(&mut self, group: &GroupId) {
        let group = self.enter(group);
        if group.asked_at.is_some() {
            group.changed_after.get_or_insert(group.messages.len());
        }
    }

    /// Makes room. Answers which messages are dropped: their senders' copies are to be pushed.
    pub fn let_go(&mut self) -> Vec<Sent> {
        let (mut groups, mut dropped) = (0, Vec::new());
        let waiting = self.groups.values_mut();
        for group in waiting.filter(|group| !group.messages.is_empty()) {
            group.let_go = true;
            groups += 1;
            dropped.append(&mut group.messages);
        }
        self.bytes = 0;
        let messages = dropped.len();
        warn!("Groups are left to catch-up, too much waits: groups={groups}, messages={messages}");
        dropped
    }

    /// All messages that wait here.
    pub fn into_messages(self) -> impl Iterator<Item = Sent> {
        self.groups.into_values().flat_map(|group| group.messages)
    }

    /// Asks the User Service for all groups whose turn it is, and returns at once.
    pub fn ask(&mut self, services: &dyn Services) {
        while self.due_in().is_zero()
            && let Some((_, _, group)) = self.to_ask.pop_first()
        {
            let entry = self.enter(&group);
            entry.asked_at = Some(Instant::now());
            let again = usize::from(entry.backoff.is_some());
            self.asked[again] += 1;
            let group_id = group.to_string();
            let answers = self.answers.0.clone();
            let none = Err(ServiceError::new(ErrorCode::Internal, "No answer came"));
            // However the question ends, its answer is told; where nobody receives, the consumer has
            // ended.
            let mut question = guard((group, none), move |answered| {
                let _ = answers.try_send(answered);
            });
            let told = Box::new(move |answer| question.1 = answer);
            services.group_members(GetGroupMembersRequest { group_id }, told);
        }
    }

    /// When [`Waiting::ask`] will have something to do, should no answer come before.
    pub fn due_in(&self) -> Duration {
        let ([first, again], now) = (self.asked, Instant::now());
        match self.to_ask.first() {
            Some((true, ..)) if again >= MAX_ASKED_AGAIN => Duration::MAX,
            Some((_, due, _)) if first + again < MAX_ASKED => due.saturating_duration_since(now),
            _ => Duration::MAX,
        }
    }

    /// What has come of them is taken by [`Waiting::next_answer`] alone.
    pub fn answers(&self) -> &Receiver<Answered> {
        &self.answers.1
    }

    /// An answer that has come. [`Waiting::known`] or [`Waiting::failed`] is to follow.
    pub fn next_answer(&mut self) -> Option<Answered> {
        let (id, answer) = self.answers.1.try_recv().ok()?;
        let group = self.enter(&id);
        group.asked_at = None;
        let again = usize::from(group.backoff.is_some());
        self.asked[again] -= 1;
        Some((id, answer))
    }

    /// The group's members are not to be had: it is asked for again later, and ever more rarely.
    pub fn failed(&mut self, id: GroupId, error: &ServiceError) {
        let group = self.enter(&id);
        // What is asked from now on is asked after the change.
        group.changed_after = None;
        if group.backoff.is_none() {
            info!("Waiting for a group's members: group={id}, error={error}");
        }
        let new = || Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let wait = group.backoff.get_or_insert_with(new).next();
        self.to_ask.insert((true, Instant::now() + wait, id));
    }

    /// What waits for the group, which is asked for still; and whether some of it was dropped.
    pub fn take(&mut self, id: &GroupId) -> (Vec<Sent>, bool) {
        let group = self.enter(id);
        let messages = mem::take(&mut group.messages);
        let let_go = mem::take(&mut group.let_go);
        self.bytes -= length(&messages);
        (messages, let_go)
    }

    /// The group's members are known: what waited for them waits no longer.
    pub fn known(&mut self, id: &GroupId) -> Group {
        let mut group = self.groups.remove(id).unwrap_or_default();
        if group.backoff.is_some() {
            info!("Group's members are known: group={id}");
        }
        if let Some(covered) = group.changed_after {
            let covered = covered.min(group.messages.len());
            self.enter(id).messages = group.messages.split_off(covered);
        }
        self.bytes -= length(&group.messages);
        group
    }
}

/// In bytes.
fn length(messages: &[Sent]) -> usize {
    messages.iter().map(|(_, push)| push.frame.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::services::fake::FakeServices;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_awaited_only_where_it_may_be_the_groups_own() {
        let (users, group) = (
            Arc::new(FakeServices::default()),
            GroupId::new("g").unwrap(),
        );
        users.slow_group("g");
        let mut waiting = Waiting::new();
        let start = Instant::now();
        waiting.enter(&group);
        assert!(!waiting.await_answer(&group, LONG), "it is not asked for");
        waiting.ask(&*users);
        let service = thread::spawn({
            let users = Arc::clone(&users);
            move || users.answer()
        });
        assert!(waiting.await_answer(&group, LONG));
        service.join().unwrap();
        assert!(waiting.next_answer().is_some());

        let error = ServiceError::new(ErrorCode::Internal, "the first failure");
        waiting.failed(group.clone(), &error);
        while waiting.due_in() > Duration::ZERO {
            thread::park_timeout(waiting.due_in());
        }
        waiting.ask(&*users);
        assert_eq!(users.unanswered(), 1);
        assert!(!waiting.await_answer(&group, LONG), "it has failed before");
        assert!(!waiting.await_answer(&group, Duration::ZERO));
        assert!(start.elapsed() < LONG);
    }
}
