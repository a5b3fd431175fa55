//! Group messages whose group's members are not known yet. The User Service is asked for them, and
//! meanwhile only these messages wait: the consumer goes on, whatever the service answers and
//! however late.
//!
//! They are acknowledged, for a message can be missed without being lost: it is unread for every
//! member but its sender, and catch-up brings what is unread. So when there is no room for more,
//! the groups that have messages here are *let go*: their messages are dropped, as are those that
//! follow, and once a group's members are known, all of them are caught up. The sender's own copy is
//! never unread; it needs no list, and is pushed when its message is dropped.

use std::collections::HashMap;
use std::time::Duration;

use log::{info, warn};

use super::asking::Asking;
use crate::client::protocol::Push;
use crate::ids::{GroupId, UserId};
use crate::services::ServiceError;

/// Messages that wait at most, of all groups together, and their bytes: half of the default
/// `session.send_queue_bytes`, should they all be of one sender when they are dropped.
pub const MAX_MESSAGES: usize = 4_096;
pub const MAX_BYTES: usize = 512 << 10;
/// How long, where there is no room, the consumer waits for a group that has just been asked for: a
/// service that is well answers by then, and a busy group whose list has expired is not let go.
const LAST_WAIT: Duration = Duration::from_millis(100);
/// Groups that wait at most.
pub const MAX_GROUPS: usize = 10_000;

/// A message with its sender.
pub type Sent = (UserId, Push);

/// What waits for the members of groups.
pub struct Waiting {
    pub asking: Asking,
    /// Each of them is asked for, or is to be.
    groups: HashMap<GroupId, Group>,
    messages: usize,
    bytes: usize,
}

#[derive(Default)]
struct Group {
    /// In their order.
    messages: Vec<Sent>,
    /// Some were dropped, and more are, until the members are known.
    let_go: bool,
    /// Its members changed when it had been asked for, and so many messages had come: the answer
    /// may still name a member who is none any more, and is good for those messages alone.
    changed_after: Option<usize>,
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
        Self {
            asking: Asking::new(),
            groups: HashMap::new(),
            messages: 0,
            bytes: 0,
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

    /// Whether a message to this group finds no room. One that is dropped needs none.
    pub fn is_full(&self, group: &GroupId, push: &Push) -> bool {
        let bytes = self.bytes + push.frame().len();
        let is_let_go = self.groups.get(group).is_some_and(|group| group.let_go);
        !is_let_go && (self.messages >= MAX_MESSAGES || (bytes > MAX_BYTES && self.messages > 0))
    }

    /// Waits a moment for an answer, if the group's own may be the next one; whether one has come.
    pub fn await_answer(&self, group: &GroupId) -> bool {
        self.asking.await_answer(group, LAST_WAIT)
    }

    /// The group is to be asked for, if it is not yet.
    pub fn enter(&mut self, group: &GroupId) {
        self.group(group);
    }

    fn group(&mut self, group: &GroupId) -> &mut Group {
        let asking = &mut self.asking;
        self.groups
            .entry(group.clone())
            .or_insert_with_key(|group| {
                asking.queue(group.clone());
                Group::default()
            })
    }

    /// Has a message wait for its group's members. Answers which messages are dropped for that, or
    /// instead: their senders' copies are to be pushed.
    pub fn add(&mut self, group: &GroupId, message: Sent) -> Vec<Sent> {
        let mut dropped = Vec::new();
        if self.is_full(group, &message.1) {
            dropped = self.let_go();
        }
        let bytes = message.1.frame().len();
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
    pub fn members_changed(&mut self, group: &GroupId) {
        let is_asked = self.asking.is_asked(group);
        let group = self.group(group);
        if is_asked {
            group.changed_after.get_or_insert(group.messages.len());
        }
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

    /// The group's members are not to be had: it is asked for again later.
    pub fn failed(&mut self, group: GroupId, error: &ServiceError) {
        // What is asked from now on is asked after the change.
        self.group(&group).changed_after = None;
        if self.asking.queue_again(group.clone()) {
            info!("Waiting for a group's members: group={group}, error={error}");
        }
    }

    /// The group's members are known: what waited for them waits no longer.
    pub fn known(&mut self, id: &GroupId) -> Waited {
        if self.asking.end(id) {
            info!("Group's members are known: group={id}");
        }
        let mut group = self.groups.remove(id).unwrap_or_default();
        if let Some(covered) = group.changed_after {
            let covered = covered.min(group.messages.len());
            self.group(id).messages = group.messages.split_off(covered);
        }
        self.messages -= group.messages.len();
        let bytes = group.messages.iter().map(|(_, push)| push.frame().len());
        self.bytes -= bytes.sum::<usize>();
        Waited {
            messages: group.messages,
            let_go: group.let_go,
            outdated: group.changed_after.is_some(),
        }
    }
}
