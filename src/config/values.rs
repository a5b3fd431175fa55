//! How the values that TOML has no type for are written: durations, addresses, tokens.

use std::fmt;
use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Durations as `"30s"`, `"1m 30s"`, `"500ms"`.
pub mod duration {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\" or \"500ms\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
                humantime::parse_duration(text)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The addresses of one service: a string, or a list of strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Addresses(pub Vec<String>);

impl Addresses {
    pub fn one(address: impl Into<String>) -> Self {
        Self(vec![address.into()])
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"http://127.0.0.1:50051\", or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses::one(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Addresses, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(seq)).map(Addresses)
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

/// Whom a token of the reference services lets in, and for how long: `"alice"`, or
/// `{ user = "alice", expires_in = "1h" }`, counted from when the configuration was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub user: String,
    /// `None`: for ever.
    pub expires_in: Option<Duration>,
}

impl Token {
    pub fn of(user: &str) -> Self {
        Self {
            user: user.into(),
            expires_in: None,
        }
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.expires_in {
            None => serializer.serialize_str(&self.user),
            Some(expires_in) => TokenTable {
                user: self.user.clone(),
                expires_in,
            }
            .serialize(serializer),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenTable {
    user: String,
    #[serde(with = "duration")]
    expires_in: Duration,
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;

        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Token;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a user such as \"alice\", or { user = \"alice\", expires_in = \"1h\" }",
                )
            }

            fn visit_str<E: serde::de::Error>(self, user: &str) -> Result<Token, E> {
                Ok(Token::of(user))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Token, A::Error> {
                let table = TokenTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Token {
                    user: table.user,
                    expires_in: Some(table.expires_in),
                })
            }
        }

        deserializer.deserialize_any(NameOrTable)
    }
}
