//! One connection, as the rest of the gateway sees it: push to it, or close it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::address::Peer;
use super::close::CloseReason;
use super::frame::Frame;
use super::gate::{DeliveryGate, GateDecision};
use super::handshake::Accepted;
use super::outbox::Outbox;
use super::protocol::{Push, PushKind};
use crate::ids::{ConnectionId, UserId};

/// An authenticated connection. The registry holds it, its two threads serve it. Its order is that
/// of C, with what each push touches in front.
#[repr(C)]
pub struct Connection {
    pub(super) gate: DeliveryGate,
    pub outbox: Outbox,
    user: UserId,
    pub id: ConnectionId,
    pub peer: Peer,
    /// When it was upgraded.
    pub since: Instant,
    pub activity: Mutex<Activity>,
    /// It is shown nowhere.
    token: Mutex<Box<str>>,
    /// The token may have been revoked since it was validated.
    token_doubted: AtomicBool,
    /// When the token expires, in Unix seconds; 0 means never.
    expires_at: AtomicI64,
    /// The reader thread has read all that it will.
    reader_done: AtomicBool,
}

/// What a connection's two threads note of its client.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activity {
    /// When the last frame came, if one has.
    pub last_frame: Option<Instant>,
    /// Bytes that came.
    pub received: u64,
    /// When the ping was sent that is not answered.
    pub(super) pinged_at: Option<Instant>,
    /// How long the last ping took that was.
    pub round_trip: Option<Duration>,
}

/// Chat messages that come one behind the other, joined once for all of their recipients.
pub struct Batch {
    /// Each with its sender, to whose own devices it is a copy.
    messages: Vec<(UserId, Push)>,
    frame: Frame,
}

impl Batch {
    pub fn of(messages: Vec<(UserId, Push)>) -> Self {
        let frame = Frame::batch(messages.iter().map(|(_, push)| &push.frame));
        Self { messages, frame }
    }
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        accepted: &Accepted,
        peer: Peer,
        outbox: Outbox,
        gate: DeliveryGate,
    ) -> Self {
        Self {
            id,
            user: accepted.identity.user.clone(),
            peer,
            since: Instant::now(),
            activity: Mutex::default(),
            outbox,
            gate,
            token: Mutex::new(accepted.token.as_str().into()),
            token_doubted: AtomicBool::new(false),
            expires_at: AtomicI64::new(accepted.identity.expires_at),
            reader_done: AtomicBool::new(false),
        }
    }

    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Queues `push`; an [`Outbox::flush`] is to follow. Never blocks. A chat message that finds no
    /// room makes the connection fall back to its inbox; presence is left out from a half-full queue.
    /// Answers how many frames are queued.
    pub fn push(&self, push: &Push) -> usize {
        let is_presence = push.kind == PushKind::Presence;
        let decision = match self.gate.pass(push) {
            GateDecision::Open if is_presence && self.outbox.is_half_full() => return 0,
            GateDecision::Open if self.outbox.push(&push.frame) => {
                self.gate.passed(push);
                return 1;
            }
            GateDecision::Open if is_presence => return 0,
            // Nobody waits for a client: what is unread comes with catch-up, at the client's pace.
            GateDecision::Open => {
                let decision = self.gate.fall_back(push);
                self.outbox.wake_writer();
                decision
            }
            decision => decision,
        };
        if let GateDecision::Overflow(own_copies) = decision {
            // No catch-up brings them again: who has no room for them gets them from the history.
            if own_copies.iter().all(|copy| self.outbox.push(&copy.frame)) {
                return own_copies.len();
            }
            self.close(CloseReason::SlowConsumer);
        }
        0
    }

    /// As [`Connection::push`] for each of a batch, which `queue` takes whole unless some may have to
    /// be held back, or it is longer than what may wait.
    pub fn push_batch(&self, batch: &Batch, queue: impl Fn(&Outbox, &Frame) -> bool) -> usize {
        let may_pass = self.gate.is_open_to(&batch.messages) && self.outbox.may_hold(&batch.frame);
        if may_pass && queue(&self.outbox, &batch.frame) {
            return batch.frame.count();
        }
        let copy = |(sender, push): &(_, Push)| push.copy(self.user == *sender);
        batch.messages.iter().map(|one| self.push(&copy(one))).sum()
    }

    /// What is published for the user may not come here: until the route is bound and what was
    /// missed is caught up, pushes wait, so that none comes before an earlier one.
    pub fn unrouted(&self) {
        self.gate.unrouted();
    }

    /// The user's route is bound: what was published before is to be pushed now, before anything
    /// new; and the token may have been revoked before.
    pub fn routed(&self) {
        self.token_doubted.store(true, Ordering::SeqCst);
        self.gate.routed();
        self.outbox.wake_writer();
    }

    /// Something may have been missed: what is unread is to be pushed again, before anything new.
    pub fn request_catch_up(&self) {
        self.gate.request();
        self.outbox.wake_writer();
    }

    /// Ends the connection; the first reason wins. The writer thread sends the Close frame.
    pub fn close(&self, reason: CloseReason) {
        self.outbox.close(reason);
    }

    pub fn is_closing(&self) -> bool {
        self.outbox.closing().is_some()
    }

    /// In Unix seconds; 0 means never.
    pub(super) fn expires_at(&self) -> i64 {
        self.expires_at.load(Ordering::SeqCst)
    }

    pub(super) fn token(&self) -> Box<str> {
        self.token.lock().clone()
    }

    /// Whether the token was in doubt, which it is no longer.
    pub(super) fn take_token_doubt(&self) -> bool {
        self.token_doubted.swap(false, Ordering::SeqCst)
    }

    /// The client has sent another token, which is valid and expires then.
    pub(super) fn refresh(&self, token: &str, expires_at: i64) {
        *self.token.lock() = token.into();
        self.expires_at.store(expires_at, Ordering::SeqCst);
        self.outbox.wake_writer();
    }

    pub(super) fn set_reader_done(&self) {
        self.reader_done.store(true, Ordering::SeqCst);
        self.outbox.wake_writer();
    }

    pub(super) fn is_reader_done(&self) -> bool {
        self.reader_done.load(Ordering::SeqCst)
    }
}

/// As log lines name it.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user={}, conn_id={}", self.user, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fixture::Client;
    use crate::registry::Registry;
    use crate::services::proto::Message;

    #[test]
    fn a_batch_longer_than_what_may_wait_is_no_way_round_the_bound() {
        let bob = Client::join(&Registry::default(), "bob");
        let alice = UserId::new("alice").unwrap();
        let large = |number| {
            let message = Message {
                id: format!("m{number}"),
                content: "x".repeat(8 << 20),
                ..Message::default()
            };
            (alice.clone(), Push::message(&message, false))
        };
        let batch = Batch::of((0..4).map(large).collect());
        bob.connection.push_batch(&batch, Outbox::push_and_flush);
        assert!(bob.connection.gate.fell_back());
        let (frames, _) = bob.connection.outbox.queued();
        assert_eq!(frames, 1, "one is longer than what may wait by itself");
    }
}
