//! The chapter on the client protocol says what is so: its session is played against a gateway, its
//! tables are compared with the gateway's answers and with the code.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde_json::{Map, Value, json};
use strum::VariantArray as _;
use ws_gateway::error::ErrorCode;

use crate::support::process::Signal;
use crate::support::{Client, Gateway, Settings, chapter};

const SESSION: &str = "A session, frame by frame";

fn gateway() -> Gateway {
    let settings = Settings::new()
        .users(["alice", "bob"])
        .group("team", ["alice", "bob"])
        .set("limits.rate", 1_000)
        .set("limits.burst", 1_000);
    Gateway::start(&settings)
}

/// One user of the session, with what has come and was not asked for yet.
struct Party {
    client: Client,
    /// What may come between any two others: answers by their `request_id`, and presence.
    aside: HashMap<String, Value>,
    pushes: VecDeque<Value>,
}

impl Party {
    fn connect(gateway: &Gateway, user: &str) -> Self {
        let client = gateway.connect_cold(user);
        let pushes = VecDeque::from([client.hello.clone()]);
        Self {
            client,
            aside: HashMap::new(),
            pushes,
        }
    }

    /// The real frame for this one of the chapter: the next push, unless it is one that may come at
    /// any time.
    fn next(&mut self, chapter: &Value) -> Value {
        loop {
            let found = match aside(chapter) {
                Some(key) => self.aside.remove(&key),
                None => self.pushes.pop_front(),
            };
            if let Some(frame) = found {
                return frame;
            }
            let frame = self.client.next();
            match aside(&frame) {
                Some(key) => _ = self.aside.insert(key, frame),
                None => self.pushes.push_back(frame),
            }
        }
    }

    /// Fails if something has come that was not asked for.
    fn all_seen(mut self) -> Client {
        let frames = self.client.frames_until_pong();
        let left = (self.aside, self.pushes, frames);
        assert_eq!(left, Default::default(), "the chapter does not show it");
        self.client
    }
}

/// What a frame is known by that may come between any two others.
fn aside(frame: &Value) -> Option<String> {
    let request_id = frame["request_id"].as_str().map(str::to_owned);
    let is_presence = frame["type"] == "presence";
    request_id.or_else(|| is_presence.then(|| format!("{} {}", frame["user_id"], frame["status"])))
}

/// What stands in the chapter for an id, by the real one.
#[derive(Default)]
struct Ids(BTreeMap<String, String>);

impl Ids {
    /// A real frame as the chapter would show it: with its ids, if they are new, and without times.
    fn shown(&mut self, real: &Value, chapter: &Value) -> Value {
        match (real, chapter) {
            (Value::Object(real), Value::Object(chapter)) => {
                let shown = |(key, real): (&String, &Value)| {
                    let chapter = chapter.get(key).unwrap_or(&Value::Null);
                    let is_id = ["id", "connection_id", "gateway_id"].contains(&key.as_str());
                    let shown = match key.as_str() {
                        "timestamp" if real.is_i64() => chapter.clone(),
                        _ if is_id => self.id(real, chapter),
                        _ => self.shown(real, chapter),
                    };
                    (key.clone(), shown)
                };
                Value::Object(real.iter().map(shown).collect::<Map<_, _>>())
            }
            (Value::Array(real), Value::Array(chapter)) if real.len() == chapter.len() => {
                let pairs = real.iter().zip(chapter);
                Value::Array(
                    pairs
                        .map(|(real, chapter)| self.shown(real, chapter))
                        .collect(),
                )
            }
            _ => real.clone(),
        }
    }

    fn id(&mut self, real: &Value, chapter: &Value) -> Value {
        let [real, chapter] = [real, chapter].map(|id| id.as_str().unwrap_or_default().to_owned());
        Value::from(self.0.entry(real).or_insert(chapter).as_str())
    }

    /// What the chapter sends, with the real ids.
    fn real(&self, text: &str) -> String {
        let named = self.0.iter().filter(|(_, chapter)| chapter.len() > 8);
        named.fold(text.to_owned(), |text, (real, chapter)| {
            text.replace(chapter, real)
        })
    }
}

#[test]
fn the_session_in_the_chapter_is_what_a_gateway_says() {
    let gateway = gateway();
    let mut parties: HashMap<&str, Party> = HashMap::new();
    let mut ids = Ids::default();
    let mut types = BTreeSet::new();
    for line in chapter::lines(SESSION) {
        let (who, what) = line.split_once(' ').expect("two words");
        if let Some(text) = what.strip_prefix("> ") {
            let party = parties.get_mut(who).expect("somebody who is there");
            party.client.send_text(ids.real(text));
        } else if let Some(text) = what.strip_prefix("< ") {
            let chapter: Value = serde_json::from_str(text).expect("JSON");
            let party = parties.get_mut(who).expect("somebody who is there");
            let real = party.next(&chapter);
            let shown = ids.shown(&real, &chapter);
            // Also the order of the fields.
            assert_eq!(shown.to_string(), chapter.to_string(), "{line}");
            types.insert(chapter["type"].as_str().expect("a type").to_owned());
        } else if what == "connects" {
            parties.insert(who, Party::connect(&gateway, who));
        } else if what == "leaves" {
            parties.remove(who).expect("somebody").all_seen().close();
        } else if what == "gateway stops" {
            gateway.signal(Signal::TERM);
        } else {
            let told = what.strip_prefix("is closed 1012 ").expect("what happens");
            let mut party = parties.remove(who).expect("somebody who is there");
            let reason = party.client.expect_close(1012);
            let [real, told] = [&*reason, told].map(|text| {
                let mut json: Value = serde_json::from_str(text).expect("JSON");
                assert!(json["after_ms"].take().is_u64(), "{text}");
                json
            });
            assert_eq!(real, told);
        }
    }
    assert!(parties.is_empty(), "the chapter ends with everybody gone");
    let named = names("What comes", "frame");
    assert_eq!(types, named, "each frame is shown, and in the table");
}

/// What the first column of a table names.
fn names(heading: &str, first: &str) -> BTreeSet<String> {
    let rows = chapter::table(heading, first);
    let names = rows.iter().flat_map(|row| chapter::quoted(row[0]));
    names.map(str::to_owned).collect()
}

/// Those of the session have been compared with a gateway's.
#[test]
fn each_frame_has_the_fields_that_the_table_names() {
    let rows = chapter::table("What comes", "frame");
    let named = |cell| chapter::quoted(cell).into_iter().collect::<BTreeSet<_>>();
    let mut optional_seen = BTreeSet::new();
    for line in chapter::lines(SESSION) {
        let Some((_, text)) = line.split_once(" < ") else {
            continue;
        };
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let kind = frame["type"].as_str().expect("a type");
        let is_it = |row: &&Vec<&'static str>| chapter::quoted(row[0]) == [kind];
        let row = rows.iter().find(is_it).expect("a row of the table");
        let [fields, optional] = [row[1], row[2]].map(named);
        let has: BTreeSet<&str> = frame
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert!(
            fields.is_subset(&has),
            "{kind} lacks one of {fields:?}: {line}"
        );
        let further: BTreeSet<&str> = has
            .difference(&fields)
            .copied()
            .filter(|key| *key != "type")
            .collect();
        assert!(
            further.is_subset(&optional),
            "{kind}: {further:?} are not in the table"
        );
        optional_seen.extend(further.iter().map(|field| format!("{kind}.{field}")));
    }
    for row in &rows {
        let kind = chapter::quoted(row[0])[0];
        for field in named(row[2]) {
            let field = format!("{kind}.{field}");
            assert!(
                optional_seen.contains(&field),
                "the session does not show {field}"
            );
        }
    }
}

/// A value for each field that a request can have.
fn value(kind: &str, field: &str) -> Value {
    match field {
        // With other contents it is another one.
        "client_message_id" => json!(kind),
        "to_user_id" | "user_id" => json!("bob"),
        "group_id" => json!("team"),
        "limit" => json!(1),
        "message_ids" => json!([]),
        "token" => json!("alice-token"),
        "before_id" => json!(""),
        _ => json!("x"),
    }
}

#[test]
fn each_request_has_the_fields_and_the_answer_that_the_table_names() {
    let gateway = gateway();
    let mut alice = gateway.connect("alice");
    let rows = chapter::table("Requests", "request");
    assert_eq!(rows.len(), 7);
    for row in rows {
        let kind = chapter::quoted(row[0])[0];
        let [fields, optional] = [row[1], row[2]].map(chapter::quoted);
        let data = |fields: &[&str]| {
            let pairs = fields
                .iter()
                .map(|field| ((*field).to_owned(), value(kind, field)));
            Value::Object(pairs.collect())
        };
        let answer = chapter::quoted(row[3])[0];
        for fields in [fields.clone(), [&*fields, &*optional].concat()] {
            let answered = alice.request(kind, data(&fields));
            assert_eq!(answered["type"], answer, "{kind}: {answered}");
        }
        for left_out in &fields {
            let rest: Vec<&str> = fields.iter().copied().filter(|it| it != left_out).collect();
            let message = alice.expect_error(kind, data(&rest), "INVALID_MESSAGE");
            assert!(message.contains(left_out), "{kind}: {message}");
        }
        for field in fields.iter().chain(&optional) {
            let mut wrong = data(&fields);
            wrong[*field] = json!({"not": "this"});
            let message = alice.expect_error(kind, wrong, "INVALID_MESSAGE");
            assert!(
                message.contains(field),
                "{kind} does not know {field}: {message}"
            );
        }
    }
}

#[test]
fn the_errors_in_the_table_are_those_of_the_code() {
    let codes = ErrorCode::VARIANTS
        .iter()
        .map(|code| code.as_str().to_owned());
    assert_eq!(names("What comes", "error"), codes.collect());
}
