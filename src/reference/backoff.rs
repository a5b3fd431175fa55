//! How long to wait before publishing again.

use std::time::Duration;

use uuid::Uuid;

/// Twice as long each time, between these bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// A broker that returns is found within 2 s: what is committed meanwhile waits for that.
    pub const DEFAULT: Self = Self {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(2),
    };

    /// The pause after failure number `failures`, which counts from 1. Somewhere between the
    /// bound and its double or the longest, so that several services do not return as one.
    pub fn pause(self, failures: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let least = self
            .first
            .saturating_mul(doubled)
            .min(self.longest / 2)
            .max(self.first);
        let most = (least * 2).min(self.longest).max(least);
        let (random, ..) = Uuid::new_v4().as_fields();
        least + (most - least).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_first_to_longest_with_jitter() {
        let backoff = Backoff::DEFAULT;
        for failures in 1..100 {
            let pause = backoff.pause(failures);
            assert!(
                backoff.first <= pause && pause <= backoff.longest,
                "{failures}: {pause:?}"
            );
        }
        assert!(backoff.pause(1) <= Duration::from_millis(200));
        assert!(backoff.pause(50) >= backoff.longest / 2);
        let distinct: std::collections::HashSet<_> = (0..9).map(|_| backoff.pause(50)).collect();
        assert!(distinct.len() > 1);
    }
}
