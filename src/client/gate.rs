//! Pushes that arrive while catch-up is under way wait here, so that unread messages come first, in
//! order, and a message that is in both is sent once.
//!
//! A connection is *holding* from its registration until its catch-up is through, and again
//! whenever another catch-up is due. One is *due* while it is requested and has not started, and
//! while the user's route is not bound, since one is requested when it is: a catch-up that ends
//! meanwhile may have looked too early, and ends no hold. Where catch-up sent something the
//! connection is *settling* then: pushes pass, but what was sent is still remembered, since the live
//! push of a message that catch-up brought may be on its way. Then it is *live*. What passes is not
//! remembered by either, only where a service does not get on and is still to bring it.
//!
//! A live connection whose client is behind, so that a push finds no room, *falls back to its inbox*:
//! it holds again, and requests a catch-up, which brings the push at the client's pace.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::protocol::{Push, PushKind};
use crate::ids::UserId;
use crate::sync::{AtomicBool, Mutex};

/// How many ids are remembered at least: the newest so many. Older ones were published long ago.
const REMEMBERED: usize = 1_024;

/// What is to become of a push.
#[derive(Debug, PartialEq)]
pub enum GateDecision {
    /// Into the queue.
    Open,
    /// Nothing more is to be done: it is held, has been sent, or is left to a later page.
    Done,
    /// It would be lost, and there is no room to hold it: into the queue with what was held, the
    /// push itself last. No unread message is among them.
    Overflow(Vec<Push>),
}

/// How a catch-up ends.
#[derive(Debug, PartialEq)]
pub enum Finish {
    /// Send these, and ask again.
    Pushes(Vec<Push>),
    /// Unread messages were let go meanwhile: another page is to bring them.
    Again,
    /// The hold is over, and what was sent is remembered until [`DeliveryGate::settle`]; or another catch-up
    /// is due, and ends it.
    Settled,
}

/// The gate before one connection's queue.
pub struct DeliveryGate {
    /// Whether `hold` is `None`, as it nearly always is: one load instead of a lock.
    live: AtomicBool,
    /// `None`: live.
    hold: Mutex<Option<Box<Hold>>>,
    max_frames: usize,
    max_bytes: usize,
}

/// What is known of a connection that is holding or settling.
#[derive(Default)]
struct Hold {
    /// What is published for the user may not come here.
    unrouted: bool,
    /// A catch-up is requested that has not started.
    requested: bool,
    /// The client was behind.
    fell_back: bool,
    /// An unread message was let go: catch-up has to look again.
    missed: bool,
    /// Catch-up has sent something.
    caught_up: bool,
    /// Catch-up is still to send what pushes have gone past.
    given_up: bool,
    /// Pushes pass, and what was sent is remembered.
    settling: bool,
    /// A push of something came that was sent before: there may be more.
    echoed: bool,
    pushes: Vec<Push>,
    /// The length of all of `pushes`.
    bytes: usize,
    /// The ids of messages that have been sent.
    sent: Sent,
}

impl DeliveryGate {
    /// Starts out holding, up to the bounds of the queue, until the user's route is bound.
    pub fn new(max_frames: usize, max_bytes: usize) -> Self {
        let mut hold = Box::<Hold>::default();
        hold.unrouted = true;
        Self {
            live: AtomicBool::new(false),
            hold: Mutex::new(Some(hold)),
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
        self.hold.lock().as_ref().is_none_or(|hold| hold.settling)
    }

    /// Decides on one push.
    pub fn pass(&self, push: &Push) -> GateDecision {
        if self.is_live() {
            return GateDecision::Open;
        }
        let mut hold = self.hold.lock();
        (hold.as_mut()).map_or(GateDecision::Open, |hold| self.decide(hold, push))
    }

    /// Whether all of a batch go past: none is to be held, nor to be remembered. However many they are,
    /// this is one look for each connection.
    pub fn is_open_to(&self, batch: &[(UserId, Push)]) -> bool {
        let are_new = |hold: &Hold| !batch.iter().any(|(_, push)| hold.has_sent(push));
        let is_open = |hold: &Hold| hold.settling && !hold.given_up && are_new(hold);
        self.is_live() || self.hold.lock().as_deref().is_none_or(is_open)
    }

    fn decide(&self, hold: &mut Hold, push: &Push) -> GateDecision {
        if hold.has_sent(push) {
            hold.echoed = true;
            return GateDecision::Done;
        }
        if hold.settling {
            return GateDecision::Open;
        }
        let length = push.frame.len();
        let fills = |hold: &Hold, parts: usize| {
            let (frames, bytes) = (hold.pushes.len() * parts, (hold.bytes + length) * parts);
            frames >= self.max_frames || (bytes > self.max_bytes && frames > 0)
        };
        match push.kind {
            PushKind::Presence if fills(hold, 2) => {}
            // Those behind one that was let go would overtake it.
            PushKind::Unread if fills(hold, 1) || hold.missed => hold.missed = true,
            kind => {
                let is_own = kind == PushKind::OwnCopy;
                while is_own && fills(hold, 1) && hold.let_go() {}
                let overflows = is_own && fills(hold, 1);
                hold.bytes += length;
                hold.pushes.push(push.clone());
                if overflows {
                    return GateDecision::Overflow(hold.take());
                }
            }
        }
        GateDecision::Done
    }

    /// `push` is in the queue, past a catch-up that may be to send it still: it need not.
    pub fn passed(&self, push: &Push) {
        if !self.is_live()
            && let Some(hold) = self.hold.lock().as_mut().filter(|hold| hold.given_up)
        {
            hold.sent.extend(&push.message_id);
        }
    }

    /// There was no room for `push`: holds, and requests a catch-up that brings what is unread.
    /// What is not unread waits here for the end of that, unless it overflows.
    pub fn fall_back(&self, push: &Push) -> GateDecision {
        self.hold_for(|hold| {
            (hold.requested, hold.fell_back) = (true, true);
            self.decide(hold, push)
        })
    }

    /// Whether this hold is of a client that was behind.
    pub fn fell_back(&self) -> bool {
        !self.is_live() && (self.hold.lock().as_ref()).is_some_and(|hold| hold.fell_back)
    }

    /// The user's route is not bound, and pushes wait until the catch-up after [`DeliveryGate::routed`].
    pub fn unrouted(&self) {
        self.hold_for(|hold| hold.unrouted = true);
    }

    /// The user's route is bound, and a catch-up requested.
    pub fn routed(&self) {
        self.hold_for(|hold| (hold.unrouted, hold.requested) = (false, true));
    }

    /// Something may have been missed, and pushes wait for another catch-up.
    pub fn request(&self) {
        self.hold_for(|hold| hold.requested = true);
    }

    /// Whether a catch-up was requested since the last call; it is about to start then.
    pub fn take_request(&self) -> bool {
        (self.hold.lock().as_mut()).is_some_and(|hold| std::mem::take(&mut hold.requested))
    }

    /// Holds from now on; what was remembered is remembered on.
    fn hold_for<T>(&self, why: impl FnOnce(&mut Hold) -> T) -> T {
        let mut hold = self.hold.lock();
        self.live.store(false, Release);
        let hold = hold.get_or_insert_default();
        hold.settling = false;
        why(hold)
    }

    /// Whether catch-up is to send the message `id` now. Answers true once for each id.
    pub fn claim(&self, id: &str) -> bool {
        (self.hold.lock().as_mut()).is_none_or(|hold| hold.claim(id))
    }

    /// Ends the hold, if all that was held is sent and none was let go. Call it until it has. Where
    /// catch-up sent nothing there is nothing to remember, and the connection is live at once. As long as
    /// the client is not told that this catch-up is through, no hold ends, and there may be no push to send.
    pub fn finish(&self, is_told: bool) -> Finish {
        let mut guard = self.hold.lock();
        let is_due = |hold: &Hold| hold.unrouted || hold.requested;
        let Some(hold) = guard.as_mut().filter(|hold| !is_due(hold)) else {
            return Finish::Settled;
        };
        if std::mem::take(&mut hold.missed) {
            return Finish::Again;
        }
        if !hold.pushes.is_empty() || !is_told {
            return Finish::Pushes(hold.take());
        }
        (hold.settling, hold.fell_back) = (true, false);
        if !hold.caught_up && !hold.given_up {
            *guard = None;
            self.live.store(true, Release);
        }
        Finish::Settled
    }

    /// Catch-up does not get on: what was let go comes later, behind what is newer, so that
    /// [`DeliveryGate::finish`] ends the hold. Only a route that is not bound is waited for.
    pub fn give_up(&self) {
        if let Some(hold) = &mut *self.hold.lock() {
            (hold.requested, hold.missed, hold.given_up) = (false, false, true);
        }
    }

    /// What was sent need not be remembered any longer, unless pushes of it have come since the last
    /// call. Answers whether that is so.
    pub fn settle(&self) -> bool {
        let mut guard = self.hold.lock();
        let echoed = (guard.as_mut()).is_some_and(|hold| std::mem::take(&mut hold.echoed));
        if guard.take_if(|hold| hold.settling && !echoed).is_some() {
            self.live.store(true, Release);
        }
        echoed
    }
}

impl Hold {
    fn has_sent(&self, push: &Push) -> bool {
        let id = push.message_id.as_ref();
        id.is_some_and(|id| self.sent.contains(id))
    }

    /// Takes all that is held, to be sent.
    fn take(&mut self) -> Vec<Push> {
        self.bytes = 0;
        let pushes = std::mem::take(&mut self.pushes);
        self.sent
            .extend(pushes.iter().filter_map(|push| push.message_id.as_ref()));
        pushes
    }

    /// Whether catch-up is to send it; then it need not be held.
    fn claim(&mut self, id: &str) -> bool {
        if self.sent.contains(id) {
            return false;
        }
        self.caught_up = true;
        self.sent.extend([&id.into()]);
        let is_other = |push: &Push| push.message_id.as_deref() != Some(id);
        self.pushes.retain(is_other);
        self.bytes = self.pushes.iter().map(|push| push.frame.len()).sum();
        true
    }

    /// Makes room: the newest unread message is left to a later page.
    fn let_go(&mut self) -> bool {
        let is_unread = |push: &Push| push.kind == PushKind::Unread;
        let Some(newest) = self.pushes.iter().rposition(is_unread) else {
            return false;
        };
        self.bytes -= self.pushes.remove(newest).frame.len();
        self.missed = true;
        true
    }
}

/// Ids of messages that have been sent, in two generations, the newer first: the older one is
/// forgotten whole.
#[derive(Default)]
struct Sent([HashSet<Arc<str>>; 2]);

impl Sent {
    fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|ids| ids.contains(id))
    }

    fn extend<'a>(&mut self, ids: impl IntoIterator<Item = &'a Arc<str>>) {
        for id in ids {
            let [newer, older] = &mut self.0;
            if newer.len() >= REMEMBERED {
                *older = std::mem::take(newer);
            }
            newer.insert(Arc::clone(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn finished(gate: &DeliveryGate) -> (Vec<Push>, &'static str) {
        let mut pushes = Vec::new();
        loop {
            match gate.finish(true) {
                Finish::Pushes(more) => pushes.extend(more),
                Finish::Again => return (pushes, "again"),
                Finish::Settled => break,
            }
        }
        let state = match &*gate.hold.lock() {
            Some(hold) if hold.settling => "settling",
            Some(_) => "due",
            None => "live",
        };
        assert_eq!(gate.is_live(), state == "live");
        (pushes, state)
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
        assert_eq!(finished(&gate), (vec![unread("m4")], "settling"));
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Done);
        assert_eq!(gate.pass(&unread("m5")), GateDecision::Open);
        // Another catch-up brings nothing again that was sent by this one.
        gate.request();
        assert!(gate.take_request());
        assert!(!gate.claim("m3"));
        assert!(!gate.claim("m4"));
        assert_eq!(finished(&gate), (vec![], "settling"));
        // Where some of it has come, more may.
        assert!(gate.settle());
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Done);
        assert!(gate.settle());
        assert!(!gate.settle());
        assert_eq!(gate.pass(&unread("m3")), GateDecision::Open);
    }

    #[test]
    fn nothing_passes_before_the_client_is_told_that_all_unread_was_sent() {
        let gate = started(8);
        assert_eq!(gate.finish(false), Finish::Pushes(Vec::new()));
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Done);
        assert_eq!(gate.finish(false), Finish::Pushes(vec![unread("m1")]));
        assert_eq!(gate.pass(&unread("m2")), GateDecision::Done);
        assert_eq!(finished(&gate), (vec![unread("m2")], "live"));
    }

    fn is_open_to(gate: &DeliveryGate, ids: &[&str]) -> bool {
        let alice = || UserId::new("alice").unwrap();
        let batch: Vec<_> = ids.iter().map(|id| (alice(), unread(id))).collect();
        gate.is_open_to(&batch)
    }

    #[test]
    fn a_batch_goes_past_whole_unless_catch_up_may_have_sent_some_of_it() {
        let gate = started(8);
        let new = ["m2", "m3"];
        assert!(!is_open_to(&gate, &new), "it holds");
        assert!(gate.claim("m1"));
        assert!(!is_open_to(&gate, &new), "it holds");
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert!(is_open_to(&gate, &new));
        assert!(!is_open_to(&gate, &["m3", "m1"]));
        // However long ago, among those that are remembered.
        gate.request();
        assert!(gate.take_request());
        for number in 0..REMEMBERED {
            assert!(gate.claim(&format!("n{number}")));
        }
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert!(is_open_to(&gate, &new));
        assert!(!is_open_to(&gate, &["m1", "m2"]));
        assert!(!gate.settle());
        assert!(is_open_to(&gate, &["m1", "m2"]), "it is live");
    }

    /// What goes past then is remembered one by one, once it is queued.
    #[test]
    fn no_batch_goes_past_a_catch_up_that_is_not_through() {
        let gate = started(8);
        gate.give_up();
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert!(!is_open_to(&gate, &["m1", "m2"]));
        for id in ["m1", "m2", "m3"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Open);
        }
        gate.passed(&unread("m1"));
        assert_eq!(gate.fall_back(&unread("m2")), GateDecision::Done);
        // The third is on its way into the queue still: better twice than not at all.
        let claimed = ["m1", "m2", "m3"].map(|id| gate.claim(id));
        assert_eq!(claimed, [false, true, true]);
    }

    #[test]
    fn a_catch_up_that_sends_nothing_leaves_it_live_at_once_however_it_came_about() {
        let gate = DeliveryGate::new(8, 1 << 20);
        // The first one is through before the route is bound.
        assert_eq!(finished(&gate), (vec![], "due"));
        for request in [
            DeliveryGate::routed,
            DeliveryGate::request,
            DeliveryGate::routed,
        ] {
            request(&gate);
            assert!(!gate.is_live() && gate.take_request());
            assert_eq!(finished(&gate), (vec![], "live"));
        }
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
        assert_eq!(gate.finish(true), Finish::Again, "m5 and m6 were let go");
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
        assert_eq!(finished(&gate), (vec![unread("m2")], "settling"));
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
        assert_eq!(finished(&gate), (vec![unread("m1")], "live"));
        assert!(gate.is_live());
    }

    #[test]
    fn beyond_the_bounds_unread_messages_are_left_to_a_later_page() {
        let gate = started(4);
        for id in ["m1", "m2", "m3", "m4", "m5", "m6"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(gate.finish(true), Finish::Again);
        assert!(
            ["m1", "m2", "m3", "m5", "m6"]
                .iter()
                .all(|id| gate.claim(id))
        );
        assert_eq!(finished(&gate), (vec![unread("m4")], "settling"));
    }

    #[test]
    fn what_is_let_go_while_the_held_is_sent_is_neither_forgotten_nor_overtaken() {
        let gate = started(2);
        for id in ["m1", "m2"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(
            gate.finish(true),
            Finish::Pushes(vec![unread("m1"), unread("m2")])
        );
        for id in ["m3", "m4", "m5"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        assert_eq!(gate.finish(true), Finish::Again, "m5 was let go");
        assert_eq!(
            gate.pass(&unread("m6")),
            GateDecision::Done,
            "the hold is not over"
        );
        assert!(["m3", "m4", "m5", "m6"].iter().all(|id| gate.claim(id)));
        assert_eq!(gate.finish(true), Finish::Again, "m6 came after the page");
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m7")), GateDecision::Open);
    }

    #[test]
    fn an_own_copy_takes_the_place_of_an_unread_message() {
        let gate = started(2);
        let (copy, other) = (unread("c1").copy(true), unread("c2").copy(true));
        assert_eq!(gate.pass(&copy), GateDecision::Done);
        assert_eq!(gate.pass(&unread("m1")), GateDecision::Done);
        assert_eq!(gate.pass(&other), GateDecision::Done);
        assert_eq!(gate.finish(true), Finish::Again, "m1 was let go");
        // No unread message is left to make room: the copies need not wait for catch-up.
        let third = unread("c3").copy(true);
        assert_eq!(
            gate.pass(&unread("c3").copy(true)),
            GateDecision::Overflow(vec![copy, other, third])
        );
        assert_eq!(finished(&gate), (vec![], "live"));
    }

    #[test]
    fn own_copies_that_are_large_take_no_more_than_there_is() {
        let gate = DeliveryGate::new(256, 10_000);
        let copy = |number: usize| {
            let content = "x".repeat(3_000);
            let id = format!("c{number}");
            let message = Message {
                id,
                content,
                ..Message::default()
            };
            Push::message(&message, true)
        };
        for number in 0..30 {
            assert_eq!(
                gate.pass(&unread(&format!("m{number}"))),
                GateDecision::Done
            );
        }
        for number in 0..3 {
            assert_eq!(gate.pass(&copy(number)), GateDecision::Done);
            let bytes = gate.hold.lock().as_ref().map(|hold| hold.bytes);
            assert!(bytes.is_some_and(|bytes| bytes <= 10_000), "{bytes:?}");
        }
        let GateDecision::Overflow(copies) = gate.pass(&copy(3)) else {
            panic!("no unread message is left to make room");
        };
        assert!(copies.iter().all(|push| push.kind == PushKind::OwnCopy));
        assert_eq!(copies.len(), 4);
    }

    #[test]
    fn whoever_is_behind_falls_back_and_is_let_off_by_a_catch_up() {
        let gate = started(2);
        assert_eq!(finished(&gate), (vec![], "live"));
        assert!(!gate.fell_back());
        let copy = unread("c1").copy(true);
        assert_eq!(gate.fall_back(&unread("m1")), GateDecision::Done);
        assert_eq!(gate.fall_back(&copy), GateDecision::Done);
        assert_eq!(gate.fall_back(&unread("m2")), GateDecision::Done);
        assert!(gate.fell_back() && !gate.is_live());
        assert_eq!(finished(&gate), (vec![], "due"));
        assert!(gate.take_request());
        assert!(["m1", "m2"].iter().all(|id| gate.claim(id)));
        assert_eq!(gate.finish(true), Finish::Again, "m2 was let go");
        assert_eq!(finished(&gate), (vec![copy], "settling"));
        assert!(!gate.fell_back());
    }

    /// It was let through, but there was no room for it.
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

    /// Two consumers push at once to a queue that is full.
    #[test]
    fn nor_was_what_falls_back_behind_it() {
        let gate = started(8);
        assert!(gate.claim("m0"));
        assert_eq!(finished(&gate), (vec![], "settling"));
        let copy = unread("c1").copy(true);
        for push in [&unread("m1"), &unread("m2"), &copy] {
            assert_eq!(gate.pass(push), GateDecision::Open);
        }
        for push in [&unread("m1"), &unread("m2"), &copy] {
            assert_eq!(gate.fall_back(push), GateDecision::Done);
        }
        assert!(gate.take_request());
        assert!(gate.claim("m1") && gate.claim("m2"), "catch-up sends them");
        assert_eq!(finished(&gate), (vec![copy], "settling"));
    }

    #[test]
    fn pushes_go_past_a_catch_up_that_is_not_through_and_come_once() {
        let gate = started(2);
        for id in ["m1", "m2", "m3"] {
            assert_eq!(gate.pass(&unread(id)), GateDecision::Done);
        }
        gate.give_up();
        assert_eq!(
            gate.finish(true),
            Finish::Pushes(vec![unread("m1"), unread("m2")])
        );
        assert!(!gate.is_open(), "what was held comes first");
        gate.give_up();
        assert_eq!(finished(&gate), (vec![], "settling"));
        assert_eq!(gate.pass(&unread("m4")), GateDecision::Open);
        gate.passed(&unread("m4"));
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
