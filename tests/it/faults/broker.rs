//! The broker dies, stalls, takes nothing, or forgets.

use std::time::Duration;

use crate::scenarios::broker;
use crate::scenarios::flow::Load;

/// From the broker's answer to deliveries as before.
const RECOVERY: Duration = Duration::from_secs(5);

#[test]
fn a_broker_that_is_killed_loses_nothing_and_nobody() {
    let figures = broker::killed(Load {
        users: 10,
        messages: 2_000,
        rate: 200,
    });
    figures.assert_sound();
    assert_eq!(figures.refused, 0, "{figures}");
    assert!(
        figures.recovered.is_some_and(|after| after <= RECOVERY),
        "{figures}"
    );
}
