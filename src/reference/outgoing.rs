//! What waits for the publisher thread: that something was committed, changes of presence, and
//! the wish that it ends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::leases::PresenceChange;

/// Changes of presence that wait while the broker is away: a few megabytes.
const MAX_WAITING_CHANGES: usize = 65_536;

/// The store and the Presence Service report to it.
pub(super) struct Outgoing {
    state: Mutex<State>,
    /// Has room for one: somebody has changed the state since the thread looked at it.
    wake: Sender<()>,
    pub woken: Receiver<()>,
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

/// What the thread has to do.
#[derive(Debug, PartialEq)]
pub(super) struct Work {
    pub committed: bool,
    pub changes: Vec<PresenceChange>,
    pub stop_by: Option<Instant>,
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
        let (wake, woken) = bounded(1);
        Self {
            state: Mutex::new(state),
            wake,
            woken,
        }
    }

    fn wake(&self) {
        // Full: the thread is going to look anyway.
        let _ = self.wake.try_send(());
    }

    /// There may be new rows in the outbox.
    pub fn committed(&self) {
        self.state.lock().committed = true;
        self.wake();
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
        let first_dropped = excess > 0 && state.dropped == 0;
        state.dropped += excess;
        drop(state);
        if first_dropped {
            log::warn!(
                "Presence dropped from now on: reason=broker away, waiting={MAX_WAITING_CHANGES}"
            );
        }
        self.wake();
    }

    /// Has the thread publish what is there, and end by `deadline`, or at the first error.
    pub fn stop_by(&self, deadline: Instant) {
        self.state.lock().stop_by = Some(deadline);
        self.wake();
    }

    /// Takes what there is to do, with up to `limit` changes of presence. `None`: the thread,
    /// which is `idle` or not, is to end.
    pub fn take(&self, idle: bool, limit: usize) -> Option<Work> {
        let mut state = self.state.lock();
        let nothing = idle && !state.committed && state.changes.is_empty();
        if state
            .stop_by
            .is_some_and(|deadline| nothing || Instant::now() >= deadline)
        {
            return None;
        }
        let taken = limit.min(state.changes.len());
        let work = Work {
            committed: std::mem::take(&mut state.committed),
            changes: state.changes.drain(..taken).collect(),
            stop_by: state.stop_by,
        };
        let dropped = if limit > 0 {
            std::mem::take(&mut state.dropped)
        } else {
            0
        };
        drop(state);
        if dropped > 0 {
            log::warn!("Presence dropped: count={dropped}");
        }
        Some(work)
    }

    /// Waits for `pause`. `None`, at once, when the thread is to end.
    pub fn pause(&self, pause: Duration) -> Option<()> {
        let until = Instant::now() + pause;
        loop {
            if self.state.lock().stop_by.is_some() {
                return None;
            }
            if self.woken.recv_deadline(until).is_err() {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reference::leases::Change;

    fn change(user: usize) -> PresenceChange {
        PresenceChange {
            user: user.to_string(),
            what: Change::Online,
            timestamp: 1,
            moment: 1,
        }
    }

    fn changes(outgoing: &Outgoing, idle: bool, limit: usize) -> Option<Vec<PresenceChange>> {
        outgoing.take(idle, limit).map(|work| work.changes)
    }

    #[test]
    fn the_oldest_changes_of_presence_are_dropped_beyond_the_bound() {
        let outgoing = Outgoing::new();
        outgoing.announce((0..MAX_WAITING_CHANGES + 3).map(change));
        assert_eq!(
            changes(&outgoing, true, 2),
            Some(vec![change(3), change(4)])
        );
        assert_eq!(outgoing.state.lock().changes.len(), MAX_WAITING_CHANGES - 2);
    }

    #[test]
    fn a_stop_lets_waiting_work_go_first_until_the_deadline() {
        let outgoing = Outgoing::new();
        outgoing.announce([change(1)]);
        outgoing.stop_by(Instant::now() + Duration::from_secs(60));
        assert_eq!(changes(&outgoing, true, 9), Some(vec![change(1)]));
        assert_eq!(changes(&outgoing, true, 9), None);
        assert_eq!(changes(&outgoing, false, 9), Some(Vec::new()));
        outgoing.committed();
        assert!(outgoing.take(true, 9).is_some_and(|work| work.committed));
        outgoing.stop_by(Instant::now());
        assert_eq!(outgoing.take(false, 9), None);
    }

    #[test]
    fn news_wakes_the_thread_once() {
        let outgoing = Outgoing::new();
        outgoing.committed();
        outgoing.announce([change(1)]);
        assert_eq!(outgoing.woken.try_recv(), Ok(()));
        assert!(outgoing.woken.try_recv().is_err());
        outgoing.announce([]);
        assert!(outgoing.woken.try_recv().is_err());
    }

    #[test]
    fn a_stop_ends_a_pause() {
        let outgoing = Arc::new(Outgoing::new());
        let pausing = std::thread::spawn({
            let outgoing = Arc::clone(&outgoing);
            move || outgoing.pause(Duration::from_secs(600))
        });
        outgoing.stop_by(Instant::now());
        assert_eq!(pausing.join().unwrap(), None);
        assert_eq!(outgoing.pause(Duration::from_secs(600)), None);
    }
}
