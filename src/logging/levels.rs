//! How much is logged: a level for everything, and others for some groups of modules.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use log::LevelFilter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The groups of modules that may have a level of their own: what the map in `lib.rs` shows.
const GROUPS: [&str; 8] = [
    "admin",
    "broker",
    "client",
    "discovery",
    "gateway",
    "presence",
    "reference",
    "services",
];

/// Written `info`, or `info,broker=debug,client=trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// Of all that has none of its own.
    pub default: LevelFilter,
    /// By the name of the group.
    pub groups: BTreeMap<String, LevelFilter>,
}

impl Default for Levels {
    fn default() -> Self {
        Self {
            default: LevelFilter::Info,
            groups: BTreeMap::new(),
        }
    }
}

impl FromStr for Levels {
    type Err = String;

    /// An error says which part is wrong, and what there is.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let default = level(parts.next().unwrap_or_default())?;
        let mut groups = BTreeMap::new();
        for part in parts {
            let (group, text) = part.split_once('=').unwrap_or((part, ""));
            if !GROUPS.contains(&group.trim()) {
                let groups = GROUPS.join(", ");
                return Err(format!("`{group}` is no group of modules: {groups}"));
            }
            groups.insert(group.trim().to_owned(), level(text.trim())?);
        }
        Ok(Self { default, groups })
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    let wrong = |_| format!("`{text}` is no level: off, error, warn, info, debug, trace");
    text.parse().map_err(wrong)
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |level: LevelFilter| level.as_str().to_lowercase();
        f.write_str(&name(self.default))?;
        let mut groups = self.groups.iter();
        groups.try_for_each(|(group, level)| write!(f, ",{group}={}", name(*level)))
    }
}

impl Serialize for Levels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["info", "off", "warn,broker=debug,client=trace"] {
            let levels: Levels = text.parse().expect("levels");
            assert_eq!(levels.to_string(), text);
        }
        let spaced: Levels = " INFO , broker = Debug ".parse().expect("levels");
        assert_eq!(spaced.to_string(), "info,broker=debug");
    }

    #[test]
    fn an_error_names_the_part_and_what_there_is() {
        for (text, named) in [
            ("", "`` is no level"),
            ("loud", "`loud` is no level"),
            ("broker=debug", "`broker=debug` is no level"),
            (
                "info,brokr=debug",
                "`brokr` is no group of modules: admin, broker",
            ),
            ("info,broker", "`` is no level"),
        ] {
            let error = text.parse::<Levels>().expect_err("none");
            assert!(error.starts_with(named), "{error}");
        }
    }
}
