//! For tests: a thread that panics on demand. `WS_GATEWAY_PANIC=reader:mallory` has the reader
//! threads of mallory's connections panic on the next request; the places are `handshake`, `reader`,
//! `writer`, and, on the consumer thread, `deliver`, and `push`, `flush` and `catch_up` of one
//! connection; and `presence`. At `accept`, `take`, `refuser` and `answer` the subject is a client's
//! address; `broker:up` is when the broker is. `2*reader:mallory` is for the first two times. Only
//! debug builds look. In unit tests, which share one environment, a user by the name of
//! `panics-at-push` does the same.
//!
//! And for the feature `planted`: what a defect leaves undone ([`skips`]).

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many panics there have been.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Panics if the environment asks for it at this `place`, for this `subject`.
pub(crate) fn reached(place: &str, subject: impl Display) {
    if !cfg!(debug_assertions) {
        return;
    }
    #[cfg(test)]
    assert!(
        subject.to_string() != format!("panics-at-{place}"),
        "a test asked for a panic: place={place}"
    );
    let Ok(asked) = std::env::var("WS_GATEWAY_PANIC") else {
        return;
    };
    let (times, asked) = asked.split_once('*').unwrap_or(("", &asked));
    let times = times.parse().unwrap_or(usize::MAX);
    assert!(
        asked != format!("{place}:{subject}") || PANICS.fetch_add(1, Ordering::SeqCst) >= times,
        "a test asked for a panic: place={place}, subject={subject}"
    );
}

/// Whether what is to be done at this place is left undone.
#[cfg(feature = "planted")]
type Skips = Box<dyn Fn(&str) -> bool + Send + Sync>;

#[cfg(feature = "planted")]
static SKIPS: std::sync::OnceLock<Skips> = std::sync::OnceLock::new();

/// From now on `skips` decides what is left undone; the first such decides for good.
#[cfg(feature = "planted")]
pub(crate) fn skip(skips: impl Fn(&str) -> bool + Send + Sync + 'static) {
    // Whoever comes second changes nothing, as said.
    let _ = SKIPS.set(Box::new(skips));
}

/// Whether a planted defect leaves undone what is to be done at this `place`.
#[cfg(feature = "planted")]
pub(crate) fn skips(place: &str) -> bool {
    SKIPS.get().is_some_and(|skips| skips(place))
}

/// No defect is planted.
#[cfg(not(feature = "planted"))]
pub(crate) fn skips(_: &str) -> bool {
    false
}
