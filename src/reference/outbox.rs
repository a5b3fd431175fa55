//! The publisher thread: everything that the services publish leaves through it.
//!
//! *Durable*: messages, `group_members_changed` and `session_revoked`. They are rows of the
//! outbox table, committed together with what they tell of, and deleted once confirmed, so they
//! survive a restart. What was published but not deleted yet is published again.
//!
//! *Transient*: presence. It waits in memory, in a bounded queue whose oldest entries go first:
//! a presence event is stale a moment later, and the gateways announce everybody again after the
//! service restarted.

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::presence::PresenceChange;
use super::store::Store;
use super::thread::Worker;
use super::watchers::Announcer;
use crate::broker::{Publication, Publisher};
use crate::threads::Fatal;

/// The most outbox rows, and the most presence events, of one batch.
const BATCH: u32 = 256;
/// Changes of presence taken at once. Each may become an event for every member of a group.
const CHANGES_AT_ONCE: usize = 64;
/// Changes of presence that wait while the broker is away: a few megabytes.
const MAX_WAITING_CHANGES: usize = 65_536;

/// How long to wait before publishing again: twice as long each time, between these bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// A broker that returns is found within 2 s: what is committed meanwhile waits for that.
    pub const DEFAULT: Self = Self {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(2),
    };

    /// The pause after failure number `failures`, which counts from 1. Somewhere between the
    /// bound and its double or the longest, so that several services do not return as one.
    fn pause(self, failures: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let least = self
            .first
            .saturating_mul(doubled)
            .min(self.longest / 2)
            .max(self.first);
        let most = (least * 2).min(self.longest).max(least);
        let (random, ..) = Uuid::new_v4().as_fields();
        least + (most - least).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// What waits for the publisher thread. The store and the Presence Service report to it.
pub(super) struct Outgoing {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Something was committed since the outbox was looked at.
    committed: bool,
    changes: VecDeque<PresenceChange>,
    /// How many changes were dropped since some were last taken.
    dropped: usize,
    /// The thread ends once nothing is left, at an error, or at this time.
    stop_by: Option<Instant>,
}

impl Outgoing {
    pub fn new() -> Self {
        // Committed: rows that were left at the last end are found at the start.
        let state = State {
            committed: true,
            changes: VecDeque::new(),
            dropped: 0,
            stop_by: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// There may be new rows in the outbox.
    pub fn committed(&self) {
        self.state.lock().committed = true;
        self.changed.notify_all();
    }

    /// Queues changes of presence, and drops the oldest ones beyond the bound.
    pub fn announce(&self, changes: impl IntoIterator<Item = PresenceChange>) {
        let mut state = self.state.lock();
        let before = state.changes.len();
        state.changes.extend(changes);
        if state.changes.len() == before {
            return;
        }
        let excess = state.changes.len().saturating_sub(MAX_WAITING_CHANGES);
        state.changes.drain(..excess);
        state.dropped += excess;
        drop(state);
        self.changed.notify_all();
    }

    /// Has the thread publish what is there, and end by `deadline`, or at the first error.
    pub fn stop_by(&self, deadline: Instant) {
        self.state.lock().stop_by = Some(deadline);
        self.changed.notify_all();
    }

    /// Waits for work, unless the thread is `busy` anyway, and takes up to `limit` changes of
    /// presence. `None`: the thread is to end.
    fn next(&self, busy: bool, limit: usize) -> Option<Vec<PresenceChange>> {
        let mut state = self.state.lock();
        loop {
            let work = busy || state.committed || !state.changes.is_empty();
            match state.stop_by {
                Some(deadline) if !work || Instant::now() >= deadline => return None,
                _ if work => break,
                _ => self.changed.wait(&mut state),
            }
        }
        state.committed = false;
        let dropped = std::mem::take(&mut state.dropped);
        let taken = limit.min(state.changes.len());
        let changes = state.changes.drain(..taken).collect();
        drop(state);
        if dropped > 0 {
            log::warn!("Presence dropped: reason=broker away, count={dropped}");
        }
        Some(changes)
    }

    /// Waits for `pause`. Returns `false`, at once, when the thread is to end.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while state.stop_by.is_none() {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return state.stop_by.is_none();
            }
        }
        false
    }
}

/// What the publisher thread works with.
pub(super) struct PublisherThread {
    pub outgoing: Arc<Outgoing>,
    pub store: Store,
    pub announcer: Announcer,
    pub publisher: Box<dyn Publisher>,
    pub backoff: Backoff,
}

impl PublisherThread {
    pub fn spawn(mut self, fatal: &Fatal) -> io::Result<Worker> {
        Worker::spawn("ref-publisher", fatal, move || self.run())
    }

    fn run(&mut self) {
        // Rows up to this one are confirmed, whether or not they are deleted yet.
        let mut last = 0;
        let mut events = VecDeque::new();
        let mut busy = false;
        loop {
            // Events are kept until they are out before more are made of more changes.
            let limit = if events.is_empty() {
                CHANGES_AT_ONCE
            } else {
                0
            };
            let Some(changes) = self.outgoing.next(busy, limit) else {
                return;
            };
            events.extend(self.announcer.publications(changes));
            let Ok(page) = self.store.outbox(last, BATCH) else {
                busy = true;
                if self.outgoing.pause(self.backoff.longest) {
                    continue;
                }
                return;
            };

            // Rows first: a chat message does not wait for a crowd that comes online.
            let mut batch = page.publications;
            busy = batch.len() == BATCH as usize;
            batch.extend(iter::from_fn(|| events.pop_front()).take(BATCH as usize));
            busy |= !events.is_empty();
            if !batch.is_empty() && !self.publish(&batch) {
                return;
            }
            if let Some(row) = page.last {
                last = row;
                self.store.published(last);
            }
        }
    }

    /// Publishes until confirmed. Returns `false` when the thread is to end instead.
    fn publish(&mut self, batch: &[Publication]) -> bool {
        let mut failures = 0;
        while let Err(error) = self.publisher.publish(batch) {
            failures += 1;
            let pause = self.backoff.pause(failures);
            log::warn!(
                "Publishing failed: publications={}, failures={failures}, retry_in={pause:?}, \
                 error={error}",
                batch.len()
            );
            if !self.outgoing.pause(pause) {
                return false;
            }
        }
        if failures > 0 {
            log::info!("Publishing works again: failures={failures}");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::presence::Change;

    fn change(user: usize) -> PresenceChange {
        PresenceChange {
            user: user.to_string(),
            what: Change::Online,
            timestamp: 1,
            moment: 1,
        }
    }

    #[test]
    fn pauses_grow_from_first_to_longest_with_jitter() {
        let backoff = Backoff::DEFAULT;
        for failures in 1..100 {
            let pause = backoff.pause(failures);
            assert!(
                backoff.first <= pause && pause <= backoff.longest,
                "{failures}: {pause:?}"
            );
        }
        assert!(backoff.pause(1) <= Duration::from_millis(200));
        assert!(backoff.pause(50) >= backoff.longest / 2);
        let distinct: std::collections::HashSet<_> = (0..9).map(|_| backoff.pause(50)).collect();
        assert!(distinct.len() > 1);
    }

    #[test]
    fn the_oldest_changes_of_presence_are_dropped_beyond_the_bound() {
        let outgoing = Outgoing::new();
        outgoing.announce((0..MAX_WAITING_CHANGES + 3).map(change));
        assert_eq!(outgoing.next(false, 2), Some(vec![change(3), change(4)]));
        assert_eq!(outgoing.state.lock().changes.len(), MAX_WAITING_CHANGES - 2);
    }

    #[test]
    fn a_stop_lets_waiting_work_go_first_until_the_deadline() {
        let outgoing = Outgoing::new();
        outgoing.announce([change(1)]);
        outgoing.stop_by(Instant::now() + Duration::from_secs(60));
        assert_eq!(outgoing.next(false, 9), Some(vec![change(1)]));
        assert_eq!(outgoing.next(false, 9), None);
        outgoing.committed();
        assert_eq!(outgoing.next(false, 9), Some(Vec::new()));
        outgoing.stop_by(Instant::now());
        assert_eq!(outgoing.next(true, 9), None);
    }

    #[test]
    fn a_stop_ends_a_pause() {
        let outgoing = Arc::new(Outgoing::new());
        let pausing = std::thread::spawn({
            let outgoing = Arc::clone(&outgoing);
            move || outgoing.pause(Duration::from_secs(600))
        });
        outgoing.stop_by(Instant::now());
        assert!(!pausing.join().unwrap());
        assert!(!outgoing.pause(Duration::from_secs(600)));
    }
}
