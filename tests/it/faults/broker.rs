//! The broker dies, stalls, takes nothing, or forgets.

use std::time::Duration;

use crate::scenarios::flow::Load;
use crate::scenarios::{Figures, broker};

/// From the broker's answer to deliveries as before.
const RECOVERY: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);

const LOAD: Load = Load {
    users: 8,
    messages: 2_000,
    rate: 150,
};
const LIGHT: Load = Load {
    users: 6,
    messages: 500,
    rate: 100,
};

fn recovers(figures: &Figures) {
    let in_time = figures.recovered.is_some_and(|after| after <= RECOVERY);
    assert!(in_time, "{figures}");
}

#[test]
fn a_broker_that_is_killed_loses_nothing_and_nobody() {
    let figures = broker::killed(LOAD);
    figures.assert_sound();
    assert_eq!(figures.refused, 0, "{figures}");
    recovers(&figures);
}

#[test]
fn a_broker_that_stalls_is_noticed_and_can_be_left_and_loses_nothing() {
    let figures = broker::stalled(LIGHT, HEARTBEAT, 4 * HEARTBEAT);
    figures.assert_sound();
    assert_eq!(figures.refused, 0, "{figures}");
}

#[test]
fn a_broker_in_alarm_holds_up_pushes_and_nothing_else() {
    broker::alarm(LIGHT, 100).assert_sound();
}

#[test]
fn a_broker_that_forgets_is_reminded() {
    let figures = broker::forgets(LIGHT);
    figures.assert_sound();
    assert_eq!(figures.refused, 0, "{figures}");
    recovers(&figures);
}
