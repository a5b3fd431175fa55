//! What an error may tell of a configuration that holds secrets: tokens, which are keys, and the
//! passwords in values. Neither is repeated, for errors end in logs.

use super::forms::is_within;

const TOKENS: &str = "embedded.tokens";
/// What keys of tokens begin with in the environment.
const TOKEN_VARIABLE: &str = "GATEWAY_EMBEDDED__TOKENS__";
/// Where secrets are; also, by mistake, as a value of the wrong type in the place of a whole table.
const SECRETS: [&str; 3] = ["admin.token", "broker.url", TOKENS];

/// The key, without the token that may be part of it.
pub(super) fn key(key: &str) -> &str {
    if is_within(TOKENS, key) { TOKENS } else { key }
}

/// The variable's name, without the token that may be part of it.
pub(super) fn variable(name: &str) -> String {
    match name.starts_with(TOKEN_VARIABLE) {
        true => format!("{TOKEN_VARIABLE}***"),
        false => name.into(),
    }
}

/// Why the value of `key` could not be read, as serde says it, but without the value.
pub(super) fn reason(key: &str, told: &str) -> String {
    if is_within(TOKENS, key) {
        return "an entry is neither token = \"user\" nor token = { user = \"alice\", \
                expires_in = \"1h\" }"
            .into();
    }
    // "invalid type: string \"what was written\", expected what is wanted"
    let parts = told
        .strip_prefix("invalid type: ")
        .or_else(|| told.strip_prefix("invalid value: "))
        .and_then(|rest| Some((rest.split(' ').next()?, rest.rsplit_once(", expected ")?.1)));
    match parts {
        Some((found, expected)) if SECRETS.iter().any(|secret| secret.starts_with(key)) => {
            format!("a value of type {found}, expected {expected}")
        }
        _ => told.replace("socket address syntax", "address, expected IP:PORT"),
    }
}
