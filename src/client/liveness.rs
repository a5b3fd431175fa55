//! Whether a connection's client is there, and takes what it is sent: what the writer thread goes by
//! when it ends a connection as idle, as stuck or as slow.
//!
//! A client is *idle* when a ping that reached its host has stayed unanswered for `idle_timeout`, and
//! nothing that it sent waits to be read; or when its host has acknowledged nothing for so long. So a
//! ping that waits behind a page of catch-up judges nobody, and neither does a gateway that stood
//! still itself: whoever is overdue is looked at once more.
//!
//! A client that waits for the socket to take more is measured by what its host acknowledges, in
//! steps of [`STEP`]. It may be silent for long and still be read: a host whose buffer is full says
//! nothing before a good part of it is empty again (RFC 9293, 3.8.6.2.2).

use std::time::{Duration, Instant};

use super::close::CloseReason;
use super::outbox::Progress;

/// What a client that is behind is to take within [`STEP_TIMEOUTS`] write timeouts, in bytes.
const STEP: u64 = 64 << 10;
/// With the default of 10 s, a minute.
const STEP_TIMEOUTS: u32 = 6;
/// How long before an overdue client is looked at once more.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How often a client is looked at whose ping has not reached it.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// When the writer thread is to look again, if at all; or why the connection is to end.
pub(super) type Next = Result<Option<Instant>, CloseReason>;

/// What the writer thread sees of its client.
pub(super) struct Seen {
    /// When it looked.
    pub at: Instant,
    /// When the last frame came.
    pub heard: Instant,
    pub progress: Progress,
    /// Frames wait for the socket to take more.
    pub is_waiting: bool,
    /// It fell back to its inbox, and has not caught up.
    pub is_behind: bool,
}

/// What is known of one client.
pub(super) struct Liveness {
    idle_timeout: Duration,
    write_timeout: Duration,
    /// The oldest ping that is not answered.
    ping: Option<Ping>,
    /// It was idle at the last look.
    overdue: bool,
    /// What its host had acknowledged when that last changed.
    taken: u64,
    taken_at: Instant,
    /// What it had when the present step began: when it began to wait, or had taken another one.
    step: u64,
    step_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    sent_at: Instant,
    /// The client's host has it once it has acknowledged so many bytes.
    position: u64,
    reached_at: Option<Instant>,
}

impl Liveness {
    pub fn new(idle_timeout: Duration, write_timeout: Duration, now: Instant) -> Self {
        Self {
            idle_timeout,
            write_timeout,
            ping: None,
            overdue: false,
            taken: 0,
            taken_at: now,
            step: 0,
            step_at: now,
        }
    }

    /// Sends a ping by `send`, unless one is still on its way: another one would tell nothing. It ends
    /// at the position, in what the client is sent, that `send` answers. `seen` is from before: with
    /// nothing in its way a ping needs no look at whether it has arrived.
    pub fn ping(&mut self, seen: &Seen, send: impl FnOnce() -> u64) {
        if self.ping.is_some_and(|ping| ping.reached_at.is_none()) {
            return;
        }
        let position = send();
        let is_clear = !seen.is_waiting && seen.progress.in_flight == 0;
        self.ping.get_or_insert(Ping {
            sent_at: seen.at,
            position,
            reached_at: is_clear.then_some(seen.at),
        });
    }

    /// Why the connection is to end, or when to look again, if at all before the next ping.
    /// `has_input` is asked only of whoever would be idle.
    pub fn judge(&mut self, seen: &Seen, has_input: impl FnOnce() -> bool) -> Next {
        self.judge_pace(seen)?;
        let now = seen.at;
        let was_overdue = std::mem::take(&mut self.overdue);
        self.ping.take_if(|ping| seen.heard >= ping.sent_at);
        let Some(ping) = &mut self.ping else {
            return Ok(None);
        };
        if ping.reached_at.is_none() && seen.progress.taken >= ping.position {
            ping.reached_at = Some(now);
        }
        let since = ping.reached_at.unwrap_or(self.taken_at.max(ping.sent_at));
        let idle_at = since + self.idle_timeout;
        if now < idle_at {
            let look_at = ping.reached_at.map_or(now + POLL_INTERVAL, |_| idle_at);
            return Ok(Some(look_at.min(idle_at)));
        }
        self.overdue = !has_input();
        if self.overdue && was_overdue {
            return Err(CloseReason::Idle);
        }
        Ok(Some(now + RECHECK_INTERVAL))
    }

    fn judge_pace(&mut self, seen: &Seen) -> Result<(), CloseReason> {
        let (now, taken) = (seen.at, seen.progress.taken);
        if taken > self.taken {
            (self.taken, self.taken_at) = (taken, now);
        }
        let is_owed = seen.is_waiting || seen.is_behind && seen.progress.in_flight > 0;
        if !is_owed || taken >= self.step + STEP {
            (self.step, self.step_at) = (taken, now);
        }
        let is_slow = now >= self.step_at + self.write_timeout * STEP_TIMEOUTS;
        let is_stuck = now >= self.taken_at.max(self.step_at) + self.write_timeout;
        match (is_slow, is_stuck) {
            (true, true) => Err(CloseReason::WriteTimeout),
            (true, false) if seen.is_behind => Err(CloseReason::SlowConsumer),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);
    const STUCK: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    /// A client, and a clock that is put forward by hand.
    struct Client {
        liveness: Liveness,
        now: Instant,
        seen: Seen,
        has_input: bool,
    }

    impl Client {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                liveness: Liveness::new(IDLE, STUCK, now),
                now,
                seen: Seen {
                    at: now,
                    heard: now,
                    progress: Progress {
                        taken: 1_000,
                        in_flight: 0,
                    },
                    is_waiting: false,
                    is_behind: false,
                },
                has_input: false,
            }
        }

        fn judge(&mut self) -> Result<Option<Instant>, CloseReason> {
            self.seen.at = self.now;
            self.liveness.judge(&self.seen, || self.has_input)
        }

        fn after(&mut self, wait: Duration) -> Result<(), CloseReason> {
            self.now += wait;
            self.judge().map(drop)
        }

        /// Looks when the writer thread would, until `end`, and calls `meanwhile` before each look.
        fn run(
            &mut self,
            end: Instant,
            mut meanwhile: impl FnMut(&mut Self),
        ) -> Result<(), CloseReason> {
            while self.now < end {
                let next = self.judge()?.unwrap_or(end).min(self.now + SECOND);
                self.now = next.max(self.now + Duration::from_millis(1));
                meanwhile(self);
            }
            Ok(())
        }

        /// Answers whether it was sent.
        fn ping(&mut self) -> bool {
            self.now += Duration::from_millis(1);
            let progress = self.seen.progress;
            let position = progress.taken + progress.in_flight + 2;
            self.seen.at = self.now;
            let mut is_sent = false;
            self.liveness.ping(&self.seen, || {
                is_sent = true;
                position
            });
            is_sent
        }
    }

    #[test]
    fn a_ping_that_is_not_answered_is_idle_after_a_second_look() {
        let mut client = Client::new();
        assert_eq!(client.after(IDLE * 10), Ok(()), "nobody asked");
        client.ping();
        client.seen.progress.taken += 2;
        assert_eq!(client.after(IDLE - SECOND), Ok(()));
        assert_eq!(client.after(SECOND), Ok(()), "once more");
        assert_eq!(client.after(RECHECK_INTERVAL), Err(CloseReason::Idle));
    }

    #[test]
    fn an_answer_counts_as_does_any_frame() {
        let mut client = Client::new();
        client.ping();
        client.seen.heard = client.now;
        assert_eq!(client.after(IDLE * 2), Ok(()));
        client.ping();
        client.ping();
        assert_eq!(client.after(IDLE - SECOND), Ok(()));
        client.seen.heard = client.now;
        assert_eq!(client.after(IDLE * 2), Ok(()));
    }

    /// The whole process was stopped: answers wait in the sockets, or come a moment later.
    #[test]
    fn a_gateway_that_stood_still_blames_nobody() {
        let mut client = Client::new();
        client.ping();
        client.has_input = true;
        for _ in 0..10 {
            assert_eq!(client.after(IDLE * 100), Ok(()));
        }
        client.has_input = false;
        assert_eq!(client.after(IDLE), Ok(()));
        client.seen.heard = client.now;
        assert_eq!(client.after(IDLE), Ok(()));
    }

    #[test]
    fn a_ping_behind_a_page_judges_nobody_before_it_has_arrived() {
        let mut client = Client::new();
        client.seen.progress.in_flight = 4 << 20;
        assert!(client.ping());
        assert!(!client.ping(), "one is on its way");
        let end = client.now + IDLE * 6;
        let slowly = |client: &mut Client| {
            let progress = &mut client.seen.progress;
            (progress.taken, progress.in_flight) =
                (progress.taken + 10_000, progress.in_flight - 10_000);
        };
        assert_eq!(client.run(end, slowly), Ok(()));
        let arrives = client.now;
        client.seen.progress = Progress {
            taken: client.seen.progress.taken + (4 << 20),
            in_flight: 0,
        };
        assert_eq!(client.run(arrives + IDLE, |_| {}), Ok(()));
        assert!(client.ping(), "none is");
        assert_eq!(
            client.run(arrives + IDLE + SECOND, |_| {}),
            Err(CloseReason::Idle)
        );
    }

    #[test]
    fn a_host_that_acknowledges_nothing_is_gone() {
        let mut client = Client::new();
        client.seen.progress.in_flight = 100;
        let start = client.now;
        client.ping();
        assert_eq!(client.run(start + IDLE, |_| {}), Ok(()));
        assert_eq!(
            client.run(start + IDLE + SECOND, |_| {}),
            Err(CloseReason::Idle)
        );
    }

    /// At ten thousand bytes a second, in steps of more than the write timeout.
    #[test]
    fn whoever_takes_64_kib_a_minute_is_not_closed() {
        let mut client = Client::new();
        (client.seen.is_waiting, client.seen.is_behind) = (true, true);
        client.seen.progress.in_flight = 1 << 20;
        for _ in 0..100 {
            let end = client.now + Duration::from_secs(58);
            assert_eq!(client.run(end, |_| {}), Ok(()));
            client.seen.progress.taken += STEP;
        }
    }

    #[test]
    fn whoever_is_behind_and_takes_less_is_slow() {
        let mut client = Client::new();
        (client.seen.is_waiting, client.seen.is_behind) = (true, true);
        client.judge().unwrap();
        let start = client.now;
        let drips = |client: &mut Client| client.seen.progress.taken += 1_000;
        assert_eq!(client.run(start + SECOND * 59, drips), Ok(()));
        assert_eq!(
            client.run(start + SECOND * 62, drips),
            Err(CloseReason::SlowConsumer)
        );
    }

    #[test]
    fn whoever_is_not_behind_may_be_slow_but_not_stuck() {
        let mut client = Client::new();
        client.seen.is_waiting = true;
        let start = client.now;
        let drips = |client: &mut Client| client.seen.progress.taken += 100;
        assert_eq!(client.run(start + IDLE * 3, drips), Ok(()));
        let stopped = client.now;
        assert_eq!(client.run(stopped + STUCK - SECOND, |_| {}), Ok(()));
        assert_eq!(
            client.run(stopped + STUCK + SECOND, |_| {}),
            Err(CloseReason::WriteTimeout)
        );
    }

    #[test]
    fn whoever_has_all_is_not_measured() {
        let mut client = Client::new();
        client.seen.is_behind = true;
        for _ in 0..100 {
            assert_eq!(client.after(STUCK * 10), Ok(()));
        }
        client.seen.is_waiting = true;
        assert_eq!(client.judge(), Ok(None));
        assert_eq!(client.after(STUCK), Ok(()), "from when it waits");
    }
}
