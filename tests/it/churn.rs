//! Ten thousand connections that come and go, politely and not, leave nothing behind.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::raw::{FIN, TEXT, UPGRADE, head};
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Gateway, Settings};

const CONNECTS: usize = 10_000;
const WORKERS: usize = 8;
const USERS: usize = 40;
const PER_USER: usize = 5;

#[test]
fn ten_thousand_connects_leave_threads_descriptors_and_registry_where_they_were() {
    let users: Vec<String> = (0..USERS).map(|number| format!("user{number}")).collect();
    let settings = Settings::new()
        .users(users.iter().map(String::as_str))
        .set("limits.max_connections_per_user", PER_USER as i64)
        // Exactly what a full round needs: one permit that is not given back is found out.
        .set("limits.max_connections", (USERS * PER_USER) as i64)
        .set("listen.handshake_timeout", "2s")
        .set("log.level", "warn");
    let gateway = Gateway::start(&settings);
    full_round(&gateway, &users);
    let before = gateway.settled(0);

    let next = AtomicUsize::new(0);
    let upgraded = AtomicUsize::new(0);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (gateway, users, next, upgraded) = (&gateway, &users, &next, &upgraded);
            scope.spawn(move || {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= CONNECTS {
                        return;
                    }
                    // Each worker has users of its own, so that the limit per user never refuses.
                    let user = &users[worker * (USERS / WORKERS) + turn % (USERS / WORKERS)];
                    upgraded.fetch_add(
                        usize::from(come_and_go(gateway, user, turn)),
                        Ordering::Relaxed,
                    );
                }
            });
        }
    });
    println!(
        "{} of {CONNECTS} connects were upgraded",
        upgraded.into_inner()
    );

    let after = gateway.settled(0);
    assert_eq!(
        (after.threads, after.descriptors),
        (before.threads, before.descriptors)
    );
    println!(
        "resident before {} KiB, after {} KiB",
        before.resident_kib, after.resident_kib
    );
    assert!(
        after.resident_kib < before.resident_kib + 16 * 1024,
        "memory: {} KiB before, {} KiB after",
        before.resident_kib,
        after.resident_kib
    );
    full_round(&gateway, &users);
    assert_eq!(gateway.stop(), 0);
}

/// One connection, ended in one of seven ways. Returns whether it came to be a session.
fn come_and_go(gateway: &Gateway, user: &str, turn: usize) -> bool {
    let token = token_of(user);
    let mut raw = gateway.raw();
    match turn % 10 {
        // Half a head, then a reset or a FIN.
        0 | 1 => {
            let head = head("GET", &gateway.path, &UPGRADE);
            raw.send(&head[..head.len() / 2]);
            if turn.is_multiple_of(2) {
                raw.reset()
            } else {
                raw.finish_sending()
            }
            false
        }
        // Refused.
        2 => {
            assert_eq!(raw.try_upgrade(&gateway.path, "nobody").status, 401);
            false
        }
        // A reset while the handshake is under way.
        3 => {
            let bearer = format!("Bearer {token}");
            let mut headers = UPGRADE.to_vec();
            headers.push(("Authorization", &bearer));
            raw.send(head("GET", &gateway.path, &headers));
            raw.reset();
            false
        }
        way => {
            // The last connection may be on its way out still.
            let answer = raw.try_upgrade(&gateway.path, &token);
            if answer.status != 101 {
                assert!([429, 503].contains(&answer.status), "{answer:?}");
                return false;
            }
            match way {
                4 | 5 => raw.reset(),
                6 => raw.finish_sending(),
                7 => raw.send(&crate::support::raw::frame(FIN | TEXT, b"{}")[..3]),
                _ => {
                    raw.frame(0x88, 1000_u16.to_be_bytes());
                    raw.expect_close(1000);
                }
            }
            true
        }
    }
}

/// Every user connects as often as they may, and leaves: nobody is refused.
fn full_round(gateway: &Gateway, users: &[String]) {
    let mut clients = Vec::new();
    for user in users {
        for _ in 0..PER_USER {
            // What ended a moment ago may hold its place for a moment.
            let mut client = None;
            wait_until_within(Duration::from_secs(20), format!("{user} is let in"), || {
                client = Client::try_connect(gateway.addr, &gateway.path, &token_of(user)).ok();
                client.is_some()
            });
            clients.push(client.expect("let in"));
        }
    }
    let one_more = Client::try_connect(gateway.addr, &gateway.path, &token_of(&users[0]));
    assert!(one_more.is_err(), "the gateway is full");
    clients.into_iter().for_each(Client::close);
}
