//! The rate limit of one connection: a token bucket, and an end to those who ignore it.

use std::time::{Duration, Instant};

use super::close::CloseReason;

/// So many refusals within [`REFUSAL_WINDOW`] close the connection (4006).
const MAX_REFUSALS: usize = 100;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);

/// Requests, or pings, per second on average, and how many may come at once: each puts off by its
/// share of a second when all are paid for, and no more than `burst` shares may be owed.
pub(super) struct RateLimit {
    share: Duration,
    burst: Duration,
    paid_at: Instant,
    /// Those within the window.
    refusals: Vec<Instant>,
}

impl RateLimit {
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let share = Duration::from_secs(1) / rate;
        Self {
            share,
            burst: share * burst,
            paid_at: now,
            refusals: Vec::new(),
        }
    }

    /// Whether a request that comes at `now` is let pass; ends the connection when one too many is not.
    pub fn allows(&mut self, now: Instant) -> Result<bool, CloseReason> {
        let paid_at = self.paid_at.max(now) + self.share;
        if paid_at <= now + self.burst {
            self.paid_at = paid_at;
            return Ok(true);
        }
        self.refusals.retain(|at| now - *at <= REFUSAL_WINDOW);
        self.refusals.push(now);
        if self.refusals.len() >= MAX_REFUSALS {
            return Err(CloseReason::RateExceeded);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 3, start);
        for _ in 0..3 {
            assert_eq!(limit.allows(start), Ok(true));
        }
        assert_eq!(limit.allows(start), Ok(false));
        let later = start + Duration::from_millis(100);
        assert_eq!(limit.allows(later), Ok(true));
        assert_eq!(limit.allows(later), Ok(false));
    }

    #[test]
    fn the_100th_refusal_within_10_seconds_closes() {
        let start = Instant::now();
        let mut limit = RateLimit::new(1, 1, start);
        assert_eq!(limit.allows(start), Ok(true));
        for _ in 0..99 {
            assert_eq!(limit.allows(start), Ok(false));
        }
        assert_eq!(limit.allows(start), Err(CloseReason::RateExceeded));
    }

    #[test]
    fn refusals_that_are_far_apart_do_not_close() {
        let mut now = Instant::now();
        let mut limit = RateLimit::new(1, 1, now);
        for _ in 0..300 {
            let _ = limit.allows(now);
            assert_ne!(limit.allows(now), Err(CloseReason::RateExceeded));
            now += Duration::from_millis(250);
        }
    }
}
