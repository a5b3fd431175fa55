//! A body that does not parse goes to `queue.dead-letter` once, and its queue moves on.

use prost::Message as _;
use serde_json::json;
use ws_gateway::services::proto::{Message, SessionRevoked};

use crate::chat;
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::client::ids;
use crate::support::{Cluster, wait_until};

const DEAD: &str = "queue.dead-letter";

/// No protobuf at all: a field of wire type 7.
const GARBAGE: &[u8] = b"\x0f\xff\xff";

fn message(id: &str, to: &str, group: &str) -> Vec<u8> {
    let message = Message {
        id: id.into(),
        from_user_id: "carol".into(),
        to_user_id: to.into(),
        group_id: group.into(),
        content: "from the outside".into(),
        message_type: "text".into(),
        timestamp: 1_700_000_000,
        client_message_id: String::new(),
    };
    message.encode_to_vec()
}

/// Waits for one dead letter, and checks that there is no other one.
fn the_dead_letter(amqp: &Amqp) -> Vec<u8> {
    wait_until("a dead letter", || amqp.ready(DEAD) > 0);
    let taken = amqp.take(DEAD).expect("one is there");
    assert_eq!(amqp.take(DEAD), None, "once");
    taken.body
}

#[test]
fn a_single_body_that_does_not_parse_is_a_dead_letter_once() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(0, "bob");
    for (kind, body) in [
        ("", GARBAGE),
        ("message", GARBAGE),
        ("session_revoked", GARBAGE),
        ("unheard_of", b"?"),
    ] {
        amqp.publish("im.direct", "user.bob", kind, body);
        let next = format!("after {kind}");
        amqp.publish("im.direct", "user.bob", "", message(&next, "bob", ""));
        bob.expect_message(&next);
        assert_eq!(the_dead_letter(&amqp), body, "type {kind:?}");
    }
}

#[test]
fn a_group_body_that_does_not_parse_is_a_dead_letter_once() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(0, "bob");
    for (kind, body) in [
        ("", GARBAGE),
        ("group_members_changed", GARBAGE),
        ("unheard_of", b"?"),
    ] {
        amqp.publish("im.topic", "group.team", kind, body);
        let next = format!("after {kind}");
        amqp.publish("im.topic", "group.team", "", message(&next, "", "team"));
        bob.expect_message(&next);
        assert_eq!(the_dead_letter(&amqp), body, "type {kind:?}");
    }
}

/// Ids that no client may have, and a message that is nobody's, are garbage from a service.
#[test]
fn a_message_with_impossible_ids_is_a_dead_letter() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(0, "bob");
    let impossible = Message {
        from_user_id: "x".repeat(201),
        ..decode(&message("m", "bob", ""))
    };
    amqp.publish("im.direct", "user.bob", "", impossible.encode_to_vec());
    amqp.publish("im.direct", "user.bob", "", message("next", "bob", ""));
    bob.expect_message("next");
    assert_eq!(the_dead_letter(&amqp), impossible.encode_to_vec());
}

/// Presence is stale a moment later: what does not parse is dropped, and the queue moves on.
#[test]
fn a_presence_body_that_does_not_parse_leaves_no_dead_letter() {
    let cluster = Cluster::start(&chat::settings());
    let amqp = cluster.amqp();
    let mut alice = cluster.connect(0, "alice");
    amqp.publish("im.topic", "presence.bob", "", GARBAGE);
    let _bob = cluster.connect(1, "bob");
    alice.expect_presence("bob", "online");
    assert_eq!(amqp.ready(DEAD), 0);
}

/// The recipient of a single message is the user in its routing key: the sender's copy, published
/// under the sender's key, is no business of the recipient's.
#[test]
fn the_routing_key_says_whose_a_single_message_is() {
    let cluster = Cluster::start(&chat::settings());
    let amqp = cluster.amqp();
    let (mut carol, mut bob) = (cluster.connect(0, "carol"), cluster.connect(0, "bob"));
    amqp.publish(
        "im.direct",
        "user.carol",
        "message",
        message("a copy", "bob", ""),
    );
    assert_eq!(carol.expect_message("a copy")["to_user_id"], "bob");
    amqp.publish(
        "im.direct",
        "user.bob",
        "message",
        message("fence", "bob", ""),
    );
    assert_eq!(ids(&bob.messages_until("fence")), ["fence"]);
}

/// The same delivery twice: the client sees the same id, and drops the second.
#[test]
fn a_doubled_delivery_is_the_same_id_twice_at_most() {
    let cluster = Cluster::start(&chat::settings());
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(0, "bob");
    for id in ["twice", "twice", "fence"] {
        amqp.publish("im.direct", "user.bob", "", message(id, "bob", ""));
    }
    let got = ids(&bob.messages_until("fence"));
    assert!(
        got == ["twice", "fence"] || got == ["twice", "twice", "fence"],
        "{got:?}"
    );
}

/// What the User Service publishes when a session ends reaches the user's connections alone.
#[test]
fn a_revoked_session_closes_the_user_in_the_routing_key() {
    let cluster = Cluster::start(&chat::settings());
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), cluster.connect(0, "bob"));
    let revoked = SessionRevoked {
        user_id: "bob".into(),
        reason: "by the test".into(),
    };
    cluster.amqp().publish(
        "im.direct",
        "user.bob",
        "session_revoked",
        revoked.encode_to_vec(),
    );
    bob.expect_close(4005);
    alice.request("ping", json!(null));
}

/// A group that does not exist is no dead letter: acknowledged, and the queue moves on.
#[test]
fn a_message_for_an_unknown_group_goes_nowhere() {
    let cluster = Cluster::start(&chat::settings());
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(1, "bob");
    amqp.publish(
        "im.topic",
        "group.nobody",
        "",
        message("lost", "", "nobody"),
    );
    amqp.publish("im.topic", "group.team", "", message("fence", "", "team"));
    assert_eq!(ids(&bob.messages_until("fence")), ["fence"]);
    assert_eq!(amqp.ready(DEAD), 0);
}

fn decode(body: &[u8]) -> Message {
    Message::decode(body).expect("a message of the contract")
}
