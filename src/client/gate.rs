//! Pushes that arrive while catch-up is under way wait here, so that unread messages come first, in
//! order, and a message that is in both is sent once.
//!
//! A connection is *holding* from its registration until its catch-up is through, and again
//! whenever another catch-up is due. One is *due* while it is requested and has not started, and
//! while the user's route is not bound, since one is requested when it is: a catch-up that ends
//! meanwhile may have looked too early, and ends no hold. Where catch-up sent something the
//! connection is *settling* then: that is still remembered, since the live push of a message that
//! catch-up brought may be on its way. Then it is *live*.
//!
//! A live connection whose client is behind, so that a push finds no room, *falls back to its inbox*:
//! it holds again, and requests a catch-up, which brings the push at the client's pace.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use parking_lot::Mutex;

use super::frame::Frame;
use super::protocol::{Push, PushKind};

/// How many ids are remembered at least: the newest so many. Older ones were published long ago.
const REMEMBERED: usize = 1_024;

/// What is to become of a push.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub enum GateDecision {
    /// Into the queue.
    Open,
    /// Nothing more is to be done: it is held, has been sent, or is left to a later page.
    Done,
    /// It would be lost, and there is no room to hold it: into the queue with what was held, the
    /// push itself last. No unread message is among them.
    Overflow(Vec<Frame>),
}

/// How a catch-up ends.
#[derive(Debug, PartialEq)]
pub enum Finish {
    /// Send these, and ask again.
    Frames(Vec<Frame>),
    /// Unread messages were let go meanwhile: another page is to bring them.
    Again,
    /// The hold is over, and what was sent is remembered until [`DeliveryGate::settle`]; or another catch-up
    /// is due, and ends it.
    Settled,
}

/// The gate before one connection's queue.
pub struct DeliveryGate {
    /// Whether `state` is [`State::Live`], as it nearly always is: one load instead of a lock.
    live: AtomicBool,
    state: Mutex<State>,
    max_frames: usize,
    max_bytes: usize,
}

enum State {
    Holding(Box<Held>),
    Settling(Sent),
    Live,
}

#[derive(Default)]
struct Held {
    /// What is published for the user may not come here.
    unrouted: bool,
    /// A catch-up is requested that has not started.
    requested: bool,
    /// The client was behind.
    fell_back: bool,
    pushes: VecDeque<Push>,
    bytes: usize,
    /// An unread message was let go: catch-up has to look again.
    missed: bool,
    /// Catch-up has sent something.
    caught_up: bool,
    /// The ids of messages that have been sent.
    sent: Sent,
}

impl DeliveryGate {
    /// Starts out holding, up to the bounds of the queue, until the user's route is bound.
    pub fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self {
            live: AtomicBool::new(false),
            state: Mutex::new(State::Holding(Box::new(Held {
                unrouted: true,
                ..Held::default()
            }))),
            max_frames,
            max_bytes,
        }
    }

    /// Whether nothing is held back. A push that goes past a catch-up that begins this very moment
    /// came before it.
    pub fn is_live(&self) -> bool {
        self.live.load(Acquire)
    }

    /// Whether pushes go past.
    pub fn is_open(&self) -> bool {
        self.is_live() || !matches!(&*self.state.lock(), State::Holding(_))
    }

    /// Decides on one push.
    pub fn pass(&self, push: &Push) -> GateDecision {
        if self.is_live() {
            return GateDecision::Open;
        }
        match &mut *self.state.lock() {
            State::Live => GateDecision::Open,
            State::Settling(sent) => match push.message_id() {
                Some(id) if sent.contains(id) => GateDecision::Done,
                Some(id) => {
                    sent.insert(id.clone());
                    GateDecision::Open
                }
                None => GateDecision::Open,
            },
            State::Holding(held) => self.hold(held, push),
        }
    }

    fn hold(&self, held: &mut Held, push: &Push) -> GateDecision {
        if push.message_id().is_some_and(|id| held.sent.contains(id)) {
            return GateDecision::Done;
        }
        let bytes = held.bytes + push.frame.len();
        let full = held.pushes.len() >= self.max_frames
            || (bytes > self.max_bytes && !held.pushes.is_empty());
        let half_full = held.pushes.len() * 2 >= self.max_frames || bytes * 2 >= self.max_bytes;
        match push.kind {
            PushKind::Presence if half_full => return GateDecision::Done,
            // Those behind one that was let go would overtake it.
            PushKind::Unread if full || held.missed => {
                held.missed = true;
                return GateDecision::Done;
            }
            PushKind::OwnCopy if full && !held.let_go() => {
                held.add(push);
                return GateDecision::Overflow(held.take());
            }
            _ => {}
        }
        held.add(push);
        GateDecision::Done
    }

    /// There was no room for `push`: holds, and requests a catch-up that brings what is unread.
    /// What is not unread waits here for the end of that, unless it overflows.
    pub fn fall_back(&self, push: &Push) -> GateDecision {
        let mut state = self.state.lock();
        // It was let through, and so is remembered as sent.
        if let (State::Settling(sent), Some(id)) = (&mut *state, push.message_id()) {
            sent.remove(id);
        }
        self.hold_for(&mut state, |held| {
            (held.requested, held.fell_back) = (true, true);
            self.hold(held, push)
        })
    }

    /// Whether this hold is of a client that was behind.
    pub fn fell_back(&self) -> bool {
        !self.is_live() && matches!(&*self.state.lock(), State::Holding(held) if held.fell_back)
    }

    /// The user's route is not bound, and pushes wait until the catch-up after [`DeliveryGate::routed`].
    pub fn unrouted(&self) {
        self.hold_for(&mut self.state.lock(), |held| held.unrouted = true);
    }

    /// The user's route is bound, and a catch-up requested.
    pub fn routed(&self) {
        self.hold_for(&mut self.state.lock(), |held| {
            (held.unrouted, held.requested) = (false, true);
        });
    }

    /// Something may have been missed, and pushes wait for another catch-up.
    pub fn request(&self) {
        self.hold_for(&mut self.state.lock(), |held| held.requested = true);
    }

    /// Whether a catch-up was requested since the last call; it is about to start then.
    pub fn take_request(&self) -> bool {
        match &mut *self.state.lock() {
            State::Holding(held) => std::mem::take(&mut held.requested),
            _ => false,
        }
    }

    fn hold_for<T>(&self, state: &mut State, why: impl FnOnce(&mut Held) -> T) -> T {
        self.live.store(false, Release);
        let sent = match state {
            State::Holding(held) => return why(held),
            State::Settling(sent) => std::mem::take(sent),
            State::Live => Sent::default(),
        };
        let mut held = Box::new(Held {
            // What was remembered is remembered on.
            caught_up: !sent.is_empty(),
            sent,
            ..Held::default()
        });
        let answer = why(&mut held);
        *state = State::Holding(held);
        answer
    }

    /// Whether catch-up is to send the message `id` now. Answers true once for each id.
    pub fn claim(&self, id: &str) -> bool {
        match &mut *self.state.lock() {
            State::Holding(held) => held.claim(id),
            // Pushes go past a catch-up that does not get on.
            State::Settling(sent) => sent.claim(id),
            State::Live => true,
        }
    }

    /// Ends the hold, if all that was held is sent and none was let go. Call it until it has. Where
    /// catch-up sent nothing there is nothing to remember, and the connection is live at once.
    pub fn finish(&self) -> Finish {
        let mut state = self.state.lock();
        let State::Holding(held) = &mut *state else {
            return Finish::Settled;
        };
        if held.unrouted || held.requested {
            return Finish::Settled;
        }
        if std::mem::take(&mut held.missed) {
            return Finish::Again;
        }
        if !held.pushes.is_empty() {
            return Finish::Frames(held.take());
        }
        let (sent, caught_up) = (std::mem::take(&mut held.sent), held.caught_up);
        *state = if caught_up {
            State::Settling(sent)
        } else {
            State::Live
        };
        self.live.store(!caught_up, Release);
        Finish::Settled
    }

    /// Catch-up does not get on: what was let go comes later, behind what is newer, so that
    /// [`DeliveryGate::finish`] ends the hold. Only a route that is not bound is waited for.
    pub fn give_up(&self) {
        if let State::Holding(held) = &mut *self.state.lock() {
            (held.requested, held.missed, held.caught_up) = (false, false, true);
        }
    }

    /// What was sent need not be remembered any longer.
    pub fn settle(&self) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Settling(_)) {
            *state = State::Live;
            self.live.store(true, Release);
        }
    }
}

impl Held {
    fn add(&mut self, push: &Push) {
        self.bytes += push.frame.len();
        self.pushes.push_back(push.clone());
    }

    /// Takes all that is held, to be sent.
    fn take(&mut self) -> Vec<Frame> {
        self.bytes = 0;
        let pushes = std::mem::take(&mut self.pushes);
        for id in pushes.iter().filter_map(Push::message_id) {
            self.sent.insert(id.clone());
        }
        pushes.iter().map(|push| push.frame.clone()).collect()
    }

    /// Whether catch-up is to send it; then it need not be held.
    fn claim(&mut self, id: &str) -> bool {
        let is_new = self.sent.claim(id);
        if is_new {
            self.caught_up = true;
            let bytes = &mut self.bytes;
            self.pushes.retain(|push| {
                let same = push.message_id().is_some_and(|held| &**held == id);
                *bytes -= if same { push.frame.len() } else { 0 };
                !same
            });
        }
        is_new
    }

    /// Makes room: the newest unread message is left to a later page.
    fn let_go(&mut self) -> bool {
        let newest = self
            .pushes
            .iter()
            .rposition(|push| push.kind == PushKind::Unread);
        let Some(push) = newest.and_then(|index| self.pushes.remove(index)) else {
            return false;
        };
        self.bytes -= push.frame.len();
        self.missed = true;
        true
    }
}

/// Ids of messages that have been sent, in two generations: the older one is forgotten whole.
#[derive(Default)]
struct Sent {
    newer: HashSet<Arc<str>>,
    older: HashSet<Arc<str>>,
}

impl Sent {
    fn contains(&self, id: &str) -> bool {
        self.newer.contains(id) || self.older.contains(id)
    }

    fn is_empty(&self) -> bool {
        self.newer.is_empty() && self.older.is_empty()
    }

    fn insert(&mut self, id: Arc<str>) {
        if self.newer.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(id);
    }

    fn remove(&mut self, id: &str) {
        self.newer.remove(id);
        self.older.remove(id);
    }

    /// Inserts it; false if it was there.
    fn claim(&mut self, id: &str) -> bool {
        let is_new = !self.contains(id);
        if is_new {
            self.insert(id.into());
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use crate::services::proto::Message;

    fn unread(id: &str) -> Push {
        Push::message(
            &Message {
                id: id.into(),
                ..Message::default()
            },
            false,
        )
    }

    fn presence() -> Push {
        Push::presence(&UserId::new("bob").unwrap(), true, 0)
    }

    /// A hold whose first catch-up has started.
    fn started(max_frames: usize) -> DeliveryGate {
        let gate = DeliveryGate::new(max_frames, 1 << 20);
        gate.routed();
        assert!(gate.take_request());
        gate
    }

    /// What was held, and how it stands with the hold then.
    fn finished(gate: &DeliveryGate) -> (Vec<Frame>, &'static str) {
        let mut frames = Vec::new();
        loop {
            match gate.finish() {
                Finish::Frames(more) => frames.extend(more),
                Finish::Again => return (frames, "again"),
                Finish::Settled => break,
            }
        }
        let state = match &*gate.state.lock() {
            State::Holding(_) => "due",
            State::Settling(_) => "settling",
            State::Live => "live",
        };
        assert_eq!(gate.is_live(), state == "live");
        (frames, state)
    }

    fn frames<const N: usize>(pushes: [Push; N]) -> Vec<Frame> {
        pushes.iter().map(|push| push.frame.clone()).collect()
    }

    #[test]
    fn a_message_that_is_in_both_is_sent_once() {
        let gate = started(8);
        // The live push comes first, or second, or after catch-up is through.
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Done);
        assert!(gate.claim("m1"));
        assert!(gate.claim("m2"));
        assert_eq!(gate.pass(&unread("m2")), GateDecision::Done);
        assert!(gate.claim("m3"));
        assert_eq!(gate.pass(&unread("m4")), GateDecision::Done);
        assert_eq!(finished(&gate), (frames([unread("m4")]), "settling"));
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Done);
        assert_eq!(gate.pass(&unread("m5")), GateDecision::Open);
        // Another catch-up brings nothing again that was sent since.
        gate.request();
        assert!(gate.take_request());
        assert!(!gate.claim("m4"));
        assert!(!gate.claim("m5"));
        assert_eq!(finished(&gate), (vec![], "settling"));
        gate.settle();
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Open);
    }

    #[test]
    fn a_catch_up_that_started_before_another_was_due_ends_no_hold() {
        let gate = started(2);
        assert!(gate.claim("m1"));
        // Something may have been missed after its page was read.
        gate.request();
        for id in ["m3", "m4", "m5"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(finished(&gate), (vec![], "due"));
        assert_eq!(gate.pass(&unread("m6")), GateDecision::Done);
        assert!(gate.take_request());
        assert_eq!(gate.finish(), Finish::Again, "m5 and m6 were let go");
        assert!(
            ["m2", "m3", "m4", "m5", "m6"]
                .iter()
                .all(|id| gate.claim(id))
        );
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m7")), GateDecision::Open);
    }

    /// The broker is lost and back, and lost and back again before the writer thread has looked; and
    /// meanwhile a group's list is fetched that names the user as a new member.
    #[test]
    fn while_the_route_is_not_bound_no_catch_up_ends_the_hold() {
        let gate = started(8);
        assert_eq!(finished(&gate), (vec![], "live"));
        gate.unrouted();
        gate.routed();
        gate.unrouted();
        gate.request();
        assert!(gate.take_request());
        assert_eq!(gate.pass(&unread("m2")), GateDecision::Done);
        assert_eq!(finished(&gate), (vec![], "due"));
        gate.give_up();
        assert_eq!(finished(&gate), (vec![], "due"));
        gate.routed();
        assert!(gate.take_request());
        assert!(gate.claim("m1"), "missed while the route was not bound");
        assert_eq!(finished(&gate), (frames([unread("m2")]), "settling"));
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Open);
    }

    #[test]
    fn the_newest_that_were_sent_are_remembered_however_many_there_were() {
        let gate = started(8);
        let ids: Vec<String> = (0..3 * REMEMBERED + 1)
            .map(|number| format!("m{number}"))
            .collect();
        for (number, id) in ids.iter().enumerate() {
            assert!(gate.claim(id));
            let newest = &ids[(number + 1).saturating_sub(REMEMBERED)..=number];
            let first = newest.first().expect("one at least");
            assert!(!gate.claim(first), "{first} at {number}");
        }
        assert!(gate.claim(&ids[0]), "long ago");
    }

    #[test]
    fn where_catch_up_sent_nothing_there_is_nothing_to_remember() {
        let gate = started(8);
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Done);
        assert_eq!(finished(&gate), (frames([unread("m1")]), "live"));
        assert!(gate.is_live());
    }

    #[test]
    fn beyond_the_bounds_unread_messages_are_left_to_a_later_page() {
        let gate = started(4);
        for id in ["m1", "m2", "m3", "m4", "m5", "m6"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(gate.finish(), Finish::Again);
        assert!(
            ["m1", "m2", "m3", "m5", "m6"]
                .iter()
                .all(|id| gate.claim(id))
        );
        assert_eq!(finished(&gate), (frames([unread("m4")]), "settling"));
    }

    #[test]
    fn what_is_let_go_while_the_held_is_sent_is_neither_forgotten_nor_overtaken() {
        let gate = started(2);
        for id in ["m1", "m2"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(
            gate.finish(),
            Finish::Frames(frames([unread("m1"), unread("m2")]))
        );
        for id in ["m3", "m4", "m5"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(gate.finish(), Finish::Again, "m5 was let go");
        assert_eq!(
            gate.pass(&unread("m6")),
            GateDecision::Done,
            "the hold is not over"
        );
        assert!(["m3", "m4", "m5", "m6"].iter().all(|id| gate.claim(id)));
        assert_eq!(gate.finish(), Finish::Again, "m6 came after the page");
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m7")), GateDecision::Open);
    }

    #[test]
    fn an_own_copy_takes_the_place_of_an_unread_message() {
        let gate = started(2);
        let (copy, other) = (unread("c1").as_own_copy(), unread("c2").as_own_copy());
        assert_eq!(gate.pass(&copy), GateDecision::Done);
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Done);
        assert_eq!(gate.pass(&other), GateDecision::Done);
        assert_eq!(gate.finish(), Finish::Again, "m1 was let go");
        // No unread message is left to make room: the copies need not wait for catch-up.
        let third = unread("c3").as_own_copy();
        assert_eq!(
            gate.pass(&unread("c3").as_own_copy()),
            GateDecision::Overflow(frames([copy, other, third]))
        );
        assert_eq!(finished(&gate), (vec![], "live"));
    }

    #[test]
    fn whoever_is_behind_falls_back_and_is_let_off_by_a_catch_up() {
        let gate = started(2);
        assert_eq!(finished(&gate), (vec![], "live"));
        assert!(!gate.fell_back());
        let copy = unread("c1").as_own_copy();
        assert_eq!(gate.fall_back(&unread("m1")), GateDecision::Done);
        assert_eq!(gate.fall_back(&copy), GateDecision::Done);
        assert_eq!(gate.fall_back(&unread("m2")), GateDecision::Done);
        assert!(gate.fell_back() && !gate.is_live());
        assert_eq!(finished(&gate), (vec![], "due"));
        assert!(gate.take_request());
        assert!(["m1", "m2"].iter().all(|id| gate.claim(id)));
        assert_eq!(gate.finish(), Finish::Again, "m2 was let go");
        assert_eq!(finished(&gate), (frames([copy]), "settling"));
        assert!(!gate.fell_back());
    }

    /// It was let through, and is remembered as sent; but there was no room for it.
    #[test]
    fn what_falls_back_was_not_sent() {
        let gate = started(2);
        assert!(gate.claim("m0"));
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Open);
        assert_eq!(gate.fall_back(&unread("m1")), GateDecision::Done);
        assert!(gate.take_request());
        assert!(gate.claim("m1"), "catch-up sends it");
        assert!(!gate.claim("m0"));
    }

    #[test]
    fn pushes_go_past_a_catch_up_that_is_not_through_and_come_once() {
        let gate = started(2);
        for id in ["m1", "m2", "m3"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        gate.give_up();
        assert_eq!(
            gate.finish(),
            Finish::Frames(frames([unread("m1"), unread("m2")]))
        );
        assert!(!gate.is_open(), "what was held comes first");
        gate.give_up();
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m4")), GateDecision::Open);
        let late = ["m1", "m2", "m3", "m4"].map(|id| gate.claim(id));
        assert_eq!(late, [false, false, true, false]);
        assert_eq!(finished(&gate), (vec![], "settling"));
    }

    #[test]
    fn presence_is_left_out_once_the_hold_is_half_full() {
        let gate = started(4);
        for _ in 0..5 {
            assert_eq!(gate.pass(&presence()), GateDecision::Done);
        }
        assert_eq!(finished(&gate).0.len(), 2);
    }
}
