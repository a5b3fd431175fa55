//! Messages while something else is on its way: nothing is lost, and no healthy client is closed.

use crate::scenarios::connecting;
use crate::support::wire::Way;

#[test]
fn a_group_message_reaches_a_member_who_joins_meanwhile() {
    connecting::members_join(10).assert_sound();
}

#[test]
fn a_route_that_is_bound_late_loses_nothing_for_two_devices() {
    let figures = connecting::late_route(Way::ToBroker);
    figures.assert_sound();
    assert_eq!(figures.duplicated, 0, "each message once: {figures}");
}

#[test]
fn a_route_that_is_confirmed_late_loses_nothing_for_two_devices() {
    let figures = connecting::late_route(Way::FromBroker);
    figures.assert_sound();
    assert_eq!(figures.duplicated, 0, "each message once: {figures}");
}

#[test]
fn a_thousand_unread_messages_come_first_and_once() {
    connecting::unread_on_connect(1_000, 200).assert_sound();
}

#[test]
fn a_batch_larger_than_the_send_queue_closes_no_healthy_client() {
    connecting::batches(3, 600).assert_sound();
}
