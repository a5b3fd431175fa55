//! What a client owes the protocol, shown to a gateway that is played here: it cuts, repeats, falls
//! silent and says nonsense.

use std::io::ErrorKind;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use super::{chat, of_type, outcome};
use crate::support::process::Process;
use crate::support::settings::token_of;
use crate::support::wait::{DEADLINE, wait_for};

/// Listens, and answers nobody by itself.
struct Played {
    listener: TcpListener,
}

/// One connection of a client.
struct Peer {
    websocket: WebSocket<TcpStream>,
}

impl Played {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        Self { listener }
    }

    /// The client as alice, writing to bob.
    fn alice(&self) -> (Process, ChildStdin) {
        let addr = self.listener.local_addr().expect("an address");
        let url = format!("ws://{addr}/ws");
        Process::start_with_input("alice", &mut chat(&url, "alice", &["--to", "bob"]))
    }

    /// The next connection, and how long it let wait. Its token is where it belongs.
    #[expect(clippy::result_large_err, reason = "tungstenite's own")]
    fn accept(&self) -> (Peer, Duration) {
        let (tcp, waited) = wait_for(DEADLINE, "the client connects", || {
            match self.listener.accept() {
                Ok((tcp, _)) => Some(tcp),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => panic!("{error}"),
            }
        });
        tcp.set_nonblocking(false).expect("a socket option");
        tcp.set_read_timeout(Some(DEADLINE))
            .expect("a socket option");
        let websocket = tungstenite::accept_hdr(tcp, |request: &Request, response: Response| {
            let bearer = format!("Bearer {}", token_of("alice"));
            assert_eq!(request.headers()["Authorization"], bearer.as_str());
            assert_eq!(request.uri().to_string(), "/ws");
            Ok(response)
        });
        let websocket = websocket.expect("a handshake");
        (Peer { websocket }, waited)
    }

    /// As [`accept`](Self::accept), greeted, with nothing unread.
    fn greet(&self) -> Peer {
        let (mut peer, _) = self.accept();
        peer.say(&json!({"type": "connected", "user_id": "alice", "ping_interval": 3600}));
        peer.say(&json!({"type": "offline_complete", "count": 0}));
        peer
    }
}

impl Peer {
    fn say(&mut self, frame: &Value) {
        let text = Message::text(frame.to_string());
        self.websocket.send(text).expect("the client reads");
    }

    /// The next request; pings of the client's are answered meanwhile.
    fn request(&mut self) -> Value {
        loop {
            let request = self.any_request();
            if request["type"] != "ping" {
                return request;
            }
            self.say(&json!({"type": "pong", "request_id": request["request_id"]}));
        }
    }

    fn any_request(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.websocket.read().expect("a request") {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }

    fn answer_sent(&mut self, request: &Value) {
        let (id, own) = (
            &request["request_id"],
            &request["data"]["client_message_id"],
        );
        self.say(&json!({
            "type": "message_sent", "request_id": id, "id": "m1", "client_message_id": own,
        }));
    }

    fn refuse(&mut self, request: &Value, code: &str) {
        let id = &request["request_id"];
        self.say(&json!({"type": "error", "request_id": id, "code": code, "message": "no"}));
    }

    fn close(mut self, code: u16, reason: &str) {
        let (code, reason) = (code.into(), reason.into());
        let close = self.websocket.close(Some(CloseFrame { code, reason }));
        close.expect("the client reads");
        // Until the client's own.
        while self.websocket.read().is_ok() {}
    }

    fn message(id: &str) -> Value {
        json!({
            "type": "message", "id": id, "from_user_id": "bob", "to_user_id": "alice",
            "content": id, "message_type": "text", "timestamp": 1,
        })
    }
}

#[test]
fn what_was_not_answered_is_sent_again_under_the_same_id() {
    let played = Played::new();
    let (alice, mut input) = played.alice();
    let mut first = played.greet();
    writeln!(input, "a\nb").expect("it reads");
    drop(input);
    let request = first.request();
    assert_eq!(request["data"]["content"], "a");
    drop(first);
    let mut second = played.greet();
    let again = second.request();
    assert_eq!(again["data"], request["data"]);
    second.answer_sent(&again);
    let next = second.request();
    assert_eq!(next["data"]["content"], "b");
    assert_ne!(
        next["data"]["client_message_id"],
        request["data"]["client_message_id"]
    );
    second.answer_sent(&next);
    // Its goodbye is answered.
    while second.websocket.read().is_ok() {}
    let alice = outcome(alice);
    assert_eq!(alice.code, 0, "{alice:?}");
    assert_eq!(of_type(&alice, "message_sent").len(), 2);
}

#[test]
fn errors_that_pass_are_tried_again_and_nothing_overtakes() {
    let played = Played::new();
    let (alice, mut input) = played.alice();
    let mut peer = played.greet();
    writeln!(input, "a\nb").expect("it reads");
    drop(input);
    let mut ids = Vec::new();
    for code in [
        "RATE_LIMITED",
        "SERVICE_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
    ] {
        let request = peer.request();
        assert_eq!(request["data"]["content"], "a", "{code}");
        ids.push(request["data"]["client_message_id"].clone());
        peer.refuse(&request, code);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one message: {ids:?}");
    let request = peer.request();
    peer.answer_sent(&request);
    let request = peer.request();
    assert_eq!(request["data"]["content"], "b");
    peer.refuse(&request, "PERMISSION_DENIED");
    while peer.websocket.read().is_ok() {}
    let alice = outcome(alice);
    assert_eq!(alice.code, 1, "{alice:?}");
    assert!(
        alice
            .stderr
            .contains("line 2 is not sent: PERMISSION_DENIED"),
        "{alice:?}"
    );
}

#[test]
fn what_came_before_is_not_shown_again_but_acknowledged_again() {
    let played = Played::new();
    let (alice, input) = played.alice();
    let mut first = played.greet();
    for id in ["m1", "m2", "m1"] {
        first.say(&Peer::message(id));
    }
    let ack = first.request();
    assert_eq!(ack["type"], "ack");
    assert_eq!(ack["data"]["message_ids"], json!(["m1", "m2", "m1"]));
    // The acknowledgement came to nothing.
    drop(first);
    let mut second = played.greet();
    second.say(&Peer::message("m2"));
    second.say(&Peer::message("m3"));
    assert_eq!(second.request()["data"]["message_ids"], json!(["m2", "m3"]));
    drop(input);
    while second.websocket.read().is_ok() {}
    let alice = outcome(alice);
    let messages = of_type(&alice, "message");
    let ids: Vec<_> = messages.iter().map(|message| &message["id"]).collect();
    assert_eq!(ids, ["m1", "m2", "m3"]);
}

#[test]
fn it_comes_back_when_the_close_frame_says_so_and_not_before() {
    let played = Played::new();
    let (mut alice, _input) = played.alice();
    for (reason, at_least) in [
        (r#"{"reconnect":true,"after_ms":700,"reason":"x"}"#, 700),
        (r#"{"reconnect":true,"after_ms":1400,"reason":"y"}"#, 1_400),
        // As backoff has it: half of the first wait, or more.
        ("", 250),
    ] {
        let peer = played.greet();
        let told = Instant::now();
        peer.close(1012, reason);
        let (_peer, _) = played.accept();
        let waited = told.elapsed();
        assert!(
            waited >= Duration::from_millis(at_least),
            "{reason}: {waited:?}"
        );
        assert!(
            waited < Duration::from_millis(at_least + 5_000),
            "{reason}: {waited:?}"
        );
    }
    assert!(alice.is_running());
}

#[test]
fn it_does_not_come_back_where_it_is_told_to_stay() {
    for (code, reason, exit_code) in [
        (4010, r#"{"reconnect":false,"reason":"no more"}"#, 1),
        (4004, "", 1),
        (1000, "", 1),
        (
            4003,
            r#"{"reconnect":true,"after_ms":0,"reason":"token expired"}"#,
            3,
        ),
        (4005, "", 3),
    ] {
        let played = Played::new();
        let (alice, _input) = played.alice();
        played.greet().close(code, reason);
        let alice = outcome(alice);
        assert_eq!(alice.code, exit_code, "{code}: {alice:?}");
        assert!(alice.stderr.contains(&code.to_string()), "{alice:?}");
    }
}

/// It pings by itself, and knows a dead connection by the silence.
#[test]
fn silence_after_its_ping_is_noticed_and_it_comes_back() {
    let played = Played::new();
    let (alice, input) = played.alice();
    let (mut silent, _) = played.accept();
    silent.say(&json!({"type": "connected", "user_id": "alice", "ping_interval": 1}));
    let ping = silent.any_request();
    assert_eq!(ping["type"], "ping");
    silent.say(&json!({"type": "pong", "request_id": ping["request_id"]}));
    assert_eq!(
        silent.any_request()["type"],
        "ping",
        "one for each interval"
    );
    let asked = Instant::now();
    let mut next = played.greet();
    let noticed = asked.elapsed();
    assert!(noticed >= Duration::from_secs(1), "{noticed:?}");
    alice.stderr_line("no sign of life");
    drop(input);
    while next.websocket.read().is_ok() {}
    assert_eq!(outcome(alice).code, 0);
}

#[test]
fn what_it_does_not_know_it_passes_over() {
    let played = Played::new();
    let (alice, input) = played.alice();
    let mut peer = played.greet();
    peer.say(&json!({"type": "news", "id": 7}));
    peer.say(&json!({"type": "error", "code": "NEW_CODE", "message": "\u{1b}[2J"}));
    peer.say(&json!(["no", "frame"]));
    peer.websocket
        .send(Message::binary(vec![0, 1]))
        .expect("it reads");
    let mut message = Peer::message("m1");
    message["new"] = json!({"deep": [1]});
    peer.say(&message);
    assert_eq!(peer.request()["data"]["message_ids"], json!(["m1"]));
    drop(input);
    while peer.websocket.read().is_ok() {}
    let alice = outcome(alice);
    assert_eq!(alice.code, 0, "{alice:?}");
    assert_eq!(of_type(&alice, "message").len(), 1);
    assert!(!alice.stderr.contains('\u{1b}'), "{alice:?}");
}
