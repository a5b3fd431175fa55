//! A group whose members are not to be had: only its own messages wait, and none is lost.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::scenarios::reconnects::message;
use crate::support::amqp::Amqp;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::{ids, is_push};
use crate::support::cluster::remote;
use crate::support::wire::Wire;
use crate::support::{Client, DEADLINE, Gateway, Services, Settings, wait_until};

/// Longer than any deadline of a test.
const SLOW: Duration = Duration::from_secs(600);
/// More than the broker lets a consumer have unacknowledged.
const OVER_PREFETCH: usize = 600;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// More than a gateway takes in one answer.
    TooLarge,
    Slow,
    Error(Code),
}

const FAULTS: [Fault; 7] = [
    Fault::TooLarge,
    Fault::Slow,
    Fault::Error(Code::Internal),
    Fault::Error(Code::Unavailable),
    Fault::Error(Code::DeadlineExceeded),
    Fault::Error(Code::ResourceExhausted),
    Fault::Error(Code::PermissionDenied),
];

fn breaks(backend: &Backend, group: &str, fault: Fault) {
    match fault {
        Fault::TooLarge => backend.answer(|answers| {
            let too_many = (0..100_000).map(|number| format!("{number:0>200}"));
            answers.members.insert(group.into(), too_many.collect());
        }),
        Fault::Slow => backend.slow_group(group, SLOW),
        Fault::Error(code) => backend.fail_group(group, code),
    }
}

fn heals(backend: &Backend, group: &str, members: &[&str]) {
    backend.heal_group(group);
    backend.answer(|answers| {
        let members = members.iter().map(|&member| member.into()).collect();
        answers.members.insert(group.into(), members);
    });
}

/// A gateway on services that do as they are told.
struct Stand {
    backend: Backend,
    gateway: Gateway,
    amqp: Amqp,
    bob: Client,
}

impl Stand {
    fn start() -> Self {
        let (backend, url) = (Backend::start(), Broker::shared().vhost());
        heals(&backend, "good", &["bob"]);
        let settings = Settings::new()
            .set("services.timeout", "500ms")
            .set("session.send_queue", 4_096);
        let gateway = Gateway::start(&remote(&settings, &backend.url(), &url));
        gateway.wait_ready();
        let bob = gateway.connect("bob");
        Self {
            backend,
            gateway,
            amqp: Amqp::open(&url),
            bob,
        }
    }

    fn publish(&self, group: &str, id: &str) {
        let (key, body) = (format!("group.{group}"), message(id, "carol", "", group));
        self.amqp.publish("im.topic", &key, "message", body);
    }

    fn changes(&self, group: &str) {
        use prost::Message as _;
        let changed = ws_gateway::services::proto::GroupMembersChanged {
            group_id: group.into(),
        };
        let (key, body) = (format!("group.{group}"), changed.encode_to_vec());
        self.amqp
            .publish("im.topic", &key, "group_members_changed", body);
    }
}

#[test]
fn a_bad_group_under_flood_holds_up_no_other_and_loses_nothing() {
    let mut stand = Stand::start();
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let bad = format!("bad{number}");
        breaks(&stand.backend, &bad, fault);
        let published: Vec<_> = (0..OVER_PREFETCH).map(|id| format!("{bad}-{id}")).collect();
        for id in &published {
            stand.publish(&bad, id);
        }
        let start = Instant::now();
        let good = format!("good-{bad}");
        stand.publish("good", &good);
        let got = ids(&stand.bob.messages_until(&good));
        assert_eq!(got, [good], "{fault:?}");
        println!(
            "{fault:?}: another group's message after {:?}",
            start.elapsed()
        );

        heals(&stand.backend, &bad, &["bob"]);
        let last = published.last().expect("some");
        assert_eq!(ids(&stand.bob.messages_until(last)), published, "{fault:?}");
    }
}

#[test]
fn hundreds_of_bad_groups_hold_up_no_other() {
    const GROUPS: usize = 200;
    let mut stand = Stand::start();
    for (number, fault) in [
        Fault::Slow,
        Fault::Error(Code::Internal),
        Fault::Error(Code::Unavailable),
    ]
    .into_iter()
    .enumerate()
    {
        let bad = |group: usize| format!("bad{number}-{group}");
        for group in 0..GROUPS {
            breaks(&stand.backend, &bad(group), fault);
            for id in 0..3 {
                stand.publish(&bad(group), &format!("{}-{id}", bad(group)));
            }
        }
        let new = format!("new{number}");
        heals(&stand.backend, &new, &["bob"]);
        for group in ["good", &new] {
            let id = format!("{group}-{number}");
            stand.publish(group, &id);
            assert_eq!(ids(&stand.bob.messages_until(&id)), [id], "{fault:?}");
        }
        for group in 0..GROUPS {
            heals(&stand.backend, &bad(group), &["bob"]);
        }
        let mut got = Vec::new();
        while got.len() < 3 * GROUPS {
            let frame = stand.bob.expect("group_message");
            got.push(frame["id"].as_str().expect("an id").to_owned());
        }
        for group in 0..GROUPS {
            let prefix = format!("{}-", bad(group));
            let of_group: Vec<_> = got.iter().filter(|id| id.starts_with(&prefix)).collect();
            let expected: Vec<_> = (0..3).map(|id| format!("{prefix}{id}")).collect();
            assert_eq!(of_group, expected.iter().collect::<Vec<_>>());
        }
    }
}

/// A list that was had is outdated by a change, and the next one is not to be had.
#[test]
fn a_change_of_a_group_that_turns_bad_holds_up_no_other() {
    let mut stand = Stand::start();
    for (number, fault) in FAULTS.into_iter().enumerate() {
        let group = format!("turns{number}");
        heals(&stand.backend, &group, &["bob"]);
        let [before, after, good] = ["before", "after", "good"].map(|id| format!("{group}-{id}"));
        stand.publish(&group, &before);
        stand.bob.expect_message(&before);
        breaks(&stand.backend, &group, fault);
        stand.changes(&group);
        stand.publish(&group, &after);
        stand.publish("good", &good);
        assert_eq!(ids(&stand.bob.messages_until(&good)), [good], "{fault:?}");
        heals(&stand.backend, &group, &["bob"]);
        assert_eq!(ids(&stand.bob.messages_until(&after)), [after]);
    }
}

#[test]
fn a_gateway_stops_at_once_while_groups_are_bad() {
    let mut stand = Stand::start();
    for fault in [Fault::Slow, Fault::Error(Code::Unavailable)] {
        breaks(&stand.backend, &format!("{fault:?}"), fault);
        stand.publish(&format!("{fault:?}"), "m");
    }
    stand.publish("good", "fence");
    stand.bob.expect_message("fence");
    let start = Instant::now();
    stand.gateway.stop_with_clients(&mut [&mut stand.bob]);
    assert!(start.elapsed() < DEADLINE / 2, "{:?}", start.elapsed());
}

/// The members come from the test, everything else from the reference services.
struct Real {
    backend: Backend,
    _services: Services,
    /// The broker's URL.
    url: String,
    wire: Wire,
    gateway: Gateway,
}

impl Real {
    fn start() -> Self {
        let (backend, broker) = (Backend::start(), Broker::shared());
        let (url, wire) = (broker.vhost(), Wire::to(broker.addr));
        let settings = Settings::new()
            .users(["alice", "bob"])
            .group("bad", ["alice", "bob"])
            .group("good", ["alice", "bob"])
            .set("limits.rate", 100_000)
            .set("limits.burst", 100_000)
            .set("services.timeout", "500ms");
        let services = Services::start(&settings, &url);
        let settings = remote(&settings, &services.url(), &wire.url(&url));
        let gateway = Gateway::start(&settings.set("services.user", backend.url()));
        gateway.wait_ready();
        heals(&backend, "good", &["alice", "bob"]);
        Self {
            backend,
            _services: services,
            url,
            wire,
            gateway,
        }
    }

    /// Waits until all that was delivered is acknowledged: what is not comes again.
    fn all_is_acknowledged(&self) {
        let (_, vhost) = self.url.rsplit_once('/').expect("a virtual host");
        let list = [
            "list_queues",
            "--no-table-headers",
            "-p",
            vhost,
            "messages_unacknowledged",
        ];
        wait_until("all is acknowledged", || {
            let counts = Broker::shared().rabbitmqctl(&list);
            counts.split_whitespace().all(|count| count == "0")
        });
    }
}

#[test]
fn a_flood_beyond_all_room_is_left_to_catch_up_and_own_copies_come_at_once() {
    for fault in [Fault::Slow, Fault::Error(Code::Internal)] {
        let real = Real::start();
        breaks(&real.backend, "bad", fault);
        let [mut alice, mut other, mut bob] =
            ["alice", "alice", "bob"].map(|user| real.gateway.connect(user));
        // 18 MB.
        let large = "x".repeat(60_000);
        let (mut sent, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            sent.push(alice.send_group_message("bad", &large));
            copies.extend(other.frames_until_pong());
        }
        let last = alice.send_group_message("bad", "the last");
        copies.extend(other.messages_until(&last));
        sent.push(last);
        copies.retain(is_push);
        assert_eq!(ids(&copies), sent, "{fault:?}");
        let good = alice.send_group_message("good", "meanwhile");
        assert_eq!(ids(&bob.messages_until(&good)), [good], "{fault:?}");
        heals(&real.backend, "bad", &["alice", "bob"]);
        let after = alice.send_group_message("bad", "after");
        let mut expected = sent;
        expected.push(after.clone());
        let mut got = ids(&bob.messages_until(&after));
        got.retain(|id| expected.contains(id));
        assert_eq!(got, expected, "in order, each once");
    }
}

/// What waited was acknowledged; everybody is caught up when the broker is back.
#[test]
fn what_waits_when_the_broker_is_lost_comes_with_the_catch_up() {
    let real = Real::start();
    breaks(&real.backend, "bad", Fault::Error(Code::Unavailable));
    let [mut alice, mut other, mut bob] =
        ["alice", "alice", "bob"].map(|user| real.gateway.connect(user));
    let waits = alice.send_group_message("bad", "waits");
    let good = alice.send_group_message("good", "a fence");
    for client in [&mut other, &mut bob] {
        assert_eq!(ids(&client.messages_until(&good)), [good.as_str()]);
    }
    bob.ack(&[&good]);
    real.all_is_acknowledged();
    let connections = real.wire.connections();
    real.wire.cut();
    bob.expect_message(&waits);
    other.expect_message(&waits);
    wait_until("a new connection", || {
        real.wire.connections() > connections && real.gateway.is_ready()
    });
    let again = alice.send_group_message("bad", "waits again");
    heals(&real.backend, "bad", &["alice", "bob"]);
    for client in [&mut other, &mut bob] {
        client.expect_message(&again);
        let twice = client.frames_until_pong();
        assert!(
            twice.iter().all(|frame| frame["id"] != waits.as_str()),
            "{twice:?}"
        );
    }
}
