//! Lanes: what is to be published, by key, so that a key whose publications the broker refuses
//! keeps its order and holds up no other.
//!
//! A *lane* is one exchange and routing key. One publication of a lane is in flight at a time: the
//! next one leaves when the broker has taken it, since of two that are in flight the first may be
//! refused and the second not. What was refused *rests*, longer each time, and its lane with it.
//!
//! Rows of the outbox wait in the database, not here: a lane knows only that there are more
//! (`behind`), and has them read, a few at a time, when its turn comes. A resting lane holds no
//! row at all, so that thousands of them for hours cost their names. Presence events are in no
//! database; what rests of them is bounded, and the oldest go first.

mod lane;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::lane::{Entry, Key, Lane, bytes, key_of};
use super::publisher::{Outcome, Publication};
use crate::backoff::Backoff;

/// Publications that the broker has not answered yet: one for each lane.
const MAX_IN_FLIGHT: usize = 256;
/// Rows of one lane that are loaded at a time.
pub(super) const ROWS_PER_LANE: u32 = 16;
/// Lanes whose next rows are read at once.
const LANES_PER_READ: usize = 32;
/// What may be loaded before no more is read. One row more is always let in, however large.
const MAX_LOADED: usize = 8 << 20;
/// Presence that may rest.
const MAX_RESTING_EVENTS: usize = 8 << 20;
/// All resting lanes together are tried again so often: each rests this much longer for every
/// other one.
const BETWEEN_RETRIES: Duration = Duration::from_millis(1);

/// Every lane that has something to publish. Each is in exactly one of the four collections: due,
/// unread, in flight, resting.
pub(super) struct Lanes {
    /// For lanes to come.
    backoff: Backoff,
    lanes: HashMap<Key, Lane>,
    /// The next publication is loaded, and may leave.
    due: VecDeque<Key>,
    /// The next rows are to be read.
    unread: VecDeque<Key>,
    /// By ticket.
    in_flight: BTreeMap<u64, Key>,
    /// By the time when each is tried again; the number tells those of the same time apart.
    resting: BTreeMap<(Instant, u64), Key>,
    last_number: u64,
    /// Of all that is loaded, and of the events that rest beside it.
    bytes: usize,
    resting_bytes: usize,
    /// Events, since it was last asked.
    dropped: usize,
}

impl Lanes {
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            lanes: HashMap::new(),
            due: VecDeque::new(),
            unread: VecDeque::new(),
            in_flight: BTreeMap::new(),
            resting: BTreeMap::new(),
            last_number: 0,
            bytes: 0,
            resting_bytes: 0,
            dropped: 0,
        }
    }

    /// Takes a row of the outbox, or notes that it is there; rows come in their order.
    pub fn add_row(&mut self, row: i64, publication: Publication) {
        let key = key_of(&publication);
        let entry = Entry {
            row: Some(row),
            publication,
        };
        let lane = self.lanes.entry(Arc::clone(&key));
        let lane = lane.or_insert_with(|| Lane::new(&self.backoff));
        let is_new = lane.loaded.is_empty() && !lane.behind;
        if lane.behind || lane.loaded.len() >= ROWS_PER_LANE as usize {
            lane.behind = true;
            return;
        }
        self.bytes += entry.bytes();
        lane.last = row;
        lane.loaded.push_back(entry);
        if is_new {
            self.due.push_back(key);
        }
    }

    /// Takes a presence event.
    pub fn add_event(&mut self, publication: Publication) {
        let key = key_of(&publication);
        let entry = Entry {
            row: None,
            publication,
        };
        let lane = self.lanes.entry(Arc::clone(&key));
        let lane = lane.or_insert_with(|| Lane::new(&self.backoff));
        if lane.resting {
            self.resting_bytes += entry.bytes();
            lane.loaded.push_back(entry);
            self.drop_resting_events(&key);
            return;
        }
        self.bytes += entry.bytes();
        if lane.loaded.is_empty() {
            self.due.push_back(key);
        }
        lane.loaded.push_back(entry);
    }

    /// How many events were dropped, since this was last asked, because too much rests.
    pub fn take_dropped(&mut self) -> usize {
        mem::take(&mut self.dropped)
    }

    /// Whether more may be loaded.
    pub fn has_room(&self) -> bool {
        self.bytes < MAX_LOADED
    }

    /// Whether an event more could leave now.
    pub fn has_free_slots(&self) -> bool {
        self.in_flight.len() + self.due.len() < MAX_IN_FLIGHT
    }

    /// The lanes whose next rows are to be read, and after which row; empty while there is no
    /// room. They go on being named until [`read`](Self::read).
    pub fn unread(&self) -> Vec<(String, String, i64)> {
        let count = if self.has_room() { LANES_PER_READ } else { 0 };
        let named = |key: &Key| {
            let (exchange, routing_key) = key.as_ref().clone();
            let last = self.lanes.get(key).map_or(0, |lane| lane.last);
            (exchange, routing_key, last)
        };
        self.unread.iter().take(count).map(named).collect()
    }

    /// Takes what was read for the next lane of [`unread`](Self::unread): rows that follow, and
    /// whether there are `more`.
    pub fn read(&mut self, rows: Vec<(i64, Publication)>, more: bool) {
        let Some(key) = self.unread.pop_front() else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&key) else {
            return;
        };
        lane.behind = more;
        for (row, publication) in rows {
            let entry = Entry {
                row: Some(row),
                publication,
            };
            self.bytes += entry.bytes();
            lane.last = row;
            lane.loaded.push_back(entry);
        }
        self.go_on(key);
    }

    /// The next publication that may leave, and the ticket of its answer. It is in flight from
    /// now on.
    pub fn next(&mut self) -> Option<(u64, &Publication)> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let key = self.due.pop_front()?;
        let ticket = self.number();
        self.in_flight.insert(ticket, Arc::clone(&key));
        let next = self.lanes.get(&key)?.loaded.front()?;
        Some((ticket, &next.publication))
    }

    /// It could not even leave.
    pub fn take_back(&mut self, ticket: u64) {
        if let Some(key) = self.in_flight.remove(&ticket) {
            self.due.push_front(key);
        }
    }

    /// The answer has come. Returns the row that was published, if it was one.
    pub fn settle(&mut self, ticket: u64, outcome: Outcome, now: Instant) -> Option<i64> {
        let key = self.in_flight.remove(&ticket)?;
        if outcome == Outcome::Refused {
            self.rest(key, now);
            return None;
        }
        let lane = self.lanes.get_mut(&key)?;
        lane.backoff.reset();
        let published = lane.loaded.pop_front()?;
        self.bytes -= published.bytes();
        self.go_on(key);
        published.row
    }

    /// No answer will come to what is in flight: it counts as refused.
    pub fn fail(&mut self, now: Instant) {
        for key in mem::take(&mut self.in_flight).into_values() {
            self.rest(key, now);
        }
    }

    /// Ends the rest of those whose time has come, and tells when the next one's will.
    pub fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.resting.first_entry() {
            let (until, _) = *first.key();
            if until > now {
                return Some(until);
            }
            let key = first.remove();
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.resting = false;
                let bytes = bytes(&lane.loaded);
                self.resting_bytes -= bytes;
                self.bytes += bytes;
            }
            self.go_on(key);
        }
        None
    }

    /// Whether something may leave or be read, or waits for an answer: everything but rest.
    pub fn is_busy(&self) -> bool {
        !self.in_flight.is_empty() || self.can_go_on()
    }

    /// Whether something may leave or be read, without waiting for anything.
    pub fn can_go_on(&self) -> bool {
        let may_leave = !self.due.is_empty() && self.in_flight.len() < MAX_IN_FLIGHT;
        may_leave || (!self.unread.is_empty() && self.has_room())
    }

    /// How many lanes rest.
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Puts a lane where it belongs that is in no collection.
    fn go_on(&mut self, key: Key) {
        match self.lanes.get(&key) {
            Some(lane) if !lane.loaded.is_empty() => self.due.push_back(key),
            Some(lane) if lane.behind => self.unread.push_back(key),
            _ => drop(self.lanes.remove(&key)),
        }
    }

    /// Lays a lane to rest that is in no collection. Its rows are read again afterwards.
    fn rest(&mut self, key: Key, now: Instant) {
        let others = u32::try_from(self.resting.len()).unwrap_or(u32::MAX);
        let number = self.number();
        let Some(lane) = self.lanes.get_mut(&key) else {
            return;
        };
        lane.resting = true;
        let pause = lane.backoff.next() + BETWEEN_RETRIES.saturating_mul(others);
        let bytes = bytes(&lane.loaded);
        self.bytes -= bytes;
        if let Some(row) = lane.loaded.front().and_then(|entry| entry.row) {
            lane.last = row - 1;
            lane.behind = true;
            lane.loaded = VecDeque::new();
        } else {
            self.resting_bytes += bytes;
        }
        self.resting.insert((now + pause, number), Arc::clone(&key));
        self.drop_resting_events(&key);
    }

    /// Drops a resting lane's oldest events as long as too much rests.
    fn drop_resting_events(&mut self, key: &Key) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        while self.resting_bytes > MAX_RESTING_EVENTS
            && let Some(oldest) = lane.loaded.pop_front()
        {
            self.resting_bytes -= oldest.bytes();
            self.dropped += 1;
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests;
