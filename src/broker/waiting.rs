//! Group messages whose group's members are not known yet. The User Service is asked for them, and
//! meanwhile only these messages wait: the consumer goes on, whatever the service answers and
//! however late.
//!
//! They are acknowledged, for a message can be missed without being lost: it is unread for every
//! member but its sender, and catch-up brings what is unread. So when there is no room for more,
//! the groups that have messages here are *let go*: their messages are dropped, as are those that
//! follow, and once a group's members are known, all of them are caught up. The sender's own copy is
//! never unread; it needs no list, and is pushed when its message is dropped.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use log::{info, warn};

use super::backoff::Backoff;
use super::groups::{Answer, Groups};
use crate::client::protocol::Push;
use crate::ids::{GroupId, UserId};
use crate::services::{ErrorCode, ServiceError};

/// Messages that wait at most, of all groups together, and their bytes: no more than the default
/// `session.send_queue_bytes`, should they all be of one sender when they are dropped.
pub const MAX_MESSAGES: usize = 4_096;
pub const MAX_BYTES: usize = 1 << 20;
/// How long the consumer waits for an answer before it lets go: a service that is well answers by
/// then, and a busy group whose list has expired is not let go.
const LAST_WAIT: Duration = Duration::from_millis(100);
/// Groups that wait at most.
pub const MAX_GROUPS: usize = 10_000;
/// Groups that are asked for at the same time. Some that are answered late keep no others waiting;
pub const MAX_ASKED: usize = 256;
/// nor do those that fail again and again, however many they are.
pub const MAX_ASKED_AGAIN: usize = 32;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// A message with its sender.
pub type Sent = (UserId, Push);

/// What waits for the members of groups. Each group in it is to be asked for, or has been asked for.
pub struct Waiting {
    groups: HashMap<GroupId, Group>,
    messages: usize,
    bytes: usize,
    /// Groups to be asked for that have not failed.
    first: VecDeque<GroupId>,
    /// Groups that have failed, and when they are to be asked for again.
    again: BinaryHeap<Reverse<(Instant, GroupId)>>,
    /// How many answers are on their way, and how many of them are for groups that have failed.
    asked: usize,
    asked_again: usize,
    tell: Tell,
    answers: Receiver<(GroupId, Answer)>,
    woken: Receiver<()>,
}

#[derive(Default)]
struct Group {
    /// In their order.
    messages: Vec<Sent>,
    /// Some were dropped, and more are, until the members are known.
    let_go: bool,
    asked: bool,
    /// Its members changed when it had been asked for, and so many messages had come: the answer
    /// may still name a member who is none any more, and is good for those messages alone.
    changed_after: Option<usize>,
    /// It has failed.
    backoff: Option<Backoff>,
}

/// What waited for one group's members.
pub struct Waited {
    pub messages: Vec<Sent>,
    /// All members are to be caught up.
    pub let_go: bool,
    /// The answer is outdated already.
    pub outdated: bool,
}

impl Waiting {
    pub fn new() -> Self {
        // Room for all answers that can be on their way: whoever tells one never waits.
        let (answered, answers) = bounded(MAX_ASKED);
        let (wake, woken) = bounded(1);
        Self {
            groups: HashMap::new(),
            messages: 0,
            bytes: 0,
            first: VecDeque::new(),
            again: BinaryHeap::new(),
            asked: 0,
            asked_again: 0,
            tell: Tell { answered, wake },
            answers,
            woken,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub fn contains(&self, group: &GroupId) -> bool {
        self.groups.contains_key(group)
    }

    /// Whether one more group finds no room.
    pub fn is_crowded(&self) -> bool {
        self.groups.len() >= MAX_GROUPS
    }

    /// Whether a message finds no room.
    pub fn is_full(&self, push: &Push) -> bool {
        let bytes = self.bytes + push.frame().len();
        self.messages >= MAX_MESSAGES || (bytes > MAX_BYTES && self.messages > 0)
    }

    /// Waits a moment for an answer that may make room; whether one has come. Only groups that have
    /// not failed are worth it.
    pub fn await_answer(&self) -> bool {
        self.asked > self.asked_again && self.woken.recv_timeout(LAST_WAIT).is_ok()
    }

    /// Has a message wait for its group's members. Answers which messages are dropped for that, or
    /// instead: their senders' copies are to be pushed.
    pub fn add(&mut self, group: GroupId, message: Sent) -> Vec<Sent> {
        let bytes = message.1.frame().len();
        let mut dropped = Vec::new();
        if self.is_full(&message.1) {
            dropped = self.let_go();
        }
        let group = self.group(group);
        if group.let_go {
            dropped.push(message);
        } else {
            group.messages.push(message);
            self.messages += 1;
            self.bytes += bytes;
        }
        dropped
    }

    /// The group's members have changed: what comes from now on is for those who are asked for from
    /// now on.
    pub fn members_changed(&mut self, group: GroupId) {
        let group = self.group(group);
        if group.asked {
            group.changed_after.get_or_insert(group.messages.len());
        }
    }

    /// One that is new here is to be asked for.
    fn group(&mut self, group: GroupId) -> &mut Group {
        let first = &mut self.first;
        self.groups.entry(group).or_insert_with_key(|group| {
            first.push_back(group.clone());
            Group::default()
        })
    }

    fn let_go(&mut self) -> Vec<Sent> {
        let mut dropped = Vec::with_capacity(self.messages);
        let mut groups = 0;
        for group in self.groups.values_mut() {
            if !group.messages.is_empty() {
                dropped.append(&mut group.messages);
                group.let_go = true;
                groups += 1;
            }
        }
        warn!(
            "Too much waits for the members of groups, and is left to catch-up: groups={groups}, messages={}",
            dropped.len()
        );
        (self.messages, self.bytes) = (0, 0);
        dropped
    }

    /// All messages that wait here.
    pub fn into_messages(self) -> impl Iterator<Item = Sent> {
        self.groups.into_values().flat_map(|group| group.messages)
    }

    /// Asks for all groups whose turn it is. What has been answered comes from
    /// [`Waiting::next_answer`].
    pub fn ask(&mut self, groups: &Groups) {
        while let Some(id) = self.next_to_ask() {
            let Some(group) = self.groups.get_mut(&id) else {
                continue;
            };
            group.asked = true;
            self.asked += 1;
            self.asked_again += usize::from(group.backoff.is_some());
            let asked = Asked {
                group: id.clone(),
                answer: Err(ServiceError::new(ErrorCode::Internal, "No answer came")),
                tell: self.tell.clone(),
            };
            groups.ask(&id, move |answer| asked.with(answer));
        }
    }

    fn next_to_ask(&mut self) -> Option<GroupId> {
        if self.asked < MAX_ASKED && !self.first.is_empty() {
            self.first.pop_front()
        } else if self.due_in().is_zero() {
            self.again.pop().map(|Reverse((_, group))| group)
        } else {
            None
        }
    }

    /// When [`Waiting::ask`] will have something to do, should no answer come before.
    pub fn due_in(&self) -> Duration {
        match self.again.peek() {
            Some(Reverse((due, _)))
                if self.asked < MAX_ASKED && self.asked_again < MAX_ASKED_AGAIN =>
            {
                due.saturating_duration_since(Instant::now())
            }
            _ => Duration::MAX,
        }
    }

    /// Something comes through it when there is an answer.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// An answer that has come: [`Waiting::failed`] or [`Waiting::known`] says what it was.
    pub fn next_answer(&mut self) -> Option<(GroupId, Answer)> {
        let (id, answer) = self.answers.try_recv().ok()?;
        self.asked -= 1;
        if let Some(group) = self.groups.get_mut(&id) {
            group.asked = false;
            self.asked_again -= usize::from(group.backoff.is_some());
        }
        Some((id, answer))
    }

    /// The group's members are not to be had: it is asked for again later.
    pub fn failed(&mut self, id: GroupId, error: &ServiceError) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.changed_after = None;
        let is_first = group.backoff.is_none();
        let backoff = group
            .backoff
            .get_or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_LONGEST));
        if is_first {
            info!("Waiting for a group's members: group={id}, error={error}");
        }
        let due = Instant::now() + backoff.next();
        self.again.push(Reverse((due, id)));
    }

    /// The group's members are known: what waited for them waits no longer.
    pub fn known(&mut self, id: &GroupId) -> Option<Waited> {
        let mut group = self.groups.remove(id)?;
        if group.backoff.is_some() {
            info!("Group's members are known again: group={id}");
        }
        let outdated = group.changed_after.is_some();
        if let Some(covered) = group.changed_after {
            let rest = group.messages.split_off(covered.min(group.messages.len()));
            self.group(id.clone()).messages = rest;
        }
        self.messages -= group.messages.len();
        let bytes = group.messages.iter().map(|(_, push)| push.frame().len());
        self.bytes -= bytes.sum::<usize>();
        Some(Waited {
            messages: group.messages,
            let_go: group.let_go,
            outdated,
        })
    }
}

/// Passes answers to the consumer's thread, and wakes it.
#[derive(Clone)]
struct Tell {
    answered: Sender<(GroupId, Answer)>,
    wake: Sender<()>,
}

/// A question on its way. However it ends, its answer is told.
struct Asked {
    group: GroupId,
    answer: Answer,
    tell: Tell,
}

impl Asked {
    fn with(mut self, answer: Answer) {
        self.answer = answer;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let no_answer = Ok(Vec::new());
        let told = (
            self.group.clone(),
            mem::replace(&mut self.answer, no_answer),
        );
        // Neither waits. Where nobody receives, the consumer has ended; where it is about to be
        // woken, once is enough.
        let _ = self.tell.answered.try_send(told);
        let _ = self.tell.wake.try_send(());
    }
}
