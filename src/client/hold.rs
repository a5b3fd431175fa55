//! Pushes that arrive while catch-up is under way wait here, so that unread messages come first, in
//! order, and a message that is in both is sent once.
//!
//! A connection is *holding* from its registration until its catch-up is through, and again
//! whenever another catch-up runs. Then it is *settling*: what was sent is still remembered, since
//! the live push of a message that catch-up brought may be on its way. Then it is *live*.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::frame::Frame;
use super::protocol::{Push, PushKind};

/// How many ids are remembered. Older ones were published long ago.
const REMEMBERED: usize = 1_024;

/// What is to become of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Into the queue.
    Open,
    /// Nothing more is to be done: it is held, has been sent, or is left to a later page.
    Done,
    /// It must not be lost, and there is no room for it.
    NoRoom,
}

/// The gate before one connection's queue.
pub struct Hold {
    state: Mutex<State>,
    max_frames: usize,
    max_bytes: usize,
}

enum State {
    Holding(Box<Held>),
    Settling(Box<HashSet<Arc<str>>>),
    Live,
}

#[derive(Default)]
struct Held {
    pushes: VecDeque<Push>,
    bytes: usize,
    /// An unread message was let go: catch-up has to look again.
    missed: bool,
    /// The ids of messages that have been sent.
    sent: HashSet<Arc<str>>,
}

impl Hold {
    /// Starts out holding, up to the bounds of the queue.
    pub fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State::Holding(Box::default())),
            max_frames,
            max_bytes,
        }
    }

    /// Decides on one push.
    pub fn pass(&self, push: &Push) -> Passage {
        match &mut *self.state.lock() {
            State::Live => Passage::Open,
            State::Settling(sent) => match push.message_id() {
                Some(id) if sent.contains(id) => Passage::Done,
                Some(id) => {
                    remember(sent, id.clone());
                    Passage::Open
                }
                None => Passage::Open,
            },
            State::Holding(held) => self.hold(held, push),
        }
    }

    fn hold(&self, held: &mut Held, push: &Push) -> Passage {
        if push.message_id().is_some_and(|id| held.sent.contains(id)) {
            return Passage::Done;
        }
        let bytes = held.bytes + push.frame().len();
        let full = held.pushes.len() >= self.max_frames
            || (bytes > self.max_bytes && !held.pushes.is_empty());
        let half_full = held.pushes.len() * 2 >= self.max_frames || bytes * 2 >= self.max_bytes;
        match push.kind() {
            PushKind::Presence if half_full => return Passage::Done,
            PushKind::Unread if full => {
                held.missed = true;
                return Passage::Done;
            }
            PushKind::OwnCopy if full && !held.let_go() => return Passage::NoRoom,
            _ => {}
        }
        held.bytes += push.frame().len();
        held.pushes.push_back(push.clone());
        Passage::Done
    }

    /// Catch-up begins: from now on pushes wait.
    pub fn begin(&self) {
        let mut state = self.state.lock();
        let sent = match &mut *state {
            State::Holding(_) => return,
            State::Settling(sent) => std::mem::take(&mut **sent),
            State::Live => HashSet::new(),
        };
        *state = State::Holding(Box::new(Held {
            sent,
            ..Held::default()
        }));
    }

    /// Whether catch-up is to send the message `id` now. Answers true once for each id.
    pub fn claim(&self, id: &str) -> bool {
        let mut state = self.state.lock();
        let State::Holding(held) = &mut *state else {
            return true;
        };
        if held.sent.contains(id) {
            return false;
        }
        remember(&mut held.sent, id.into());
        let Held { pushes, bytes, .. } = &mut **held;
        pushes.retain(|push| {
            let same = push.message_id().is_some_and(|held| &**held == id);
            *bytes -= if same { push.frame().len() } else { 0 };
            !same
        });
        true
    }

    /// Whether an unread message was let go since the last call.
    pub fn has_missed(&self) -> bool {
        match &mut *self.state.lock() {
            State::Holding(held) => std::mem::take(&mut held.missed),
            _ => false,
        }
    }

    /// What is held and is to be sent now; empty when nothing is, and then the hold is over.
    /// Call it until it is.
    pub fn release(&self) -> Vec<Frame> {
        let mut state = self.state.lock();
        let State::Holding(held) = &mut *state else {
            return Vec::new();
        };
        if held.pushes.is_empty() {
            *state = State::Settling(Box::new(std::mem::take(&mut held.sent)));
            return Vec::new();
        }
        held.bytes = 0;
        let pushes = std::mem::take(&mut held.pushes);
        for push in &pushes {
            if let Some(id) = push.message_id() {
                remember(&mut held.sent, id.clone());
            }
        }
        pushes.iter().map(|push| push.frame().clone()).collect()
    }

    /// What was sent need not be remembered any longer.
    pub fn settle(&self) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Settling(_)) {
            *state = State::Live;
        }
    }
}

impl Held {
    /// Makes room: the newest unread message is left to a later page.
    fn let_go(&mut self) -> bool {
        let newest = self
            .pushes
            .iter()
            .rposition(|push| push.kind() == PushKind::Unread);
        let Some(push) = newest.and_then(|index| self.pushes.remove(index)) else {
            return false;
        };
        self.bytes -= push.frame().len();
        self.missed = true;
        true
    }
}

fn remember(sent: &mut HashSet<Arc<str>>, id: Arc<str>) {
    if sent.len() >= REMEMBERED {
        sent.clear();
    }
    sent.insert(id);
}
