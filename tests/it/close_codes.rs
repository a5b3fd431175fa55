//! Every close code, provoked: by frames that no client library would send, by silence, by age, by
//! an operator.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use toml::Table;

use crate::chat;
use crate::support::client::is_push;
use crate::support::process::Signal;
use crate::support::raw::{self, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT};
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::{Client, DEADLINE, Gateway, Settings, wait_until};

fn gateway() -> Gateway {
    Gateway::start(&chat::settings().set("limits.rate", 1000))
}

/// Sends `bytes` on a new connection, which must be closed with `code`.
fn closes(gateway: &Gateway, bytes: &[u8], code: u16) {
    let mut raw = gateway.raw_session("alice");
    raw.send(bytes);
    assert_eq!(
        raw.close_code(),
        Some(code),
        "after {:02x?}",
        &bytes[..bytes.len().min(16)]
    );
    raw.expect_end();
}

fn close_with(code: u16, reason: &[u8]) -> Vec<u8> {
    raw::frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

#[test]
fn a_close_is_echoed() {
    let gateway = gateway();
    closes(&gateway, &close_with(1000, b""), 1000);
    closes(&gateway, &close_with(1000, "tschüß".as_bytes()), 1000);
    for code in [1001, 3000, 4999] {
        let mut raw = gateway.raw_session("alice");
        raw.send(close_with(code, b"bye"));
        let echo = raw.close_code();
        assert!(echo == Some(code) || echo == Some(1000), "{code}: {echo:?}");
        raw.expect_end();
    }
    let mut raw = gateway.raw_session("alice");
    raw.frame(FIN | CLOSE, b"");
    assert!(
        matches!(raw.close_code(), Some(1000 | 1005)),
        "a Close without a code is answered"
    );
    raw.expect_end();
    gateway.connect("alice").close();
}

#[test]
fn a_protocol_error_is_1002() {
    let gateway = gateway();
    let mut unmasked = vec![FIN | TEXT, 2];
    unmasked.extend(b"{}");
    closes(&gateway, &unmasked, 1002);
    for reserved_bit in [0x40, 0x20, 0x10] {
        closes(
            &gateway,
            &raw::frame(FIN | reserved_bit | TEXT, b"{}"),
            1002,
        );
    }
    for reserved_opcode in [0x3, 0x7, 0xB, 0xF] {
        closes(&gateway, &raw::frame(FIN | reserved_opcode, b"{}"), 1002);
    }
    closes(&gateway, &raw::frame(FIN | CONTINUATION, b"{}"), 1002);
    closes(&gateway, &raw::frame(CONTINUATION, b"{}"), 1002);
    let another = [raw::frame(TEXT, b"{"), raw::frame(FIN | TEXT, b"}")].concat();
    closes(&gateway, &another, 1002);
    closes(&gateway, &raw::frame(PING, b"in pieces"), 1002);
    closes(&gateway, &raw::frame(FIN | PING, &[b'x'; 126]), 1002);
    closes(&gateway, &raw::frame(FIN | CLOSE, b"\x03"), 1002);
    for code in [0, 999, 1004, 1005, 1006, 1015, 5000] {
        closes(&gateway, &close_with(code, b""), 1002);
    }
}

#[test]
fn a_binary_frame_is_1003() {
    let gateway = gateway();
    closes(&gateway, &raw::frame(FIN | BINARY, b"{}"), 1003);
    closes(&gateway, &raw::frame(FIN | BINARY, b""), 1003);
    let pieces = [
        raw::frame(BINARY, b"{"),
        raw::frame(FIN | CONTINUATION, b"}"),
    ]
    .concat();
    closes(&gateway, &pieces, 1003);
}

#[test]
fn text_that_is_not_utf8_is_1007() {
    let gateway = gateway();
    closes(&gateway, &raw::frame(FIN | TEXT, b"\xff"), 1007);
    closes(
        &gateway,
        &raw::frame(FIN | TEXT, b"{\"type\":\"\xc3\"}"),
        1007,
    );
    closes(&gateway, &raw::frame(FIN | TEXT, b"\xed\xa0\x80"), 1007);
    let cut = [
        raw::frame(TEXT, b"{\xe2\x82"),
        raw::frame(FIN | CONTINUATION, b"}"),
    ]
    .concat();
    closes(&gateway, &cut, 1007);
    closes(&gateway, &close_with(1000, b"\xff\xfe"), 1007);

    // A character in two pieces is one character.
    let mut raw = gateway.raw_session("alice");
    let text = r#"{"type":"ping","request_id":"é"}"#.as_bytes();
    let middle = text
        .iter()
        .position(|byte| *byte == 0xc3)
        .expect("the first byte of é")
        + 1;
    raw.frame(TEXT, &text[..middle]);
    raw.frame(FIN | PING, b"between");
    raw.frame(FIN | CONTINUATION, &text[middle..]);
    raw.json_that(|frame| frame["type"] == "pong" && frame["request_id"] == "é");
}

/// The head of a text frame, whose payload never comes.
fn announced(length: u64) -> Vec<u8> {
    [raw::announce(FIN | TEXT, length), vec![0; 4]].concat()
}

/// The announced length is enough: nobody waits for the payload.
#[test]
fn a_message_over_the_limit_is_1009() {
    let limit = 1000_usize;
    let gateway = Gateway::start(&chat::settings().set("limits.max_message_size", limit as i64));
    closes(&gateway, &raw::frame(FIN | TEXT, &[b' '; 1001]), 1009);
    closes(&gateway, &announced(1001), 1009);
    closes(&gateway, &announced(u64::from(u32::MAX)), 1009);
    closes(&gateway, &announced(i64::MAX as u64), 1009);
    let halves = [
        raw::frame(TEXT, &[b' '; 600]),
        raw::frame(FIN | CONTINUATION, &[b' '; 600]),
    ];
    closes(&gateway, &halves.concat(), 1009);
    // Pieces without end and almost without size.
    let mut raw = gateway.raw_session("alice");
    raw.frame(TEXT, b"");
    let pieces = raw::frame(CONTINUATION, b"").repeat(1000);
    while raw.try_send(&pieces).is_ok() {}
    raw.expect_end();

    let mut raw = gateway.raw_session("alice");
    let mut text = r#"{"type":"ping","request_id":"full","x":""#.to_owned();
    text += &"x".repeat(limit - text.len() - 2);
    text += "\"}";
    raw.text(&text);
    raw.json_that(|frame| frame["type"] == "pong");
    let (start, end) = text.split_at(500);
    raw.frame(TEXT, start);
    raw.frame(FIN | CONTINUATION, end);
    raw.json_that(|frame| frame["type"] == "pong");
}

#[test]
fn a_stopping_gateway_closes_with_1012() {
    let mut gateway = gateway();
    let mut clients = ["alice", "bob", "carol"].map(|user| gateway.connect(user));
    gateway.signal(Signal::TERM);
    for client in &mut clients {
        client.expect_close(1012);
    }
    assert_eq!(gateway.exit_code(), 0);
}

/// Settings under which a client's queue is soon full, and how much fills queue and sockets.
fn short_queue() -> (Settings, usize, String) {
    let settings = chat::settings()
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("session.send_queue", 16)
        .set("log.level", "info");
    // More than two socket buffers and a queue hold.
    (settings, 300, "x".repeat(60_000))
}

/// It falls back to its inbox, and the others get every message meanwhile.
#[test]
fn a_client_that_reads_nothing_for_a_while_is_not_closed_and_gets_all() {
    let (settings, count, content) = short_queue();
    let gateway = Gateway::start(&settings);
    let mut slow = gateway.raw_session("bob");
    let mut brisk = gateway.connect("bob");
    let mut alice = gateway.connect("alice");
    let mut sent = BTreeSet::new();
    for _ in 0..count {
        let id = alice.send_message("bob", &content);
        alice.expect_message(&id);
        brisk.expect_message(&id);
        sent.insert(id);
    }
    let fell_back = "Fell back to the inbox: user=bob";
    wait_until(fell_back, || gateway.stderr().contains(fell_back));
    let mut came = BTreeSet::new();
    while came.len() < count {
        let frame = slow.json_that(|frame| frame["type"] == "message");
        came.insert(frame["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(came, sent);
    slow.text(r#"{"type":"ping"}"#);
    slow.json_that(|frame| frame["type"] == "pong");
}

/// They are never unread, so no catch-up would bring them.
#[test]
fn a_client_without_room_for_its_own_users_messages_is_4001() {
    let (settings, count, content) = short_queue();
    let gateway = Gateway::start(&settings);
    let mut slow = gateway.raw_session("bob");
    let mut brisk = gateway.connect("bob");
    for _ in 0..count {
        let id = brisk.send_message("alice", &content);
        brisk.expect_message(&id);
    }
    assert_eq!(slow.close_code(), Some(4001));
    slow.expect_end();
    assert_eq!(brisk.request("ping", Value::Null)["type"], "pong");
}

/// Less than 64 KiB within six write timeouts, a minute with the default.
#[test]
fn a_client_that_is_behind_and_takes_next_to_nothing_is_4001() {
    let (settings, count, content) = short_queue();
    let gateway = Gateway::start(&settings.set("session.write_timeout", "2s"));
    let drip = gateway.reluctant("bob");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = &drip;
            // Its last act: a Close frame needs a client that reads it.
            while !over.load(Ordering::SeqCst) && matches!(socket.read(&mut [0; 300]), Ok(1..)) {
                thread::park_timeout(Duration::from_millis(100));
            }
        });
        let mut alice = gateway.connect("alice");
        for _ in 0..count / 3 {
            let id = alice.send_message("bob", &content);
            alice.expect_message(&id);
        }
        let closed = || gateway.stderr().contains("reason=slow_consumer, code=4001");
        wait_until_within(DEADLINE * 2, "it is closed", closed);
        over.store(true, Ordering::SeqCst);
    });
    let mut back = gateway.connect_cold("bob");
    let unread =
        std::iter::from_fn(|| Some(back.next())).take_while(|f| f["type"] != "offline_complete");
    let unread = unread.filter(is_push).count();
    assert_eq!(unread, count / 3, "what is unread comes again");
}

#[test]
fn silence_is_4002_and_an_answered_ping_is_not_silence() {
    let settings = chat::settings()
        .set("session.ping_interval", "300ms")
        .set("session.idle_timeout", "1s");
    let gateway = Gateway::start(&settings.set("services.timeout", "500ms"));
    let mut silent = gateway.raw_session("alice");
    let mut living = gateway.raw_session("bob");
    let start = Instant::now();
    let closed = std::thread::spawn(move || (silent.close_code(), start.elapsed()));
    // Twice the idle timeout and more.
    let mut pings = 0;
    while pings < 8 {
        let frame = living.read_frame();
        if frame.opcode == PING {
            living.frame(FIN | PONG, &frame.payload);
            pings += 1;
        }
        assert_ne!(frame.opcode, CLOSE);
    }
    assert!(
        start.elapsed() > Duration::from_secs(2),
        "pings come every 300 ms: {:?}",
        start.elapsed()
    );
    let (code, took) = closed.join().expect("a thread");
    assert_eq!(code, Some(4002));
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(2),
        "{took:?}"
    );
    living.text(r#"{"type":"ping"}"#);
    living.json_that(|frame| frame["type"] == "pong");
}

#[test]
fn an_expired_token_is_4003_unless_it_is_refreshed() {
    let mut settings = chat::settings();
    let short: Table = "user = \"alice\"\nexpires_in = \"3s\""
        .parse()
        .expect("a table");
    settings.put_token("short-token", short);
    let gateway = Gateway::start(&settings);
    let (mut expires, mut refreshes) = (
        Client::connect(&gateway, "short-token"),
        Client::connect(&gateway, "short-token"),
    );
    let answer = refreshes.request("refresh_token", json!({"token": token_of("alice")}));
    assert_eq!(
        (&answer["type"], &answer["expires_at"]),
        (&json!("token_refreshed"), &json!(0))
    );
    expires.expect_close(4003);
    assert_eq!(refreshes.request("ping", Value::Null)["type"], "pong");
    let refused = Client::try_connect(gateway.addr, &gateway.path, "short-token");
    assert_eq!(refused.err().expect("it has expired").status, 401);
}

#[test]
fn the_oldest_is_replaced_with_4004() {
    let settings = Settings::new()
        .users(["alice", "bob"])
        .set("limits.max_connections_per_user", 2)
        .set("limits.over_limit", "close_oldest");
    let gateway = Gateway::start(&settings);
    let mut bob = gateway.connect("bob");
    let mut first = gateway.connect("alice");
    let mut second = gateway.connect("alice");
    let mut third = gateway.connect("alice");
    first.expect_close(4004);
    let mut fourth = gateway.connect("alice");
    second.expect_close(4004);
    for client in [&mut third, &mut fourth, &mut bob] {
        assert_eq!(client.request("ping", Value::Null)["type"], "pong");
    }
}

/// A hundred refusals within ten seconds.
#[test]
fn a_rate_that_is_exceeded_and_exceeded_is_4006() {
    let gateway = Gateway::start(
        &chat::settings()
            .set("limits.rate", 1)
            .set("limits.burst", 1),
    );
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    for _ in 0..120 {
        alice.send(&json!({"type": "ping"}));
    }
    alice.expect_close(4006);
    let answers = alice.take_held();
    let limited = answers
        .iter()
        .filter(|frame| frame["code"] == "RATE_LIMITED")
        .count();
    assert!(
        (90..=100).contains(&limited),
        "{limited} refusals before the close"
    );
    assert_eq!(bob.request("ping", Value::Null)["type"], "pong");
}

/// Frames of every kind in any order of pieces never harm anybody else.
#[test]
fn a_truncated_frame_and_a_vanished_client_leave_the_others_alone() {
    let gateway = gateway();
    let mut bob = gateway.connect("bob");
    for cut in [1, 2, 4, 6, 9] {
        let mut raw: Raw = gateway.raw_session("alice");
        raw.send(&raw::frame(FIN | TEXT, br#"{"type":"ping"}"#)[..cut]);
        if cut % 2 == 0 {
            raw.reset();
        } else {
            raw.finish_sending();
            raw.expect_end();
        }
    }
    assert_eq!(bob.request("ping", Value::Null)["type"], "pong");
    crate::support::wait_until("alice may have all her connections again", || {
        let full: Vec<_> = (0..5)
            .map_while(|_| {
                Client::try_connect(gateway.addr, &gateway.path, &token_of("alice")).ok()
            })
            .collect();
        full.len() == 5
    });
}
