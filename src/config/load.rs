//! Where values come from: the built-in defaults, then the file, then the environment. Anything
//! wrong is an error that names the key and where it was written.

use std::path::Path;
use std::{env, fmt, fs, io};

use toml::{Table, Value};

use super::{Config, validate};

/// Why there is no configuration. Nothing starts; the user mends what is named.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read { file: String, error: io::Error },
    /// The file is no TOML; the error shows the line.
    Syntax {
        file: String,
        error: toml::de::Error,
    },
    /// A key is unknown, of the wrong type, or out of range.
    Key {
        origin: String,
        key: String,
        reason: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, error } => write!(f, "{file}: cannot be read: {error}"),
            Self::Syntax { file, error } => write!(f, "{file}: {error}"),
            Self::Key {
                origin,
                key,
                reason,
            } => write!(f, "{origin}: {key}: {reason}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads `file` (`None`: built-in defaults only) and the process's environment, and validates.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let name = file.map_or("(defaults)".into(), |file| file.display().to_string());
    let text = match file {
        Some(file) => fs::read_to_string(file).map_err(|error| ConfigError::Read {
            file: name.clone(),
            error,
        })?,
        None => String::new(),
    };
    // A name or value that is no UTF-8 is no key of ours.
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    parse(&name, &text, variables)
}

/// As [`load`], from a file's text and given environment variables.
pub fn parse(
    file: &str,
    text: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut table: Table = text.parse().map_err(|error| ConfigError::Syntax {
        file: file.into(),
        error,
    })?;
    let overrides = override_keys(&mut table, variables)?;
    let origin = |key: &str| {
        // A table that does not exist is the variable's fault, too.
        let within = |outer: &str, inner: &str| inner.starts_with(&format!("{outer}."));
        let covers = |path: &str| key == path || within(path, key) || within(key, path);
        let found = overrides.iter().find(|(path, _)| covers(path));
        found.map_or(file.to_owned(), |(_, variable)| variable.clone())
    };

    let mut config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        ConfigError::Key {
            origin: origin(&key),
            key,
            reason: first_line(error.inner()),
        }
    })?;
    validate::validate(&mut config).map_err(|invalid| ConfigError::Key {
        origin: origin(invalid.key),
        key: invalid.key.into(),
        reason: invalid.reason,
    })?;
    Ok(config)
}

/// Puts each `GATEWAY_TABLE__KEY` into `table`. Returns the keys and the variables they came from.
fn override_keys(
    table: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let defaults = Table::try_from(Config::default()).expect("the defaults are TOML");
    let mut overrides = Vec::new();
    for (variable, text) in variables {
        let Some(path) = variable
            .strip_prefix("GATEWAY_")
            .filter(|path| path.contains("__"))
        else {
            continue;
        };
        let path = path.to_lowercase();
        let keys: Vec<&str> = path.split("__").collect();
        let key = keys.join(".");
        let value = value_of(&text, default_at(&defaults, &keys));
        insert(table, &keys, value).map_err(|reason| ConfigError::Key {
            origin: variable.clone(),
            key: key.clone(),
            reason,
        })?;
        overrides.push((key, variable));
    }
    Ok(overrides)
}

/// A key whose default is a string takes the text as it is; any other takes it as TOML.
fn value_of(text: &str, default: Option<&Value>) -> Value {
    if default.is_some_and(Value::is_str) {
        return Value::String(text.into());
    }
    let parsed = format!("value = {text}").parse::<Table>().ok();
    parsed
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.into()))
}

fn default_at<'a>(defaults: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (first, rest) = keys.split_first()?;
    rest.iter()
        .try_fold(defaults.get(*first)?, |value, key| value.get(*key))
}

fn insert(table: &mut Table, keys: &[&str], value: Value) -> Result<(), String> {
    match keys {
        [] => Ok(()),
        [key] => {
            table.insert((*key).into(), value);
            Ok(())
        }
        [key, rest @ ..] => {
            let inner = table
                .entry(*key)
                .or_insert_with(|| Value::Table(Table::new()));
            let inner = inner
                .as_table_mut()
                .ok_or_else(|| format!("`{key}` is not a table"))?;
            insert(inner, rest, value)
        }
    }
}

fn first_line(error: &toml::de::Error) -> String {
    error
        .message()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
