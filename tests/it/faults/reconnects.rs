//! Its connection to the broker is cut again and again. 200 cuts in a row are in
//! `src/broker/rabbit_tests.rs`, where the wait between two tries is short, and a drill.

use crate::scenarios::reconnects::reconnects;

#[test]
fn a_connection_that_is_cut_again_and_again_loses_nothing() {
    reconnects(10).assert_sound();
}
