//! What may be told of a configuration that holds secrets: tokens, which are keys, and the
//! passwords in values. Neither is repeated, in an error or by `ws-gateway check`: both end in logs.

use super::Config;
use super::forms::is_within;

const TOKENS: &str = "embedded.tokens";
/// What keys of tokens begin with in the environment.
const TOKEN_VARIABLE: &str = "GATEWAY_EMBEDDED__TOKENS__";
/// Where secrets are; also, by mistake, as a value of the wrong type in the place of a whole table.
const SECRETS: [&str; 3] = ["admin.token", "broker.url", TOKENS];
const HIDDEN: &str = "***";

/// The key, without the token that may be part of it.
pub(super) fn key(key: &str) -> &str {
    if is_within(TOKENS, key) { TOKENS } else { key }
}

/// The variable's name, without the token that may be part of it.
pub(super) fn variable(name: &str) -> String {
    match name.starts_with(TOKEN_VARIABLE) {
        true => format!("{TOKEN_VARIABLE}{HIDDEN}"),
        false => name.into(),
    }
}

/// Why the value of `key` could not be read, as serde says it, without the value.
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
        _ => told.into(),
    }
}

/// Every key with its value in force, as TOML.
pub fn display(config: &Config) -> String {
    let mut shown = config.clone();
    shown.broker.url = without_password(&shown.broker.url);
    if !shown.admin.token.is_empty() {
        shown.admin.token = HIDDEN.into();
    }
    let numbered = (1..).zip(config.embedded.tokens.values().cloned());
    let hidden = numbered.map(|(number, token)| (format!("{HIDDEN}{number}"), token));
    shown.embedded.tokens = hidden.collect();
    toml::to_string(&shown).unwrap_or_else(|error| format!("# not to be shown: {error}\n"))
}

/// `amqp://user:***@host`.
fn without_password(url: &str) -> String {
    let Some((login, host)) = url.rsplit_once('@') else {
        return url.into();
    };
    // The first colon is the scheme's.
    let mut colons = login.match_indices(':').skip(1);
    let user = colons.next().map_or(login, |(end, _)| &login[..end]);
    format!("{user}:{HIDDEN}@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    #[test]
    fn what_is_shown_reads_back_and_has_no_secrets() {
        let text = "[broker]\nurl = \"amqp://u:s3cr3t@h:1/%2f\"\n[embedded.tokens]\n\
                    s3cr3t = \"al\"\ns3cr3t2 = { user = \"bo\", expires_in = \"1m 1s\" }\n";
        let config = parse("gateway.toml", text, [], None).expect("valid");
        let shown = display(&config);
        assert!(!shown.contains("s3cr3t"), "{shown}");
        assert!(shown.contains("amqp://u:***@h:1/%2f"));
        let again = parse("shown", &shown, [], None).expect("what is shown is valid");
        assert_eq!(again.gateway.id, config.gateway.id);
        assert!(
            again
                .embedded
                .tokens
                .values()
                .eq(config.embedded.tokens.values())
        );
    }
}
