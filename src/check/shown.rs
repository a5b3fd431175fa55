//! A configuration as `ws-gateway check` prints it: without its secrets, for what is printed ends in
//! logs.

use crate::config::Config;

const HIDDEN: &str = "***";

/// Every key with its value in force, as TOML; passwords and tokens are hidden.
pub fn display(config: &Config) -> String {
    let mut shown = config.clone();
    shown.broker.url = without_password(&shown.broker.url);
    if !shown.admin.token.is_empty() {
        shown.admin.token = HIDDEN.into();
    }
    let numbered = (1..).zip(config.embedded.tokens.values().cloned());
    shown.embedded.tokens = numbered
        .map(|(number, token)| (format!("{HIDDEN}{number}"), token))
        .collect();
    toml::to_string(&shown).unwrap_or_else(|error| format!("# not to be shown: {error}\n"))
}

/// `amqp://user:***@host`. What follows the host may hold an `@` as well.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let Some((login, host)) = authority.rsplit_once('@') else {
        return url.into();
    };
    let user = login.split_once(':').map_or(login, |(user, _)| user);
    format!("{scheme}://{user}:{HIDDEN}@{host}{behind}")
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
