//! The sketch that the gateway started from, `tests/naive/gateway.rs`: it works in calm weather, and
//! loses what `src/docs/sketch.md` says that it loses. Each fault here is a small one of the drills'
//! (`tests/run drill NAME --naive`), made so that it comes out the same each time.

use std::path::Path;

use serde_json::Value;

use crate::chat;
use crate::support::broker::Broker;
use crate::support::client::{ids, is_push};
use crate::support::settings::token_of;
use crate::support::sketch as process;
use crate::support::wire::{Way, Wire};
use crate::support::{Client, Cluster, Gateway, Services};

#[test]
#[ignore = "a process of its own for other tests"]
fn sketch() {
    assert!(process::play(), "nobody asked");
}

/// Two sketches on a broker, with the services as a process of their own.
fn two_sketches() -> Cluster {
    Cluster::start(&chat::settings().for_sketch())
}

/// What users do with one another, as on the gateway.
macro_rules! in_calm_weather {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            chat::$name(&two_sketches());
        }
    )+};
}

in_calm_weather! {
    connected,
    single_chat,
    group_chat,
    large_group_chat,
    every_device,
    note_to_self,
    history,
    group_history,
    idempotence,
}

/// Not as on the gateway: what is still on its way when a user connects would come twice.
#[test]
fn what_is_unread_comes_on_each_connect_until_it_is_acknowledged() {
    let cluster = two_sketches();
    let (mut alice, mut carol) = (cluster.connect(0, "alice"), cluster.connect(1, "carol"));
    let unread = [
        alice.send_message("bob", "one"),
        carol.send_message("bob", "two"),
        alice.send_group_message("team", "three"),
    ];
    // Both sketches have had it, and bob was not there.
    for client in [&mut alice, &mut carol] {
        client.expect_message(&unread[2]);
    }
    for (gateway, before, acknowledged) in [(0, 0, 0), (1, 0, 2), (0, 2, 3)] {
        let mut bob = cluster.connect(gateway, "bob");
        assert_eq!(ids(&pushes(&mut bob)), unread[before..]);
        bob.ack(&unread[..acknowledged]);
        bob.close();
    }
    assert_eq!(ids(&pushes(&mut cluster.connect(1, "bob"))), [""; 0]);
}

#[test]
fn whoever_shares_a_group_is_told_who_comes_and_goes() {
    let cluster = two_sketches();
    let mut alice = cluster.connect(0, "alice");
    let mut bob = cluster.connect(1, "bob");
    bob.expect_presence("alice", "online");
    alice.expect_presence("bob", "online");
    bob.close();
    alice.expect_presence("bob", "offline");
}

/// The document tells the Presence Service of each connection that closes, whatever others there are.
#[test]
fn a_user_with_two_devices_is_said_to_be_offline_when_one_of_them_leaves() {
    let cluster = two_sketches();
    let mut alice = cluster.connect(0, "alice");
    let mut stays = cluster.connect(1, "bob");
    let leaves = cluster.connect(1, "bob");
    alice.expect_presence("bob", "online");
    leaves.close();
    alice.expect_presence("bob", "offline");
    let id = alice.send_message("bob", "you are here, are you not?");
    stays.expect_message(&id);
}

/// `try_send` and drop: one who reads slowly misses what finds no room, without a word, and goes on.
#[test]
fn a_slow_reader_misses_what_finds_no_room_and_is_told_nothing() {
    const FULL: &str = "Connection send channel full for user: bob";
    let settings = chat::settings()
        .set("session.send_queue", 16)
        .set("session.write_timeout", "60s")
        .set("limits.max_message_size", 100_000);
    let gateway = Gateway::start(&settings.for_sketch());
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.raw_session_buffering("bob", 4_096);
    bob.json_that(|frame| frame["type"] == "offline_complete");

    let content = "x".repeat(60_000);
    let mut sent = Vec::new();
    while !gateway.stderr().contains(FULL) {
        assert!(
            sent.len() < 1_000,
            "bob reads nothing, and has room for all"
        );
        sent.push(alice.send_message("bob", &content));
    }
    sent.extend((0..20).map(|_| alice.send_message("bob", &content)));
    // One loop delivers: what was published before this has been, or not.
    let fence = alice.send_message("alice", "to myself");
    alice.expect_message(&fence);

    let dropped = gateway.stderr().matches(FULL).count();
    assert!(dropped >= 20, "{dropped} dropped");
    let mut next = || {
        bob.json_that(is_push)["id"]
            .as_str()
            .expect("an id")
            .to_owned()
    };
    let came: Vec<String> = (dropped..sent.len()).map(|_| next()).collect();
    assert_eq!(came, sent[..came.len()], "the first ones have come");
    let later = alice.send_message("bob", "and you?");
    assert_eq!(next(), later, "{dropped} between are not pushed");

    // They are unread: a device that connects, whenever that is, has them.
    let mut unread = gateway.connect("bob").take_held();
    unread.retain(is_push);
    assert_eq!(unread.len(), sent.len() + 1);
}

/// The consume loop ends with its connection, and nothing starts it again.
#[test]
fn a_broker_connection_that_ends_is_the_end_of_all_pushes() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings().for_sketch(), 1);
    let wire = Wire::to(cluster.broker.addr);
    let settings = cluster.settings("wired");
    let wired = Gateway::start(&settings.set("broker.url", wire.url(&cluster.url)));
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), wired.connect("bob"));
    let before = alice.send_message("bob", "before");
    bob.expect_message(&before);
    bob.ack(&[before]);

    wire.cut();
    wired.stderr_line("Consumer ended");
    let mut after = vec![alice.send_message("bob", "after")];
    alice.expect_message(&after[0]);
    let nothing = bob.frames_until_pong();
    assert!(!nothing.iter().any(is_push), "{nothing:?}");

    // He is served, and does not know; who connects has what is unread by then, and nothing later.
    let mut again = wired.connect("bob");
    assert_eq!(ids(&pushes(&mut again)), after);
    after.push(alice.send_message("bob", "later"));
    alice.expect_message(&after[1]);
    for device in [&mut bob, &mut again] {
        assert_eq!(ids(&pushes(device)), [""; 0], "{device}");
    }
}

/// The user's key is bound on the way in, by a call that waits for the broker.
#[test]
fn nobody_is_let_in_while_the_broker_says_nothing() {
    let cluster = Cluster::on(Broker::shared(), &chat::settings().for_sketch(), 1);
    let wire = Wire::to(cluster.broker.addr);
    let settings = cluster.settings("wired");
    let wired = Gateway::start(&settings.set("broker.url", wire.url(&cluster.url)));
    wire.hold(Way::FromBroker);
    let mut users = ["alice", "bob"].map(|user| {
        let mut raw = wired.raw();
        assert_eq!(raw.try_upgrade(&wired.path, &token_of(user)).status, 101);
        raw
    });
    for raw in &mut users {
        let frames = raw.read_up_to(1 << 16).expect("a connection");
        assert!(frames.is_empty(), "{frames:?}");
    }
    wire.release();
    for raw in &mut users {
        assert_eq!(raw.json()["type"], "connected");
    }
}

fn pushes(client: &mut Client) -> Vec<Value> {
    let mut frames = client.frames_until_pong();
    frames.retain(is_push);
    frames
}

/// Whoever is to get a group's message is asked once, and a message whose members are not to be had is
/// acknowledged like any other.
#[test]
fn a_group_message_is_lost_whose_members_cannot_be_asked_for() {
    let settings = chat::settings().set("services.timeout", "1s").for_sketch();
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let mut users = Services::start(&settings, &cluster.url);
    let asks = cluster.settings("asks").set("services.user", users.url());
    let gateway = Gateway::start(&asks);
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));

    users.kill();
    let lost = alice.send_group_message("team", "who are you?");
    gateway.stderr_line("Not delivered");
    users.start_again();
    let next = alice.send_group_message("team", "who is there?");
    for member in [&mut alice, &mut bob] {
        let came = ids(&member.messages_until(&next));
        assert_eq!(came, [next.as_str()], "{member}: not {lost}");
    }
}

/// What the document leaves open, and the contract demands: whose token is taken away goes on.
#[test]
fn a_token_that_is_taken_away_closes_nobody() {
    let settings = chat::settings().for_sketch();
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), cluster.connect(0, "bob"));
    let mut without_bob = settings.clone();
    without_bob.remove_token(&token_of("bob"));
    cluster.services.reload(&without_bob);
    crate::support::wait_until("bob is unknown", || {
        let gateway = &cluster.gateways[0];
        Client::try_connect(gateway.addr, &gateway.path, &token_of("bob")).is_err()
    });
    // What tells gateways to close him was published before this.
    let id = alice.send_message("bob", "still there?");
    bob.expect_message(&id);
}

/// It is read in one go.
#[test]
fn the_sketch_has_at_most_400_lines() {
    let lines = include_str!("../naive/gateway.rs").lines().count();
    assert!(lines <= 400, "{lines} lines");
}

/// What the chapter quotes is in the sketch, and what it points at is in the gateway.
#[test]
fn the_chapter_quotes_the_sketch_and_names_files_that_there_are() {
    let (chapter, sketch) = (
        include_str!("../../src/docs/sketch.md"),
        include_str!("../naive/gateway.rs"),
    );
    let (mut quoted, mut named) = (0, 0);
    for (number, text) in chapter.split("```").enumerate() {
        if number % 2 == 1 {
            for line in text.lines().skip(1).map(str::trim) {
                let is_there = sketch.lines().any(|it| it.trim() == line);
                assert!(is_there || line == "// …", "not in the sketch: {line}");
                quoted += 1;
            }
            continue;
        }
        let in_backticks = text.split('`').skip(1).step_by(2);
        for path in in_backticks.filter(|it| it.starts_with("src/") || it.starts_with("tests/")) {
            let path = path.split(' ').next().expect("a path");
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            assert!(file.exists(), "there is no {path}");
            named += 1;
        }
    }
    assert!(
        quoted >= 10 && named >= 15,
        "{quoted} quoted, {named} named"
    );
}
