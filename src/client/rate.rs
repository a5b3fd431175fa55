//! The rate limit of one connection: a token bucket, and an end to those who ignore it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many refusals within [`REFUSAL_WINDOW`] close the connection (4006).
const MAX_REFUSALS: usize = 100;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);

/// Requests per second on average, and how many may come at once.
pub(super) struct RateLimit {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
    refusals: VecDeque<Instant>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Refuse,
    /// Refused, and one time too often.
    Close,
}

impl RateLimit {
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let (rate, burst) = (f64::from(rate), f64::from(burst));
        Self {
            rate,
            burst,
            tokens: burst,
            filled: now,
            refusals: VecDeque::new(),
        }
    }

    /// Judges a request that comes at `now`.
    pub fn judge(&mut self, now: Instant) -> Verdict {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.burst);
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Verdict::Pass;
        }
        self.refusals.push_back(now);
        if self.refusals.len() < MAX_REFUSALS {
            return Verdict::Refuse;
        }
        let within = self
            .refusals
            .pop_front()
            .is_some_and(|first| now - first <= REFUSAL_WINDOW);
        if within {
            Verdict::Close
        } else {
            Verdict::Refuse
        }
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
            assert_eq!(limit.judge(start), Verdict::Pass);
        }
        assert_eq!(limit.judge(start), Verdict::Refuse);
        let later = start + Duration::from_millis(100);
        assert_eq!(limit.judge(later), Verdict::Pass);
        assert_eq!(limit.judge(later), Verdict::Refuse);
    }

    #[test]
    fn the_100th_refusal_within_10_seconds_closes() {
        let start = Instant::now();
        let mut limit = RateLimit::new(1, 1, start);
        assert_eq!(limit.judge(start), Verdict::Pass);
        for _ in 0..99 {
            assert_eq!(limit.judge(start), Verdict::Refuse);
        }
        assert_eq!(limit.judge(start), Verdict::Close);
    }

    #[test]
    fn refusals_that_are_far_apart_do_not_close() {
        let mut now = Instant::now();
        let mut limit = RateLimit::new(1, 1, now);
        for _ in 0..300 {
            let _ = limit.judge(now);
            assert_ne!(limit.judge(now), Verdict::Close);
            now += Duration::from_millis(250);
        }
    }
}
