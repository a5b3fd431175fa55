//! Messages while something else is on its way: a member, a route, a page, a batch.

use std::collections::BTreeSet;
use std::time::Instant;
use std::{iter, thread};

use serde_json::{Value, json};

use super::figures::rounded;
use super::{Drill, Figures};
use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::ledger::Ledger;
use crate::support::process::Signal;
use crate::support::sketch::patience;
use crate::support::wait::wait_until;
use crate::support::wire::{Way, Wire};
use crate::support::{Client, Cluster, Event, Gateway, Settings};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "members-join",
        about: "50 users join a group one after the other while messages flow in it",
        run: || members_join(50),
    },
    Drill {
        name: "unread-on-connect",
        about: "10,000 unread messages on connect, at two gateways at once, while more come",
        run: || unread_on_connect(10_000, 1_000),
    },
    Drill {
        name: "batches",
        about: "50 times 1,000 messages in one go to a client whose send queue holds 16",
        run: || batches(50, 1_000),
    },
];

const BOB: &str = "bob";

fn settings() -> Settings {
    Settings::new()
        .users(["alice", "bob"])
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info")
}

/// `count` users are connected and become members one after the other, while alice writes. Who is
/// a member when a message is committed finds it unread: and has had it already.
pub fn members_join(count: usize) -> Figures {
    let newcomers: Vec<String> = (0..count).map(|number| format!("new{number:02}")).collect();
    let members = |joined: usize| {
        let old = ["alice", "bob"].into_iter();
        old.chain(newcomers[..joined].iter().map(String::as_str))
    };
    let settings = settings().users(newcomers.iter().map(String::as_str));
    let with = |joined| settings.clone().group("team", members(joined));
    let cluster = Cluster::on(Broker::shared(), &with(0), 2);
    let mut alice = cluster.connect(0, "alice");
    let mut bob = cluster.connect(1, BOB);
    let mut devices: Vec<Client> = newcomers
        .iter()
        .enumerate()
        .map(|(number, user)| cluster.connect(number % 2, user))
        .collect();

    let mut committed = vec![alice.send_group_message("team", "before")];
    for joined in 1..=count {
        cluster.services.reload(&with(joined));
        let newcomer = &mut devices[joined - 1];
        wait_until(format!("{newcomer} is a member"), || {
            committed.push(alice.send_group_message("team", "meanwhile"));
            newcomer.request("get_group_history", json!({"group_id": "team"}))["type"] != "error"
        });
        // The gateways hear of it while these are on their way.
        committed.extend((0..10).map(|_| alice.send_group_message("team", "meanwhile")));
    }
    committed.push(alice.send_group_message("team", "after"));

    // What the Message Service holds for each.
    let mut unread: Vec<(String, Vec<String>)> = vec![("bob".into(), committed.clone())];
    for (number, user) in newcomers.iter().enumerate() {
        let mut next = cluster.connect(number % 2, user);
        unread.push((user.clone(), pushed(&next.take_held())));
    }
    let ledger = Ledger::default();
    for id in &committed {
        let has = unread.iter().filter(|(_, ids)| ids.contains(id));
        let recipients: Vec<&str> = has.map(|(user, _)| user.as_str()).collect();
        ledger.committed("alice", &recipients, id);
    }
    for (client, (user, due)) in iter::once(&mut bob).chain(&mut devices).zip(&unread) {
        assert!(!due.is_empty(), "{user} is a member");
        ledger.device(user, user);
        for id in read_all(client, due) {
            ledger.received(user, &id);
        }
    }
    let mut figures = Figures::of(ledger.report());
    figures.demand_unnoticed();
    figures
}

/// bob connects two devices whose route the broker cannot confirm, because what goes `way` between
/// it and their gateway is held; and a message comes after their first catch-up.
pub fn late_route(way: Way) -> Figures {
    let cluster = Cluster::on(Broker::shared(), &settings(), 1);
    let wire = Wire::to(cluster.broker.addr);
    let settings = cluster
        .settings("late")
        .set("broker.url", wire.url(&cluster.url));
    let late = Gateway::start(&settings);
    late.wait_ready();
    let mut alice = cluster.connect(0, "alice");
    let mut committed: Vec<String> = (0..5)
        .map(|_| alice.send_message("bob", "unread"))
        .collect();

    wire.hold(way);
    let mut bobs = [late.connect_cold("bob"), late.connect_cold("bob")];
    for bob in &mut bobs {
        bob.expect("offline_complete");
        assert_eq!(pushed(&bob.take_held()), committed, "unread first");
    }
    // No route leads to bob yet: alice's own copy says that the broker has had the message.
    committed.push(alice.send_message("bob", "between catch-up and route"));
    alice.expect_message(&committed[5]);
    for bob in &mut bobs {
        assert_eq!(pushed(&bob.frames_until_pong()), [""; 0]);
    }
    wire.release();
    for bob in &mut bobs {
        bob.expect_message(&committed[5]);
    }
    committed.push(alice.send_message("bob", "by the route"));

    let ledger = Ledger::default();
    for id in &committed {
        ledger.committed("alice", &["bob"], id);
    }
    for (number, bob) in bobs.iter_mut().enumerate() {
        let name = format!("bob/{number}");
        ledger.device(&name, "bob");
        for id in &committed[..6] {
            ledger.received(&name, id);
        }
        for id in read_all(bob, &committed[6..]) {
            ledger.received(&name, &id);
        }
    }
    each_once_in_order(&ledger)
}

/// What is demanded of messages to clients who stay connected.
fn each_once_in_order(ledger: &Ledger) -> Figures {
    let mut figures = Figures::of(ledger.report());
    figures.demand_unnoticed();
    figures.demand(figures.duplicated == 0, "each comes once");
    figures
}

/// While the broker is away, bob connects and reads nothing, so that his catch-up is stuck in the
/// middle; then comes a message that no route brings to him, then the broker, and then one by the
/// route. Another device of his shows when that has come.
pub fn broker_returns_during_catch_up() -> Figures {
    let settings = settings()
        .set("limits.max_message_size", 300_000)
        .set("session.send_queue_bytes", 64 << 20)
        .set("session.write_timeout", "30s");
    let cluster = Cluster::on(Broker::shared(), &settings, 1);
    let wire = Wire::to(cluster.broker.addr);
    wire.hold(Way::ToBroker);
    let settings = cluster
        .settings("late")
        .set("broker.url", wire.url(&cluster.url));
    let late = Gateway::start(&settings);
    let mut alice = cluster.connect(0, "alice");
    let content = "x".repeat(200_000);
    // More than the socket takes, and less than a page.
    let mut committed: Vec<String> = (0..40).map(|_| alice.send_message(BOB, &content)).collect();
    let mut stuck = late.connect_cold(BOB);
    wait_until("its first page is under way", || stuck.has_something());
    committed.push(alice.send_message(BOB, "by no route"));
    alice.expect_message(&committed[40]);
    wire.release();
    late.wait_ready();
    let mut other = late.connect(BOB);
    committed.push(alice.send_message(BOB, "by the route"));

    let ledger = Ledger::default();
    for id in &committed {
        ledger.committed("alice", &[BOB], id);
    }
    for (name, bob) in [("other", &mut other), ("stuck", &mut stuck)] {
        ledger.device(name, BOB);
        for id in read_all(bob, &committed) {
            ledger.received(name, &id);
        }
    }
    each_once_in_order(&ledger)
}

/// bob has `unread` messages when he connects two devices, and `live` more come meanwhile. Each
/// device gets all of them once, in order, unread first.
pub fn unread_on_connect(unread: usize, live: usize) -> Figures {
    let cluster = Cluster::on(
        Broker::shared(),
        &settings().set("session.send_queue", 64),
        2,
    );
    let mut alice = cluster.connect(0, "alice");
    let mut committed: Vec<String> = (0..unread)
        .map(|_| alice.send_message("bob", "unread"))
        .collect();
    let began = Instant::now();
    let (sent, bobs) = thread::scope(|scope| {
        let sends = scope.spawn(|| -> Vec<String> {
            (0..live)
                .map(|_| alice.send_message("bob", "live"))
                .collect()
        });
        let connects: Vec<_> = cluster
            .gateways
            .iter()
            .map(|gateway| {
                scope.spawn(|| {
                    let mut bob = gateway.connect(BOB);
                    let first = pushed(&bob.take_held());
                    (bob, first, began.elapsed())
                })
            })
            .collect();
        let bobs: Vec<_> = connects
            .into_iter()
            .map(|bob| bob.join().expect("bob connects"))
            .collect();
        (sends.join().expect("alice sends"), bobs)
    });
    committed.extend(sent);

    let ledger = Ledger::default();
    for id in &committed {
        ledger.committed("alice", &["bob"], id);
    }
    let mut notes = Vec::new();
    for (mut bob, first, took) in bobs {
        assert!(
            first.len() >= unread,
            "{} of {unread} come first",
            first.len()
        );
        let (name, count, took) = (bob.to_string(), first.len(), rounded(took));
        notes.push(format!("{name}: {count} unread ones first, within {took}"));
        ledger.device(&name, BOB);
        let rest = read_all(&mut bob, &committed[first.len()..]);
        for id in first.iter().chain(&rest) {
            ledger.received(&name, id);
        }
    }
    let mut figures = each_once_in_order(&ledger);
    figures.notes = notes;
    figures
}

/// bob's gateway stands still while `size` messages are published to him, `rounds` times: so it
/// receives many times his send queue at once. He reads, so he is no slow consumer.
pub fn batches(rounds: usize, size: usize) -> Figures {
    let cluster = Cluster::on(
        Broker::shared(),
        &settings()
            .set("session.send_queue", 16)
            .set("log.level", "info"),
        2,
    );
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), cluster.connect(1, BOB));
    let (ledger, content) = (Ledger::default(), "x".repeat(500));
    ledger.device(BOB, BOB);
    for _ in 0..rounds {
        cluster.gateways[1].signal(Signal::STOP);
        let sent: Vec<String> = (0..size)
            .map(|_| alice.send_message(BOB, &content))
            .collect();
        alice.expect_message(sent.last().expect("messages"));
        alice.take_held();
        cluster.gateways[1].signal(Signal::CONT);
        for id in &sent {
            ledger.committed("alice", &[BOB], id);
        }
        let received = read_all(&mut bob, &sent);
        received.iter().for_each(|id| ledger.received(BOB, id));
        bob.ack(&sent);
    }
    let mut figures = Figures::of(ledger.report());
    figures.demand_unnoticed();
    // What was on its way when he fell back, and was not acknowledged yet, comes again.
    let fell_back = cluster.gateways[1]
        .stderr()
        .contains("Fell back to the inbox");
    let clause = "each comes once, unless the client falls back to its inbox";
    figures.demand(figures.duplicated == 0 || fell_back, clause);
    figures
}

/// Reads until all of `due` have come, or nothing more comes in time, and up to a fence behind
/// that. Answers all ids that came. The connection must not end: no 4001.
fn read_all(client: &mut Client, due: &[String]) -> Vec<String> {
    let mut due: BTreeSet<&str> = due.iter().map(String::as_str).collect();
    let (mut came, mut end) = (Vec::new(), Instant::now() + patience());
    while !due.is_empty() && Instant::now() < end {
        match client.next_event(end.saturating_duration_since(Instant::now())) {
            Event::Frame(frame) if is_push(&frame) => {
                let id = frame["id"].as_str().expect("an id");
                due.remove(id);
                came.push(id.to_owned());
                end = Instant::now() + patience();
            }
            Event::Frame(_) => {}
            Event::Nothing => break,
            Event::End(ended) => panic!("{client} ended: {ended:?}"),
        }
    }
    came.extend(pushed(&client.frames_until_pong()));
    came
}

/// The ids of the messages among `frames`.
fn pushed(frames: &[Value]) -> Vec<String> {
    frames
        .iter()
        .filter(|frame| is_push(frame))
        .map(|frame| frame["id"].as_str().expect("an id").to_owned())
        .collect()
}
