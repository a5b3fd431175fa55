//! What an error may say of a configuration that holds secrets: tokens, which are keys, and the
//! passwords in values. Neither is repeated, since errors end in logs.

const TOKENS: &str = "embedded.tokens";
/// What keys of tokens begin with in the environment.
const TOKEN_VARIABLE: &str = "GATEWAY_EMBEDDED__TOKENS__";
/// Where a secret may be written: the tokens themselves apart, also by mistake, as a value of the
/// wrong type.
const SECRET: [&str; 7] = [
    ".",
    "admin",
    "admin.token",
    "broker",
    "broker.url",
    "embedded",
    TOKENS,
];

/// The key, without the token that may be part of it.
pub(super) fn key(key: &str) -> String {
    if is_token(key) { TOKENS } else { key }.into()
}

/// The variable's name, without the token that may be part of it.
pub(super) fn variable(name: &str) -> String {
    match name.starts_with(TOKEN_VARIABLE) {
        true => format!("{TOKEN_VARIABLE}***"),
        false => name.into(),
    }
}

/// Why the value of `key` could not be read, as serde says it, without the value.
pub(super) fn reason(key: &str, told: &str) -> String {
    if is_token(key) {
        return "an entry is neither token = \"user\" nor token = { user = \"alice\", \
                expires_in = \"1h\" }"
            .into();
    }
    if !SECRET.contains(&key) {
        return told.into();
    }
    // "invalid type: string \"what was written\", expected what is wanted"
    let parts = told
        .strip_prefix("invalid type: ")
        .or_else(|| told.strip_prefix("invalid value: "))
        .and_then(|rest| Some((rest.split(' ').next()?, rest.rsplit_once(", expected ")?.1)));
    match parts {
        Some((found, expected)) => format!("a value of type {found}, expected {expected}"),
        None => told.into(),
    }
}

fn is_token(key: &str) -> bool {
    let rest = key.strip_prefix(TOKENS);
    rest.is_some_and(|rest| rest.starts_with(['.', '[']))
}
