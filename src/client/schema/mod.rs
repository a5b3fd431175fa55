//! The client protocol for machines, `proto/client.asyncapi.yaml`: put together from `document.yaml`
//! beside this file and from the types of [`request`], [`protocol`], [`close`](super::close) and
//! [`ErrorCode`]. Compiled for tests alone. What the document says of a request is held against the parser
//! in `parsing`; what it says of everything else, by the integration tests.

mod parsing;
mod yaml;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};
use strum::{EnumMessage, IntoEnumIterator, VariantArray, VariantNames};

use super::close::CloseReason;
use super::protocol::{self, ChatMessage, History, Outgoing, Push};
use super::request::{self, Body, MAX_REQUEST_ID};
use crate::error::ErrorCode;
use crate::ids::{MAX_ID_BYTES, UserId};
use crate::services::proto;

/// Names a user or a group: 1 to 200 bytes in UTF-8, without control characters.
#[derive(JsonSchema)]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = MAX_ID_BYTES,
    "pattern" = r"^[^\u0000-\u001f\u007f-\u009f]*$",
    "x-max-bytes" = MAX_ID_BYTES,
))]
pub struct Id(#[expect(dead_code, reason = "a schema's")] String);

/// Names a request, as its client likes, so that the answer is known by it: at most 64 bytes in UTF-8.
#[derive(JsonSchema)]
#[schemars(extend("maxLength" = MAX_REQUEST_ID, "x-max-bytes" = MAX_REQUEST_ID))]
pub struct RequestId(#[expect(dead_code, reason = "a schema's")] String);

/// The reason of a Close frame, JSON of at most 123 bytes: what the simplest client need know.
#[derive(JsonSchema)]
#[schemars(rename = "CloseReason")]
#[schemars(extend(
    "if" = json!({"properties": {"reconnect": {"const": true}}}),
    "then" = json!({"required": ["after_ms"]}),
    "else" = json!({"properties": {"after_ms": false}}),
))]
#[expect(dead_code, reason = "a schema's")]
struct CloseText {
    /// Whether to come back without being asked to.
    reconnect: bool,
    /// When to come back, in milliseconds from the Close frame: there where `reconnect` is true.
    #[schemars(with = "u64", skip_serializing_if = "Option::is_none")]
    after_ms: Option<u64>,
    /// Why the connection ends, in words for people.
    reason: String,
}

/// A request in the document: its type, the schema of its `data`, the type of its answer, an example of
/// its `data`.
struct Asked {
    kind: &'static str,
    data: fn(&mut Schemas) -> Value,
    answer: &'static str,
    example: Value,
}

fn requests() -> [Asked; 7] {
    let sends = |field: &str, name: &str, client_message_id: &str| {
        json!({
            field: name,
            "content": "Hello",
            "message_type": "text",
            "client_message_id": client_message_id,
        })
    };
    let asked = |kind, data, answer, example| Asked {
        kind,
        data,
        answer,
        example,
    };
    [
        asked(
            "send_message",
            Schemas::of::<request::SendMessage>,
            "message_sent",
            sends("to_user_id", "bob", "c-1"),
        ),
        asked(
            "send_group_message",
            Schemas::of::<request::SendGroupMessage>,
            "message_sent",
            sends("group_id", "team", "c-2"),
        ),
        asked(
            "get_history",
            Schemas::of::<request::GetHistory>,
            "history",
            json!({"user_id": "bob", "before_id": "", "limit": 50}),
        ),
        asked(
            "get_group_history",
            Schemas::of::<request::GetGroupHistory>,
            "group_history",
            json!({"group_id": "team", "before_id": "", "limit": 50}),
        ),
        asked(
            "ack",
            Schemas::of::<request::Ack>,
            "acked",
            json!({"message_ids": ["m1", "m2"]}),
        ),
        asked(
            "refresh_token",
            Schemas::of::<request::RefreshToken>,
            "token_refreshed",
            json!({"token": "alice-token-2"}),
        ),
        asked("ping", |_| ping(), "pong", Value::Null),
    ]
}

/// The `data` of a ping, in which nothing is read.
fn ping() -> Value {
    json!({
        "description": "Asks whether the gateway is there. Behind what it sends, whatever was queued before.",
        "type": ["object", "null"],
    })
}

/// What comes unasked.
const PUSHES: [&str; 5] = [
    "connected",
    "message",
    "group_message",
    "presence",
    "offline_complete",
];

/// Schemas of one direction, and those that they refer to.
struct Schemas {
    generator: SchemaGenerator,
    /// By name, for `components`.
    shared: BTreeMap<String, Value>,
}

impl Schemas {
    fn new(settings: SchemaSettings) -> Self {
        let settings = settings.with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self {
            generator: settings.into_generator(),
            shared: BTreeMap::new(),
        }
    }

    /// The schema of `T` itself; what it refers to is shared.
    fn of<T: JsonSchema>(&mut self) -> Value {
        let mut schema: Schema = self.generator.root_schema_for::<T>();
        schema.remove("title");
        let mut schema = schema.to_value();
        let fields = schema.as_object_mut().expect("an object");
        if let Some(Value::Object(components)) = fields.remove("components")
            && let Some(Value::Object(shared)) = components.into_iter().next().map(|(_, all)| all)
        {
            self.shared.extend(shared);
        }
        schema
    }

    /// As [`of`](Self::of), for `components` by this name.
    fn share<T: JsonSchema>(&mut self, name: &str) {
        let schema = self.of::<T>();
        self.shared.insert(name.into(), schema);
    }
}

fn reference(to: &str, name: &str) -> Value {
    json!({"$ref": format!("#/{to}/{name}")})
}

/// A message of `components`, whose summary is what its payload is described by.
fn message(mut payload: Value, kind: &str, example: Value) -> (String, Value) {
    let fields = payload.as_object_mut().expect("an object");
    let summary = fields.remove("description").expect("a doc comment");
    fields["properties"]["type"] = json!({"const": kind});
    let carries_id = fields["properties"].get("request_id").is_some();
    let mut message = json!({
        "name": kind,
        "summary": summary,
        "payload": payload,
        "examples": [{"payload": example}],
    });
    if carries_id {
        message["correlationId"] = json!({"location": "$message.payload#/request_id"});
    }
    (kind.to_owned(), message)
}

fn remove(schema: &mut Value, property: &str) {
    let properties = schema["properties"].as_object_mut().expect("an object");
    properties.remove(property);
}

/// A field that this message always has.
fn require(schema: &mut Value, property: &str) {
    assert!(
        schema["properties"].get(property).is_some(),
        "{property} is there"
    );
    let required = schema["required"].as_array_mut().expect("a list");
    if !required.contains(&property.into()) {
        required.push(property.into());
    }
}

/// What clients ask.
fn asked(schemas: &mut Schemas) -> Vec<(String, Value)> {
    let envelope = schemas.of::<request::Envelope<'_>>();
    let one = |(number, asked): (usize, Asked)| {
        let mut payload = envelope.clone();
        let mut data = (asked.data)(schemas);
        payload["description"] = data
            .as_object_mut()
            .expect("an object")
            .remove("description")
            .expect("a doc comment");
        payload["properties"]["data"] = data;
        let mut example = json!({"type": asked.kind, "request_id": (number + 1).to_string()});
        if !asked.example.is_null() {
            require(&mut payload, "data");
            example["data"] = asked.example;
        }
        message(payload, asked.kind, example)
    };
    requests().into_iter().enumerate().map(one).collect()
}

/// What the gateway says.
fn said(schemas: &mut Schemas) -> Vec<(String, Value)> {
    let mut examples = examples();
    let mut example = |kind: &str| {
        examples
            .remove(kind)
            .unwrap_or_else(|| panic!("an example of {kind}"))
    };
    let envelope = schemas.of::<protocol::Envelope<'_>>();
    let variants = schemas.of::<Outgoing<'_>>();
    let variants = variants["anyOf"]
        .as_array()
        .expect("a schema for each variant");
    assert_eq!(variants.len(), Outgoing::VARIANTS.len());
    let mut said = Vec::new();
    for (kind, variant) in Outgoing::VARIANTS.iter().zip(variants) {
        let mut payload = envelope.clone();
        payload["description"] = variant["description"].clone();
        for (name, schema) in variant["properties"].as_object().into_iter().flatten() {
            payload["properties"][name] = schema.clone();
        }
        for name in variant["required"].as_array().into_iter().flatten() {
            require(&mut payload, name.as_str().expect("a name"));
        }
        if PUSHES.contains(kind) {
            remove(&mut payload, "request_id");
        }
        said.push(message(payload, kind, example(kind)));
    }
    let chats = [
        (
            "message",
            "to_user_id",
            "group_id",
            "A message from one user to another. The sender's own devices get it, too.",
        ),
        (
            "group_message",
            "group_id",
            "to_user_id",
            "A message to a group. The sender's own devices get it, too.",
        ),
    ];
    let pages = [
        (
            "history",
            "user_id",
            "group_id",
            "message",
            "A page of what two users have sent each other.",
        ),
        (
            "group_history",
            "group_id",
            "user_id",
            "group_message",
            "A page of what was sent to a group.",
        ),
    ];
    for (kind, to, not_to, description) in chats {
        let mut payload = schemas.of::<ChatMessage<'_>>();
        payload["description"] = description.into();
        remove(&mut payload, not_to);
        require(&mut payload, to);
        said.push(message(payload, kind, example(kind)));
    }
    for (kind, of, not_of, items, description) in pages {
        let mut payload = schemas.of::<History<'_>>();
        payload["description"] = description.into();
        remove(&mut payload, not_of);
        require(&mut payload, of);
        payload["properties"]["messages"]["items"] =
            reference(&format!("components/messages/{items}"), "payload");
        said.push(message(payload, kind, example(kind)));
    }
    assert!(examples.is_empty(), "{examples:?}");
    let answers = requests().map(|asked| asked.answer);
    let order = [&PUSHES[..], &answers, &["error"]].concat();
    said.sort_by_key(|(kind, _)| order.iter().position(|other| other == kind));
    said
}

/// One of each, as the gateway writes them.
fn examples() -> BTreeMap<String, Value> {
    const NOW: i64 = 1_764_115_200;
    let message = |group: &str, to: &str, id: &str| proto::Message {
        id: id.into(),
        from_user_id: "alice".into(),
        to_user_id: to.into(),
        group_id: group.into(),
        content: "Hello".into(),
        message_type: "text".into(),
        timestamp: NOW,
        client_message_id: format!("c-{}", &id[1..]),
    };
    let (single, group) = (message("", "bob", "m1"), message("team", "", "m2"));
    let history = |kind, request_id, user_id, group_id, entry: &proto::Message| {
        protocol::frame(&History {
            kind,
            request_id: Some(request_id),
            user_id,
            group_id,
            messages: &[ChatMessage::of(entry).expect("no garbage")],
            has_more: false,
        })
    };
    let bob = UserId::new("bob").expect("an id");
    let frames = [
        Outgoing::Connected {
            connection_id: "67e5504410b1426f9247bb680e5fe0c8",
            user_id: "alice",
            gateway_id: "g1",
            ping_interval: 30,
            max_message_size: 65_536,
        }
        .frame(None, NOW),
        Push::message(&single, false).frame,
        Push::group_message(&group).frame,
        Push::presence(&bob, true, NOW).frame,
        Outgoing::OfflineComplete { count: 2 }.frame(None, NOW),
        Outgoing::MessageSent {
            id: "m1",
            client_message_id: "c-1",
        }
        .frame(Some("1"), NOW),
        history("history", "3", "bob", "", &single),
        history("group_history", "4", "", "team", &group),
        Outgoing::Acked.frame(Some("5"), NOW),
        Outgoing::TokenRefreshed {
            expires_at: NOW + 3_600,
        }
        .frame(Some("6"), NOW),
        Outgoing::Pong.frame(Some("7"), NOW),
        Outgoing::Error {
            code: ErrorCode::InvalidMessage,
            message: "data.content: missing field `content`",
        }
        .frame(Some("1"), NOW),
    ];
    let read = |frame: super::frame::Frame| {
        let bytes = frame.bytes();
        let start = bytes
            .iter()
            .position(|byte| *byte == b'{')
            .expect("an object");
        let json: Value = serde_json::from_slice(&bytes[start..]).expect("JSON");
        (json["type"].as_str().expect("a type").to_owned(), json)
    };
    frames.into_iter().map(read).collect()
}

fn operations() -> Vec<(String, Value)> {
    const CHANNEL: &str = "channels/gateway/messages";
    let channel = reference("channels", "gateway");
    let mut operations: Vec<(String, Value)> = requests()
        .into_iter()
        .map(|asked| {
            let operation = json!({
                "action": "receive",
                "channel": channel,
                "messages": [reference(CHANNEL, asked.kind)],
                "reply": {
                    "channel": channel,
                    "messages": [reference(CHANNEL, asked.answer), reference(CHANNEL, "error")],
                },
            });
            (asked.kind.to_owned(), operation)
        })
        .collect();
    let pushes = json!({
        "action": "send",
        "summary": "What comes unasked.",
        "channel": channel,
        "messages": PUSHES.map(|kind| reference(CHANNEL, kind)),
    });
    operations.push(("push".into(), pushes));
    operations
}

/// One for each reason of the gateway's that is told.
fn close_codes() -> Value {
    let mut codes: Vec<Value> = Vec::new();
    for reason in CloseReason::iter() {
        let Some((code, words, returns)) = reason.describe() else {
            continue;
        };
        let documentation = reason.get_documentation().expect("a doc comment");
        let (why, client) = documentation
            .split_once("\n\n")
            .expect("what the client does next");
        let mut entry = json!({
            "code": code,
            "name": reason.name(),
            "description": why.trim(),
            "reason": words,
            "reconnect": returns.is_some(),
            "client": client.trim(),
        });
        if let Some(range) = returns {
            entry["after_ms"] = json!({"minimum": range.start.as_millis() as u64});
            // As long as the configuration says.
            if !matches!(reason, CloseReason::Shutdown(_)) {
                entry["after_ms"]["maximum"] = (range.end.as_millis() as u64).into();
            }
        }
        codes.push(entry);
    }
    codes.sort_by_key(|entry| entry["code"].as_u64());
    codes.into()
}

/// As an enumeration, which generators of code know better than a choice of constants.
fn error_codes(choice: &Value) -> Value {
    let codes = choice["oneOf"].as_array().expect("a choice");
    let described = |code: &Value| {
        let name = code["const"].as_str().expect("a name").to_owned();
        (name, code["description"].clone())
    };
    json!({
        "type": "string",
        "description": choice["description"],
        "enum": codes.iter().map(|code| &code["const"]).collect::<Vec<_>>(),
        "x-descriptions": codes.iter().map(described).collect::<Map<_, _>>(),
    })
}

/// The whole document.
fn document() -> String {
    let mut inwards = Schemas::new(SchemaSettings::draft07());
    let mut outwards = Schemas::new(SchemaSettings::draft07().for_serialize());
    let asked = asked(&mut inwards);
    let said = said(&mut outwards);
    outwards.share::<CloseText>("CloseReason");
    let mut shared = inwards.shared;
    for (name, schema) in outwards.shared {
        let before = shared.insert(name.clone(), schema.clone());
        assert!(
            before.is_none_or(|before| before == schema),
            "{name} is two schemas"
        );
    }
    // It is two messages.
    shared.remove("ChatMessage");
    shared.insert("ErrorCode".into(), error_codes(&shared["ErrorCode"]));
    let messages: Vec<_> = asked.into_iter().chain(said).collect();
    let in_channel =
        |(name, _): &(String, Value)| (name.clone(), reference("components/messages", name));
    let channel: Vec<_> = messages.iter().map(in_channel).collect();
    let parts = [
        ("@channel", yaml::entries(channel)),
        ("@operations", yaml::entries(operations())),
        ("@messages", yaml::entries(messages)),
        ("@schemas", yaml::entries(shared)),
        ("@close-codes", yaml::text(&close_codes())),
    ];
    yaml::filled(include_str!("document.yaml"), &parts)
}

#[test]
fn the_document_is_what_the_types_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/client.asyncapi.yaml");
    let document = document();
    if std::env::var_os("RECORD").is_some() {
        fs::write(&file, &document).expect("proto/ can be written");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    let lines = || written.lines().zip(document.lines()).enumerate();
    let differing = lines().find(|(_, (written, made))| written != made);
    assert!(
        written == document,
        "proto/client.asyncapi.yaml is not what the types say, from {differing:?} on; \
         if that is meant: RECORD=1 cargo test --lib client::schema"
    );
}

#[test]
fn every_request_is_in_the_document() {
    assert_eq!(requests().map(|asked| asked.kind), Body::VARIANTS);
}

#[test]
fn an_error_code_is_written_as_it_is_counted() {
    for code in ErrorCode::VARIANTS {
        assert_eq!(serde_json::to_value(code).expect("JSON"), code.as_str());
    }
}
