//! Clients past the handshake that would have the gateway hold memory, or work, without end: each is
//! ended, memory stays within its bounds meanwhile, and a bystander notices nothing.

use std::collections::HashSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chat;
use crate::support::client::error_message;
use crate::support::raw::{CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT, announce, frame};
use crate::support::{Client, Gateway, Settings, wait_until};

/// `limits.max_message_size` as it is shipped.
const MAX_MESSAGE: usize = 65_536;

/// alice attacks from any number of connections; bob is the bystander.
fn settings() -> Settings {
    chat::settings()
        .set("limits.max_connections_per_user", 5_000)
        .set("limits.max_connections_per_ip", 5_000)
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info")
}

/// Has bob send messages to himself, one after the other, while `attack` goes on, and checks that
/// they come back as they do at any other time. Returns what the attack did, and how much memory the
/// gateway took for it at its highest, in KiB.
fn unnoticed<T>(gateway: &Gateway, attack: impl FnOnce() -> T) -> (T, usize) {
    let over = AtomicBool::new(false);
    let mut bob = gateway.connect("bob");
    let round_trip = |bob: &mut Client| {
        let start = Instant::now();
        let id = bob.send_message("bob", "still here");
        bob.expect_message(&id);
        start.elapsed()
    };
    let mut usual: Vec<Duration> = (0..10).map(|_| round_trip(&mut bob)).collect();
    usual.sort_unstable();
    // The machine may be shared: what is a while depends on how long it takes at any other time.
    let a_while = Duration::from_secs(1) + 20 * usual[usual.len() / 2];
    thread::scope(|scope| {
        let bystander = scope.spawn(|| {
            let mut trips = vec![round_trip(&mut bob)];
            while !over.load(Ordering::SeqCst) {
                trips.push(round_trip(&mut bob));
                // His pace, not a wait for anything: no faster than `limits.rate` as it is shipped.
                thread::sleep(Duration::from_millis(50));
            }
            trips
        });
        let outcome = gateway.memory_peak(|| {
            // Also when the attack fails, so that the test does.
            scopeguard::defer!(over.store(true, Ordering::SeqCst));
            attack()
        });
        let mut trips = bystander.join().expect("bob");
        trips.sort_unstable();
        let p99 = trips[trips.len() * 99 / 100];
        let (count, longest, peak) = (trips.len(), trips[trips.len() - 1], outcome.1);
        println!("{count} round trips: p99 {p99:?}, longest {longest:?}; {peak} KiB more");
        assert!(p99 < a_while, "p99 {p99:?} of {count}");
        outcome
    })
}

/// Sends `bytes` so many times, as long as the gateway reads, while what it sends back is read, and
/// returns the code that it closes with, if it does; waits for the end of the connection.
fn flood(mut raw: Raw, bytes: &[u8], times: usize) -> Option<u16> {
    let mut sender = raw.stream().try_clone().expect("a descriptor");
    thread::scope(|scope| {
        scope.spawn(move || (0..times).all(|_| sender.write_all(bytes).is_ok()));
        let code = raw.close_code();
        raw.expect_end();
        code
    })
}

#[test]
fn a_million_empty_fragments_end_the_connection() {
    let gateway = Gateway::start(&settings());
    let fragments = frame(CONTINUATION, b"").repeat(1_000);
    let (codes, peak) = unnoticed(&gateway, || {
        let all: Vec<_> = (0..4)
            .map(|_| {
                let mut raw = gateway.raw_session("alice");
                raw.frame(TEXT, b"");
                raw
            })
            .collect();
        thread::scope(|scope| {
            let one = |raw| scope.spawn(|| flood(raw, &fragments, 1_000));
            let floods: Vec<_> = all.into_iter().map(one).collect();
            let codes = floods
                .into_iter()
                .map(|flood| flood.join().expect("a flood"));
            codes.collect::<Vec<_>>()
        })
    });
    assert_eq!(codes, [Some(1009); 4]);
    assert!(peak < 4 << 10, "{peak} KiB more");
}

/// A ping between two fragments is no message: what was sent of one still counts.
#[test]
fn bytes_that_never_make_a_message_end_the_connection_whatever_is_between_them() {
    let gateway = Gateway::start(&settings());
    let pong_of = |length| frame(FIN | PONG, &vec![b'x'; length]);
    let fragment = frame(CONTINUATION, b"");
    for between in [frame(FIN | PING, b""), pong_of(0), pong_of(125)] {
        let pieces = [&fragment[..], &between].concat().repeat(100);
        let ((), peak) = unnoticed(&gateway, || {
            let mut raw = gateway.raw_session("alice");
            raw.frame(TEXT, b"");
            // Twice of what may come without a message.
            let times = 4 * MAX_MESSAGE / (fragment.len() * 100);
            assert_eq!(flood(raw, &pieces, times), Some(1009));
        });
        assert!(peak < 4 << 10, "{peak} KiB more");
    }
}

/// Also when there are more of these than bytes may come without a message.
#[test]
fn pings_between_fragments_are_no_part_of_the_message() {
    let gateway = Gateway::start(&settings());
    let mut raw = gateway.raw_session("alice");
    let mut sender = raw.stream().try_clone().expect("a descriptor");
    let content = "x".repeat(60_000);
    let text = json!({"type": "ping", "request_id": "in pieces", "x": content}).to_string();
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(60).collect();
    assert!(pieces.len() * 125 > 3 * MAX_MESSAGE / 2);
    thread::scope(|scope| {
        scope.spawn(move || {
            let ping = frame(FIN | PING, &[b'p'; 125]);
            for (number, piece) in pieces.iter().enumerate() {
                let fin = if number + 1 == pieces.len() { FIN } else { 0 };
                let opcode = if number == 0 { TEXT } else { CONTINUATION };
                let bytes = [frame(fin | opcode, piece), ping.clone()].concat();
                sender.write_all(&bytes).expect("the gateway reads");
            }
        });
        raw.json_that(|frame| frame["type"] == "pong" && frame["request_id"] == "in pieces");
    });
}

/// As long as the payload is awaited nobody can answer a ping.
#[test]
fn a_thousand_frames_that_are_announced_and_never_come_end_and_cost_next_to_nothing() {
    const SOCKETS: usize = 1_000;
    let settings = settings()
        .set("session.ping_interval", "2s")
        .set("session.idle_timeout", "5s");
    let gateway = Gateway::start(&settings);
    let connect = |_| gateway.raw_session("alice");
    let mut sockets: Vec<Raw> = (0..SOCKETS).map(connect).collect();
    let mut announced = announce(FIN | TEXT, MAX_MESSAGE as u64);
    announced.extend([0; 4]);
    assert_eq!(announced.len(), 14);
    let ((), peak) = unnoticed(&gateway, || {
        for raw in &mut sockets {
            raw.send(&announced);
        }
        // Some drip, which brings them no nearer.
        let (dripping, silent) = sockets.split_at_mut(SOCKETS / 10);
        let start = Instant::now();
        while dripping[0].try_send(b"x").is_ok() {
            for raw in dripping.iter_mut().skip(1) {
                let _ = raw.try_send(b"x");
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
            // The pace of the drip, not a wait for anything.
            thread::sleep(Duration::from_millis(100));
        }
        for raw in silent {
            assert_eq!(raw.close_code(), Some(4002));
            raw.expect_end();
        }
    });
    // What is announced is reserved, and costs nothing as long as it does not come.
    assert!(peak < SOCKETS * 8, "{peak} KiB more for {SOCKETS} sockets");
    drop(sockets);
    gateway.settled(0);
}

/// The most that messages which never end can hold: their own size for each connection.
#[test]
fn messages_that_lack_their_last_byte_cost_their_size_and_no_more() {
    const SOCKETS: usize = 200;
    let gateway = Gateway::start(&settings());
    let connect = |_| gateway.raw_session("alice");
    let mut sockets: Vec<Raw> = (0..SOCKETS).map(connect).collect();
    let whole = frame(FIN | TEXT, &vec![b' '; MAX_MESSAGE]);
    let piece = frame(CONTINUATION, &[b' '; 1_000]);
    let limit = SOCKETS * MAX_MESSAGE / 1024;
    let before = gateway.held().resident_kib;
    let ((), peak) = unnoticed(&gateway, || {
        let (framed, in_pieces) = sockets.split_at_mut(SOCKETS / 2);
        for raw in framed {
            raw.send(&whole[..whole.len() - 1]);
        }
        for raw in in_pieces {
            raw.frame(TEXT, b"");
            raw.send(piece.repeat(MAX_MESSAGE / 1_000));
        }
        wait_until("what came is held", || {
            gateway.held().resident_kib > before + limit / 2
        });
    });
    assert!(
        peak < 2 * limit + (4 << 10),
        "{peak} KiB more, {limit} came"
    );
    sockets.into_iter().for_each(Raw::reset);
    gateway.settled(0);
}

/// Whoever pings more than they may ask is ended as those are who ask more than they may: 40 at once,
/// 20 a second, and the 100th beyond within 10 s is the last.
#[test]
fn a_ping_flood_is_4006() {
    let settings = settings().set("limits.rate", 20).set("limits.burst", 40);
    let gateway = Gateway::start(&settings);
    let pings = frame(FIN | PING, &[b'p'; 125]).repeat(100);
    let (pongs, peak) = unnoticed(&gateway, || {
        let one = || {
            let mut raw = gateway.raw_session("alice");
            let mut sender = raw.stream().try_clone().expect("a descriptor");
            let (mut pongs, mut code) = (0, None);
            thread::scope(|scope| {
                scope.spawn(|| (0..1_000).all(|_| sender.write_all(&pings).is_ok()));
                while let Some(frame) = raw.try_read_frame() {
                    pongs += usize::from(frame.opcode == PONG);
                    if frame.opcode == CLOSE {
                        code = frame.payload.first_chunk().copied().map(u16::from_be_bytes);
                    }
                }
            });
            assert_eq!(code, Some(4006));
            pongs
        };
        thread::scope(|scope| {
            let floods: Vec<_> = (0..20).map(|_| scope.spawn(one)).collect();
            let pongs = floods
                .into_iter()
                .map(|flood| flood.join().expect("a flood"));
            pongs.collect::<Vec<_>>()
        })
    });
    // Nobody is left without an answer.
    for pongs in pongs {
        assert!((139..400).contains(&pongs), "{pongs} pongs");
    }
    assert!(peak < 20 * 100, "{peak} KiB more");
}

/// Each is asked for an answer with every byte that it sends, and takes none of them. The limit on
/// pings is out of the way.
#[test]
fn ping_floods_of_clients_that_never_read_end_with_the_write_timeout() {
    const CLIENTS: usize = 20;
    let gateway = Gateway::start(&settings().set("session.write_timeout", "1s"));
    let pings = frame(FIN | PING, &[b'p'; 125]).repeat(100);
    let connect = |_| gateway.reluctant("alice");
    let mut sockets: Vec<_> = (0..CLIENTS).map(connect).collect();
    let (sent, peak) = gateway.memory_peak(|| {
        let start = Instant::now();
        thread::scope(|scope| {
            let flood = |socket| {
                let (pings, socket): (_, &mut TcpStream) = (&pings, socket);
                scope.spawn(move || {
                    let mut sent = 0;
                    while socket.write_all(pings).is_ok() {
                        sent += pings.len();
                        assert!(start.elapsed() < Duration::from_secs(40), "it goes on");
                    }
                    sent
                })
            };
            let floods: Vec<_> = sockets.iter_mut().map(flood).collect();
            let sent = floods
                .into_iter()
                .map(|flood| flood.join().expect("a flood"));
            sent.sum::<usize>()
        })
    });
    println!("{} KiB of pings, {peak} KiB more", sent >> 10);
    // The queue's 256 frames and, on their way to the socket, 64 KiB of them; sixteen bytes and what
    // malloc adds come with each.
    assert!(
        peak < CLIENTS * 400,
        "{peak} KiB more for {CLIENTS} clients"
    );
    drop(sockets);
    gateway.settled(0);
    let log = gateway.stderr();
    assert_eq!(log.matches("reason=write_timeout").count(), CLIENTS);
}

#[test]
fn json_that_is_60_000_deep_is_invalid() {
    const DEPTH: usize = 60_000;
    let gateway = Gateway::start(&settings().set("limits.max_message_size", 1 << 20));
    let arrays = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let objects = format!("{}0{}", r#"{"a":"#.repeat(DEPTH), "}".repeat(DEPTH));
    let ((), peak) = unnoticed(&gateway, || {
        let mut alice = gateway.connect("alice");
        for deep in [arrays, objects] {
            for text in [
                deep.clone(),
                format!(r#"{{"type":{deep}}}"#),
                format!(r#"{{"type":"ping","request_id":{deep}}}"#),
                format!(r#"{{"type":"ack","data":{{"message_ids":{deep}}}}}"#),
                format!(r#"{{"type":"ack","data":{{"message_ids":["a",{deep}]}}}}"#),
                format!(r#"{{"type":"refresh_token","data":{{"token":{deep}}}}}"#),
            ] {
                alice.send_text(text);
                error_message(&alice.expect("error"), "INVALID_MESSAGE");
            }
        }
        assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
    });
    assert!(peak < 16 << 10, "{peak} KiB more");
}

/// The socket takes a part of a frame at a time, from whoever writes: the consumer's thread, the
/// reader that answers, the writer that catches up.
#[test]
fn ten_thousand_pings_between_large_pushes_and_short_writes_break_no_frame() {
    const PINGS: u32 = 10_000;
    const MESSAGES: usize = 200;
    const HISTORIES: usize = 20;
    let gateway = Gateway::start(&settings().set("session.send_queue", 64));
    let mut bob = gateway.raw_session_buffering("bob", 16 << 10);
    let mut sender = bob.stream().try_clone().expect("a descriptor");
    thread::scope(|scope| {
        let mut alice = gateway.connect("alice");
        let sent = scope.spawn(move || {
            let content = "x".repeat(60_000);
            let history = json!({"user_id": "alice", "limit": 10});
            let history = json!({"type": "get_history", "data": history}).to_string();
            let history = frame(FIN | TEXT, history.as_bytes());
            let mut numbers = 0..PINGS;
            let send = |number| {
                let id = alice.send_message("bob", &content);
                let pings = numbers.by_ref().take(PINGS as usize / MESSAGES);
                let ping = |number: u32| frame(FIN | PING, &number.to_be_bytes());
                let mut bytes: Vec<u8> = pings.flat_map(ping).collect();
                if number % (MESSAGES / HISTORIES) == 0 {
                    bytes.extend(&history);
                }
                sender.write_all(&bytes).expect("the gateway reads");
                id
            };
            (0..MESSAGES).map(send).collect::<HashSet<_>>()
        });
        let (mut pongs, mut histories, mut messages) = (0_u32, 0, HashSet::new());
        while pongs < PINGS || histories < HISTORIES || messages.len() < MESSAGES {
            // His pace, not a wait for anything: slower than what is sent.
            thread::sleep(Duration::from_micros(300));
            for frame in bob.read_up_to(2_000).expect("it goes on") {
                match frame.opcode {
                    PONG => {
                        assert_eq!(frame.payload, pongs.to_be_bytes());
                        pongs += 1;
                    }
                    PING => assert_eq!(frame.payload, b""),
                    TEXT => {
                        let json: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                        histories += usize::from(json["type"] == "history");
                        if json["type"] == "message" {
                            let content = json["content"].as_str().expect("a text");
                            assert!(content.len() == 60_000 && content.bytes().all(|b| b == b'x'));
                            messages.insert(json["id"].as_str().expect("an id").to_owned());
                        }
                    }
                    _ => panic!("{frame:?}"),
                }
            }
        }
        assert_eq!(messages, sent.join().expect("alice"));
    });
    let log = gateway.stderr();
    assert!(
        log.contains("Fell back to the inbox"),
        "the socket was full: {log}"
    );
}
