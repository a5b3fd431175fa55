//! The protocol's frames, as a client writes and reads them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::command::Target;

/// A frame from the gateway, whatever its type; what a type has no use for is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Frame {
    #[serde(rename = "type")]
    pub kind: String,
    pub request_id: Option<String>,
    pub id: String,
    pub from_user_id: String,
    pub to_user_id: String,
    pub group_id: String,
    pub content: String,
    /// In Unix seconds.
    pub timestamp: i64,
    pub client_message_id: String,
    pub user_id: String,
    pub status: String,
    pub code: String,
    pub message: String,
    pub count: u64,
    pub messages: Vec<Frame>,
    pub has_more: bool,
    /// In seconds.
    pub ping_interval: Option<u64>,
    pub max_message_size: Option<usize>,
}

impl Frame {
    /// `None`: not a frame of this protocol.
    pub fn parse(text: &str) -> Option<Self> {
        // serde would fill a struct from an array as well.
        let is_object = text.trim_start().starts_with('{');
        is_object.then(|| serde_json::from_str(text).ok()).flatten()
    }
}

/// A frame to the gateway.
#[derive(Serialize)]
struct Request<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    data: Value,
}

fn request(kind: &str, request_id: &str, data: Value) -> String {
    let request = Request {
        kind,
        request_id,
        data,
    };
    serde_json::to_string(&request).expect("strings and numbers are JSON")
}

/// Under the same `client_message_id` a message is sent once.
pub(super) fn message(
    to: &Target,
    content: &str,
    client_message_id: &str,
    request_id: &str,
) -> String {
    let (kind, field) = match to {
        Target::User(_) => ("send_message", "to_user_id"),
        Target::Group(_) => ("send_group_message", "group_id"),
    };
    let data = json!({
        field: to.id(),
        "content": content,
        "client_message_id": client_message_id,
    });
    request(kind, request_id, data)
}

pub(super) fn history(target: &Target, limit: u32, request_id: &str) -> String {
    let (kind, field) = match target {
        Target::User(_) => ("get_history", "user_id"),
        Target::Group(_) => ("get_group_history", "group_id"),
    };
    request(
        kind,
        request_id,
        json!({field: target.id(), "limit": limit}),
    )
}

pub(super) fn ack(ids: &[String], request_id: &str) -> String {
    request("ack", request_id, json!({"message_ids": ids}))
}

pub(super) fn ping(request_id: &str) -> String {
    request("ping", request_id, Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_protocol_has_them() {
        let bob = Target::User("bob".into());
        let text = message(&bob, "a\"b", "c-1", "1");
        let read: Value = serde_json::from_str(&text).expect("JSON");
        let data = json!({"to_user_id": "bob", "content": "a\"b", "client_message_id": "c-1"});
        assert_eq!(
            read,
            json!({"type": "send_message", "request_id": "1", "data": data})
        );
        let team = Target::Group("team".into());
        let read: Value = serde_json::from_str(&history(&team, 7, "2")).expect("JSON");
        let data = json!({"group_id": "team", "limit": 7});
        assert_eq!(
            read,
            json!({"type": "get_group_history", "request_id": "2", "data": data})
        );
    }

    #[test]
    fn fields_that_nobody_knows_are_ignored() {
        let frame = Frame::parse(r#"{"type":"news","new":{"a":[1]},"id":"m1"}"#).expect("a frame");
        assert_eq!((frame.kind.as_str(), frame.id.as_str()), ("news", "m1"));
        for text in ["", "[]", "7", r#"{"type":7}"#, "{"] {
            assert!(Frame::parse(text).is_none(), "{text}");
        }
    }
}
