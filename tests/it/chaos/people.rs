//! The users: who has which devices, who writes to whom, and what they all share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Seat;
use super::history::{Clock, Draft, Moment, Span, To};
use super::office::Office;
use super::series::{ClientFault, Share};

/// What all do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// They write.
    Talk,
    /// They finish what they have begun.
    Listen,
    /// They go, but for those who watch.
    Leave,
    /// Those go, too.
    Over,
}

pub struct People {
    pub clock: Clock,
    /// The address and path of each gateway.
    pub entrances: Vec<(SocketAddr, String)>,
    pub office: Office,
    pub seats: Vec<Arc<Seat>>,
    /// What is done to each device, and until when.
    ailments: Vec<Mutex<Option<(ClientFault, Moment)>>>,
    phase: AtomicU8,
    /// What has been committed and has not reached all whom it must.
    open: Mutex<Vec<Commit>>,
}

/// A message whose sender has had `message_sent`.
#[derive(Debug, Clone)]
pub struct Commit {
    pub id: String,
    pub from: String,
    pub draft: Draft,
    /// From when it was first sent to the answer.
    pub within: Span,
}

/// The users' names, and of each its number.
pub fn user_name(number: usize) -> String {
    format!("u{number:03}")
}

/// So many devices: two users of three have one, the others two, which acknowledge what both have with
/// every second of these, and with the others what they have themselves.
pub fn seats(devices: usize) -> Vec<Arc<Seat>> {
    let mut seats = Vec::new();
    for user in 0.. {
        let count = if user % 3 == 2 { 2 } else { 1 };
        for device in 0..count {
            if seats.len() == devices {
                return seats;
            }
            seats.push(Arc::new(Seat {
                number: seats.len(),
                name: format!("{}/{device}", user_name(user)),
                user: user_name(user),
                waits_for_others: user % 6 == 2,
                brief: user % 5 == 2 && user % WATCHERS != 0,
                writes: device == 0,
                watches: user % WATCHERS == 0,
                seen: Mutex::default(),
                presence: Mutex::default(),
                settled: false.into(),
            }));
        }
    }
    unreachable!("there is no last user")
}

/// One user of so many watches the others go.
const WATCHERS: usize = 12;

impl People {
    pub fn new(
        entrances: Vec<(SocketAddr, String)>,
        office: Office,
        seats: Vec<Arc<Seat>>,
        clock: Clock,
    ) -> Self {
        let ailments = seats.iter().map(|_| Mutex::default()).collect();
        Self {
            clock,
            entrances,
            office,
            seats,
            ailments,
            phase: AtomicU8::new(Phase::Talk as u8),
            open: Mutex::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        const PHASES: [Phase; 4] = [Phase::Talk, Phase::Listen, Phase::Leave, Phase::Over];
        PHASES[usize::from(self.phase.load(Ordering::SeqCst))]
    }

    pub fn go_on_to(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Whom the user writes to, who are also those who write to the user.
    pub fn contacts(&self, user: &str) -> Vec<String> {
        let users = self.office.users();
        let number = users.iter().position(|one| one == user).expect("a user");
        let around = [1, 2, 3]
            .into_iter()
            .flat_map(|step| [step, users.len() - step]);
        around
            .map(|step| users[(number + step) % users.len()].clone())
            .collect()
    }

    /// Does something to a share of the clients.
    pub fn afflict(&self, fault: ClientFault, share: Share, until: Moment) {
        for (number, ailment) in self.ailments.iter().enumerate() {
            if share.has(number) {
                *lock(ailment) = Some((fault, until));
            }
        }
    }

    pub fn ailment(&self, device: usize) -> Option<(ClientFault, Moment)> {
        *lock(&self.ailments[device])
    }

    pub fn recovers(&self, device: usize) {
        *lock(&self.ailments[device]) = None;
    }

    /// Whether a device acknowledges a message that it has.
    pub fn may_acknowledge(&self, seat: &Seat, id: &str) -> bool {
        let mut others = self.devices_of(&seat.user);
        !seat.waits_for_others || others.all(|other| lock(&other.seen).contains(id))
    }

    fn devices_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a Arc<Seat>> {
        self.seats.iter().filter(move |seat| seat.user == user)
    }

    pub fn committed(&self, commit: Commit) {
        lock(&self.open).push(commit);
    }

    /// How many messages have not reached all whom they must.
    pub fn outstanding(&self) -> usize {
        let mut open = lock(&self.open);
        open.retain(|commit| !self.has_arrived(commit));
        open.len()
    }

    fn has_arrived(&self, commit: &Commit) -> bool {
        let recipients = match &commit.draft.to {
            To::User(user) => vec![user.clone()],
            To::Group(group) => self.office.members_throughout(group, commit.within),
        };
        let has = |seat: &Arc<Seat>| lock(&seat.seen).contains(&commit.id);
        recipients
            .iter()
            .filter(|user| **user != commit.from)
            .all(|user| {
                let mut devices = self.devices_of(user).peekable();
                let each = devices.peek().is_some_and(|seat| seat.waits_for_others);
                if each {
                    devices.all(has)
                } else {
                    devices.any(has)
                }
            })
    }
}

pub fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked is found out by its thread's end.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
