//! Messages of one kind, published as a Message Service does it, and read by all who are to get them.

use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use ws_gateway::services::proto::Message;

use super::{GROUP, GROUP_SIZE, Phase, UNKNOWN, name, unknown};
use crate::support::amqp::Amqp;
use crate::support::client::is_push;
use crate::support::ledger::Ledger;
use crate::support::{Client, DEADLINE, Event};

const SENDER: &str = "publisher";
/// 200 bytes and more of JSON, as in the benchmarks.
const CONTENT: &str =
    "A message of the length that people write to one another in a chat: two lines or so of text.";

/// Publishes what a phase consists of, and returns once each device has all that it is to get.
pub fn send(phase: &Phase, amqp: &Amqp, ledger: &Ledger, clients: &mut [Client]) {
    let start = Instant::now();
    let pace = Duration::from_secs_f64(1.0 / phase.rate as f64);
    let publish = || {
        for number in 0..phase.messages {
            thread::sleep((pace * number as u32).saturating_sub(start.elapsed()));
            let id = format!("{} {:?} {number}", phase.name, phase.group);
            match phase.group {
                Some(UNKNOWN) => publish_to_group(amqp, ledger, &unknown(number), &id, 0),
                Some(group) => publish_to_group(amqp, ledger, group, &id, phase.recipients),
                None => publish_to(amqp, ledger, number % phase.recipients, &id),
            }
        }
        // A gateway takes what is in a queue in its order: behind this, it has taken all.
        if phase.recipients == 0 {
            publish_to_group(
                amqp,
                ledger,
                GROUP,
                &format!("{} {:?} fence", phase.name, phase.group),
                GROUP_SIZE,
            );
        }
    };
    let (recipients, each) = match phase.recipients {
        0 => (GROUP_SIZE, 1),
        some => (some, phase.for_each()),
    };
    let patience = DEADLINE + pace * phase.messages as u32;
    thread::scope(|scope| {
        for client in &mut clients[..recipients] {
            scope.spawn(move || read(client, each, patience, ledger));
        }
        publish();
    });
}

/// Has the ledger know the next `count` messages that come, if they do: what does not is missing.
fn read(client: &mut Client, mut count: usize, patience: Duration, ledger: &Ledger) {
    while count > 0 {
        match client.next_event(patience) {
            Event::Frame(frame) if is_push(&frame) => {
                ledger.received(&client.user, frame["id"].as_str().expect("an id"));
                count -= 1;
            }
            Event::Frame(_) => {}
            Event::Nothing | Event::End(_) => return,
        }
    }
}

fn publish_to(amqp: &Amqp, ledger: &Ledger, user: usize, id: &str) {
    let to = name(user);
    let message = Message {
        to_user_id: to.clone(),
        ..message(id)
    };
    ledger.committed(SENDER, &[&to], id);
    let (key, body) = (format!("user.{to}"), message.encode_to_vec());
    amqp.publish_ahead("im.direct", &key, "message", body);
}

/// The first so many users are members; a group without any is nobody's concern.
fn publish_to_group(amqp: &Amqp, ledger: &Ledger, group: &str, id: &str, members: usize) {
    let message = Message {
        group_id: group.into(),
        ..message(id)
    };
    if members > 0 {
        let names: Vec<String> = (0..members).map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        ledger.committed(SENDER, &names, id);
    }
    let (key, body) = (format!("group.{group}"), message.encode_to_vec());
    amqp.publish_ahead("im.topic", &key, "message", body);
}

fn message(id: &str) -> Message {
    Message {
        id: id.into(),
        from_user_id: SENDER.into(),
        content: CONTENT.into(),
        message_type: "text".into(),
        timestamp: 1_700_000_000,
        ..Message::default()
    }
}
