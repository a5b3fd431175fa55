//! The connection between a gateway and its broker is cut again and again while messages flow.
//!
//! The backend knows of nothing unread, so that nobody catches up: a message that a wrong
//! acknowledgement took from its queue is lost here, and seen to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use ws_gateway::services::proto::Message;

use super::figures::rounded;
use super::{Drill, Figures};
use crate::support::amqp::Amqp;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::cluster::remote;
use crate::support::ledger::Ledger;
use crate::support::sketch::{self, patience};
use crate::support::wait::{DEADLINE, holds_within, wait_until};
use crate::support::wire::Wire;
use crate::support::{Client, Event, Gateway, Settings};

pub const DRILLS: &[Drill] = &[Drill {
    name: "reconnects",
    about: "200 cuts of a gateway's broker connection in a row under flow",
    run: || reconnects(200),
}];

/// Between two publications: a few hundred in a second.
const PAUSE: Duration = Duration::from_millis(3);
const LOOK: Duration = Duration::from_millis(50);

/// Cuts the connection `count` times, each time as soon as the gateway is ready again.
pub fn reconnects(count: usize) -> Figures {
    let (broker, backend) = (Broker::shared(), Backend::start());
    backend.answer(|answers| {
        answers.members.insert("team".into(), vec!["bob".into()]);
    });
    let url = broker.vhost();
    let wire = Wire::to(broker.addr);
    let settings = Settings::new()
        .set("log.level", "info")
        .set("gateway.id", "g")
        // Room for all that piles up during a cut: what finds none is left to catch-up, which finds
        // nothing here.
        .set("session.send_queue", 65_536)
        .set("session.send_queue_bytes", 64 << 20);
    let gateway = Gateway::start(&remote(&settings, &backend.url(), &wire.url(&url)));
    gateway.wait_ready();
    let bob = gateway.connect("bob");

    let ledger = Arc::new(Ledger::default());
    ledger.device("bob", "bob");
    let (flowing, reading) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicBool::new(true)),
    );
    let publisher = {
        let (ledger, flowing, amqp) = (Arc::clone(&ledger), Arc::clone(&flowing), Amqp::open(&url));
        thread::spawn(move || publish(&amqp, &ledger, &flowing))
    };
    let reader = {
        let (ledger, reading) = (Arc::clone(&ledger), Arc::clone(&reading));
        thread::spawn(move || read(bob, &ledger, &reading))
    };
    let began = Instant::now();
    let mut back = 0;
    for number in 0..count {
        wire.cut();
        wait_until(format!("cut {number} is noticed"), || {
            gateway.shows_ready(false)
        });
        wait_until(format!("it is back after cut {number}"), || {
            gateway.shows_ready(true)
        });
        // What is not ready to say so shows by its deliveries whether it is back.
        let delivered = ledger.report().delivered;
        let delivers = || ledger.report().delivered > delivered;
        if gateway.is_sketch && !holds_within(DEADLINE, delivers) {
            break;
        }
        back += 1;
    }
    let took = began.elapsed();
    flowing.store(false, Ordering::SeqCst);
    publisher.join().expect("it publishes to the end");
    let patience = Instant::now() + patience();
    while !ledger.report().missing.is_empty() && Instant::now() < patience {
        thread::sleep(LOOK);
    }
    reading.store(false, Ordering::SeqCst);
    reader.join().expect("its connection lives through it");
    let log = gateway.stderr();
    assert!(
        !log.contains("PRECONDITION_FAILED"),
        "an unknown delivery was acknowledged"
    );
    let acknowledged = holds_within(sketch::patience(), || nothing_is_left(&broker, &url));

    let mut figures = Figures::of(ledger.report());
    figures.demand_unnoticed();
    figures.demand(acknowledged, "all is acknowledged");
    figures.demand(back == count, format!("it is back after cut {back}"));
    let each = rounded(took / u32::try_from(count).expect("not so many"));
    let took = rounded(took);
    figures.note(format!("{back} reconnects in {took}: one in {each}"));
    figures
}

/// Single and group messages to bob, until told to stop.
fn publish(amqp: &Amqp, ledger: &Ledger, flowing: &AtomicBool) {
    for number in 0.. {
        if !flowing.load(Ordering::SeqCst) {
            return;
        }
        let id = format!("m{number}");
        // Two senders: there is no order between the queues.
        let (from, exchange, key, to, group) = if number % 4 == 0 {
            ("carol", "im.topic", "group.team", "", "team")
        } else {
            ("alice", "im.direct", "user.bob", "bob", "")
        };
        amqp.publish(exchange, key, "message", message(&id, from, to, group));
        ledger.committed(from, &["bob"], &id);
        thread::sleep(PAUSE);
    }
}

/// The body of a message, as the Message Service publishes it.
pub fn message(id: &str, from: &str, to: &str, group: &str) -> Vec<u8> {
    let message = Message {
        id: id.into(),
        from_user_id: from.into(),
        to_user_id: to.into(),
        group_id: group.into(),
        content: "hello".into(),
        message_type: "text".into(),
        ..Message::default()
    };
    message.encode_to_vec()
}

fn read(mut bob: Client, ledger: &Ledger, reading: &AtomicBool) {
    while reading.load(Ordering::SeqCst) {
        match bob.next_event(LOOK) {
            Event::Frame(frame) if is_push(&frame) => {
                ledger.received("bob", frame["id"].as_str().expect("an id"));
            }
            Event::Frame(_) | Event::Nothing => {}
            Event::End(ended) => panic!("bob's connection ended: {ended:?}"),
        }
    }
}

/// Whether no queue of the virtual host holds a message, delivered ones included.
fn nothing_is_left(broker: &Broker, url: &str) -> bool {
    let (_, vhost) = url.rsplit_once('/').expect("a virtual host");
    let counts =
        broker.rabbitmqctl(&["-p", vhost, "list_queues", "--no-table-headers", "messages"]);
    counts.split_whitespace().all(|count| count == "0")
}
