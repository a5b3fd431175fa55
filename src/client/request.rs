//! What clients ask: one JSON object in one text frame, `{"type", "request_id", "data"}`, and the call
//! to a service that it is. Unknown fields are ignored, `null` is the same as no field, and a field
//! that is there twice is wrong; an error names the field that is missing or wrong.

use serde::Deserialize;
use serde_json::value::RawValue;
use strum::{IntoStaticStr, VariantNames};

use crate::ids::{InvalidId, UserId, is_id};
use crate::services::proto::{
    AckMessagesRequest, GetGroupHistoryRequest, GetHistoryRequest, SendGroupMessageRequest,
    SendMessageRequest,
};
use crate::services::{ErrorCode, ServiceError};

/// The longest `request_id`, in bytes.
pub(super) const MAX_REQUEST_ID: usize = 64;
/// The most entries of one history page.
const MAX_LIMIT: i32 = 100;
const DEFAULT_LIMIT: i32 = 50;

/// One request of a client.
#[derive(Debug)]
pub(super) struct Request {
    /// To be carried back by the answer.
    pub id: Option<String>,
    /// What it asks. The error is what the client is told of a request that is not understood.
    pub body: Result<Body, ServiceError>,
}

/// By its `type`.
#[derive(Debug, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Body {
    SendMessage(SendMessageRequest),
    SendGroupMessage(SendGroupMessageRequest),
    GetHistory(GetHistoryRequest),
    GetGroupHistory(GetGroupHistoryRequest),
    Ack(AckMessagesRequest),
    /// The new token.
    RefreshToken(String),
    Ping,
}

/// Its fields as they are written: what nests is passed over without a stack, however deep it is.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    #[cfg_attr(test, schemars(with = "String"))]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    #[cfg_attr(test, schemars(with = "Option<super::schema::RequestId>"))]
    request_id: Option<&'a RawValue>,
    #[serde(borrow)]
    #[cfg_attr(test, schemars(skip))]
    data: Option<&'a RawValue>,
}

// The `data` of each type: what may be left out is an `Option`.

/// Sends a message to a user.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct SendMessage {
    /// Whom it is for.
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    to_user_id: String,
    /// What it says, whatever `message_type` makes of it.
    content: String,
    /// What the content is, for the clients that show it.
    #[cfg_attr(test, schemars(extend("default" = "text")))]
    message_type: Option<String>,
    /// Names the message before it has an `id`: the same name sends once, so a request whose answer was
    /// lost is repeated with it.
    client_message_id: Option<String>,
}

/// Sends a message to a group that the user is a member of.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct SendGroupMessage {
    /// The group.
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    group_id: String,
    /// What it says, whatever `message_type` makes of it.
    content: String,
    /// What the content is, for the clients that show it.
    #[cfg_attr(test, schemars(extend("default" = "text")))]
    message_type: Option<String>,
    /// Names the message before it has an `id`: the same name sends once, so a request whose answer was
    /// lost is repeated with it.
    client_message_id: Option<String>,
}

/// A page of what the user and another one have sent each other, newest page first.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct GetHistory {
    /// The other user.
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    user_id: String,
    /// The message before which the page ends; empty: the newest page.
    #[cfg_attr(test, schemars(extend("default" = "")))]
    before_id: Option<String>,
    /// The most messages of the page. Written in digits alone: neither 5.0 nor 5e1.
    #[cfg_attr(test, schemars(range(min = 1, max = MAX_LIMIT)))]
    #[cfg_attr(test, schemars(extend("default" = DEFAULT_LIMIT, "x-digits-alone" = true)))]
    limit: Option<i32>,
}

/// A page of what was sent to a group that the user is a member of, newest page first.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct GetGroupHistory {
    /// The group.
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    group_id: String,
    /// The message before which the page ends; empty: the newest page.
    #[cfg_attr(test, schemars(extend("default" = "")))]
    before_id: Option<String>,
    /// The most messages of the page. Written in digits alone: neither 5.0 nor 5e1.
    #[cfg_attr(test, schemars(range(min = 1, max = MAX_LIMIT)))]
    #[cfg_attr(test, schemars(extend("default" = DEFAULT_LIMIT, "x-digits-alone" = true)))]
    limit: Option<i32>,
}

/// Says that messages are read, so that they are not pushed again on the next connect. What is not this
/// user's, or was acknowledged before, does no harm.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Ack {
    /// The `id` of each.
    message_ids: Vec<String>,
}

/// Goes on with a new token of the same user, before the old one expires.
#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct RefreshToken {
    /// The new token.
    token: String,
}

impl Request {
    /// What `user` asks.
    pub fn parse(text: &str, user: &UserId) -> Self {
        let (id, body) = match envelope(text) {
            Ok((id, envelope)) => (id, body(envelope, user)),
            Err(invalid) => (None, Err(invalid)),
        };
        Self { id, body }
    }
}

/// A request's envelope, and the id that was in it.
fn envelope(text: &str) -> Result<(Option<String>, Envelope<'_>), ServiceError> {
    let wrong = |why: String| invalid(format!("Invalid message format: {why}"));
    let read = serde_json::from_str(text);
    let envelope: Envelope<'_> = read.map_err(|error| wrong(error.to_string()))?;
    if !is_object(text) {
        return Err(wrong("not an object".into()));
    }
    match envelope.request_id.map(string) {
        None => Ok((None, envelope)),
        Some(Some(id)) if id.len() <= MAX_REQUEST_ID => Ok((Some(id), envelope)),
        _ => Err(invalid(format!(
            "request_id: must be a string of at most {MAX_REQUEST_ID} bytes"
        ))),
    }
}

fn string(json: &RawValue) -> Option<String> {
    serde_json::from_str(json.get()).ok()
}

/// Whether `json` is an object. serde would fill a struct from an array as well, field by field.
fn is_object(json: &str) -> bool {
    json.trim_ascii_start().starts_with('{')
}

fn body(envelope: Envelope<'_>, user: &UserId) -> Result<Body, ServiceError> {
    let kind = envelope.kind.and_then(string);
    let kind = kind.ok_or_else(|| invalid("type: must be a string"))?;
    let data = envelope.data;
    if data.is_some_and(|data| !is_object(data.get())) {
        return Err(invalid("data: must be an object"));
    }
    let user = user.to_string();
    Ok(match kind.as_str() {
        "send_message" => {
            let data: SendMessage = fields(data)?;
            Body::SendMessage(SendMessageRequest {
                from_user_id: user,
                to_user_id: id("to_user_id", data.to_user_id)?,
                content: data.content,
                message_type: data.message_type.unwrap_or_else(|| "text".into()),
                client_message_id: data.client_message_id.unwrap_or_default(),
            })
        }
        "send_group_message" => {
            let data: SendGroupMessage = fields(data)?;
            Body::SendGroupMessage(SendGroupMessageRequest {
                from_user_id: user,
                group_id: id("group_id", data.group_id)?,
                content: data.content,
                message_type: data.message_type.unwrap_or_else(|| "text".into()),
                client_message_id: data.client_message_id.unwrap_or_default(),
            })
        }
        "get_history" => {
            let data: GetHistory = fields(data)?;
            Body::GetHistory(GetHistoryRequest {
                user_id: user,
                peer_id: id("user_id", data.user_id)?,
                before_id: data.before_id.unwrap_or_default(),
                limit: limit(data.limit)?,
            })
        }
        "get_group_history" => {
            let data: GetGroupHistory = fields(data)?;
            Body::GetGroupHistory(GetGroupHistoryRequest {
                user_id: user,
                group_id: id("group_id", data.group_id)?,
                before_id: data.before_id.unwrap_or_default(),
                limit: limit(data.limit)?,
            })
        }
        "ack" => {
            let Ack { message_ids } = fields(data)?;
            Body::Ack(AckMessagesRequest {
                user_id: user,
                message_ids,
            })
        }
        "refresh_token" => Body::RefreshToken(fields::<RefreshToken>(data)?.token),
        "ping" => Body::Ping,
        unknown => {
            // Not all of what a client wrote is told back.
            let excerpt = &unknown[..unknown.floor_char_boundary(64)];
            let message = format!("Unknown message type: {excerpt}");
            return Err(ServiceError::new(ErrorCode::UnknownMessageType, message));
        }
    })
}

/// Reads the fields that `T` names from `data`.
fn fields<'a, T: Deserialize<'a>>(data: Option<&'a RawValue>) -> Result<T, ServiceError> {
    let data = data.ok_or_else(|| invalid("data: missing"))?;
    let mut json = serde_json::Deserializer::from_str(data.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => "data".into(),
            path => format!("data.{path}"),
        };
        invalid(format!("{field}: {}", error.inner()))
    })
}

fn id(field: &str, id: String) -> Result<String, ServiceError> {
    let id = is_id(&id).then_some(id);
    id.ok_or_else(|| invalid(format!("data.{field}: {InvalidId}")))
}

fn limit(limit: Option<i32>) -> Result<i32, ServiceError> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        _ => Err(invalid(format!("data.limit: must be 1 to {MAX_LIMIT}"))),
    }
}

fn invalid(message: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorCode::InvalidMessage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Request {
        Request::parse(text, &UserId::new("alice").unwrap())
    }

    fn error(text: &str) -> (Option<String>, ErrorCode, String) {
        let request = parse(text);
        let invalid = request.body.expect_err("the request is wrong");
        (request.id, invalid.code, invalid.message)
    }

    #[test]
    fn defaults_are_text_and_50() {
        let request = parse(
            r#"{"type":"send_message","extra":1,"data":{"to_user_id":"bob","content":"hi","x":[]}}"#,
        );
        let Ok(Body::SendMessage(message)) = request.body else {
            panic!("not understood")
        };
        assert_eq!(message.from_user_id, "alice");
        assert_eq!(
            (&*message.to_user_id, &*message.message_type),
            ("bob", "text")
        );
        let request = parse(r#"{"type":"get_history","data":{"user_id":"bob"}}"#);
        let Ok(Body::GetHistory(page)) = request.body else {
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
        let request = parse(
            r#"{"type":"send_group_message","request_id":null,"data":{"group_id":"g","content":"hi",
                "message_type":null,"client_message_id":null}}"#,
        );
        let Ok(Body::SendGroupMessage(message)) = request.body else {
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
            let (before_id, limit) = match parse(&text).body {
                Ok(Body::GetHistory(page)) => (page.before_id, page.limit),
                Ok(Body::GetGroupHistory(page)) => (page.before_id, page.limit),
                _ => panic!("not understood: {text}"),
            };
            assert_eq!((&*before_id, limit), ("", 50));
        }
        let ping = parse("\n{\"type\":\"ping\",\"data\":null}\t");
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
