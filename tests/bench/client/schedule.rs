//! The open loop: requests are due at a fixed rate, and each client sends its own at their times,
//! whatever has been answered. An answer's latency counts from when its request was due, so that a
//! server that is behind does not put off what it is asked next.

use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde_json::{Value, json};

use super::Count;
use super::connection::{Connection, Phase};
use super::exchange::{PATIENCE_NS, message};
use crate::clock::{self, Stamps, percentile};

/// From the command to the first request.
const HEAD_START_NS: u64 = 10_000_000;

pub struct Schedule {
    clients: usize,
    /// When the first request is due.
    start: u64,
    /// Between two requests, whoever sends them.
    every_ns: u64,
    /// How many are sent, if all clients stay.
    count: u64,
    /// How many were due so far.
    begun: u64,
    asked: u64,
    sent: u64,
    errors: u64,
    /// Connections that ended.
    closed: u64,
    answered_at: u64,
    /// Microseconds.
    latencies: Vec<u32>,
    /// Finds in an answer when its request was due.
    due: Stamps,
    /// Ready when a request is due; leaves the epoll when it is dropped.
    timer: OwnedFd,
}

impl Schedule {
    /// `rate` requests a second from all `clients` together, for `seconds`. `epoll` says `timer`
    /// when [`proceed`](Self::proceed) has something to do.
    pub fn new(clients: usize, seconds: u64, rate: u64, epoll: &OwnedFd, timer: u64) -> Self {
        let every_ns = 1_000_000_000 / rate;
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .expect("a timer");
        let start = clock::now() + HEAD_START_NS;
        let times = Itimerspec {
            it_interval: timespec(every_ns),
            it_value: timespec(start),
        };
        timerfd_settime(&fd, TimerfdTimerFlags::ABSTIME, &times).expect("a timer");
        epoll::add(epoll, &fd, EventData::new_u64(timer), EventFlags::IN).expect("an event");
        Self {
            clients,
            start,
            every_ns,
            count: seconds * rate,
            begun: 0,
            asked: 0,
            sent: 0,
            errors: 0,
            closed: 0,
            answered_at: start,
            latencies: Vec::new(),
            due: Stamps::of_requests(),
            timer: fd,
        }
    }

    /// Sends what is due; the rest of the loop must see to the answers in between.
    pub fn proceed(&mut self, connections: &mut [Connection]) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let now = clock::now();
        while self.begun < self.count {
            let due = self.start + self.begun * self.every_ns;
            if due > now {
                return;
            }
            let number = (self.begun % self.clients as u64) as usize;
            self.begun += 1;
            let connection = &mut connections[number];
            if connection.phase == Phase::Open {
                self.asked += 1;
                connection.send(message(number, self.clients, &clock::stamp(due)).as_bytes());
            }
        }
        // It has nothing to say any more.
        let never = Itimerspec {
            it_interval: timespec(0),
            it_value: timespec(0),
        };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &never);
    }

    pub fn answered(&mut self, answer: &[u8], failed: bool) {
        let now = clock::now();
        let Some(due) = self.due.read(answer) else {
            return;
        };
        self.errors += u64::from(failed);
        self.sent += u64::from(!failed);
        self.answered_at = now;
        let micros = now.saturating_sub(due) / 1_000;
        self.latencies
            .push(u32::try_from(micros).unwrap_or(u32::MAX));
    }

    pub fn closed(&mut self) {
        self.closed += 1;
    }

    /// The answer, once each message has come to its sender and its recipient.
    pub fn check(&mut self, count: &Count, now: u64) -> Option<Value> {
        let expected = 2 * self.sent;
        let answered = self.sent + self.errors;
        let drained =
            self.begun == self.count && answered == self.asked && count.pushes >= expected;
        if !drained && now < self.answered_at.max(count.last) + PATIENCE_NS {
            return None;
        }
        self.latencies.sort_unstable();
        Some(json!({
            "sent": self.sent,
            "errors": self.errors,
            "unanswered": self.count - answered,
            "closed": self.closed,
            "seconds": Duration::from_nanos(self.answered_at - self.start).as_secs_f64(),
            "lost": expected.saturating_sub(count.pushes),
            "p50_us": percentile(&self.latencies, 0.5),
            "p99_us": percentile(&self.latencies, 0.99),
        }))
    }
}

fn timespec(nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}
