//! How the values that TOML has no type for are written: durations, addresses, tokens.

use std::time::Duration;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_untagged::UntaggedEnumVisitor;

/// Durations as `"30s"`, `"1m 30s"`, `"500ms"`.
pub mod duration {
    use super::*;

    const EXPECTED: &str = "a duration such as \"30s\" or \"500ms\"";

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let invalid = |text: &str| Error::invalid_value(Unexpected::Str(text), &EXPECTED);
        UntaggedEnumVisitor::new()
            .expecting(EXPECTED)
            .string(|text| humantime::parse_duration(text).map_err(|_| invalid(text)))
            .deserialize(deserializer)
    }
}

/// The addresses of one service: a string, or a list of strings; or `etcd:///name`.
pub mod addresses {
    use super::*;

    pub fn serialize<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        list.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("an address such as \"http://127.0.0.1:50051\", or a list of them")
            .string(|address| Ok(vec![address.into()]))
            .seq(|list| list.deserialize())
            .deserialize(deserializer)
    }
}

/// Whom a token of the reference services lets in, and for how long: `"alice"`, or
/// `{ user = "alice", expires_in = "1h" }`, counted from when the configuration was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Token {
    Unlimited(String),
    Expiring {
        user: String,
        #[serde(with = "duration")]
        expires_in: Duration,
    },
}

impl Token {
    pub fn user(&self) -> &str {
        match self {
            Self::Unlimited(user) | Self::Expiring { user, .. } => user,
        }
    }
}
