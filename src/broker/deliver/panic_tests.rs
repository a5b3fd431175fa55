//! One bad connection costs itself: wherever it panics, the others get what is theirs.
#![cfg(debug_assertions)]

use std::thread;

use prost::Message as _;

use super::tests::{Scene, group_message, message, scene};
use super::*;
use crate::client::fixture::Client;

/// Pushing to the one panics, flushing the other.
const BAD: [&str; 2] = ["panics-at-push", "panics-at-flush"];
/// Members that are not connected, enough for the helpers of the fan-out.
const OTHERS: usize = 1_000;

/// How something reaches its recipients.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Presence,
    /// The last message before a flush.
    Group,
    /// With another group's message behind it.
    GroupBefore,
    /// Its members have to be asked for.
    GroupWaited,
    LargeGroup,
    LargeGroupBefore,
}

const WAYS: [Way; 6] = [
    Way::Presence,
    Way::Group,
    Way::GroupBefore,
    Way::GroupWaited,
    Way::LargeGroup,
    Way::LargeGroupBefore,
];

impl Way {
    fn deliverer(self, s: &Scene, members: &[&str]) -> Deliverer {
        let others: Vec<_> = (0..OTHERS).map(|number| format!("o{number}")).collect();
        let mut all = members.to_vec();
        if matches!(self, Self::LargeGroup | Self::LargeGroupBefore) {
            all.extend(others.iter().map(String::as_str));
        }
        s.users.set("g", &all);
        s.users.set("nobodys", &[]);
        let mut deliverer = s.deliver.deliverer(match self {
            Self::Presence => Queue::Presence,
            _ => Queue::Group,
        });
        if !matches!(self, Self::Presence | Self::GroupWaited) {
            publish(&mut deliverer, "before", "g");
            publish(&mut deliverer, "before", "nobodys");
            deliverer.flush();
        }
        deliverer
    }

    /// Has the deliverer take something for `members`.
    fn take(self, deliverer: &mut Deliverer, id: &str, members: &[&str]) {
        if self == Self::Presence {
            let event = PresenceEvent {
                user_id: id.into(),
                status: PresenceStatus::Online.into(),
                timestamp: 1,
                watcher_ids: members.iter().map(|&member| member.into()).collect(),
            };
            return take(deliverer, &format!("presence.{id}"), &event.encode_to_vec());
        }
        publish(deliverer, id, "g");
        if matches!(self, Self::GroupBefore | Self::LargeGroupBefore) {
            publish(deliverer, id, "nobodys");
        }
    }
}

fn publish(deliverer: &mut Deliverer, id: &str, group: &str) {
    let body = group_message(id, "carol", group).encode_to_vec();
    take(deliverer, &format!("group.{group}"), &body);
}

/// A bad connection makes no dead letter.
fn take(deliverer: &mut Deliverer, key: &str, body: &[u8]) {
    let taken = deliverer.enqueue(&Delivery {
        routing_key: key,
        kind: "",
        body,
    });
    assert_eq!(taken, Ok(()), "{key}");
}

fn is_bad(client: &Client) -> bool {
    client.close_reason() == Some(&CloseReason::InternalError)
}

#[test]
fn a_connection_that_panics_ends_and_the_others_get_theirs() {
    for name in BAD {
        for way in WAYS {
            let s = scene();
            let members = ["alice", name, "zoe"];
            let mut deliverer = way.deliverer(&s, &members);
            let [mut alice, bad, mut zoe] = members.map(|user| Client::join(&s.registry, user));
            for id in ["m1", "m2"] {
                way.take(&mut deliverer, id, &members);
                deliverer.flush();
                for client in [&mut alice, &mut zoe] {
                    assert!(client.next().contains(id), "{name}, {way:?}");
                }
            }
            assert!(is_bad(&bad), "{name}, {way:?}");
            for client in [&mut alice, &mut zoe] {
                assert!(client.close_reason().is_none() && client.is_quiet());
                assert!(!client.takes_catch_up(), "it missed nothing");
            }
        }
    }
}

#[test]
fn one_device_that_panics_does_not_keep_the_next_users_message() {
    for name in BAD {
        let s = scene();
        let [mut alice, bad] = ["alice", name].map(|user| Client::join(&s.registry, user));
        let mut deliverer = s.deliver.deliverer(Queue::Single);
        for to in [name, "alice", name] {
            let body = message("m", "carol", to).encode_to_vec();
            take(&mut deliverer, &format!("user.{to}"), &body);
        }
        deliverer.flush();
        assert!(alice.next().contains(r#""m""#));
        assert!(is_bad(&bad), "{name}");
    }
}

#[test]
fn many_connections_that_panic_leave_nothing_unwritten_for_the_others() {
    let s = scene();
    let names = ["alice", BAD[0], "bob", BAD[1], "zoe"];
    let clients = [0; 4].map(|_| names.map(|user| Client::join(&s.registry, user)));
    let mut deliverer = Way::Presence.deliverer(&s, &names);
    Way::Presence.take(&mut deliverer, "m", &names);
    deliverer.flush();
    for [alice, first, bob, second, zoe] in clients {
        for mut client in [alice, bob, zoe] {
            assert!(client.next().contains(r#""m""#));
        }
        assert!(is_bad(&first) && is_bad(&second));
    }
}

#[test]
fn catching_up_a_connection_that_panics_leaves_the_others_their_catch_up() {
    let s = scene();
    let members = ["alice", "panics-at-catch_up", "zoe"];
    let clients = members.map(|user| Client::join(&s.registry, user));
    let mut deliverer = s.deliver.deliverer(Queue::Group);
    for list in [&["bob"][..], &members] {
        s.users.set("g", list);
        publish(&mut deliverer, "m", "g");
        deliverer.flush();
        deliverer
            .deliver
            .groups
            .lock()
            .invalidate(&crate::ids::GroupId::new("g").unwrap());
    }
    assert!(clients[0].takes_catch_up() && clients[2].takes_catch_up());
    assert!(is_bad(&clients[1]));
}

/// A second panic while the first one unwinds would end the process.
#[test]
fn a_deliverer_that_is_dropped_by_a_panic_writes_what_is_enqueued_and_panics_no_more() {
    for name in BAD {
        for way in WAYS {
            let s = scene();
            let members = ["alice", name, "zoe"];
            let mut deliverer = way.deliverer(&s, &members);
            let [mut alice, bad, mut zoe] = members.map(|user| Client::join(&s.registry, user));
            let consumer = thread::spawn(move || {
                way.take(&mut deliverer, "m", &members);
                assert!(members.is_empty(), "as a consumer may panic");
            });
            assert!(consumer.join().is_err());
            if way == Way::GroupWaited {
                // It was not written, and is left to catch-up.
                assert!(alice.takes_catch_up() && zoe.takes_catch_up());
                continue;
            }
            for client in [&mut alice, &mut zoe] {
                assert!(client.next().contains(r#""m""#), "{name}, {way:?}");
            }
            assert!(is_bad(&bad), "{name}, {way:?}");
        }
    }
}
