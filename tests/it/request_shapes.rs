//! Every request and its `data` is a JSON object; what is `null` is not there; what is there twice,
//! or of another type, is wrong.

use serde_json::{Value, json};

use crate::chat;
use crate::support::client::error_message;
use crate::support::{Client, Gateway};

fn gateway() -> Gateway {
    let settings = chat::settings()
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000);
    Gateway::start(&settings)
}

/// Each request, with the fields of its `data` in the order in which the code may name them.
const REQUESTS: [(&str, &[&str]); 7] = [
    (
        "send_message",
        &[
            r#""to_user_id":"bob""#,
            r#""content":"x""#,
            r#""message_type":"text""#,
            r#""client_message_id":"c-1""#,
        ],
    ),
    (
        "send_group_message",
        &[
            r#""group_id":"team""#,
            r#""content":"x""#,
            r#""message_type":"text""#,
            r#""client_message_id":"c-2""#,
        ],
    ),
    (
        "get_history",
        &[r#""user_id":"bob""#, r#""before_id":"""#, r#""limit":5"#],
    ),
    (
        "get_group_history",
        &[r#""group_id":"team""#, r#""before_id":"""#, r#""limit":5"#],
    ),
    ("ack", &[r#""message_ids":["m1"]"#]),
    ("refresh_token", &[r#""token":"alice-token""#]),
    ("ping", &[]),
];

fn object(fields: &[&str]) -> String {
    format!("{{{}}}", fields.join(","))
}

fn value(field: &str) -> &str {
    field.split_once(':').expect("name:value").1
}

/// The answer to `text` as it is; it must be the error INVALID_MESSAGE.
fn invalid(client: &mut Client, text: &str) -> Value {
    client.send_text(text.to_owned());
    let answer = client.expect("error");
    error_message(&answer, "INVALID_MESSAGE");
    answer
}

#[test]
fn an_array_is_no_object_whatever_it_holds() {
    let gateway = gateway();
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    for (kind, fields) in REQUESTS {
        let values: Vec<&str> = fields.iter().map(|field| value(field)).collect();
        let data = object(fields);
        // The whole request as an array, as long as the code may take it to be.
        for text in [
            format!(r#"["{kind}"]"#),
            format!(r#"["{kind}","1"]"#),
            format!(r#"["{kind}","1",{data}]"#),
            format!(r#"["{kind}",null,{data}]"#),
            format!("\n [\"{kind}\",\"1\",[{}]]", values.join(",")),
            format!(r#"[{{"type":"{kind}","data":{data}}}]"#),
        ] {
            let answer = invalid(&mut alice, &text);
            assert_eq!(answer.get("request_id"), None, "{text}");
        }
        // And its data.
        let mut arrays: Vec<String> = (0..=values.len())
            .map(|count| format!("[{}]", values[..count].join(",")))
            .collect();
        arrays.push(format!("[{data}]"));
        arrays.push(format!("\t[ {data} ]"));
        let scalars = ["true", "false", "0", "1.5", "\"\"", "\"{}\""];
        arrays.extend(scalars.map(str::to_owned));
        for wrong in arrays {
            let text = format!(r#"{{"type":"{kind}","request_id":"1","data":{wrong}}}"#);
            let answer = invalid(&mut alice, &text);
            assert_eq!(answer["request_id"], "1", "{text}");
            let message = answer["message"].as_str().expect("a text");
            assert!(message.contains("data"), "{text}: {message}");
        }
    }
    // Nothing of it was sent.
    let history = alice.request("get_history", json!({"user_id": "bob"}));
    assert_eq!(history["messages"], json!([]));
    let id = alice.send_message("bob", "real");
    bob.expect_message(&id);
}

#[test]
fn null_is_the_same_as_no_field() {
    let gateway = gateway();
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    let sent = alice.request(
        "send_message",
        json!({"to_user_id": "bob", "content": "x", "message_type": null, "client_message_id": null}),
    );
    assert_eq!(sent["type"], "message_sent", "{sent}");
    assert_eq!(sent.get("client_message_id"), None, "{sent}");
    let push = bob.expect_message(sent["id"].as_str().expect("an id"));
    assert_eq!(push["message_type"], "text", "{push}");
    assert_eq!(push.get("client_message_id"), None, "{push}");
    for (request, data) in [
        (
            "send_group_message",
            json!({"group_id": "team", "content": "x", "message_type": null, "client_message_id": null}),
        ),
        (
            "get_history",
            json!({"user_id": "bob", "before_id": null, "limit": null}),
        ),
        (
            "get_group_history",
            json!({"group_id": "team", "limit": null, "before_id": null}),
        ),
        ("ping", Value::Null),
        ("ping", json!({"anything": null})),
    ] {
        let answer = alice.request(request, data.clone());
        assert_ne!(answer["type"], "error", "{request} {data}: {answer}");
    }
    alice.send_text(r#"{"type":"ping","request_id":null,"data":null}"#.to_owned());
    let pong = alice.expect("pong");
    assert_eq!(pong.get("request_id"), None, "{pong}");
    // What has to be there is missing.
    for (request, data, field) in [
        (
            "send_message",
            json!({"to_user_id": null, "content": "x"}),
            "to_user_id",
        ),
        (
            "send_message",
            json!({"to_user_id": "bob", "content": null}),
            "content",
        ),
        (
            "send_group_message",
            json!({"group_id": null, "content": "x"}),
            "group_id",
        ),
        ("get_history", json!({"user_id": null}), "user_id"),
        ("get_group_history", json!({"group_id": null}), "group_id"),
        ("ack", json!({"message_ids": null}), "message_ids"),
        ("ack", json!({"message_ids": [null]}), "message_ids"),
        ("refresh_token", json!({"token": null}), "token"),
    ] {
        let message = alice.expect_error(request, data.clone(), "INVALID_MESSAGE");
        assert!(message.contains(field), "{request} {data}: {message}");
    }
}

/// Of two values, one would be looked at and the other one meant.
#[test]
fn a_field_that_is_there_twice_is_invalid() {
    let gateway = gateway();
    let mut alice = gateway.connect("alice");
    for (kind, fields) in REQUESTS {
        let data = object(fields);
        for text in [
            format!(r#"{{"type":"{kind}","data":{data},"type":"{kind}"}}"#),
            format!(r#"{{"type":"{kind}","request_id":"1","data":{data},"request_id":"2"}}"#),
            format!(r#"{{"type":"{kind}","data":{data},"data":{data}}}"#),
            format!(r#"{{"type":"{kind}","data":null,"data":{data}}}"#),
            format!(r#"{{"type":"{kind}","data":{data},"d\u0061ta":{data}}}"#),
        ] {
            invalid(&mut alice, &text);
        }
        for field in fields {
            let twice = [fields, &[*field]].concat();
            let text = format!(
                r#"{{"type":"{kind}","request_id":"1","data":{}}}"#,
                object(&twice)
            );
            let answer = invalid(&mut alice, &text);
            assert_eq!(answer["request_id"], "1", "{text}");
        }
        // Those that nobody reads are nobody's business.
        let text = format!(
            r#"{{"x":1,"type":"{kind}","request_id":"ok","x":[2],"data":{}}}"#,
            object(&[fields, &[r#""y":1"#, r#""y":{"y":[]}"#]].concat())
        );
        alice.send_text(text.clone());
        let answer = alice.answer("ok");
        assert_ne!(answer["code"], "INVALID_MESSAGE", "{text}: {answer}");
    }
}

/// Every other type of JSON in place of each value.
#[test]
fn a_value_of_another_type_is_invalid_and_named() {
    let gateway = gateway();
    let mut alice = gateway.connect("alice");
    let values = [
        "true",
        "7",
        "-1",
        "1.5",
        "1e3",
        "\"5\"",
        "[]",
        "[\"bob\"]",
        "{}",
        "[[]]",
    ];
    for (kind, fields) in REQUESTS {
        for (place, field) in fields.iter().enumerate() {
            let name = field.split('"').nth(1).expect("a name");
            for other in values {
                let fits = match name {
                    "limit" => other == "7",
                    "message_ids" => ["[]", "[\"bob\"]"].contains(&other),
                    _ => other == "\"5\"",
                };
                if fits {
                    continue;
                }
                let changed = format!("\"{name}\":{other}");
                let mut all = fields.to_vec();
                all[place] = &changed;
                let text = format!(
                    r#"{{"type":"{kind}","request_id":"1","data":{}}}"#,
                    object(&all)
                );
                let answer = invalid(&mut alice, &text);
                let message = answer["message"].as_str().expect("a text");
                assert!(message.contains(name), "{text}: {message}");
                assert_eq!(answer["request_id"], "1", "{text}");
            }
        }
    }
}

#[test]
fn whitespace_is_no_matter_and_garbage_is() {
    let gateway = gateway();
    let mut alice = gateway.connect("alice");
    alice.send_text(" \t\r\n{ \"type\" : \"ping\" , \"data\" : \n{ } }\r\n ".to_owned());
    assert_eq!(alice.expect("pong")["type"], "pong");
    for text in [
        "\u{feff}{\"type\":\"ping\"}",
        "\u{c}{\"type\":\"ping\"}",
        "\u{a0}{\"type\":\"ping\"}",
        "{\"type\":\"ping\"}{\"type\":\"ping\"}",
        "{\"type\":\"ping\"}\n{\"type\":\"ping\"}",
        "{\"type\":\"ping\"},",
        "{\"type\":\"ping\"}\u{0}",
        "{\"type\":\"ping\",}",
        "{type:\"ping\"}",
        "{\"type\":\"ping\"}//",
        "{\"type\":\"ping\",\"data\":{}}]",
        "\"{\\\"type\\\":\\\"ping\\\"}\"",
    ] {
        invalid(&mut alice, text);
    }
}
