//! How the document is written: keys in the order in which a reader wants them.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Keys that come before all others, in this order.
const FIRST: [&str; 18] = [
    "name",
    "action",
    "summary",
    "code",
    "type",
    "request_id",
    "description",
    "channel",
    "messages",
    "data",
    "reason",
    "reconnect",
    "client",
    "id",
    "minLength",
    "minimum",
    "if",
    "then",
];
/// Keys that come behind them.
const LAST: [&str; 5] = ["timestamp", "required", "payload", "examples", "reply"];

fn rank(key: &str) -> usize {
    let place = |keys: &[&str]| keys.iter().position(|other| *other == key);
    let last = place(&LAST).map(|place| FIRST.len() + 1 + place);
    place(&FIRST).or(last).unwrap_or(FIRST.len())
}

/// Writes its objects in this order.
struct Ordered<'a>(&'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(key, _)| rank(key));
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, &Ordered(value))?;
                }
                map.end()
            }
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Ordered(item))?;
                }
                list.end()
            }
            other => other.serialize(serializer),
        }
    }
}

pub fn text(value: &Value) -> String {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 90 };
    let text = serde_saphyr::to_string_with_options(&Ordered(value), options);
    text.expect("a value is YAML")
}

/// A mapping with its entries in the order in which they come.
pub fn entries(entries: impl IntoIterator<Item = (String, Value)>) -> String {
    let entry = |(key, value)| text(&Map::from_iter([(key, value)]).into());
    entries.into_iter().map(entry).collect()
}

/// `skeleton` with each line that is a part's name replaced by this part, as far to the right.
pub fn filled(skeleton: &str, parts: &[(&str, String)]) -> String {
    let mut filled = String::new();
    for line in skeleton.lines() {
        let name = line.trim_start();
        let indent = &line[..line.len() - name.len()];
        let part = parts.iter().find(|(other, _)| *other == name);
        let lines = part.map_or(name, |(_, part)| part.trim_end());
        for line in lines.lines() {
            let indent = if line.is_empty() { "" } else { indent };
            filled += &format!("{indent}{line}\n");
        }
        if lines.is_empty() {
            filled.push('\n');
        }
    }
    filled
}
