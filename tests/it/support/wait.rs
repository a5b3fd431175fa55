//! Waiting for something that another process does: always with a deadline, never by a bare sleep.

use std::time::{Duration, Instant};
use std::{fmt, thread};

/// How long anything may take that should take no time. Long, since two cores may be shared with
/// a compiler; a test that passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks at a condition that can only be polled.
const LOOK: Duration = Duration::from_millis(10);

/// Returns as soon as `condition` holds; fails, naming `what`, when it does not within [`DEADLINE`].
pub fn wait_until(what: impl fmt::Display, condition: impl FnMut() -> bool) {
    wait_until_within(DEADLINE, what, condition);
}

/// As [`wait_until`], with a deadline of its own. Returns how long it took.
pub fn wait_until_within(
    deadline: Duration,
    what: impl fmt::Display,
    mut condition: impl FnMut() -> bool,
) -> Duration {
    wait_for(deadline, what, || condition().then_some(())).1
}

/// Whether `condition` holds before `deadline`.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

/// Returns what `look` finds, and how long that took; fails, naming `what`, after `deadline`.
pub fn wait_for<T>(
    deadline: Duration,
    what: impl fmt::Display,
    mut look: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return (found, start.elapsed());
        }
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        thread::sleep(LOOK);
    }
}
