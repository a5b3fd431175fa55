//! What the services do when the broker refuses what they publish: it comes later, in order for
//! its key, and everything else comes at once.

use std::collections::{BTreeSet, HashMap};
use std::thread;
use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};
use prost::Message as _;
use ws_gateway::services::proto::Message;

use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Cluster, Settings};

const SENDERS: usize = 8;
/// Of each sender, to each recipient.
const EACH: usize = 25;
/// What fits into a queue that refuses.
const FITS: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

fn sender(number: usize) -> String {
    format!("sender{number}")
}

fn cluster(broker: std::sync::Arc<Broker>) -> Cluster {
    let senders: Vec<_> = (0..SENDERS).map(sender).collect();
    let settings = Settings::new()
        .users(senders.iter().map(String::as_str))
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    Cluster::on(broker, &settings, 1)
}

/// A queue for what concerns `user`; one that refuses what does not fit, or one for all.
fn queue(amqp: &Amqp, user: &str, refuses: bool) {
    let mut arguments = FieldTable::new();
    if refuses {
        let overflow = AmqpValue::LongString("reject-publish".into());
        arguments.insert("x-overflow".into(), overflow);
        arguments.insert("x-max-length".into(), AmqpValue::LongLongInt(FITS.into()));
    }
    let options = QueueDeclareOptions {
        durable: true,
        arguments,
        ..Default::default()
    };
    amqp.declare_queue(user, options);
    amqp.bind(user, "im.direct", &format!("user.{user}"));
}

/// All senders at once send to all recipients in turns.
fn send(cluster: &Cluster, recipients: &[&str]) {
    thread::scope(|scope| {
        for number in 0..SENDERS {
            scope.spawn(move || {
                let mut client: Client = cluster.connect(0, &sender(number));
                for round in 0..EACH {
                    for to in recipients {
                        client.send_message(to, &format!("{number} {round}"));
                    }
                }
            });
        }
    });
}

/// Takes from the queues in turns until `count` different messages of each have come that were not
/// `taken` before. Their ids, which sort by the order of commits, in the order in which they came.
fn take(amqp: &Amqp, queues: &[&str], count: usize, taken: &BTreeSet<String>) -> Vec<Vec<String>> {
    let mut ids = vec![Vec::new(); queues.len()];
    let mut seen = vec![taken.clone(); queues.len()];
    wait_until_within(PATIENCE, format!("{count} messages for {queues:?}"), || {
        for (number, queue) in queues.iter().enumerate() {
            while let Some(taken) = amqp.take(queue) {
                let id = Message::decode(taken.body.as_slice())
                    .expect("a message")
                    .id;
                if seen[number].insert(id.clone()) {
                    ids[number].push(id);
                }
            }
        }
        ids.iter().all(|ids| ids.len() >= count)
    });
    for (ids, queue) in ids.iter().zip(queues) {
        assert_eq!(ids.len(), count, "{queue}");
        assert!(ids.is_sorted(), "{queue}: {ids:?}");
    }
    ids
}

#[test]
fn what_a_full_queue_refuses_comes_later_in_order_and_holds_up_nobody() {
    let cluster = cluster(Broker::shared());
    let amqp = cluster.amqp();
    queue(&amqp, "bob", true);
    queue(&amqp, "alice", false);
    send(&cluster, &["bob", "alice"]);
    take(&amqp, &["alice"], SENDERS * EACH, &BTreeSet::new());
    assert!(amqp.ready("bob") <= FITS);
    take(&amqp, &["bob"], SENDERS * EACH, &BTreeSet::new());
    let log = cluster.services.stderr();
    assert!(log.contains("Refused by the broker"), "it says so: {log}");
}

/// The queue is emptied while the senders send, so that of two publications the first may find no
/// room and the second some.
#[test]
fn a_queue_that_has_room_now_and_then_gets_everything_in_order() {
    let cluster = cluster(Broker::shared());
    let amqp = cluster.amqp();
    let recipients = ["bob", "carol", "dave"];
    for user in recipients {
        queue(&amqp, user, true);
    }
    let ids = thread::scope(|scope| {
        scope.spawn(|| send(&cluster, &recipients));
        let mut ids = HashMap::new();
        wait_until_within(PATIENCE, "all messages", || {
            for user in recipients {
                let taken = amqp.take(user);
                let id = taken.map(|it| Message::decode(it.body.as_slice()).expect("one").id);
                ids.entry(user).or_insert_with(Vec::new).extend(id);
            }
            ids.values().all(|ids| ids.len() >= SENDERS * EACH)
        });
        ids
    });
    for (user, ids) in ids {
        assert!(ids.is_sorted(), "{user}: {ids:?}");
        assert_eq!(BTreeSet::from_iter(&ids).len(), SENDERS * EACH, "{user}");
    }
}

/// Hundreds of keys at once, across a restart of the services and of the broker.
#[test]
fn what_was_refused_outlives_the_services_and_the_broker() {
    let broker = Broker::private();
    let mut cluster = cluster(broker);
    let amqp = cluster.amqp();
    let recipients: Vec<_> = (0..20).map(|number| format!("user{number}")).collect();
    for user in &recipients {
        queue(&amqp, user, true);
    }
    queue(&amqp, "alice", false);
    let names: Vec<_> = recipients.iter().map(String::as_str).collect();
    send(&cluster, &names);
    cluster.services.restart();
    cluster.gateways[0].wait_ready();
    send(&cluster, &["alice"]);
    let taken = take(&amqp, &["alice"], SENDERS * EACH, &BTreeSet::new());
    drop(amqp);
    cluster.broker.kill9();
    cluster.broker.restart();
    cluster.gateways[0].wait_ready();
    let amqp = cluster.amqp();
    send(&cluster, &["alice"]);
    // The broker may have forgotten that some were taken.
    let taken = BTreeSet::from_iter(taken.concat());
    take(&amqp, &["alice"], SENDERS * EACH, &taken);
    take(&amqp, &names, SENDERS * EACH, &BTreeSet::new());
}
