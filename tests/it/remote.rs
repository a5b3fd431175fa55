//! Two gateways, RabbitMQ, and the reference services as a process of their own.

use serde_json::{Value, json};

use crate::chat;
use crate::support::client::ids;
use crate::support::settings::token_of;
use crate::support::{Client, Cluster, Settings, wait_until};

/// The same as on an embedded gateway, now from gateway to gateway.
macro_rules! remote {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            chat::$name(&Cluster::start(&chat::settings().set("limits.rate", 1000)));
        }
    )+};
}

remote! {
    connected,
    single_chat,
    group_chat,
    large_group_chat,
    every_device,
    note_to_self,
    history,
    group_history,
    offline_messages,
    idempotence,
    presence,
}

/// dave, who is in no group but "others", besides the usual three.
fn with_dave() -> Settings {
    chat::settings()
        .users(["dave"])
        .group("others", ["alice", "bob", "carol", "dave"])
}

#[test]
fn a_group_message_reaches_exactly_the_members() {
    let cluster = Cluster::start(&with_dave());
    let mut members = [
        cluster.connect(0, "alice"),
        cluster.connect(1, "bob"),
        cluster.connect(0, "carol"),
    ];
    let mut daves = [cluster.connect(0, "dave"), cluster.connect(1, "dave")];
    let for_members = members[0].send_group_message("team", "not for dave");
    // Groups wait for their members each by itself: whoever has it, has it before the fence.
    for member in &mut members {
        member.expect_message(&for_members);
    }
    let fence = members[0].send_group_message("others", "for dave too");
    for client in members.iter_mut().chain(&mut daves) {
        let received = ids(&client.messages_until(&fence));
        assert_eq!(received, [fence.as_str()], "{client}");
    }
}

/// No waiting for `groups.cache_ttl`, which is 30 s: `group_members_changed` does it.
#[test]
fn a_removed_member_gets_nothing_and_a_new_one_is_reached() {
    let settings = with_dave();
    let cluster = Cluster::start(&settings);
    let mut alice = cluster.connect(0, "alice");
    let mut bob = cluster.connect(1, "bob");
    // One on each gateway.
    let mut daves = [cluster.connect(0, "dave"), cluster.connect(1, "dave")];
    let before = alice.send_group_message("team", "with bob, without dave");
    // Who is a member is asked when a message is delivered: both gateways have done so.
    bob.expect_message(&before);
    alice.expect_message(&before);

    cluster
        .services
        .reload(&settings.clone().group("team", ["alice", "carol", "dave"]));
    // Sending fails as soon as the services have read it; what they publish is in order.
    wait_until("bob is no member", || {
        bob.request(
            "send_group_message",
            json!({"group_id": "team", "content": "?"}),
        )["code"]
            == "PERMISSION_DENIED"
    });
    let after = alice.send_group_message("team", "without bob, with dave");
    for dave in &mut daves {
        dave.expect_message(&after);
    }
    let fence = alice.send_group_message("others", "everybody");
    let to_bob = bob.messages_until(&fence);
    let (last, others) = to_bob.split_last().expect("the fence");
    assert_eq!(last["id"], fence.as_str());
    // What he has not acknowledged may come again.
    let sent_while_a_member =
        |one: &Value| one["from_user_id"] == "bob" || one["id"] == before.as_str();
    assert!(others.iter().all(sent_while_a_member), "{others:?}");
    bob.expect_error(
        "get_group_history",
        json!({"group_id": "team"}),
        "PERMISSION_DENIED",
    );
    let mut bob_later = Client::connect(&cluster.gateways[0], &token_of("bob"));
    let unread = ids(&bob_later.messages_until(&fence));
    assert_eq!(unread, [before, fence], "nothing from after he left");
}

/// A group that did not exist when the gateways were asked about it.
#[test]
fn a_new_group_is_reached_everywhere() {
    let settings = with_dave();
    let cluster = Cluster::start(&settings);
    let (mut alice, mut dave) = (cluster.connect(0, "alice"), cluster.connect(1, "dave"));
    alice.expect_error(
        "send_group_message",
        json!({"group_id": "new", "content": "?"}),
        "NOT_FOUND",
    );
    cluster
        .services
        .reload(&settings.clone().group("new", ["alice", "dave"]));
    let mut first = None;
    wait_until("the group exists", || {
        let answer = alice.request(
            "send_group_message",
            json!({"group_id": "new", "content": "hello"}),
        );
        first = answer["id"].as_str().map(str::to_owned);
        first.is_some()
    });
    dave.expect_message(&first.expect("it was sent"));
}

#[test]
fn a_token_that_is_taken_away_closes_its_user_everywhere_at_once() {
    let settings = chat::settings();
    let cluster = Cluster::start(&settings);
    let mut bobs = [
        cluster.connect(0, "bob"),
        cluster.connect(1, "bob"),
        cluster.connect(1, "bob"),
    ];
    let mut alice = cluster.connect(0, "alice");
    let mut without_bob = settings.clone();
    without_bob.remove_token(&token_of("bob"));
    cluster.services.reload(&without_bob);
    for bob in &mut bobs {
        bob.expect_close(4005);
    }
    for gateway in &cluster.gateways {
        let refused = Client::try_connect(gateway.addr, &gateway.path, &token_of("bob"));
        assert_eq!(refused.err().expect("bob is unknown now").status, 401);
    }
    alice.expect_presence("bob", "offline");
    alice.request("ping", json!(null));

    cluster.services.reload(&settings);
    wait_until("bob may come back", || {
        let gateway = &cluster.gateways[1];
        Client::try_connect(gateway.addr, &gateway.path, &token_of("bob")).is_ok()
    });
}

#[test]
fn a_user_with_all_devices_at_one_gateway_moves_to_the_other() {
    let cluster = Cluster::start(&chat::settings());
    let mut alice = cluster.connect(0, "alice");
    for round in 0..6 {
        let mut bob = cluster.connect(round % 2, "bob");
        let live = alice.send_message("bob", &format!("round {round}"));
        bob.expect_message(&live);
        bob.ack(&[&live]);
        let away = {
            bob.close();
            alice.send_message("bob", "while away")
        };
        let mut back = Client::connect(&cluster.gateways[(round + 1) % 2], &token_of("bob"));
        assert_eq!(ids(&back.messages_until(&away)), [away.as_str()]);
        back.ack(&[&away]);
        back.close();
    }
}
