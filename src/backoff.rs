//! How long to wait before the next try: longer each time, and not the same for two who try.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from `first` to `longest`, each jittered: between half of it and all of it.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The next wait, and never longer than `at_most`.
    pub fn next_up_to(&mut self, at_most: Duration) -> Duration {
        let full = self.next.min(at_most);
        self.next = (self.next * 2).min(self.longest);
        jittered(full)
    }

    pub fn next(&mut self) -> Duration {
        self.next_up_to(self.longest)
    }

    /// The last try succeeded: begin again with the shortest wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Between half of `full` and all of it. The standard library's own random hasher keys are all
/// the randomness that this needs.
fn jittered(full: Duration) -> Duration {
    let share = f64::from(RandomState::new().hash_one(0_u8) as u32) / f64::from(u32::MAX);
    full.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_a_reset() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 4 * second);
        for full in [1, 2, 4, 4] {
            let wait = backoff.next();
            assert!(
                wait >= second * full / 2 && wait <= second * full,
                "{wait:?} of {full} s"
            );
        }
        assert!(backoff.next_up_to(second) <= second);
        backoff.reset();
        assert!(backoff.next() <= second);
    }
}
