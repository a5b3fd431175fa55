//! Every error code of the protocol, provoked: the connection stays open, the request's id comes
//! back, the message names what is wrong.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::Code;
use ws_gateway::services::proto::{Message, SendMessageResponse};

use crate::chat;
use crate::support::backend::{Backend, garbage_server, silent_server};
use crate::support::broker::Broker;
use crate::support::client::error_message;
use crate::support::cluster::remote;
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings};

fn embedded() -> Gateway {
    let settings = chat::settings()
        .users(["dave"])
        .set("limits.rate", 1000)
        .set("limits.burst", 1000);
    Gateway::start(&settings)
}

/// A gateway on a fake backend, with a call timeout of 500 ms, and alice on it.
fn on(backend: &Backend) -> (Gateway, Client) {
    let settings = Settings::new()
        .set("services.timeout", "500ms")
        .set("limits.rate", 1000);
    let gateway = Gateway::start(&remote(
        &settings,
        &backend.url(),
        &Broker::shared().vhost(),
    ));
    gateway.wait_ready();
    let alice = gateway.connect("alice");
    (gateway, alice)
}

/// Sends `text` as it is; the answer must be INVALID_MESSAGE and contain `naming`.
fn invalid(client: &mut Client, text: impl Into<String>, naming: &str) {
    let text = text.into();
    client.send_text(text.clone());
    let answer = client.expect("error");
    let message = error_message(&answer, "INVALID_MESSAGE");
    let shown: String = text.chars().take(200).collect();
    assert!(
        message.contains(naming),
        "`{message}` does not name {naming}; sent: {shown}"
    );
    assert_eq!(
        client.request("ping", Value::Null)["type"],
        "pong",
        "after {shown}"
    );
}

#[test]
fn what_is_no_json_object_with_a_type_is_invalid() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    for text in [
        "",
        " ",
        "hello",
        "{",
        "{\"type\":\"ping\"",
        "{\"type\":\"ping\"} x",
        "\u{0}",
        "{'type':'ping'}",
    ] {
        invalid(&mut alice, text, "");
    }
    for text in ["null", "1", "\"ping\"", "[]", "[{\"type\":\"ping\"}]"] {
        invalid(&mut alice, text, "");
    }
    invalid(&mut alice, "{}", "type");
    invalid(&mut alice, r#"{"type":7}"#, "type");
    invalid(&mut alice, r#"{"type":null}"#, "type");
    invalid(
        &mut alice,
        "{\"type\":\"ping\",\"request_id\":\"\\ud800\"}",
        "",
    );
}

#[test]
fn a_missing_or_wrong_field_is_named() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    let cases = [
        ("send_message", json!({"content": "x"}), "to_user_id"),
        ("send_message", json!({"to_user_id": "bob"}), "content"),
        (
            "send_message",
            json!({"to_user_id": 7, "content": "x"}),
            "to_user_id",
        ),
        (
            "send_message",
            json!({"to_user_id": "bob", "content": 7}),
            "content",
        ),
        (
            "send_message",
            json!({"to_user_id": "bob", "content": "x", "message_type": 7}),
            "message_type",
        ),
        (
            "send_message",
            json!({"to_user_id": "bob", "content": "x", "client_message_id": 7}),
            "client_message_id",
        ),
        ("send_group_message", json!({"content": "x"}), "group_id"),
        ("send_group_message", json!({"group_id": "team"}), "content"),
        (
            "send_group_message",
            json!({"group_id": ["team"], "content": "x"}),
            "group_id",
        ),
        ("get_history", json!({}), "user_id"),
        (
            "get_history",
            json!({"user_id": "bob", "limit": "many"}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "limit": 1.5}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "limit": 0}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "limit": -1}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "limit": 101}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "limit": u64::MAX}),
            "limit",
        ),
        (
            "get_history",
            json!({"user_id": "bob", "before_id": 7}),
            "before_id",
        ),
        ("get_group_history", json!({}), "group_id"),
        (
            "get_group_history",
            json!({"group_id": "team", "limit": 101}),
            "limit",
        ),
        ("ack", json!({}), "message_ids"),
        ("ack", json!({"message_ids": "m1"}), "message_ids"),
        ("ack", json!({"message_ids": [7]}), "message_ids"),
        ("refresh_token", json!({}), "token"),
        ("refresh_token", json!({"token": 7}), "token"),
    ];
    for (request, data, field) in cases {
        let message = alice.expect_error(request, data.clone(), "INVALID_MESSAGE");
        assert!(
            message.contains(field),
            "{request} {data}: `{message}` does not name {field}"
        );
    }
    for request in [
        "send_message",
        "send_group_message",
        "get_history",
        "get_group_history",
        "ack",
        "refresh_token",
    ] {
        for data in [json!("x"), json!([]), Value::Null] {
            let message = alice.expect_error(request, data, "INVALID_MESSAGE");
            assert!(
                message.contains("data"),
                "{request}: `{message}` does not name data"
            );
        }
        alice.send(&json!({"type": request, "request_id": "no data"}));
        let message = error_message(&alice.answer("no data"), "INVALID_MESSAGE");
        assert!(
            message.contains("data"),
            "{request}: `{message}` does not name data"
        );
    }
}

#[test]
fn an_id_is_1_to_200_bytes_without_control_characters() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    let long = "é".repeat(100) + "u";
    assert_eq!(long.len(), 201);
    for bad in ["", &long, "a\nb", "a\u{0}", "\u{7f}", "a\u{85}"] {
        for (request, data, field) in [
            (
                "send_message",
                json!({"to_user_id": bad, "content": "x"}),
                "to_user_id",
            ),
            (
                "send_group_message",
                json!({"group_id": bad, "content": "x"}),
                "group_id",
            ),
            ("get_history", json!({"user_id": bad}), "user_id"),
            ("get_group_history", json!({"group_id": bad}), "group_id"),
        ] {
            let message = alice.expect_error(request, data, "INVALID_MESSAGE");
            assert!(
                message.contains(field),
                "{request} {bad:?}: `{message}` does not name {field}"
            );
            assert!(!message.contains(char::is_control), "{message:?}");
        }
    }
    let longest = "u".repeat(200);
    let answer = alice.request(
        "send_message",
        json!({"to_user_id": longest, "content": "x"}),
    );
    assert_ne!(answer["code"], "INVALID_MESSAGE", "{answer}");
    assert_ne!(answer["code"], "INTERNAL", "{answer}");
}

/// An answer can carry no id that it could not read.
#[test]
fn a_request_id_is_a_string_of_at_most_64_bytes() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    for bad in [
        json!(7),
        json!({}),
        json!("r".repeat(65)),
        json!("é".repeat(33)),
    ] {
        alice.send(&json!({"type": "ping", "request_id": bad}));
        let answer = alice.expect("error");
        assert!(
            error_message(&answer, "INVALID_MESSAGE").contains("request_id"),
            "{answer}"
        );
    }
    let longest = "é".repeat(32);
    alice.send(&json!({"type": "ping", "request_id": longest}));
    assert_eq!(alice.answer(&longest)["type"], "pong");
    // A wrong request whose id can be read gets it back.
    alice.send(&json!({"type": "send_message", "request_id": "mine", "data": 7}));
    error_message(&alice.answer("mine"), "INVALID_MESSAGE");
}

/// As deep as a frame can hold, opened and never closed, and closed properly.
#[test]
fn deep_json_is_invalid_and_harmless() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    invalid(&mut alice, "[".repeat(65_000), "");
    invalid(&mut alice, "{\"a\":".repeat(13_000), "");
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    // In a field that is not looked at, depth may be passed over.
    alice.send_text(format!(
        r#"{{"type":"ping","request_id":"deep","x":{deep}}}"#
    ));
    let answer = alice.answer("deep");
    assert!(
        answer["type"] == "pong" || answer["code"] == "INVALID_MESSAGE",
        "{answer}"
    );
    invalid(
        &mut alice,
        format!(r#"{{"type":"send_message","data":{{"to_user_id":{deep}}}}}"#),
        "",
    );
    assert_eq!(gateway.get("/healthz").status, 200);
}

#[test]
fn an_unknown_type_is_said_to_be_unknown() {
    let gateway = embedded();
    let mut alice = gateway.connect("alice");
    for unknown in ["", "sing", "PING", "message", "connected"] {
        alice.expect_error(unknown, json!({}), "UNKNOWN_MESSAGE_TYPE");
    }
}

#[test]
fn tokens_groups_and_rates_have_codes_of_their_own() {
    let settings = chat::settings()
        .users(["dave"])
        .set("limits.rate", 5)
        .set("limits.burst", 20);
    let gateway = Gateway::start(&settings);
    let mut dave = gateway.connect("dave");
    dave.expect_error(
        "refresh_token",
        json!({"token": "unknown"}),
        "UNAUTHENTICATED",
    );
    let another = dave.request("refresh_token", json!({"token": token_of("alice")}));
    assert_eq!(
        another["type"], "error",
        "a token of somebody else: {another}"
    );
    dave.expect_error(
        "send_group_message",
        json!({"group_id": "team", "content": "x"}),
        "PERMISSION_DENIED",
    );
    dave.expect_error(
        "get_group_history",
        json!({"group_id": "team"}),
        "PERMISSION_DENIED",
    );
    dave.expect_error(
        "send_group_message",
        json!({"group_id": "none", "content": "x"}),
        "NOT_FOUND",
    );
    dave.expect_error(
        "get_group_history",
        json!({"group_id": "none"}),
        "PERMISSION_DENIED",
    );

    let ids: Vec<String> = (0..30)
        .map(|_| dave.send_request("ping", Value::Null))
        .collect();
    let answers: Vec<Value> = ids.iter().map(|id| dave.answer(id)).collect();
    assert_eq!(answers[0]["type"], "pong", "the burst is 20");
    error_message(answers.last().expect("answers"), "RATE_LIMITED");
    crate::support::wait_until("the bucket fills again", || {
        dave.request("ping", Value::Null)["type"] == "pong"
    });
}

#[test]
fn every_grpc_status_has_its_code() {
    let backend = Backend::start();
    let (_gateway, mut alice) = on(&backend);
    let table = [
        (Code::Cancelled, "INTERNAL"),
        (Code::Unknown, "INTERNAL"),
        (Code::InvalidArgument, "INVALID_MESSAGE"),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (Code::NotFound, "NOT_FOUND"),
        (Code::AlreadyExists, "INTERNAL"),
        (Code::PermissionDenied, "PERMISSION_DENIED"),
        (Code::ResourceExhausted, "RATE_LIMITED"),
        (Code::FailedPrecondition, "INTERNAL"),
        (Code::Aborted, "INTERNAL"),
        (Code::OutOfRange, "INVALID_MESSAGE"),
        (Code::Unimplemented, "INTERNAL"),
        (Code::Internal, "INTERNAL"),
        (Code::Unavailable, "SERVICE_UNAVAILABLE"),
        (Code::DataLoss, "INTERNAL"),
        (Code::Unauthenticated, "UNAUTHENTICATED"),
    ];
    for (call, request, data) in calls() {
        for (status, code) in table {
            backend.fail(call, status);
            alice.expect_error(request, data.clone(), code);
        }
        backend.heal(call);
        assert_ne!(
            alice.request(request, data)["type"],
            "error",
            "{call} again"
        );
    }
}

/// Each request that a service answers: the call, the request, its data.
fn calls() -> [(&'static str, &'static str, Value); 6] {
    [
        (
            "SendMessage",
            "send_message",
            json!({"to_user_id": "bob", "content": "x"}),
        ),
        (
            "SendGroupMessage",
            "send_group_message",
            json!({"group_id": "team", "content": "x"}),
        ),
        ("GetHistory", "get_history", json!({"user_id": "bob"})),
        (
            "GetGroupHistory",
            "get_group_history",
            json!({"group_id": "team"}),
        ),
        ("AckMessages", "ack", json!({"message_ids": ["m1"]})),
        (
            "ValidateToken",
            "refresh_token",
            json!({"token": "alice-token"}),
        ),
    ]
}

/// The answer comes with the deadline; another user's traffic goes on meanwhile.
#[test]
fn a_slow_service_is_a_deadline_exceeded_in_time() {
    let backend = Backend::start();
    let (gateway, mut alice) = on(&backend);
    let mut bob = gateway.connect("bob");
    backend.slow("SendMessage", Duration::from_secs(10));
    let start = Instant::now();
    let id = alice.send_request("send_message", json!({"to_user_id": "bob", "content": "x"}));
    assert_eq!(
        bob.request("get_history", json!({"user_id": "alice"}))["type"],
        "history"
    );
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "bob waited for alice"
    );
    error_message(&alice.answer(&id), "DEADLINE_EXCEEDED");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn a_service_that_is_gone_is_unavailable_and_one_that_talks_nonsense_is_an_error() {
    let users = Backend::start();
    let broker = Broker::shared().vhost();
    let (listener, silent) = silent_server();
    let (closed, gone) = silent_server();
    drop(closed);
    for (address, codes) in [
        (gone, ["SERVICE_UNAVAILABLE"].as_slice()),
        (garbage_server(), &["SERVICE_UNAVAILABLE", "INTERNAL"]),
        (silent, &["DEADLINE_EXCEEDED", "SERVICE_UNAVAILABLE"]),
    ] {
        let settings = remote(&Settings::new(), &users.url(), &broker)
            .set("services.timeout", "500ms")
            .set("services.message", address.as_str());
        let gateway = Gateway::start(&settings);
        let mut alice = gateway.connect_cold("alice");
        let start = Instant::now();
        let answer = alice.request("send_message", json!({"to_user_id": "bob", "content": "x"}));
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{address}: {:?}",
            start.elapsed()
        );
        let code = answer["code"].as_str().expect("an error");
        assert!(codes.contains(&code), "{address}: {answer}");
        let ready = gateway.get("/readyz");
        assert_eq!(ready.status, 503, "{ready:?}");
        assert!(
            ready.body.contains("message"),
            "the message service is named: {ready:?}"
        );
        assert_eq!(gateway.stop(), 0, "{address}");
    }
    drop(listener);
}

/// Garbage inside well-formed answers: an error for the request, nothing for the connection.
#[test]
fn garbage_in_an_answer_is_internal() {
    let backend = Backend::start();
    let (_gateway, mut alice) = on(&backend);
    backend.answer(|answers| {
        answers.sent = Some(SendMessageResponse {
            id: String::new(),
            timestamp: 0,
        });
    });
    alice.expect_error(
        "send_message",
        json!({"to_user_id": "bob", "content": "x"}),
        "INTERNAL",
    );
    backend.answer(|answers| {
        let from_user_id = "x".repeat(300);
        answers.history.messages = vec![Message {
            id: "m".into(),
            from_user_id,
            ..Message::default()
        }];
    });
    let answer = alice.request("get_history", json!({"user_id": "bob"}));
    let left_out = answer["messages"] == json!([]);
    assert!(left_out || answer["code"] == "INTERNAL", "{answer}");
    assert_eq!(alice.request("ping", Value::Null)["type"], "pong");
}
