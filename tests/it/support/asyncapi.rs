//! `proto/client.asyncapi.yaml`, held against what is said: each frame that a client of the tests
//! reads is one that the document describes, to the field, and each request is answered as it says. The
//! unit tests try the parser of requests with the same code.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex};

use jsonschema::paths::Location;
use jsonschema::{Draft, Keyword, ValidationError, Validator};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The document as it is in the repository, compiled once.
pub static PROTOCOL: LazyLock<Protocol> = LazyLock::new(|| {
    let text = include_str!("../../../proto/client.asyncapi.yaml");
    let document = serde_saphyr::from_str(text).expect("proto/client.asyncapi.yaml is YAML");
    Protocol::new(document)
});

/// Where something else listens than the gateway: what it says is not held against the document.
static FREE: LazyLock<Mutex<HashSet<SocketAddr>>> = LazyLock::new(Mutex::default);

/// Says whether something else than the gateway listens at `addr`.
pub fn set_free(addr: SocketAddr, is_free: bool) {
    let mut free = FREE.lock().expect("no panic");
    match is_free {
        true => free.insert(addr),
        false => free.remove(&addr),
    };
}

/// Whether it does.
pub fn is_free(addr: SocketAddr) -> bool {
    FREE.lock().expect("no panic").contains(&addr)
}

/// How the messages begin with which the gateway's own parser answers; those of a service name a field
/// without `data`.
const PARSER: [&str; 5] = [
    "Invalid message format",
    "type:",
    "request_id:",
    "data:",
    "data.",
];

/// The document, ready to judge by.
pub struct Protocol {
    /// By their `type`.
    requests: BTreeMap<String, RequestType>,
    /// What the gateway says, by its `type`; with no field that is not described.
    frames: BTreeMap<String, Validator>,
    close_reason: Validator,
    close_codes: Vec<Value>,
    /// Of HTTP errors.
    statuses: Vec<u64>,
}

struct RequestType {
    validator: Validator,
    /// The fields of its `data`.
    fields: Vec<String>,
    /// The types of what may answer it.
    answers: Vec<String>,
}

/// A request, as the document judges it.
pub struct Asked {
    /// Its `type`, if it has one.
    kind: Option<String>,
    request_id: Option<String>,
    /// Why it is none, if so.
    fault: Option<String>,
    /// Its beginning.
    text: String,
}

/// The conversation on one connection.
#[derive(Default)]
pub struct Exchange {
    /// What was asked and not answered, oldest first: the gateway answers in order.
    asked: VecDeque<Asked>,
    /// The code of the Close frame that the client sent; 1000 for one without.
    closed: Option<u16>,
    /// Not all that was sent is known here.
    is_partial: bool,
    /// It is with something else than the gateway.
    is_free: bool,
}

impl Protocol {
    fn new(document: Value) -> Self {
        let names = |value: &Value| -> Vec<String> {
            let refs = value.as_array().expect("a list of messages").iter();
            let last = |reference: &Value| {
                let path = reference["$ref"].as_str().expect("a reference");
                path.rsplit('/').next().unwrap_or_default().to_owned()
            };
            refs.map(last).collect()
        };
        let (mut requests, mut answers) = (BTreeMap::new(), BTreeMap::new());
        let mut said = BTreeSet::new();
        for operation in document["operations"]
            .as_object()
            .expect("operations")
            .values()
        {
            let messages = names(&operation["messages"]);
            if operation["action"] == "receive" {
                let replies = names(&operation["reply"]["messages"]);
                said.extend(replies.clone());
                answers.extend(messages.into_iter().map(|kind| (kind, replies.clone())));
            } else {
                said.extend(messages);
            }
        }
        let mut components = document["components"].clone();
        for (kind, answers) in answers {
            let payload = &components["messages"][&kind]["payload"];
            let fields = payload["properties"]["data"]["properties"].as_object();
            let fields = fields.map(|fields| fields.keys().cloned().collect());
            let request = RequestType {
                validator: validator(&components, &format!("/messages/{kind}/payload")),
                fields: fields.unwrap_or_default(),
                answers,
            };
            requests.insert(kind, request);
        }
        for kind in &said {
            close_objects(&mut components["messages"][kind]["payload"]);
        }
        close_objects(&mut components["schemas"]["CloseReason"]);
        let frame = |kind: String| {
            let validator = validator(&components, &format!("/messages/{kind}/payload"));
            (kind, validator)
        };
        let list = |name: &str| document[name].as_array().expect("a list");
        let status = |error: &Value| error["status"].as_u64().expect("a status");
        Self {
            requests,
            frames: said.into_iter().map(frame).collect(),
            close_reason: validator(&components, "/schemas/CloseReason"),
            close_codes: list("x-close-codes").clone(),
            statuses: list("x-http-errors").iter().map(status).collect(),
        }
    }

    /// What the document says of `text` as a request.
    pub fn judge(&self, text: &str) -> Asked {
        let mut asked = Asked {
            kind: None,
            request_id: None,
            fault: None,
            text: text.chars().take(200).collect(),
        };
        asked.fault = self.fault(text, &mut asked).err();
        asked
    }

    /// Reads what the document names and nothing else, as the gateway does. What is there twice is not
    /// for a schema to find.
    fn fault(&self, text: &str, asked: &mut Asked) -> Result<(), String> {
        let envelope: Fields = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut request = Map::new();
        // An answer carries the id of a request as well that is wrong elsewhere.
        for (name, noted) in [
            ("request_id", &mut asked.request_id),
            ("type", &mut asked.kind),
        ] {
            if let Some(value) = envelope.once(name)? {
                let value = json(value)?;
                *noted = value.as_str().map(str::to_owned);
                request.insert(name.into(), value);
            }
        }
        let kind = asked.kind.as_deref().ok_or("no type")?;
        let kind = self.requests.get(kind).ok_or("an unknown type")?;
        if let Some(value) = envelope.once("data")? {
            let data = match serde_json::from_str::<Fields>(value.get()) {
                Ok(written) => {
                    let mut data = Map::new();
                    for name in &kind.fields {
                        if let Some(value) = written.once(name)? {
                            data.insert(name.clone(), json(value)?);
                        }
                    }
                    Value::Object(data)
                }
                Err(_) => json(value)?,
            };
            request.insert("data".into(), data);
        }
        explain(&kind.validator, &Value::Object(request))
    }

    /// Whether the gateway may send `frame`.
    fn check_frame(&self, frame: &Value) -> Result<(), String> {
        let kind = frame["type"].as_str().ok_or("no type")?;
        explain(self.frames.get(kind).ok_or("an unknown type")?, frame)
    }

    /// Whether the gateway may end a connection like this. `client`: the code by which the client ended
    /// it before, which comes back.
    fn check_close(&self, code: u16, reason: &str, client: Option<u16>) -> Result<(), String> {
        let reason: Value = serde_json::from_str(reason).map_err(|error| error.to_string())?;
        explain(&self.close_reason, &reason)?;
        let is_within = |bounds: &Value| match reason["after_ms"].as_u64() {
            None => bounds.is_null(),
            Some(after) => {
                let bound = |name: &str| bounds.get(name).and_then(Value::as_u64);
                let from = bound("minimum").unwrap_or(u64::MAX);
                (from..=bound("maximum").unwrap_or(u64::MAX)).contains(&after)
            }
        };
        let is_it = |entry: &Value| {
            let mut fields = ["reason", "reconnect"].iter();
            entry["code"] == code
                && fields.all(|field| entry[field] == reason[field])
                && is_within(&entry["after_ms"])
        };
        let comes_back =
            client == Some(code) && reason == json!({"reconnect": false, "reason": ""});
        let is_described = comes_back || self.close_codes.iter().any(is_it);
        ensure(is_described, "is none of x-close-codes")
    }

    /// Whether `answer` may follow on `asked`.
    fn check_answer(&self, asked: &Asked, answer: &Value) -> Result<(), String> {
        let text = |field: &str| answer[field].as_str().unwrap_or_default();
        let (code, message) = (text("code"), text("message"));
        let by_parser = PARSER.iter().any(|start| message.starts_with(start));
        let kind = asked.kind.as_deref();
        let request = kind.and_then(|kind| self.requests.get(kind));
        let carried = answer["request_id"].as_str();
        let is_its_id = carried == asked.request_id.as_deref();
        // Whatever was asked.
        if code == "RATE_LIMITED" {
            return Ok(());
        }
        if let Some(fault) = &asked.fault {
            ensure(is_its_id || carried.is_none(), "carries another request_id")?;
            let is_unknown = kind.is_some() && request.is_none();
            let is_refused = (code == "INVALID_MESSAGE" && by_parser)
                || (code == "UNKNOWN_MESSAGE_TYPE" && is_unknown);
            return ensure(
                is_refused,
                &format!("takes what the document refuses ({fault})"),
            );
        }
        ensure(is_its_id, "carries another request_id")?;
        let mut answers = request.iter().flat_map(|request| &request.answers);
        ensure(
            answers.any(|other| answer["type"] == **other),
            "is no answer to it",
        )?;
        let is_refused = code == "UNKNOWN_MESSAGE_TYPE" || (code == "INVALID_MESSAGE" && by_parser);
        ensure(!is_refused, "refuses what the document describes")
    }
}

impl Asked {
    /// Why it is no request, if it is none.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Exchange {
    /// With what listens at `addr`.
    pub fn with(addr: SocketAddr) -> Self {
        Self {
            is_free: is_free(addr),
            ..Self::default()
        }
    }

    /// The client sends this message.
    pub fn sent(&mut self, text: &str) {
        if !self.is_free {
            self.asked.push_back(PROTOCOL.judge(text));
        }
    }

    /// The client sends a Close frame.
    pub fn sent_close(&mut self, code: Option<u16>) {
        self.closed.get_or_insert(code.unwrap_or(1000));
    }

    /// The client sends what is not known here: answers are no longer held against requests.
    pub fn lose_track(&mut self) {
        self.is_partial = true;
        self.asked.clear();
    }

    /// The frame that the gateway sent as `text`; panics unless the document describes it.
    pub fn received(&mut self, text: &str) -> Value {
        let frame: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        if self.is_free {
            return frame;
        }
        if let Err(why) = PROTOCOL.check_frame(&frame) {
            panic!("proto/client.asyncapi.yaml does not describe {text}: {why}");
        }
        let is_answer =
            |kind: &RequestType| kind.answers.iter().any(|other| frame["type"] == **other);
        if !self.is_partial && PROTOCOL.requests.values().any(is_answer) {
            let asked = self.asked.pop_front();
            let asked = asked.unwrap_or_else(|| panic!("an answer to nothing: {text}"));
            if let Err(why) = PROTOCOL.check_answer(&asked, &frame) {
                panic!("asked: {}; answered: {text}: the answer {why}", asked.text);
            }
        }
        frame
    }

    /// The gateway sent a Close frame; panics unless the document describes it.
    pub fn ended(&self, code: u16, reason: &str) {
        if self.is_free {
            return;
        }
        let client = if self.is_partial {
            Some(code)
        } else {
            self.closed
        };
        if let Err(why) = PROTOCOL.check_close(code, reason, client) {
            panic!("proto/client.asyncapi.yaml describes no such Close: {code} {reason}: {why}");
        }
    }
}

/// The body of an HTTP error of the gateway's; panics unless it is an error frame's.
pub fn check_http_error(body: &str) {
    let error: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {body}"));
    let checked = PROTOCOL.check_frame(&error);
    let is_error = error["type"] == "error" && error.get("request_id").is_none();
    let is_error = checked.is_ok() && is_error;
    assert!(is_error, "no error of the document's: {body}: {checked:?}");
}

/// How a client was refused before the upgrade; panics unless the document describes it.
pub fn check_refusal(status: u16, body: &str) {
    let is_described = PROTOCOL.statuses.contains(&status.into());
    assert!(is_described, "no status of the document's: {status} {body}");
    check_http_error(body);
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    holds.then_some(()).ok_or_else(|| otherwise.to_owned())
}

fn explain(validator: &Validator, value: &Value) -> Result<(), String> {
    if validator.is_valid(value) {
        return Ok(());
    }
    let why = |error: ValidationError<'_>| format!("{}: {error}", error.instance_path());
    Err(validator
        .iter_errors(value)
        .map(why)
        .collect::<Vec<_>>()
        .join("; "))
}

fn json(value: &RawValue) -> Result<Value, String> {
    serde_json::from_str(value.get()).map_err(|error| error.to_string())
}

/// Forbids what is not described, in `schema` and whatever nests in it.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|kind| kind == "object") {
                fields.insert("additionalProperties".into(), false.into());
            }
            fields.values_mut().for_each(close_objects);
        }
        Value::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
}

/// Of the schema at `path` in `components`. What would be looked for elsewhere is an error.
fn validator(components: &Value, path: &str) -> Validator {
    let reference = format!("#/components{path}");
    let schema = json!({"allOf": [{"$ref": reference}], "components": components});
    let options = jsonschema::options()
        .with_draft(Draft::Draft7)
        .with_keyword("x-max-bytes", max_bytes)
        .with_keyword("x-digits-alone", digits_alone);
    let built = options.build(&schema);
    built.unwrap_or_else(|error| panic!("{path} is no schema: {error}"))
}

type Made<'a> = Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>>;

/// `x-max-bytes`: the most bytes of a text in UTF-8, where `maxLength` counts characters.
struct MaxBytes(usize);

fn max_bytes<'a>(_: &'a Map<String, Value>, value: &'a Value, _: Location) -> Made<'a> {
    let most = value.as_u64().expect("a number of bytes");
    Ok(Box::new(MaxBytes(most as usize)))
}

impl<'i> Keyword<'i> for MaxBytes {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        let valid = Keyword::is_valid(self, instance);
        valid
            .then_some(())
            .ok_or_else(|| ValidationError::custom("too many bytes"))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        instance.as_str().is_none_or(|text| text.len() <= self.0)
    }
}

/// `x-digits-alone`: a number without a fraction and without an exponent, where 5.0 is an `integer`.
struct DigitsAlone;

fn digits_alone<'a>(_: &'a Map<String, Value>, value: &'a Value, _: Location) -> Made<'a> {
    assert_eq!(value, &Value::Bool(true));
    Ok(Box::new(DigitsAlone))
}

impl<'i> Keyword<'i> for DigitsAlone {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        let valid = Keyword::is_valid(self, instance);
        valid
            .then_some(())
            .ok_or_else(|| ValidationError::custom("not in digits alone"))
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        !instance.is_f64()
    }
}

/// The fields of an object as they are written, those as well that are there twice.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// The field of this name, of which there is one at most.
    fn once(&self, name: &str) -> Result<Option<&'a RawValue>, String> {
        let mut found = self.0.iter().filter(|(other, _)| other == name);
        let value = found.next().map(|(_, value)| *value);
        let twice = || format!("{name} is there twice");
        found.next().is_none().then_some(value).ok_or_else(twice)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Reader).map(Fields)
    }
}
