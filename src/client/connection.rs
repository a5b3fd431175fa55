//! One connection, as the rest of the gateway sees it: push to it, or close it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::close::CloseReason;
use super::frame::Frame;
use super::hold::{Hold, Passage};
use super::outbox::Outbox;
use super::protocol::{Push, PushKind, timestamp};
use crate::ids::{ConnectionId, UserId};

/// An authenticated connection. The registry holds it, its two threads serve it.
pub struct Connection {
    id: ConnectionId,
    user: UserId,
    /// The client's address, a trusted proxy's word for it included.
    peer: IpAddr,
    since: Instant,
    pub(super) outbox: Outbox,
    pub(super) hold: Hold,
    /// When the last frame came, in milliseconds after `since`.
    last_frame: AtomicU64,
    /// When the token expires, in Unix seconds; 0 means never.
    expires_at: AtomicI64,
    /// The reader thread has read all that it will.
    reader_done: AtomicBool,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        user: UserId,
        peer: IpAddr,
        expires_at: i64,
        outbox: Outbox,
        hold: Hold,
    ) -> Self {
        Self {
            id,
            user,
            peer,
            since: Instant::now(),
            outbox,
            hold,
            last_frame: AtomicU64::new(0),
            expires_at: AtomicI64::new(expires_at),
            reader_done: AtomicBool::new(false),
        }
    }

    pub fn id(&self) -> ConnectionId {
        self.id
    }

    pub fn user(&self) -> &UserId {
        &self.user
    }

    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    pub fn since(&self) -> Instant {
        self.since
    }

    /// Queues `push`, writes nothing, never blocks. Answers true for the first since the last
    /// flush: then the caller owes a [`Connection::flush`]. A chat message that finds no room closes
    /// the connection (4001); presence is left out from a half-full queue.
    #[must_use]
    pub fn push(&self, push: &Push) -> bool {
        match self.hold.pass(push) {
            Passage::Done => false,
            Passage::Overflow(frames) => {
                let mut owed = false;
                for frame in &frames {
                    owed |= self.outbox.push(frame);
                }
                owed
            }
            Passage::Open if push.kind() == PushKind::Presence && self.outbox.is_half_full() => {
                false
            }
            Passage::Open => self.outbox.push(push.frame()),
        }
    }

    /// As [`Connection::push`] for chat messages that come one behind the other, already joined to
    /// a `train`: it is queued whole, unless some of them may have to be held back.
    #[must_use]
    pub fn push_train(&self, train: &Frame, pushes: impl Iterator<Item = Push>) -> bool {
        if self.hold.is_live() {
            return self.outbox.push(train);
        }
        let mut owed = false;
        for push in pushes {
            owed |= self.push(&push);
        }
        owed
    }

    /// As [`Connection::push_train`] and [`Connection::flush`] in one, which is cheaper.
    pub fn push_train_and_flush(&self, train: &Frame, pushes: impl Iterator<Item = Push>) {
        if self.hold.is_live() {
            self.outbox.push_and_flush(train);
        } else if self.push_train(train, pushes) {
            self.flush();
        }
    }

    /// Writes what is queued, as far as the socket takes it without blocking.
    pub fn flush(&self) {
        self.outbox.flush();
    }

    /// What is published for the user may not come here: until the route is bound and what was
    /// missed is caught up, pushes wait, so that none comes before an earlier one.
    pub fn unrouted(&self) {
        self.hold.unrouted();
    }

    /// The user's route is bound: what was published before is to be pushed now, before anything
    /// new.
    pub fn routed(&self) {
        self.hold.routed();
        self.outbox.wake_writer();
    }

    /// Something may have been missed: what is unread is to be pushed again, before anything new.
    pub fn request_catch_up(&self) {
        self.hold.request();
        self.outbox.wake_writer();
    }

    /// Ends the connection; the first reason wins. The writer thread sends the Close frame.
    pub fn close(&self, reason: CloseReason) {
        self.outbox.close(reason);
    }

    /// Ends the connection at once, without a Close frame.
    pub fn cut(&self, reason: CloseReason) {
        self.outbox.close(reason);
        self.outbox.cut();
    }

    pub fn is_closing(&self) -> bool {
        self.outbox.closing().is_some()
    }

    /// Notes that a frame came.
    pub(super) fn heard(&self) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_frame.store(elapsed, Ordering::Relaxed);
    }

    /// When the last frame came.
    pub fn last_heard(&self) -> Instant {
        self.since + Duration::from_millis(self.last_frame.load(Ordering::Relaxed))
    }

    /// In Unix seconds; 0 means never.
    pub(super) fn expires_at(&self) -> i64 {
        self.expires_at.load(Ordering::SeqCst)
    }

    pub(super) fn extend(&self, expires_at: i64) {
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

/// How many seconds are left until `expires_at`, in Unix seconds; `None` when it is 0: for ever.
pub(super) fn seconds_left(expires_at: i64) -> Option<u64> {
    (expires_at != 0).then(|| u64::try_from(expires_at - timestamp()).unwrap_or(0))
}
