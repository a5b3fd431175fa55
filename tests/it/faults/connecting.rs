//! Messages while something else is on its way: nothing is lost, and no healthy client is closed.

use tonic::Code;

use crate::scenarios::connecting;
use crate::scenarios::reconnects::message;
use crate::support::amqp::Amqp;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::ids;
use crate::support::cluster::remote;
use crate::support::wire::Way;
use crate::support::{Gateway, Settings};

#[test]
fn a_group_message_reaches_a_member_who_joins_meanwhile() {
    connecting::members_join(10).assert_sound();
}

#[test]
fn a_route_that_is_bound_late_loses_nothing_for_two_devices() {
    connecting::late_route(Way::ToBroker).assert_sound();
}

#[test]
fn a_route_that_is_confirmed_late_loses_nothing_for_two_devices() {
    connecting::late_route(Way::FromBroker).assert_sound();
}

#[test]
fn what_was_missed_before_the_broker_returned_comes_before_what_is_newer() {
    connecting::broker_returns_during_catch_up().assert_sound();
}

#[test]
fn a_thousand_unread_messages_come_first_and_once() {
    connecting::unread_on_connect(1_000, 200).assert_sound();
}

#[test]
fn a_batch_larger_than_the_send_queue_closes_no_healthy_client() {
    connecting::batches(3, 600).assert_sound();
}

/// The copies of what alice sends are never unread, so no later page would bring them.
#[test]
fn own_copies_beyond_the_send_queue_during_catch_up_close_no_healthy_client() {
    let (broker, backend) = (Broker::shared(), Backend::start());
    let url = broker.vhost();
    let settings = Settings::new().set("session.send_queue", 16);
    let gateway = Gateway::start(&remote(&settings, &backend.url(), &url));
    gateway.wait_ready();
    let mut first = gateway.connect("alice");
    backend.fail("GetOfflineMessages", Code::Unavailable);
    let mut alice = gateway.connect_cold("alice");

    let amqp = Amqp::open(&url);
    let copies: Vec<String> = (0..200).map(|number| format!("m{number}")).collect();
    for id in &copies {
        let body = message(id, "alice", "bob", "");
        amqp.publish("im.direct", "user.alice", "message", body);
    }
    assert_eq!(ids(&first.messages_until("m199")), copies);
    backend.heal("GetOfflineMessages");
    alice.expect("offline_complete");
    assert_eq!(ids(&alice.messages_until("m199")), copies);
}
