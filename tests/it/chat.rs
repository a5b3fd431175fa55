//! What users do with one another, the same in every deployment: on one embedded gateway, and
//! across two gateways with RabbitMQ between them. `embedded.rs` and `remote.rs` call each.

use serde_json::{Value, json};

use crate::support::client::{error_message, ids, is_push, sent};
use crate::support::settings::token_of;
use crate::support::{Client, Cluster, Gateway, Settings};

/// Where users connect. A user's devices have numbers; where there are two gateways, devices with
/// an odd number are at the second.
pub trait Deployment {
    fn gateway(&self, device: usize) -> &Gateway;

    fn connect(&self, device: usize, user: &str) -> Client {
        self.gateway(device).connect(user)
    }
}

impl Deployment for Gateway {
    fn gateway(&self, _: usize) -> &Gateway {
        self
    }
}

impl Deployment for Cluster {
    fn gateway(&self, device: usize) -> &Gateway {
        &self.gateways[device % self.gateways.len()]
    }
}

/// The users and the group of the shipped configuration, and a group so large that several threads
/// write to it.
pub fn settings() -> Settings {
    let crowd: Vec<String> = (0..CROWD).map(member).collect();
    let crowd = || crowd.iter().map(String::as_str);
    Settings::new()
        .users(["alice", "bob", "carol"])
        .group("team", ["alice", "bob", "carol"])
        .users(crowd())
        .group("crowd", crowd())
}

const CROWD: usize = 300;

fn member(number: usize) -> String {
    format!("member{number}")
}

/// A message reaches its recipient and, as a copy, its sender, with these fields and no others;
/// and nobody else.
pub fn single_chat(at: &impl Deployment) {
    let (mut alice, mut bob) = (at.connect(0, "alice"), at.connect(1, "bob"));
    let mut carol = at.connect(0, "carol");
    let data = json!({"to_user_id": "bob", "content": "Hello \"李雷\" \u{1F600}\n", "client_message_id": "c-1"});
    let answer = alice.request("send_message", data);
    assert_eq!(
        keys(&answer),
        ["client_message_id", "id", "request_id", "timestamp", "type"]
    );
    assert_eq!(
        (&answer["type"], &answer["client_message_id"]),
        (&json!("message_sent"), &json!("c-1"))
    );

    let push = json!({
        "type": "message", "id": answer["id"], "from_user_id": "alice", "to_user_id": "bob",
        "content": "Hello \"李雷\" \u{1F600}\n", "message_type": "text",
        "timestamp": answer["timestamp"], "client_message_id": "c-1",
    });
    assert_eq!(bob.expect("message"), push);
    assert_eq!(alice.expect("message"), push, "the sender's copy");

    let image = json!({"to_user_id": "bob", "content": "", "message_type": "image"});
    let id = sent(alice.request("send_message", image));
    let push = bob.expect_message(&id);
    assert_eq!(
        (&push["message_type"], &push["content"]),
        (&json!("image"), &json!(""))
    );
    assert_eq!(push.get("client_message_id"), None, "the sender gave none");

    let fence = bob.send_message("carol", "for carol");
    assert_eq!(ids(&carol.messages_until(&fence)), [fence]);
}

/// A group message reaches every member, the sender too, and nobody else.
pub fn group_chat(at: &impl Deployment) {
    let mut members = [
        at.connect(0, "alice"),
        at.connect(1, "bob"),
        at.connect(0, "carol"),
    ];
    let data = json!({"group_id": "team", "content": "Hello", "client_message_id": "c-2"});
    let answer = members[1].request("send_group_message", data);
    assert_eq!(answer["type"], "message_sent", "{answer}");
    let push = json!({
        "type": "group_message", "id": answer["id"], "group_id": "team", "from_user_id": "bob",
        "content": "Hello", "message_type": "text", "timestamp": answer["timestamp"],
        "client_message_id": "c-2",
    });
    for member in &mut members {
        assert_eq!(member.expect("group_message"), push, "{member}");
    }
}

/// Whoever of a large group is connected gets all of its messages, once, in their order.
pub fn large_group_chat(at: &impl Deployment) {
    let connected = (0..CROWD).step_by(25);
    let mut members: Vec<_> = connected
        .map(|number| at.connect(number, &member(number)))
        .collect();
    let sent: Vec<String> = (0..50)
        .map(|number| members[number % 2].send_group_message("crowd", &number.to_string()))
        .collect();
    for member in &mut members {
        assert_eq!(ids(&member.messages_until(&sent[49])), sent, "{member}");
    }
}

/// Every device of the recipient and every device of the sender gets each message, once.
pub fn every_device(at: &impl Deployment) {
    let mut alice = [at.connect(0, "alice"), at.connect(1, "alice")];
    let mut bob = [
        at.connect(0, "bob"),
        at.connect(1, "bob"),
        at.connect(1, "bob"),
    ];
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(alice[number % 2].send_message("bob", &format!("single {number}")));
        sent.push(bob[number % 3].send_message("alice", &format!("back {number}")));
    }
    let last = sent.last().expect("messages").clone();
    for device in alice.iter_mut().chain(&mut bob) {
        let got = ids(&device.messages_until(&last));
        assert_eq!(got, sent, "{device}");
    }
}

/// A message to oneself is published once.
pub fn note_to_self(at: &impl Deployment) {
    let (mut here, mut there) = (at.connect(0, "alice"), at.connect(1, "alice"));
    let note = here.send_message("alice", "milk");
    let fence = here.send_message("bob", "the next one");
    for device in [&mut here, &mut there] {
        assert_eq!(
            ids(&device.messages_until(&fence)),
            [note.clone(), fence.clone()],
            "{device}"
        );
    }
}

/// Pages go back from the newest, oldest first within each, until `has_more` is false; what they
/// hold is what was pushed.
pub fn history(at: &impl Deployment) {
    let (mut alice, mut bob) = (at.connect(0, "alice"), at.connect(1, "bob"));
    let mut pushes = Vec::new();
    for number in 0..7 {
        let (from, to) = if number % 2 == 0 {
            (&mut alice, "bob")
        } else {
            (&mut bob, "alice")
        };
        let id = from.send_message(to, &format!("number {number}"));
        pushes.push(bob.expect_message(&id));
    }
    let elsewhere = bob.send_message("carol", "another conversation");
    bob.expect_message(&elsewhere);
    let pages = pages(
        &mut alice,
        "get_history",
        json!({"user_id": "bob", "limit": 3}),
    );
    assert_eq!(pages, [&pushes[4..7], &pushes[1..4], &pushes[0..1]]);

    let whole = alice.request("get_history", json!({"user_id": "bob"}));
    assert_eq!(
        keys(&whole),
        ["has_more", "messages", "request_id", "type", "user_id"]
    );
    assert_eq!(
        (&whole["type"], &whole["user_id"]),
        (&json!("history"), &json!("bob"))
    );
    assert_eq!(whole["messages"].as_array(), Some(&pushes));
    assert_eq!(whole["has_more"], false);
}

/// As [`history`], of a group.
pub fn group_history(at: &impl Deployment) {
    let (mut alice, mut bob) = (at.connect(0, "alice"), at.connect(1, "bob"));
    let mut pushes = Vec::new();
    for number in 0..5 {
        let from = if number % 2 == 0 {
            &mut alice
        } else {
            &mut bob
        };
        let id = from.send_group_message("team", &format!("number {number}"));
        pushes.push(bob.expect_message(&id));
    }
    let pages = pages(
        &mut alice,
        "get_group_history",
        json!({"group_id": "team", "limit": 2}),
    );
    assert_eq!(pages, [&pushes[3..5], &pushes[1..3], &pushes[0..1]]);

    let whole = alice.request(
        "get_group_history",
        json!({"group_id": "team", "before_id": ""}),
    );
    assert_eq!(
        keys(&whole),
        ["group_id", "has_more", "messages", "request_id", "type"]
    );
    assert_eq!(
        (&whole["type"], &whole["group_id"]),
        (&json!("group_history"), &json!("team"))
    );
    assert_eq!(whole["messages"].as_array(), Some(&pushes));
}

/// The default page is 50 messages.
pub fn history_of_fifty(at: &impl Deployment) {
    let mut alice = at.connect(0, "alice");
    let sent: Vec<String> = (0..51)
        .map(|n| alice.send_message("bob", &n.to_string()))
        .collect();
    let page = alice.request("get_history", json!({"user_id": "bob"}));
    assert_eq!(
        ids(page["messages"].as_array().expect("messages")),
        sent[1..]
    );
    assert_eq!(page["has_more"], true);
}

/// What is unread comes on connect, in order, then `offline_complete`; what was acknowledged does
/// not come again, whichever device acknowledged it.
pub fn offline_messages(at: &impl Deployment) {
    let (mut alice, mut carol) = (at.connect(0, "alice"), at.connect(1, "carol"));
    let unread = [
        alice.send_message("bob", "one"),
        carol.send_group_message("team", "two"),
        carol.send_message("bob", "three"),
        alice.send_group_message("team", "four"),
    ];
    assert_eq!(unread_on_connect(at, 0), unread);
    assert_eq!(
        unread_on_connect(at, 1),
        unread,
        "nothing was acknowledged yet"
    );

    let mut bob = at.connect(1, "bob");
    bob.ack(&[&unread[0], &unread[2], "an-id-that-nobody-knows"]);
    assert_eq!(
        unread_on_connect(at, 0),
        [unread[1].clone(), unread[3].clone()]
    );
    bob.ack(&unread);
    assert_eq!(unread_on_connect(at, 1), [""; 0]);

    let live = alice.send_message("bob", "five");
    bob.expect_message(&live);
    assert_eq!(
        unread_on_connect(at, 0),
        [live],
        "pushed, and not acknowledged"
    );
    drop(alice);
    assert_eq!(
        unread_ids(at.gateway(0), "alice"),
        unread[1..2],
        "own copies are never unread"
    );
}

/// More unread messages than one page (50) holds.
pub fn offline_pages(at: &impl Deployment) {
    let mut alice = at.connect(0, "alice");
    let unread: Vec<String> = (0..120)
        .map(|n| alice.send_message("bob", &n.to_string()))
        .collect();
    assert_eq!(unread_on_connect(at, 1), unread);
}

/// A repeated `client_message_id` answers the same id and sends nothing again; with other contents
/// it is an error.
pub fn idempotence(at: &impl Deployment) {
    let (mut alice, mut bob) = (at.connect(0, "alice"), at.connect(1, "bob"));
    let data = json!({"to_user_id": "bob", "content": "once", "client_message_id": "c-7"});
    let id = sent(alice.request("send_message", data.clone()));
    assert_eq!(sent(alice.request("send_message", data.clone())), id);
    let mut other_device = at.connect(1, "alice");
    assert_eq!(
        sent(other_device.request("send_message", data.clone())),
        id,
        "from another device"
    );
    let mut changed = data.clone();
    changed["content"] = json!("twice");
    alice.expect_error("send_message", changed, "INVALID_MESSAGE");
    let from_bob =
        json!({"to_user_id": "alice", "content": "bob's own", "client_message_id": "c-7"});
    let bobs = sent(bob.request("send_message", from_bob));
    assert_ne!(bobs, id, "the id is the sender's own");

    let group = json!({"group_id": "team", "content": "once", "client_message_id": "c-8"});
    let in_group = sent(alice.request("send_group_message", group.clone()));
    assert_eq!(sent(alice.request("send_group_message", group)), in_group);
    let group_fence = alice.send_group_message("team", "the next one");
    let fence = alice.send_message("bob", "the next one");
    let is_group = |message: &Value| message["type"] == "group_message";
    bob.expect_message(&group_fence);
    bob.expect_message(&fence);
    let (in_groups, singles) = bob
        .frames_until_pong()
        .into_iter()
        .filter(is_push)
        .partition::<Vec<_>, _>(is_group);
    assert_eq!(ids(&in_groups), [in_group], "before the fence, once");
    assert_eq!(ids(&singles), [id, bobs], "before the fence, once");
}

/// Whoever shares a group is told who comes and goes; the newcomer is told who is there.
pub fn presence(at: &impl Deployment) {
    let mut alice = at.connect(0, "alice");
    let mut bob = at.connect(1, "bob");
    bob.expect_presence("alice", "online");
    let push = alice.expect_presence("bob", "online");
    assert_eq!(keys(&push), ["status", "timestamp", "type", "user_id"]);
    let bob_again = at.connect(0, "bob");

    bob.close();
    let mut carol = at.connect(1, "carol");
    carol.expect_presence("bob", "online");
    alice.expect_presence("carol", "online");
    assert!(
        !went_offline(&alice.frames_until_pong()),
        "bob has a device left"
    );

    bob_again.close();
    alice.expect_presence("bob", "offline");
    carol.expect_presence("bob", "offline");
    alice.close();
    carol.expect_presence("alice", "offline");
}

/// `ping`, `refresh_token` and every other request carry `request_id` back; without one there is
/// none in the answer.
pub fn requests_and_answers(at: &impl Deployment) {
    let mut alice = at.connect(0, "alice");
    let pong = alice.request("ping", Value::Null);
    assert_eq!(keys(&pong), ["request_id", "timestamp", "type"]);
    let refreshed = alice.request("refresh_token", json!({"token": token_of("alice")}));
    assert_eq!(
        keys(&refreshed),
        ["expires_at", "request_id", "timestamp", "type"]
    );
    assert_eq!(
        (&refreshed["type"], &refreshed["expires_at"]),
        (&json!("token_refreshed"), &json!(0))
    );
    let acked = alice.request("ack", json!({"message_ids": []}));
    assert_eq!(keys(&acked), ["request_id", "timestamp", "type"]);

    alice.send(&json!({"type": "ping"}));
    assert_eq!(keys(&alice.expect("pong")), ["timestamp", "type"]);
    alice.send(&json!({"type": "send_message", "data": {"to_user_id": "bob", "content": "no id"}}));
    assert_eq!(
        keys(&alice.expect("message_sent")),
        ["id", "timestamp", "type"]
    );
    alice.send(&json!({"type": "send_message", "data": {"to_user_id": "bob"}}));
    let error = alice.expect("error");
    assert_eq!(keys(&error), ["code", "message", "timestamp", "type"]);
    assert!(
        error_message(&error, "INVALID_MESSAGE").contains("content"),
        "{error}"
    );

    alice.send(&json!({
        "type": "send_message", "request_id": "7", "version": 9, "extra": {"deep": [1]},
        "data": {"to_user_id": "bob", "content": "unknown fields are ignored", "priority": "high"},
    }));
    assert_eq!(alice.answer("7")["type"], "message_sent");
}

/// The first frame says who, where and how.
pub fn connected(at: &impl Deployment) {
    let (mut alice, other) = (at.connect(0, "alice"), at.connect(1, "alice"));
    let hello = &alice.hello;
    let names = [
        "connection_id",
        "gateway_id",
        "max_message_size",
        "ping_interval",
        "timestamp",
        "type",
        "user_id",
    ];
    assert_eq!(keys(hello), names);
    assert_eq!(
        (&hello["user_id"], &hello["ping_interval"]),
        (&json!("alice"), &json!(30))
    );
    assert_eq!(hello["max_message_size"], 65_536);
    assert_ne!(alice.connection_id(), other.connection_id());
    let by_query = Client::connect_by_query(at.gateway(0), &token_of("alice"));
    assert_eq!(by_query.user, "alice");
    alice.request("ping", Value::Null);
}

/// The ids that bob gets between `connected` and `offline_complete`, which must count them.
fn unread_on_connect(at: &impl Deployment, device: usize) -> Vec<String> {
    unread_ids(at.gateway(device), "bob")
}

fn unread_ids(gateway: &Gateway, user: &str) -> Vec<String> {
    let mut client = Client::connect(gateway, &token_of(user));
    let mut messages = Vec::new();
    let complete = loop {
        let frame = client.next();
        if frame["type"] == "offline_complete" {
            break frame;
        }
        if is_push(&frame) {
            messages.push(frame);
        }
    };
    assert_eq!(keys(&complete), ["count", "timestamp", "type"]);
    assert_eq!(complete["count"], messages.len(), "{messages:?}");
    client.close();
    ids(&messages)
}

/// All pages of a history, newest page first.
fn pages(client: &mut Client, request: &str, mut data: Value) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    loop {
        let answer = client.request(request, data.clone());
        let page = answer["messages"]
            .as_array()
            .unwrap_or_else(|| panic!("{answer}"))
            .clone();
        data["before_id"] = page.first().expect("a page that is not empty")["id"].clone();
        pages.push(page);
        if answer["has_more"] == false {
            return pages;
        }
        assert!(pages.len() < 100, "the pages never end");
    }
}

fn went_offline(frames: &[Value]) -> bool {
    frames
        .iter()
        .any(|frame| frame["type"] == "presence" && frame["status"] == "offline")
}

/// The names of a frame's fields, sorted.
fn keys(frame: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = frame
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}
