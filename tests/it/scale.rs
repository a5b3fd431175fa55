//! More gateways: what the broker delivers to whom. `tests/run drill scale` has the figures.

use std::time::Duration;

use crate::scenarios::scale::{Size, scale};

/// On one gateway, on two and on three; each message at each of its devices, once, in order.
#[test]
fn a_single_message_goes_to_one_gateway_and_a_group_message_to_each() {
    let size = Size {
        users: 30,
        single: 120,
        group: 60,
        elsewhere: 60,
        behind: 200,
        unknown: 40,
        everybody: 30,
        rate: 2_000,
        idle: Duration::from_millis(100),
    };
    scale(&size).assert_sound();
}
