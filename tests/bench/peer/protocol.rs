//! The frames, field for field those of the gateway, and the requests.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::Message;
use ws_gateway::services::{ErrorCode, proto};

pub fn timestamp() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.unwrap_or_default().as_secs().cast_signed()
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Outgoing<'a> {
    Connected {
        connection_id: String,
        user_id: &'a str,
        gateway_id: &'a str,
        ping_interval: u64,
        max_message_size: usize,
        timestamp: i64,
    },
    Message {
        id: &'a str,
        from_user_id: &'a str,
        to_user_id: &'a str,
        content: &'a str,
        message_type: &'a str,
        timestamp: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        client_message_id: &'a str,
    },
    GroupMessage {
        id: &'a str,
        group_id: &'a str,
        from_user_id: &'a str,
        content: &'a str,
        message_type: &'a str,
        timestamp: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        client_message_id: &'a str,
    },
    Presence {
        user_id: &'a str,
        status: &'a str,
        timestamp: i64,
    },
    MessageSent {
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        id: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        client_message_id: &'a str,
        timestamp: i64,
    },
    Acked {
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        timestamp: i64,
    },
    OfflineComplete {
        count: usize,
        timestamp: i64,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        timestamp: i64,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<&'a str>,
        code: &'a str,
        message: &'a str,
        timestamp: i64,
    },
}

impl<'a> Outgoing<'a> {
    /// A single or a group message, whichever it is.
    pub fn chat(message: &'a proto::Message) -> Self {
        if message.group_id.is_empty() {
            Self::Message {
                id: &message.id,
                from_user_id: &message.from_user_id,
                to_user_id: &message.to_user_id,
                content: &message.content,
                message_type: &message.message_type,
                timestamp: message.timestamp,
                client_message_id: &message.client_message_id,
            }
        } else {
            Self::GroupMessage {
                id: &message.id,
                group_id: &message.group_id,
                from_user_id: &message.from_user_id,
                content: &message.content,
                message_type: &message.message_type,
                timestamp: message.timestamp,
                client_message_id: &message.client_message_id,
            }
        }
    }

    pub fn error(request_id: Option<&'a str>, code: ErrorCode, message: &'a str) -> Self {
        Self::Error {
            request_id,
            code: code.as_str(),
            message,
            timestamp: timestamp(),
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }

    /// Cloning it clones no text.
    pub fn frame(&self) -> Message {
        Message::text(self.json())
    }
}

/// One request; `data` is read when its type is known.
#[derive(Deserialize)]
pub struct Request<'a> {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub struct SendMessage {
    pub to_user_id: String,
    #[serde(flatten)]
    pub draft: Draft,
}

#[derive(Deserialize)]
pub struct SendGroupMessage {
    pub group_id: String,
    #[serde(flatten)]
    pub draft: Draft,
}

#[derive(Deserialize)]
pub struct Draft {
    pub content: String,
    #[serde(default = "text")]
    pub message_type: String,
    #[serde(default)]
    pub client_message_id: String,
}

#[derive(Deserialize)]
pub struct Ack {
    pub message_ids: Vec<String>,
}

fn text() -> String {
    "text".into()
}
