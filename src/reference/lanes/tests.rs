//! Lanes against a model: a database in memory, a broker that refuses by chance or by key.

use std::collections::{BTreeSet, HashSet};

use super::*;

const LONGEST: Duration = Duration::from_secs(2);

/// A small deterministic generator (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn publication(key: &str, size: usize) -> Publication {
    Publication {
        exchange: "exchange".into(),
        routing_key: key.into(),
        kind: String::new(),
        body: vec![0; size],
    }
}

/// The lanes, the outbox table beneath them, and a clock.
struct Rig {
    lanes: Lanes,
    table: BTreeMap<i64, Publication>,
    rows_of: HashMap<String, BTreeSet<i64>>,
    rows: i64,
    known: i64,
    now: Instant,
    /// What left and was not answered yet: ticket, key and row.
    in_flight: Vec<(u64, String)>,
    /// Rows in the order in which they were published.
    published: Vec<(String, i64)>,
}

impl Rig {
    fn new() -> Self {
        Self {
            lanes: Lanes::new(Backoff::new(Duration::from_millis(200), LONGEST)),
            table: BTreeMap::new(),
            rows_of: HashMap::new(),
            rows: 0,
            known: 0,
            now: Instant::now(),
            in_flight: Vec::new(),
            published: Vec::new(),
        }
    }

    fn commit(&mut self, key: &str, size: usize) {
        self.rows += 1;
        self.table.insert(self.rows, publication(key, size));
        let rows = self.rows_of.entry(key.to_owned()).or_default();
        rows.insert(self.rows);
    }

    /// What the publisher thread does in a round, up to sending.
    fn round(&mut self) {
        self.lanes.wake(self.now);
        for (_, routing_key, after) in self.lanes.unread() {
            let of_key = self.rows_of[&routing_key].range(after + 1..=self.known);
            let mut rows: Vec<_> = of_key
                .take(ROWS_PER_LANE as usize + 1)
                .map(|row| (*row, self.table[row].clone()))
                .collect();
            let more = rows.len() > ROWS_PER_LANE as usize;
            rows.truncate(ROWS_PER_LANE as usize);
            self.lanes.read(rows, more);
        }
        if self.lanes.has_room() {
            let new: Vec<_> = self.table.range(self.known + 1..).take(256).collect();
            for (row, publication) in new {
                self.known = *row;
                self.lanes.add_row(*row, publication.clone());
            }
        }
        while let Some((ticket, publication)) = self.lanes.next() {
            let key = publication.routing_key.clone();
            self.in_flight.push((ticket, key));
        }
        let keys: HashSet<_> = self.in_flight.iter().map(|(_, key)| key).collect();
        assert_eq!(keys.len(), self.in_flight.len(), "one of a key at a time");
        assert!(self.in_flight.len() <= MAX_IN_FLIGHT);
    }

    fn check_bytes(&self) {
        let sum = |resting: bool| -> usize {
            let lanes = self.lanes.lanes.values();
            let lanes = lanes.filter(|lane| lane.resting == resting);
            lanes.map(|lane| bytes(&lane.loaded)).sum()
        };
        assert_eq!(
            (self.lanes.bytes, self.lanes.resting_bytes),
            (sum(false), sum(true))
        );
        assert!(self.lanes.resting_bytes <= MAX_RESTING_EVENTS);
    }

    fn answer(&mut self, index: usize, outcome: Outcome) {
        let (ticket, key) = self.in_flight.swap_remove(index);
        let row = self.lanes.settle(ticket, outcome, self.now);
        assert!(outcome == Outcome::Published || row.is_none());
        if let Some(row) = row {
            assert!(self.table.remove(&row).is_some(), "{row} twice");
            self.rows_of.entry(key.clone()).or_default().remove(&row);
            self.published.push((key, row));
        }
    }

    fn answer_all(&mut self, outcome: impl Fn(&str) -> Outcome) {
        while let Some((_, key)) = self.in_flight.last() {
            self.answer(self.in_flight.len() - 1, outcome(key));
        }
    }

    /// Each key's rows were published in their order.
    fn check_order(&self) {
        let mut last = HashMap::new();
        for (key, row) in &self.published {
            assert!(last.insert(key, row) < Some(row), "{key}: {row}");
        }
    }
}

#[test]
fn whatever_is_refused_lost_or_late_all_is_published_once_and_in_order() {
    for seed in 1..=30 {
        let mut random = Random(seed);
        let mut rig = Rig::new();
        let keys = 1 + random.below(400);
        let refusals = random.below(4);
        for _ in 0..200 {
            for _ in 0..random.below(30) {
                // Some keys are much busier than others.
                let key = random.below(keys).min(random.below(keys));
                let size = random.below(2_000);
                rig.commit(&format!("key{key}"), size);
            }
            rig.round();
            for _ in 0..random.below(rig.in_flight.len() + 1) {
                let index = random.below(rig.in_flight.len());
                let refused = random.below(4) < refusals;
                let outcomes = [Outcome::Published, Outcome::Refused];
                rig.answer(index, outcomes[usize::from(refused)]);
            }
            if random.below(50) == 0 {
                rig.in_flight.clear();
                rig.lanes.fail(rig.now);
            }
            rig.check_bytes();
            rig.now += Duration::from_millis(random.below(300) as u64);
        }
        let mut rounds = 0;
        while !rig.table.is_empty() {
            rig.round();
            rig.answer_all(|_| Outcome::Published);
            rig.now += Duration::from_secs(10);
            rounds += 1;
            assert!(rounds < 10_000, "seed {seed}: {} are left", rig.table.len());
        }
        rig.round();
        rig.check_order();
        assert_eq!(rig.published.len() as i64, rig.rows, "seed {seed}");
        let lanes = &rig.lanes;
        assert!(lanes.lanes.is_empty() && !lanes.is_busy() && lanes.resting() == 0);
    }
}

#[test]
fn a_key_that_is_refused_for_hours_costs_nothing_and_holds_up_nobody() {
    let mut rig = Rig::new();
    for n in 0..20_000 {
        rig.commit(if n % 100 == 99 { "well" } else { "stuck" }, 1_000);
    }
    let outcome = |key: &str| match key {
        "stuck" => Outcome::Refused,
        _ => Outcome::Published,
    };
    for _ in 0..400 {
        rig.round();
        rig.answer_all(outcome);
        rig.now += Duration::from_millis(1);
    }
    assert_eq!(rig.published.len(), 200);
    assert_eq!((rig.lanes.bytes, rig.lanes.lanes.len()), (0, 1));
    let tried = |rig: &mut Rig| {
        let before = rig.lanes.last_number;
        for _ in 0..3_600 {
            rig.now += Duration::from_secs(1);
            rig.round();
            rig.answer_all(outcome);
        }
        rig.lanes.last_number - before
    };
    let numbers = tried(&mut rig);
    assert!((3_000..8_000).contains(&numbers), "{numbers}");
    while !rig.table.is_empty() {
        rig.now += Duration::from_millis(1);
        rig.round();
        rig.answer_all(|_| Outcome::Published);
        if rig.in_flight.is_empty() && rig.lanes.resting() > 0 {
            rig.now += LONGEST;
        }
    }
    rig.check_order();
}

#[test]
fn thousands_of_refused_keys_are_tried_a_thousand_times_a_second_together() {
    const KEYS: usize = 5_000;
    let mut rig = Rig::new();
    (0..KEYS).for_each(|key| rig.commit(&key.to_string(), 100));
    let mut tries = 0;
    for round in 0..2_000 {
        rig.round();
        if round >= 1_000 {
            tries += rig.in_flight.len();
        }
        rig.answer_all(|_| Outcome::Refused);
        rig.now += Duration::from_millis(10);
    }
    assert_eq!((rig.lanes.resting(), rig.lanes.bytes), (KEYS, 0));
    assert!((5_000..20_000).contains(&tries), "{tries} in 10 s");
}

/// The broker answers nothing for these keys, and the publisher gives up on them in the end.
#[test]
fn keys_without_an_answer_leave_room_for_others() {
    let mut rig = Rig::new();
    (0..300).for_each(|key| rig.commit(&format!("silent{key}"), 60_000));
    rig.round();
    assert!(!rig.in_flight.is_empty());
    (0..300).for_each(|key| rig.commit(&format!("well{key}"), 60_000));
    for _ in 0..50 {
        while let Some(index) = rig
            .in_flight
            .iter()
            .position(|(_, key)| key.starts_with("well"))
        {
            rig.answer(index, Outcome::Published);
            rig.round();
        }
        rig.in_flight.clear();
        rig.lanes.fail(rig.now);
        rig.round();
        rig.now += Duration::from_millis(150);
    }
    assert_eq!(rig.published.len(), 300);
}

#[test]
fn what_is_loaded_is_bounded() {
    let mut rig = Rig::new();
    (0..500).for_each(|row| rig.commit(&(row % 7).to_string(), 200_000));
    while !rig.table.is_empty() {
        rig.round();
        // One page more, which the store bounds.
        assert!(rig.lanes.bytes < MAX_LOADED + 256 * 201_000);
        rig.answer_all(|_| Outcome::Published);
    }
    rig.check_order();
}

#[test]
fn what_could_not_leave_is_the_next_one() {
    let mut rig = Rig::new();
    rig.commit("a", 1);
    rig.lanes.add_row(1, rig.table[&1].clone());
    rig.lanes.add_row(2, publication("b", 1));
    let (ticket, first) = rig.lanes.next().unwrap();
    assert_eq!(first.routing_key, "a");
    rig.lanes.take_back(ticket);
    assert_eq!(rig.lanes.settle(ticket, Outcome::Published, rig.now), None);
    assert_eq!(rig.lanes.next().unwrap().1.routing_key, "a");
}

#[test]
fn presence_that_is_refused_rests_in_order_within_a_bound() {
    let mut rig = Rig::new();
    let event = |number: usize| {
        let mut event = publication("presence.bob", 100_000);
        event.body[..8].copy_from_slice(&number.to_be_bytes());
        event
    };
    rig.lanes.add_event(event(0));
    rig.round();
    rig.answer_all(|_| Outcome::Refused);
    (1..200).for_each(|number| rig.lanes.add_event(event(number)));
    rig.check_bytes();
    let dropped = rig.lanes.take_dropped();
    assert!(dropped > 100 && rig.lanes.resting_bytes <= MAX_RESTING_EVENTS);
    // Rows have room all the same.
    assert!(rig.lanes.has_room() && rig.lanes.has_free_slots());
    rig.now += LONGEST;
    rig.lanes.wake(rig.now);
    for number in dropped..200 {
        let (ticket, event) = rig.lanes.next().unwrap();
        assert_eq!(event.body[..8], number.to_be_bytes());
        rig.lanes.settle(ticket, Outcome::Published, rig.now);
    }
    assert!(rig.lanes.lanes.is_empty());
}

#[test]
fn a_lane_whose_resting_events_were_all_dropped_ends() {
    let mut rig = Rig::new();
    let event = |size| publication("presence.bob", size);
    rig.lanes.add_event(event(1));
    rig.round();
    rig.answer_all(|_| Outcome::Refused);
    rig.lanes.add_event(event(MAX_RESTING_EVENTS));
    rig.lanes.add_event(event(1));
    assert_eq!(rig.lanes.take_dropped(), 2);
    rig.lanes.add_event(event(MAX_RESTING_EVENTS));
    assert_eq!(rig.lanes.take_dropped(), 2);
    rig.now += LONGEST;
    rig.round();
    assert!(rig.lanes.lanes.is_empty() && !rig.lanes.is_busy());
    // And one that is too large as it is laid to rest.
    rig.lanes.add_event(event(MAX_RESTING_EVENTS));
    rig.round();
    rig.answer_all(|_| Outcome::Refused);
    assert_eq!(rig.lanes.take_dropped(), 1);
    rig.check_bytes();
}
