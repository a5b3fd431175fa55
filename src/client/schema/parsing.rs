//! What the document says of a request is what the gateway's parser says; and what it gives as an
//! example is what it describes.

#[allow(dead_code, reason = "the integration tests use all of it")]
#[path = "../../../tests/it/support/asyncapi.rs"]
mod asyncapi;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::request::Request;
use super::{examples, requests};
use crate::ids::UserId;
use asyncapi::{Exchange, PROTOCOL};

/// What the parser says of `text` and what the document says; they must agree.
fn agreed(text: &str) -> bool {
    let user = UserId::new("alice").expect("an id");
    let request = Request::parse(text, &user);
    let judged = PROTOCOL.judge(text);
    let refused = request.body.as_ref().err();
    assert_eq!(
        refused.is_some(),
        judged.fault().is_some(),
        "{text}: the parser says {refused:?}, the document {:?}",
        judged.fault()
    );
    // What is answered is what an integration test would be content with.
    if let Some(error) = refused {
        let mut exchange = Exchange::default();
        exchange.sent(text);
        let mut answer = json!({
            "type": "error",
            "code": error.code,
            "message": error.message,
            "timestamp": 1,
        });
        if let Some(id) = request.id {
            answer["request_id"] = id.into();
        }
        exchange.received(&answer.to_string());
    }
    refused.is_none()
}

#[test]
fn examples_are_what_they_are_examples_of() {
    for asked in requests() {
        let mut request = json!({"type": asked.kind, "request_id": "1"});
        if !asked.example.is_null() {
            request["data"] = asked.example.clone();
        }
        assert!(agreed(&request.to_string()), "{request}");
        let example = examples().remove(asked.answer).expect("an example");
        let mut exchange = Exchange::default();
        request["request_id"] = example["request_id"].clone();
        exchange.sent(&request.to_string());
        exchange.received(&example.to_string());
    }
}

/// What a test would be told of is found: a frame with a field too many, one too few, a wrong one; an
/// answer to nothing, of another type, to another request; a request taken or refused by mistake.
#[test]
fn what_the_document_does_not_describe_is_found() {
    let is_found = |asked: &[&str], said: &Value| {
        let (asked, said) = (asked.join("\n"), said.to_string());
        let heard = std::panic::catch_unwind(|| {
            let mut exchange = Exchange::default();
            asked.lines().for_each(|text| exchange.sent(text));
            exchange.received(&said);
        });
        heard.is_err()
    };
    let ping = r#"{"type":"ping","request_id":"7"}"#;
    for (kind, frame) in examples() {
        let reply = requests().into_iter().find(|asked| asked.answer == kind);
        let request = match &reply {
            Some(asked) => json!({"type": asked.kind, "request_id": frame["request_id"], "data": asked.example}).to_string(),
            None => r#"{"type":"ping","request_id":"1","data":5}"#.to_owned(),
        };
        assert!(!is_found(&[&request], &frame), "{frame}");
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut frame = frame.clone();
            change(&mut frame);
            frame
        };
        let more = changed(&|frame| frame["more"] = 1.into());
        assert!(is_found(&[&request], &more), "{more}");
        for field in frame.as_object().expect("an object").keys() {
            let wrong = changed(&|frame| frame[field] = json!([[]]));
            assert!(is_found(&[&request], &wrong), "{wrong}");
            let fewer =
                changed(&|frame| _ = frame.as_object_mut().expect("an object").remove(field));
            let may_lack =
                field == "client_message_id" || (kind == "error" && field == "request_id");
            assert_eq!(is_found(&[&request], &fewer), !may_lack, "{fewer}");
        }
    }
    let pong = json!({"type": "pong", "request_id": "7", "timestamp": 1});
    let error = |code: &str, message: &str| json!({"type": "error", "request_id": "7", "code": code, "message": message, "timestamp": 1});
    assert!(!is_found(&[ping], &pong));
    assert!(is_found(&[], &pong));
    assert!(is_found(
        &[r#"{"type":"ping","request_id":"8"}"#, ping],
        &pong
    ));
    assert!(is_found(
        &[r#"{"type":"ack","request_id":"7","data":{"message_ids":[]}}"#],
        &pong
    ));
    assert!(is_found(
        &[r#"{"type":"ping","request_id":"7","data":[]}"#],
        &pong
    ));
    assert!(is_found(
        &[ping],
        &error("UNKNOWN_MESSAGE_TYPE", "Unknown message type: ping")
    ));
    assert!(is_found(
        &[ping],
        &error("INVALID_MESSAGE", "data: must be an object")
    ));
    assert!(!is_found(
        &[ping],
        &error("INVALID_MESSAGE", "a service's own: no")
    ));
    let dance = r#"{"type":"dance","request_id":"7"}"#;
    assert!(!is_found(
        &[dance],
        &error("UNKNOWN_MESSAGE_TYPE", "Unknown message type: dance")
    ));
    assert!(is_found(&[dance], &error("INTERNAL", "x")));
    assert!(is_found(&[dance], &error("PARSER", "x")));
    let end = |code, reason: &'static str, client: Option<u16>| {
        std::panic::catch_unwind(move || {
            let mut exchange = Exchange::default();
            if let Some(client) = client {
                exchange.sent_close(Some(client));
            }
            exchange.ended(code, reason);
        })
        .is_ok()
    };
    let idle = r#"{"reconnect":true,"after_ms":999,"reason":"idle"}"#;
    let echo = r#"{"reconnect":false,"reason":""}"#;
    assert!(end(4002, idle, None) && end(1000, echo, None) && end(3333, echo, Some(3333)));
    for (code, reason) in [
        (4003, idle),
        (4999, idle),
        (3333, echo),
        (
            4002,
            r#"{"reconnect":true,"after_ms":1001,"reason":"idle"}"#,
        ),
        (4002, r#"{"reconnect":true,"reason":"idle"}"#),
        (4002, r#"{"reconnect":false,"after_ms":1,"reason":"idle"}"#),
        (4002, r#"{"reconnect":false,"reason":"idle"}"#),
        (
            4002,
            r#"{"reconnect":true,"after_ms":1,"reason":"idle","more":1}"#,
        ),
        (1002, r#"{"reconnect":false,"reason":"other words"}"#),
        (1002, "protocol error"),
        (1002, ""),
    ] {
        assert!(!end(code, reason, None), "{code} {reason}");
    }
}

#[test]
fn document_and_parser_agree_at_each_limit() {
    let id = |length: usize| "李".repeat(length / 3) + &"x".repeat(length % 3);
    for length in [0, 1, 63, 64, 65, 199, 200, 201, 600] {
        let (id, is_id) = (id(length), (1..=200).contains(&length));
        let message = json!({"type": "send_message", "data": {"to_user_id": id, "content": ""}});
        assert_eq!(agreed(&message.to_string()), is_id);
        let ping = json!({"type": "ping", "request_id": id});
        assert_eq!(agreed(&ping.to_string()), length <= 64);
    }
    for code in (0..0xa1).chain([0x2028, 0xad, 0xfeff, 0xe000]) {
        let name = format!("a{}", char::from_u32(code).expect("a character"));
        let history = json!({"type": "get_group_history", "data": {"group_id": name}});
        let is_control = code < 0x20 || (0x7f..0xa0).contains(&code);
        assert_eq!(agreed(&history.to_string()), !is_control, "{code:x}");
    }
    for (limit, is_one) in [
        ("0", false),
        ("1", true),
        ("100", true),
        ("101", false),
        ("-1", false),
        ("-0", false),
        ("5.0", false),
        ("5e1", false),
        ("1e400", false),
        ("50.5", false),
        ("\"50\"", false),
        ("99999999999999999999", false),
        ("null", true),
    ] {
        let text =
            format!(r#"{{"type":"get_history","data":{{"user_id":"bob","limit":{limit}}}}}"#);
        assert_eq!(agreed(&text), is_one, "{text}");
    }
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    for (text, is_one) in [
        (r#"{"type":"ping","x":1e400,"y":"\ud800"}"#.to_owned(), true),
        (
            format!(r#"{{"type":"ping","x":{deep},"data":{{"x":{deep}}}}}"#),
            true,
        ),
        (format!(r#"{{"type":"ping","data":{deep}}}"#), false),
        (r#"{"type":"ping","request_id":"\ud800"}"#.to_owned(), false),
        (r#"{"type":"ping","type":"ping"}"#.to_owned(), false),
        (
            r#"{"type":"ping","x":1,"x":2,"data":{"x":1,"x":2}}"#.to_owned(),
            true,
        ),
        (
            r#"{"type":"refresh_token","data":{"token":"a","token":"a"}}"#.to_owned(),
            false,
        ),
        (r#"{"type":"dance","data":{"a":1,"a":2}}"#.to_owned(), false),
        (r#"["ping",null,null]"#.to_owned(), false),
        ("{\"type\":\"ping\"} {}".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(agreed(&text), is_one, "{text}");
    }
}

/// A value as JSON writes it, of any kind; seldom one that a field takes.
fn value() -> impl Strategy<Value = String> {
    let string = prop_oneof![
        any::<String>(),
        Just("bob".to_owned()),
        (0..210_usize).prop_map(|length| "x".repeat(length)),
        (0..70_usize).prop_map(|length| "é".repeat(length)),
        "[a\u{1}\u{7f}\u{85}\u{a0}]{1,3}",
    ];
    let string = string.prop_map(|text| Value::from(text).to_string());
    let number = prop_oneof![
        4 => prop::sample::select(vec!["-1", "0", "1", "2", "99", "100", "101"]).prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_map(|number| Value::from(number).to_string()),
        1 => prop::sample::select(vec!["5.0", "1e2", "1e400"]).prop_map(str::to_owned),
    ];
    let other = prop_oneof![
        Just("null"),
        Just("true"),
        Just("{}"),
        Just("[]"),
        Just("\"\\ud83d\"")
    ];
    let leaf = prop_oneof![string, number, other.prop_map(str::to_owned)];
    let nested = leaf.clone().prop_recursive(2, 8, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            list.prop_map(|items| format!("[{}]", items.join(","))),
            inner.prop_map(|value| format!(r#"{{"token":{value}}}"#)),
        ]
    });
    // Most of what nests is refused at once.
    prop_oneof![6 => leaf, 1 => nested]
}

/// One way to spoil a request, or not quite.
#[derive(Debug, Clone)]
enum Change {
    /// Of a field of its own data.
    Other(prop::sample::Index, String),
    /// In the envelope or in the data, a field of another request perhaps.
    Set(bool, &'static str, String),
    Remove(bool, prop::sample::Index),
    Repeat(bool, prop::sample::Index),
    /// A byte of the text.
    Byte(prop::sample::Index, char),
}

fn change() -> impl Strategy<Value = Change> {
    let names = vec![
        "type",
        "request_id",
        "data",
        "to_user_id",
        "group_id",
        "user_id",
        "content",
        "limit",
        "message_type",
        "client_message_id",
        "before_id",
        "message_ids",
        "token",
        "more",
    ];
    let index = any::<prop::sample::Index>;
    let name = prop::sample::select(names);
    prop_oneof![
        8 => (index(), value()).prop_map(|(index, value)| Change::Other(index, value)),
        4 => (any::<bool>(), name, value()).prop_map(|(data, name, value)| Change::Set(data, name, value)),
        1 => (any::<bool>(), index()).prop_map(|(data, index)| Change::Remove(data, index)),
        1 => (any::<bool>(), index()).prop_map(|(data, index)| Change::Repeat(data, index)),
        1 => (index(), prop::sample::select(vec!['{', '}', '[', '"', ',', ':', ' ', '0', '\\', 'x']))
            .prop_map(|(index, with)| Change::Byte(index, with)),
    ]
}

/// The request's text with these changes.
fn changed(request: usize, changes: &[Change]) -> String {
    let asked = &requests()[request];
    let fields = |value: &Value| -> Vec<(String, String)> {
        let fields = value.as_object().into_iter().flatten();
        fields
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect()
    };
    let mut data = fields(&asked.example);
    let mut envelope = vec![
        ("type".to_owned(), Value::from(asked.kind).to_string()),
        ("request_id".to_owned(), "\"1\"".to_owned()),
    ];
    let mut bytes = Vec::new();
    for change in changes.iter().cloned() {
        let of = |is_data, envelope, data| if is_data { data } else { envelope };
        match change {
            Change::Other(index, value) => {
                if !data.is_empty() {
                    let place = index.index(data.len());
                    data[place].1 = value;
                }
            }
            Change::Set(is_data, name, value) => {
                let fields: &mut Vec<_> = of(is_data, &mut envelope, &mut data);
                fields.retain(|(other, _)| other != name);
                fields.push((name.to_owned(), value));
            }
            Change::Remove(is_data, index) => {
                let fields: &mut Vec<_> = of(is_data, &mut envelope, &mut data);
                if !fields.is_empty() {
                    fields.remove(index.index(fields.len()));
                }
            }
            Change::Repeat(is_data, index) => {
                let fields: &mut Vec<_> = of(is_data, &mut envelope, &mut data);
                if !fields.is_empty() {
                    fields.push(fields[index.index(fields.len())].clone());
                }
            }
            Change::Byte(index, with) => bytes.push((index, with)),
        }
    }
    let object = |fields: &[(String, String)]| {
        let fields = fields
            .iter()
            .map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    if !asked.example.is_null() && envelope.iter().all(|(name, _)| name != "data") {
        envelope.push(("data".to_owned(), object(&data)));
    }
    let mut text: Vec<char> = object(&envelope).chars().collect();
    for (index, with) in bytes {
        let place = index.index(text.len());
        text[place] = with;
    }
    text.into_iter().collect()
}

#[test]
fn document_and_parser_agree_on_whatever_is_asked() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(10_000));
    let strategy = (0..requests().len(), prop::collection::vec(change(), 0..4));
    let (taken, refused) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let outcome = runner.run(&strategy, |(request, changes)| {
        let count = if agreed(&changed(request, &changes)) {
            &taken
        } else {
            &refused
        };
        count.set(count.get() + 1);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    // Else only one side would have been tried.
    assert!(
        taken.get() > 500 && refused.get() > 500,
        "{taken:?} {refused:?}"
    );
}
