//! The broker dies, stalls, takes nothing, or forgets.

use std::time::Duration;

use crate::scenarios::flow::Load;
use crate::scenarios::{broker, rebinds};

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

#[test]
fn a_broker_that_is_killed_loses_nothing_and_nobody() {
    broker::killed(LOAD).assert_sound();
}

#[test]
fn a_broker_that_stalls_is_noticed_and_can_be_left_and_loses_nothing() {
    broker::stalled(LIGHT, HEARTBEAT, 4 * HEARTBEAT).assert_sound();
}

#[test]
fn a_broker_in_alarm_holds_up_pushes_and_nothing_else() {
    broker::alarm(LIGHT, 100).assert_sound();
}

#[test]
fn a_broker_that_forgets_is_reminded() {
    broker::forgets(LIGHT).assert_sound();
}

#[test]
fn a_gateway_that_is_killed_and_binds_all_its_users_again_holds_up_no_publisher() {
    rebinds::rebinds(500, Duration::from_millis(500)).assert_sound();
}
