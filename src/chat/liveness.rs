//! Whether the other end is still there: a ping of our own for each interval, the first one after a
//! random part of it, so that those who come together do not ping together.

use std::time::{Duration, Instant};

/// The gateway's own, where it does not say.
const INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct Liveness {
    interval: Duration,
    next_ping: Instant,
    /// Since when a ping is unanswered.
    unanswered: Option<Instant>,
}

impl Liveness {
    /// `seconds`: the `ping_interval` of `connected`. `share`: a random number from 0 up to 1.
    pub fn new(seconds: Option<u64>, share: f64, now: Instant) -> Self {
        let told = seconds.map(|seconds| Duration::from_secs(seconds.clamp(1, 3_600)));
        let interval = told.unwrap_or(INTERVAL);
        Self {
            interval,
            next_ping: now + interval.mul_f64(share),
            unanswered: None,
        }
    }

    /// Something came: whoever sends is alive.
    pub fn heard(&mut self) {
        self.unanswered = None;
    }

    /// Whether nothing came for an interval after a ping. What waits in the socket is to be read before
    /// this is asked: a client that stood still itself blames nobody.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.unanswered
            .is_some_and(|since| now >= since + self.interval)
    }

    /// Whether a ping is to be sent now; then it counts as sent.
    pub fn wants_ping(&mut self, now: Instant) -> bool {
        let is_due = self.unanswered.is_none() && now >= self.next_ping;
        if is_due {
            self.unanswered = Some(now);
            self.next_ping = now + self.interval;
        }
        is_due
    }

    /// When one of both is to be asked again.
    pub fn due(&self) -> Instant {
        self.unanswered
            .map_or(self.next_ping, |since| since + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_ping_comes_after_a_part_of_the_interval_and_then_one_each() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Some(10), 0.3, start);
        assert!(!liveness.wants_ping(start + 2 * SECOND));
        assert_eq!(liveness.due(), start + 3 * SECOND);
        assert!(liveness.wants_ping(start + 3 * SECOND));
        assert!(!liveness.wants_ping(start + 4 * SECOND));
        liveness.heard();
        assert!(!liveness.wants_ping(start + 12 * SECOND));
        assert!(liveness.wants_ping(start + 13 * SECOND));
    }

    #[test]
    fn silence_after_a_ping_is_death_and_anything_that_comes_is_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(Some(10), 0.0, start);
        assert!(!liveness.is_dead(start + 100 * SECOND), "nothing was asked");
        assert!(liveness.wants_ping(start));
        assert!(!liveness.is_dead(start + 9 * SECOND));
        assert!(liveness.is_dead(start + 10 * SECOND));
        liveness.heard();
        assert!(!liveness.is_dead(start + 10 * SECOND));
    }

    #[test]
    fn what_a_gateway_says_of_the_interval_is_bounded() {
        let start = Instant::now();
        for (told, seconds) in [(Some(0), 1), (None, 30), (Some(u64::MAX), 3_600)] {
            let liveness = Liveness::new(told, 1.0, start);
            assert_eq!(liveness.due(), start + seconds * SECOND, "{told:?}");
        }
    }
}
