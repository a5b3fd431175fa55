//! Clients that vanish, that read too slowly, that all come at once.

use std::time::Duration;

use crate::scenarios::clients::{self, Slow};
use crate::support::puppet;

#[test]
fn a_client_that_vanishes_is_gone_in_time_and_misses_nothing() {
    let figures = clients::vanish(4, 3, 100);
    println!("{figures}");
    assert_eq!(figures.committed, 12, "{figures}");
    assert_eq!(figures.lost, [], "{figures}");
    assert_eq!(figures.duplicated, 0, "{figures}");
}

/// More than its socket takes, less than its queue holds: the writer thread is in a write when the
/// idle timeout comes, long before the write timeout, which is 10 s.
#[test]
fn a_client_that_vanishes_with_a_full_socket_is_gone_in_time() {
    let figures = clients::vanish(1, 200, 60_000);
    println!("{figures}");
    assert_eq!(figures.lost, [], "{figures}");
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
    let figures = clients::slow(size);
    println!("{figures}");
    assert!(figures.committed >= size.messages, "{figures}");
    assert_eq!(figures.lost, [], "{figures}");
}

#[test]
fn two_thousand_clients_reconnect_at_once() {
    const CLIENTS: u64 = 2_000;
    let (figures, calls) = clients::storm(CLIENTS as usize);
    println!("{figures}");
    assert!(
        figures
            .recovered
            .is_some_and(|took| took <= Duration::from_secs(60)),
        "{figures}"
    );
    // One for each connect, and the probe's of every second at most.
    assert!(calls.validated <= CLIENTS + 60, "{calls:?}");
    // `limits.max_handshakes`, and the probe's.
    assert!(calls.at_a_time <= 256 + 1, "{calls:?}");
}
