//! Which groups the User Service is asked for next, and what it answers. Nobody waits for an answer:
//! it is told to a channel, and the consumer is woken.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::groups::{Answer, Groups};
use crate::backoff::Backoff;
use crate::ids::GroupId;
use crate::services::{ErrorCode, ServiceError};

/// Groups that are asked for at the same time: so many may be answered late without keeping others
/// from being asked for.
pub const MAX_ASKED: usize = 256;
/// How many of them have failed before, so that there is always room for others.
pub const MAX_ASKED_AGAIN: usize = 32;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The questions of one consumer. A group is in one of the first three until it is answered.
pub struct Asking {
    /// To be asked for.
    first: VecDeque<GroupId>,
    /// To be asked for again, and when.
    again: BinaryHeap<Reverse<(Instant, GroupId)>>,
    /// Asked for, and since when.
    asked: HashMap<GroupId, Instant>,
    /// How many of these have failed before.
    asked_again: usize,
    failed: HashMap<GroupId, Backoff>,
    tell: Tell,
    answers: Receiver<(GroupId, Answer)>,
    woken: Receiver<()>,
}

impl Asking {
    pub fn new() -> Self {
        // Room for all answers that can be on their way: whoever tells one never waits.
        let (answered, answers) = bounded(MAX_ASKED);
        let (wake, woken) = bounded(1);
        Self {
            first: VecDeque::new(),
            again: BinaryHeap::new(),
            asked: HashMap::new(),
            asked_again: 0,
            failed: HashMap::new(),
            tell: Tell { answered, wake },
            answers,
            woken,
        }
    }

    /// The group is to be asked for. It is not yet.
    pub fn queue(&mut self, group: GroupId) {
        self.first.push_back(group);
    }

    /// The group was answered, with an error: it is to be asked for again later, and ever more
    /// rarely. Answers whether that is the first time.
    pub fn queue_again(&mut self, group: GroupId) -> bool {
        let is_first = !self.failed.contains_key(&group);
        let backoff = self
            .failed
            .entry(group.clone())
            .or_insert_with(|| Backoff::new(RETRY_FIRST, RETRY_LONGEST));
        let due = Instant::now() + backoff.next();
        self.again.push(Reverse((due, group)));
        is_first
    }

    /// The group was answered, with a list. Answers whether it had failed before.
    pub fn end(&mut self, group: &GroupId) -> bool {
        self.failed.remove(group).is_some()
    }

    /// Asks for all groups whose turn it is.
    pub fn ask(&mut self, groups: &Groups) {
        while let Some(group) = self.next() {
            self.asked_again += usize::from(self.failed.contains_key(&group));
            self.asked.insert(group.clone(), Instant::now());
            let question = Question {
                group: group.clone(),
                answer: Err(ServiceError::new(ErrorCode::Internal, "No answer came")),
                tell: self.tell.clone(),
            };
            groups.ask(&group, move |answer| question.answered(answer));
        }
    }

    fn next(&mut self) -> Option<GroupId> {
        if self.asked.len() < MAX_ASKED && !self.first.is_empty() {
            self.first.pop_front()
        } else if self.due_in().is_zero() {
            self.again.pop().map(|Reverse((_, group))| group)
        } else {
            None
        }
    }

    /// When [`Asking::ask`] will have something to do, should no answer come before.
    pub fn due_in(&self) -> Duration {
        let has_room = self.asked.len() < MAX_ASKED && self.asked_again < MAX_ASKED_AGAIN;
        match self.again.peek() {
            Some(Reverse((due, _))) if has_room => due.saturating_duration_since(Instant::now()),
            _ => Duration::MAX,
        }
    }

    pub fn is_asked(&self, group: &GroupId) -> bool {
        self.asked.contains_key(group)
    }

    /// Something comes through it when there is an answer.
    pub fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Waits for an answer, if the one for `group` may be the next: it was asked for less than
    /// `wait` ago, and has not failed before. Answers whether one has come.
    pub fn await_answer(&self, group: &GroupId, wait: Duration) -> bool {
        if self.failed.contains_key(group) {
            return false;
        }
        let since = self.asked.get(group);
        let left = since.and_then(|since| wait.checked_sub(since.elapsed()));
        left.is_some_and(|left| self.woken.recv_timeout(left).is_ok())
    }

    /// An answer that has come. [`Asking::end`] or [`Asking::queue_again`] is to follow.
    pub fn next_answer(&mut self) -> Option<(GroupId, Answer)> {
        let (group, answer) = self.answers.try_recv().ok()?;
        self.asked.remove(&group);
        self.asked_again -= usize::from(self.failed.contains_key(&group));
        Some((group, answer))
    }
}

/// Where answers go.
#[derive(Clone)]
struct Tell {
    answered: Sender<(GroupId, Answer)>,
    wake: Sender<()>,
}

/// A question on its way. However it ends, its answer is told.
struct Question {
    group: GroupId,
    answer: Answer,
    tell: Tell,
}

impl Question {
    fn answered(mut self, answer: Answer) {
        self.answer = answer;
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let answer = mem::replace(&mut self.answer, Ok(Vec::new()));
        // Neither waits. Where nobody receives, the consumer has ended; where it is about to be
        // woken, once is enough.
        let _ = self.tell.answered.try_send((self.group.clone(), answer));
        let _ = self.tell.wake.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::registry::Registry;
    use crate::services::fake::FakeServices;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_awaited_only_where_it_may_be_the_groups_own() {
        let (users, group) = (
            Arc::new(FakeServices::default()),
            GroupId::new("g").unwrap(),
        );
        users.slow_group("g");
        let (registry, ttl) = (Arc::new(Registry::default()), LONG);
        let groups = Groups::new(Arc::clone(&users) as _, registry, ttl);
        let mut asking = Asking::new();
        let start = Instant::now();
        asking.queue(group.clone());
        assert!(!asking.await_answer(&group, LONG), "it is not asked for");
        asking.ask(&groups);
        let service = thread::spawn({
            let users = Arc::clone(&users);
            move || users.answer()
        });
        assert!(asking.await_answer(&group, LONG));
        service.join().unwrap();
        assert!(asking.next_answer().is_some());

        assert!(asking.queue_again(group.clone()), "the first failure");
        while asking.due_in() > Duration::ZERO {
            thread::park_timeout(asking.due_in());
        }
        asking.ask(&groups);
        assert!(asking.is_asked(&group));
        assert!(!asking.await_answer(&group, LONG), "it has failed before");
        assert!(!asking.await_answer(&group, Duration::ZERO));
        assert!(start.elapsed() < LONG);
        assert!(asking.end(&group));
    }
}
