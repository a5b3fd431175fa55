//! The same delivery twice, and acknowledgements that are lost: the client sees the same id again,
//! and nothing else.

use serde_json::Value;

use crate::chat;
use crate::scenarios::reconnects::message;
use crate::support::amqp::Amqp;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::{ids, is_push};
use crate::support::cluster::remote;
use crate::support::wire::{Way, Wire};
use crate::support::{Cluster, Gateway, Settings, wait_until};

/// All that came up to `fence` is the message `id`, the same each time. Returns how often.
fn times(frames: &[Value], id: &str, fence: &str) -> usize {
    let (last, before) = frames.split_last().expect("the fence");
    assert_eq!(last["id"], fence);
    for frame in before {
        assert!(is_push(frame) && frame["id"] == id, "{frame}");
        assert_eq!(frame, &before[0], "the same each time");
    }
    before.len()
}

#[test]
fn the_same_delivery_twice_is_the_same_id_twice() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(0, "bob");
    for (exchange, key, to, group) in [
        ("im.direct", "user.bob", "bob", ""),
        ("im.topic", "group.team", "", "team"),
    ] {
        let (id, fence) = (format!("twice {key}"), format!("then {key}"));
        for id in [&id, &id, &fence] {
            amqp.publish(exchange, key, "message", message(id, "alice", to, group));
        }
        let mut frames = bob.messages_until(&fence);
        frames.retain(is_push);
        let count = times(&frames, &id, &fence);
        assert!((1..=2).contains(&count), "{count} times");
    }
    let rest = bob.frames_until_pong();
    assert!(
        !rest
            .iter()
            .any(|frame| is_push(frame) || frame["type"] == "error"),
        "{rest:?}"
    );
}

/// What the gateway says to the broker is held, and then lost with the connection.
#[test]
fn a_delivery_whose_acknowledgement_is_lost_comes_again_under_its_id() {
    let (broker, backend) = (Broker::shared(), Backend::start());
    let (url, wire) = (broker.vhost(), Wire::to(broker.addr));
    let settings = Settings::new().set("gateway.id", "g");
    let gateway = Gateway::start(&remote(&settings, &backend.url(), &wire.url(&url)));
    gateway.wait_ready();
    let mut bob = gateway.connect("bob");
    let amqp = Amqp::open(&url);
    let publish =
        |id: &str| amqp.publish("im.direct", "user.bob", "", message(id, "alice", "bob", ""));

    wire.hold(Way::ToBroker);
    publish("m1");
    let first = bob.expect_message("m1");
    wire.cut();
    wire.hold(Way::ToBroker);
    let queue = "queue.gateway.g.single";
    wait_until("the broker has it still", || amqp.ready(queue) == 1);
    wire.release();
    publish("m2");
    let mut frames = vec![first];
    frames.extend(bob.messages_until("m2"));
    // Once, if the gateway remembers that it has sent it.
    assert!((1..=2).contains(&times(&frames, "m1", "m2")), "{frames:?}");
    assert!(!bob.frames_until_pong().iter().any(is_push));
    wait_until("all is acknowledged", || amqp.ready(queue) == 0);
}

/// The client goes before it has the answer, so it cannot know whether its `ack` was heard.
#[test]
fn a_client_whose_ack_is_not_answered_may_see_the_same_id_again() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), cluster.connect(0, "bob"));
    for round in 0..5 {
        let id = alice.send_message("bob", &format!("round {round}"));
        bob.expect_message(&id);
        bob.send_request("ack", serde_json::json!({"message_ids": [id]}));
        bob.reset();
        bob = cluster.gateways[0].connect_cold("bob");
        let fence = alice.send_message("bob", "fence");
        let seen = bob.messages_until(&fence);
        assert!(times(&seen, &id, &fence) <= 1, "{:?}", ids(&seen));
        // Again, whether or not it was heard.
        bob.ack(&[&id, &fence]);
    }
}
