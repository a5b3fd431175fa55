//! Where values come from: the built-in defaults, then the file, then the environment. Anything
//! wrong is an error that names the key and where it was written.

use std::net::SocketAddr;
use std::path::Path;
use std::{env, fmt, fs, io};

use toml::{Table, Value};

use super::{Config, secrets, validate};

/// Why there is no configuration. Nothing starts; the user mends what is named.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read { file: String, error: io::Error },
    /// The file is no TOML. The line is not shown: it may hold a secret.
    Syntax {
        file: String,
        line: usize,
        reason: String,
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
            Self::Syntax { file, line, reason } => write!(f, "{file}: line {line}: {reason}"),
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
    load_for(file, None)
}

/// As [`load`], while the reference services' users are let in at `bound`. The sample tokens are
/// refused there as at the start, even if the file names another address by now.
pub fn reload(file: Option<&Path>, bound: SocketAddr) -> Result<Config, ConfigError> {
    load_for(file, Some(bound))
}

fn load_for(file: Option<&Path>, bound: Option<SocketAddr>) -> Result<Config, ConfigError> {
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
    parse(&name, &text, variables, bound)
}

/// As [`load`], from a file's text and given environment variables.
pub fn parse(
    file: &str,
    text: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    bound: Option<SocketAddr>,
) -> Result<Config, ConfigError> {
    let mut table: Table = text
        .parse()
        .map_err(|error| syntax_error(file, text, &error))?;
    let overrides = override_keys(&mut table, variables)?;
    let refused = |key: &str, reason: String| {
        // A table that does not exist is the variable's fault, too.
        let covers = |path: &str| key == path || within(path, key) || within(key, path);
        let found = overrides.iter().find(|(path, _)| covers(path));
        let origin = found.map_or(file.to_owned(), |(_, variable)| secrets::variable(variable));
        ConfigError::Key {
            origin,
            key: secrets::key(key),
            reason,
        }
    };

    let mut config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        let reason = secrets::reason(&key, first_line(error.inner()));
        refused(&key, reason)
    })?;
    validate::validate(&mut config)
        .and_then(|()| bound.map_or(Ok(()), |bound| validate::bound(&config, bound)))
        .map_err(|invalid| refused(&invalid.key, invalid.reason))?;
    Ok(config)
}

/// Whether `inner` is a key or an element within `outer`.
fn within(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start));
    ConfigError::Syntax {
        file: file.into(),
        line: before.unwrap_or_default().matches('\n').count() + 1,
        reason: first_line(error).to_owned(),
    }
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
            origin: secrets::variable(&variable),
            key: secrets::key(&key),
            reason: reason.into(),
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

fn insert(table: &mut Table, keys: &[&str], value: Value) -> Result<(), &'static str> {
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
            let inner = inner.as_table_mut().ok_or("what holds it is not a table")?;
            insert(inner, rest, value)
        }
    }
}

fn first_line(error: &toml::de::Error) -> &str {
    error.message().lines().next().unwrap_or_default()
}
