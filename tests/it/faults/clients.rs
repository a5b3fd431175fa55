//! Clients that vanish, that read too slowly, that all come at once.

use std::time::Duration;

use crate::scenarios::clients;
use crate::scenarios::slow::{self, Behind, Slow};
use crate::support::puppet;

#[test]
fn a_client_that_vanishes_is_gone_in_time_and_misses_nothing() {
    clients::vanish(4, 3, 100).assert_sound();
}

/// More than its socket takes, less than its queue holds: the writer thread is in a write when the
/// idle timeout comes, long before the write timeout, which is 10 s.
#[test]
fn a_client_that_vanishes_with_a_full_socket_is_gone_in_time() {
    clients::vanish(1, 200, 60_000).assert_sound();
}

#[test]
#[ignore = "a process of its own for other tests"]
fn puppet() {
    assert!(puppet::play(), "nobody asked");
}

#[test]
fn only_clients_that_read_too_slowly_are_closed() {
    let size = Slow {
        members: 100,
        messages: 240,
        rate: 40,
    };
    slow::slow(size).assert_sound();
}

#[test]
fn clients_that_read_slowly_fall_back_to_their_inbox_and_lose_nothing() {
    let size = Behind {
        members: 20,
        slow: 4,
        time: Duration::from_secs(12),
        rate: 40,
    };
    slow::behind(size).assert_sound();
}

#[test]
fn two_thousand_clients_reconnect_at_once() {
    clients::storm(2_000).assert_sound();
}
