//! What clients ask: one JSON object in one text frame, `{"type", "request_id", "data"}`.
//! Unknown fields are ignored, `null` is the same as no field, and a field that is there twice is
//! wrong; an error names the field that is missing or wrong.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::ids::{GroupId, UserId};
use crate::services::ErrorCode;

/// The longest `request_id`, in bytes.
const MAX_REQUEST_ID: usize = 64;
/// The most entries of one history page.
const MAX_LIMIT: i32 = 100;
const DEFAULT_LIMIT: i32 = 50;

/// One request of a client.
#[derive(Debug)]
pub(super) struct Request {
    /// To be carried back by the answer.
    pub id: Option<String>,
    pub body: Result<Body, Invalid>,
}

/// Why a request is not understood, as the client is told.
#[derive(Debug)]
pub(super) struct Invalid {
    pub code: ErrorCode,
    pub message: String,
}

impl Invalid {
    fn message(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::InvalidMessage,
            message: message.into(),
        }
    }
}

#[derive(Debug)]
pub(super) enum Body {
    SendMessage { to: UserId, message: Draft },
    SendGroupMessage { to: GroupId, message: Draft },
    GetHistory { with: UserId, page: Page },
    GetGroupHistory { of: GroupId, page: Page },
    Ack { message_ids: Vec<String> },
    RefreshToken { token: String },
    Ping,
}

impl Body {
    /// The request's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SendMessage { .. } => "send_message",
            Self::SendGroupMessage { .. } => "send_group_message",
            Self::GetHistory { .. } => "get_history",
            Self::GetGroupHistory { .. } => "get_group_history",
            Self::Ack { .. } => "ack",
            Self::RefreshToken { .. } => "refresh_token",
            Self::Ping => "ping",
        }
    }
}

/// A message to be sent.
#[derive(Debug, Deserialize)]
pub(super) struct Draft {
    pub content: String,
    #[serde(default = "text", deserialize_with = "or_text")]
    pub message_type: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub client_message_id: String,
}

/// A page of a history.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    #[serde(default, deserialize_with = "or_empty")]
    pub before_id: String,
    #[serde(default = "default_limit", deserialize_with = "or_default_limit")]
    pub limit: i32,
}

fn text() -> String {
    "text".into()
}

fn default_limit() -> i32 {
    DEFAULT_LIMIT
}

fn or_text<'de, D: Deserializer<'de>>(json: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_else(text))
}

fn or_empty<'de, D: Deserializer<'de>>(json: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}

fn or_default_limit<'de, D: Deserializer<'de>>(json: D) -> Result<i32, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or(DEFAULT_LIMIT))
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    request_id: Value,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

impl Request {
    pub fn parse(text: &str) -> Self {
        match envelope(text) {
            Ok((id, kind, data)) => Self {
                id,
                body: body(&kind, data),
            },
            Err(invalid) => Self {
                id: None,
                body: Err(invalid),
            },
        }
    }
}

/// A request's id, type and data.
fn envelope(text: &str) -> Result<(Option<String>, Value, Option<&RawValue>), Invalid> {
    let invalid = |why: &str| Invalid::message(format!("Invalid message format: {why}"));
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|error| invalid(&error.to_string()))?;
    if !is_object(text) {
        return Err(invalid("not an object"));
    }
    Ok((
        request_id(envelope.request_id)?,
        envelope.kind,
        envelope.data,
    ))
}

/// Whether `json` is an object. serde would fill a struct from an array as well, field by field.
fn is_object(json: &str) -> bool {
    json.trim_ascii_start().starts_with('{')
}

fn request_id(value: Value) -> Result<Option<String>, Invalid> {
    match value {
        Value::Null => Ok(None),
        Value::String(id) if id.len() <= MAX_REQUEST_ID => Ok(Some(id)),
        _ => Err(Invalid::message(format!(
            "request_id: must be a string of at most {MAX_REQUEST_ID} bytes"
        ))),
    }
}

fn body(kind: &Value, data: Option<&RawValue>) -> Result<Body, Invalid> {
    let Value::String(kind) = kind else {
        return Err(Invalid::message("type: must be a string"));
    };
    if data.is_some_and(|data| !is_object(data.get())) {
        return Err(Invalid::message("data: must be an object"));
    }
    Ok(match kind.as_str() {
        "send_message" => {
            #[derive(Deserialize)]
            struct To {
                to_user_id: String,
            }
            let To { to_user_id } = fields(data)?;
            Body::SendMessage {
                to: user("to_user_id", &to_user_id)?,
                message: fields(data)?,
            }
        }
        "send_group_message" => Body::SendGroupMessage {
            to: group(data)?,
            message: fields(data)?,
        },
        "get_history" => {
            #[derive(Deserialize)]
            struct With {
                user_id: String,
            }
            let With { user_id } = fields(data)?;
            Body::GetHistory {
                with: user("user_id", &user_id)?,
                page: page(data)?,
            }
        }
        "get_group_history" => Body::GetGroupHistory {
            of: group(data)?,
            page: page(data)?,
        },
        "ack" => {
            #[derive(Deserialize)]
            struct Ack {
                message_ids: Vec<String>,
            }
            let Ack { message_ids } = fields(data)?;
            Body::Ack { message_ids }
        }
        "refresh_token" => {
            #[derive(Deserialize)]
            struct Refresh {
                token: String,
            }
            let Refresh { token } = fields(data)?;
            Body::RefreshToken { token }
        }
        "ping" => Body::Ping,
        _ => {
            return Err(Invalid {
                code: ErrorCode::UnknownMessageType,
                message: format!("Unknown message type: {}", excerpt(kind)),
            });
        }
    })
}

fn user(field: &str, text: &str) -> Result<UserId, Invalid> {
    UserId::new(text).map_err(|error| Invalid::message(format!("data.{field}: {error}")))
}

fn group(data: Option<&RawValue>) -> Result<GroupId, Invalid> {
    #[derive(Deserialize)]
    struct Of {
        group_id: String,
    }
    let Of { group_id } = fields(data)?;
    GroupId::new(&group_id).map_err(|error| Invalid::message(format!("data.group_id: {error}")))
}

fn page(data: Option<&RawValue>) -> Result<Page, Invalid> {
    let page: Page = fields(data)?;
    if (1..=MAX_LIMIT).contains(&page.limit) {
        Ok(page)
    } else {
        Err(Invalid::message(format!(
            "data.limit: must be 1 to {MAX_LIMIT}"
        )))
    }
}

/// Reads the fields that `T` names from `data`.
fn fields<'a, T: Deserialize<'a>>(data: Option<&'a RawValue>) -> Result<T, Invalid> {
    let data = data.ok_or_else(|| Invalid::message("data: missing"))?;
    let mut json = serde_json::Deserializer::from_str(data.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." {
            "data".into()
        } else {
            format!("data.{path}")
        };
        Invalid::message(format!("{field}: {}", error.inner()))
    })
}

/// The start of what a client wrote, for telling it back.
fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> (Option<String>, ErrorCode, String) {
        let request = Request::parse(text);
        let invalid = request.body.expect_err("the request is wrong");
        (request.id, invalid.code, invalid.message)
    }

    #[test]
    fn defaults_are_text_and_50() {
        let request = Request::parse(
            r#"{"type":"send_message","extra":1,"data":{"to_user_id":"bob","content":"hi","x":[]}}"#,
        );
        let Ok(Body::SendMessage { to, message }) = request.body else {
            panic!("not understood")
        };
        assert_eq!(
            (to.as_str(), message.message_type.as_str()),
            ("bob", "text")
        );
        let request = Request::parse(r#"{"type":"get_history","data":{"user_id":"bob"}}"#);
        let Ok(Body::GetHistory { page, .. }) = request.body else {
            panic!("not understood")
        };
        assert_eq!((page.before_id.as_str(), page.limit), ("", 50));
    }

    #[test]
    fn an_error_names_the_field_and_carries_the_request_id() {
        for (text, field) in [
            (
                r#"{"type":"send_message","request_id":"1","data":{"content":"x"}}"#,
                "to_user_id",
            ),
            (
                r#"{"type":"send_message","request_id":"1","data":{"to_user_id":"b","content":5}}"#,
                "data.content",
            ),
            (r#"{"type":"send_message","request_id":"1"}"#, "data"),
            (
                r#"{"type":"send_message","request_id":"1","data":[]}"#,
                "data",
            ),
            (
                r#"{"type":"ack","request_id":"1","data":{"message_ids":["a",1]}}"#,
                "data.message_ids[1]",
            ),
            (
                r#"{"type":"get_history","request_id":"1","data":{"user_id":"b","limit":101}}"#,
                "data.limit",
            ),
            (
                r#"{"type":"get_history","request_id":"1","data":{"user_id":""}}"#,
                "data.user_id",
            ),
            (r#"{"request_id":"1"}"#, "type"),
        ] {
            let (id, code, message) = error(text);
            assert_eq!(id.as_deref(), Some("1"), "{text}");
            assert_eq!(code, ErrorCode::InvalidMessage);
            assert!(message.contains(field), "{message} does not name {field}");
        }
    }

    #[test]
    fn null_is_the_same_as_no_field() {
        let request = Request::parse(
            r#"{"type":"send_group_message","request_id":null,"data":{"group_id":"g","content":"hi",
                "message_type":null,"client_message_id":null}}"#,
        );
        let Ok(Body::SendGroupMessage { message, .. }) = request.body else {
            panic!("not understood")
        };
        assert_eq!(request.id, None);
        assert_eq!(
            (&*message.message_type, &*message.client_message_id),
            ("text", "")
        );
        for kind in [
            r#""get_history","data":{"user_id""#,
            r#""get_group_history","data":{"group_id""#,
        ] {
            let text = format!(r#"{{"type":{kind}:"x","before_id":null,"limit":null}}}}"#);
            let (Ok(Body::GetHistory { page, .. }) | Ok(Body::GetGroupHistory { page, .. })) =
                Request::parse(&text).body
            else {
                panic!("not understood: {text}")
            };
            assert_eq!((&*page.before_id, page.limit), ("", 50));
        }
        let ping = Request::parse("\n{\"type\":\"ping\",\"data\":null}\t");
        assert!(matches!(ping.body, Ok(Body::Ping)));
    }

    #[test]
    fn what_is_no_request_is_an_invalid_message() {
        let deep = format!(r#"{{"type":{}}}"#, "[".repeat(60_000));
        let long = format!(r#"{{"type":"ping","request_id":"{}"}}"#, "x".repeat(65));
        for text in [
            "",
            "x",
            "[]",
            "5",
            "null",
            r#"["ping"]"#,
            r#"["ping",null,null]"#,
            r#" ["send_message","1",{"to_user_id":"b","content":"x"}]"#,
            r#"[{"type":"ping"}]"#,
            r#"{"type":"ping"} {}"#,
            r#"{"type":"ping","type":"ping"}"#,
            r#"{"type":"ping","request_id":"1","request_id":"1"}"#,
            r#"{"type":"ping","data":{},"data":{}}"#,
            r#"{"type":"ping","request_id":5}"#,
            r#"{"type":"ping","request_id":["1"]}"#,
            &deep,
            &long,
        ] {
            let (id, code, _) = error(text);
            assert_eq!((id, code), (None, ErrorCode::InvalidMessage));
        }
    }

    #[test]
    fn an_unknown_type_is_told_back() {
        let (_, code, message) = error(r#"{"type":"dance"}"#);
        assert_eq!(code, ErrorCode::UnknownMessageType);
        assert_eq!(message, "Unknown message type: dance");
    }
}
