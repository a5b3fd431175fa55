//! Where values come from: the built-in defaults, then the file, then the environment. Anything
//! wrong is an error: a text that says which file or variable is at fault, the key or the line, and
//! what is wrong with it. Nothing starts; the user mends what is named.

use std::net::SocketAddr;
use std::path::Path;
use std::{env, fs};

use toml::{Table, Value};

use super::forms::is_within;
use super::{Config, secrets, validate};

/// Reads `file` (`None`: built-in defaults only) and the process's environment, and validates.
/// `bound`: where the reference services' users are let in already. The sample tokens are refused
/// there as at the start, even if the file names another address by now.
pub fn load(file: Option<&Path>, bound: Option<SocketAddr>) -> Result<Config, String> {
    let name = file.map_or("(defaults)".into(), |file| file.display().to_string());
    let text = file.map_or(Ok(String::new()), fs::read_to_string);
    let text = text.map_err(|error| format!("{name}: cannot be read: {error}"))?;
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
) -> Result<Config, String> {
    let parsed = text.parse::<Table>();
    let mut table = parsed.map_err(|error| syntax_error(file, text, &error))?;
    let overrides = override_keys(&mut table, variables)?;
    let refused = |key: &str, reason: &str| {
        // A table that does not exist is the variable's fault, too.
        let covers = |path: &str| key == path || is_within(path, key) || is_within(key, path);
        let found = overrides.iter().find(|(path, _)| covers(path));
        let origin = found.map_or(file, |(_, variable)| variable);
        key_error(origin, key, reason)
    };

    let config: Config = serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        refused(&key, &secrets::reason(&key, first_line(error.inner())))
    })?;
    validate::validate(config, bound).map_err(|(key, reason)| refused(&key, &reason))
}

/// `origin` is the file or the variable that holds the value.
fn key_error(origin: &str, key: &str, reason: &str) -> String {
    let (origin, key) = (secrets::variable(origin), secrets::key(key));
    format!("{origin}: {key}: {reason}")
}

/// The line is not shown: it may hold a secret.
fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.unwrap_or_default().matches('\n').count() + 1;
    format!("{file}: line {line}: {}", first_line(error))
}

fn first_line(error: &toml::de::Error) -> &str {
    error.message().lines().next().unwrap_or_default()
}

/// Puts each `GATEWAY_TABLE__KEY` into `table`. Returns the keys and the variables they came from.
fn override_keys(
    table: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>, String> {
    let defaults = Value::try_from(Config::default()).expect("the defaults are TOML");
    let mut overrides = Vec::new();
    for (variable, text) in variables {
        let path = variable.strip_prefix("GATEWAY_").unwrap_or_default();
        let path = path.to_lowercase();
        let keys: Vec<&str> = path.split("__").collect();
        let Some((last, tables @ [_, ..])) = keys.split_last() else {
            continue;
        };
        let key = keys.join(".");
        let default = keys.iter().try_fold(&defaults, |value, key| value.get(key));
        let holder = tables.iter().try_fold(&mut *table, |table, key| {
            let inner = table.entry(*key).or_insert_with(|| Table::new().into());
            inner.as_table_mut()
        });
        let no_table = || key_error(&variable, &key, "what holds it is not a table");
        let holder = holder.ok_or_else(no_table)?;
        holder.insert((*last).into(), value_of(text, default));
        overrides.push((key, variable));
    }
    Ok(overrides)
}

/// A key whose default is a string takes the text as it is; any other takes it as TOML.
fn value_of(text: String, default: Option<&Value>) -> Value {
    let parsed = match default {
        Some(Value::String(_)) => None,
        _ => format!("value = {text}").parse::<Table>().ok(),
    };
    let value = parsed.and_then(|mut table| table.remove("value"));
    value.unwrap_or(Value::String(text))
}
