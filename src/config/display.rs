//! The resolved configuration as TOML, for `ws-gateway check`: secrets are hidden.

use super::Config;

const HIDDEN: &str = "***";

/// Every key with its value in force.
pub fn display(config: &Config) -> String {
    let mut shown = config.clone();
    shown.broker.url = without_password(&shown.broker.url);
    if !shown.admin.token.is_empty() {
        shown.admin.token = HIDDEN.into();
    }
    let tokens = std::mem::take(&mut shown.embedded.tokens);
    shown.embedded.tokens = tokens
        .into_values()
        .enumerate()
        .map(|(index, token)| (format!("{HIDDEN}{}", index + 1), token))
        .collect();
    toml::to_string(&shown).unwrap_or_else(|error| format!("# not to be shown: {error}\n"))
}

/// `amqp://user:***@host`.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return HIDDEN.into();
    };
    match rest.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map_or(login, |(user, _)| user);
            format!("{scheme}://{user}:{HIDDEN}@{host}")
        }
        None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    #[test]
    fn what_is_shown_reads_back_and_has_no_secrets() {
        let text =
            "[broker]\nurl = \"amqp://u:s3cr3t@h:1/%2f\"\n[embedded.tokens]\ns3cr3t = \"al\"\n";
        let config = parse("gateway.toml", text, [], None).expect("valid");
        let shown = display(&config);
        assert!(!shown.contains("s3cr3t"), "{shown}");
        assert!(shown.contains("amqp://u:***@h:1/%2f"));
        let again = parse("shown", &shown, [], None).expect("what is shown is valid");
        assert_eq!(again.gateway.id, config.gateway.id);
    }
}
