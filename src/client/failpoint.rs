//! For tests: a thread that panics on demand. `WS_GATEWAY_PANIC=reader:mallory` has the reader
//! threads of mallory's connections panic on the next request; the places are `handshake`, `reader`,
//! `writer`, and, on the consumer thread, `deliver`, and `push`, `flush` and `catch_up` of one
//! connection. Only debug builds look. In unit tests, which share one environment, a user by the
//! name of `panics-at-push` does the same.

use crate::ids::UserId;

/// Panics if the environment asks for it at this `place`, for this `user`.
#[cfg(debug_assertions)]
pub(crate) fn reached(place: &str, user: &UserId) {
    let asked = std::env::var("WS_GATEWAY_PANIC").unwrap_or_default();
    let named = cfg!(test) && user.as_str().strip_prefix("panics-at-") == Some(place);
    assert!(
        !named && asked.split_once(':') != Some((place, user.as_str())),
        "a test asked for a panic: place={place}, user={user}"
    );
}

#[cfg(not(debug_assertions))]
pub(crate) fn reached(_: &str, _: &UserId) {}
