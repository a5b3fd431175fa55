//! The publisher thread: everything that the services publish leaves through it.
//!
//! *Durable*: messages, `group_members_changed` and `session_revoked`. They are rows of the
//! outbox table, committed together with what they tell of, and deleted once confirmed, so they
//! survive a restart. What was published but not deleted yet is published again.
//!
//! *Transient*: presence. It waits in memory, in a bounded queue whose oldest entries go first:
//! a presence event is stale a moment later, and the gateways announce everybody again after the
//! service restarted.
//!
//! Which of them leaves next, and when what was refused is tried again, is for [`Lanes`] to say.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lanes::{Lanes, ROWS_PER_LANE};
use super::outgoing::Outgoing;
use super::publisher::{Outcome, Publication, PublishError, Publisher};
use super::store::Store;
use super::store::outbox::OutboxQuery;
use super::watchers::Announcer;
use crate::backoff::Backoff;
use crate::threads::{Fatal, StopSignal, Worker};

/// The most new outbox rows that are read at once.
const ROWS_AT_ONCE: u32 = 256;
/// Changes of presence taken at once. Each may become an event for every member of a group.
const CHANGES_AT_ONCE: usize = 64;
/// How long the thread waits when nothing says when it has to go on; news ends every wait.
const IDLE: Duration = Duration::from_secs(60);
/// After the outbox could not be read.
const STORE_PAUSE: Duration = Duration::from_secs(2);
/// What the broker refuses is told of so often at most.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// The publisher thread, and what it works with.
pub(super) struct PublisherThread {
    outgoing: Arc<Outgoing>,
    store: Store,
    announcer: Announcer,
    publisher: Box<dyn Publisher>,
    lanes: Lanes,
    /// Presence that has no lane yet.
    events: VecDeque<Publication>,
    /// The lanes know of all rows up to this one.
    known: i64,
    /// There may be rows beyond.
    more: bool,
    /// Of the publisher, one after another.
    failures: u32,
    backoff: Backoff,
    refusals: Refusals,
}

/// What the broker has refused, for the log.
struct Refusals {
    count: usize,
    report_at: Instant,
}

impl PublisherThread {
    pub fn new(
        outgoing: Arc<Outgoing>,
        store: Store,
        announcer: Announcer,
        publisher: Box<dyn Publisher>,
        backoff: Backoff,
    ) -> Self {
        Self {
            outgoing,
            store,
            announcer,
            publisher,
            lanes: Lanes::new(backoff.clone()),
            events: VecDeque::new(),
            known: 0,
            more: false,
            failures: 0,
            backoff,
            refusals: Refusals {
                count: 0,
                report_at: Instant::now(),
            },
        }
    }

    pub fn spawn(mut self, fatal: &Fatal) -> io::Result<Worker> {
        // It ends at a time that `Outgoing` knows, once all is published.
        let run = move |_: &StopSignal| while self.round().is_some() {};
        Worker::start("ref-publisher", fatal, run)
    }

    /// Reads, publishes, and waits for answers or for news. `None`: the thread is to end.
    fn round(&mut self) -> Option<()> {
        let next_retry = self.lanes.wake(Instant::now());
        let idle = !self.more && self.events.is_empty() && !self.lanes.is_busy();
        // Events are kept until they are out before more are made of more changes.
        let limit = if self.events.is_empty() {
            CHANGES_AT_ONCE
        } else {
            0
        };
        let work = self.outgoing.take(idle, limit)?;
        self.more |= work.committed;
        self.events
            .extend(self.announcer.publications(work.changes));
        self.read()?;
        if let Err(error) = self.send() {
            return self.failed(&error);
        }

        let now = Instant::now();
        let until = [next_retry, work.stop_by].into_iter().flatten().min();
        let until = if self.can_go_on() {
            now
        } else {
            until.unwrap_or(now + IDLE)
        };
        match self.publisher.outcomes(until, &self.outgoing.woken) {
            Ok(outcomes) => {
                self.settle(outcomes);
                Some(())
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Whether there is something to do without an answer or news.
    fn can_go_on(&self) -> bool {
        self.lanes.can_go_on()
            || (self.more && self.lanes.has_room())
            || (!self.events.is_empty() && self.lanes.has_free_slots())
    }

    /// Reads new rows, and those that lanes have got to.
    fn read(&mut self) -> Option<()> {
        let keys = self.lanes.unread();
        let wants_new = self.more && self.lanes.has_room();
        if keys.is_empty() && !wants_new {
            return Some(());
        }
        let query = OutboxQuery {
            known: self.known,
            limit: if wants_new { ROWS_AT_ONCE } else { 0 },
            keys,
            limit_per_key: ROWS_PER_LANE,
        };
        let Ok(page) = self.store.outbox(query) else {
            return self.outgoing.pause(STORE_PAUSE);
        };
        for (rows, more) in page.of_keys {
            self.lanes.read(rows, more);
        }
        for (row, publication) in page.new {
            self.known = row;
            self.lanes.add_row(row, publication);
        }
        if wants_new {
            self.more = page.more;
        }
        Some(())
    }

    /// Publishes what may leave. Rows first: a chat message does not wait for a crowd that comes
    /// online.
    fn send(&mut self) -> Result<(), PublishError> {
        while self.lanes.has_free_slots()
            && let Some(event) = self.events.pop_front()
        {
            self.lanes.add_event(event);
        }
        while let Some((ticket, publication)) = self.lanes.next() {
            if let Err(error) = self.publisher.publish(ticket, publication) {
                self.lanes.take_back(ticket);
                return Err(error);
            }
        }
        Ok(())
    }

    fn settle(&mut self, outcomes: Vec<(u64, Outcome)>) {
        let now = Instant::now();
        if !outcomes.is_empty() && self.failures > 0 {
            log::info!("Publishing works again: failures={}", self.failures);
            self.failures = 0;
            self.backoff.reset();
        }
        let mut published = Vec::new();
        for (ticket, outcome) in outcomes {
            self.refusals.count += usize::from(outcome == Outcome::Refused);
            published.extend(self.lanes.settle(ticket, outcome, now));
        }
        if !published.is_empty() {
            self.store.published(published);
        }
        let dropped = self.lanes.take_dropped();
        if dropped > 0 {
            log::warn!("Presence dropped: reason=refused by the broker, count={dropped}");
        }
        self.refusals.report(self.lanes.resting(), now);
    }

    /// Nothing is answered any more. `None`: the thread is to end.
    fn failed(&mut self, error: &PublishError) -> Option<()> {
        self.failures += 1;
        let pause = self.backoff.next();
        log::warn!(
            "Publishing failed: failures={}, retry_in={pause:.1?}, error={error}",
            self.failures
        );
        self.lanes.fail(Instant::now());
        self.outgoing.pause(pause)
    }
}

impl Refusals {
    /// `resting`: the keys that wait to be tried again.
    fn report(&mut self, resting: usize, now: Instant) {
        if self.count > 0 && now >= self.report_at {
            log::warn!(
                "Refused by the broker, will be repeated: publications={}, keys={resting}",
                self.count
            );
            self.count = 0;
            self.report_at = now + BETWEEN_REPORTS;
        }
    }
}
