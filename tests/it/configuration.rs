//! The configuration is read the same way by `check`, by the start, by `services`, and on SIGHUP.

use std::fs;

use crate::chat;
use crate::support::broker::Broker;
use crate::support::gateway::{Outcome, Services, run};
use crate::support::process::{Process, Signal};
use crate::support::raw::UPGRADE;
use crate::support::{Client, Gateway, Settings, watchdog};

const COMMANDS: [&[&str]; 3] = [&["check"], &[], &["services", "--listen", "127.0.0.1:0"]];

/// What comes of a file and an environment with each of the commands.
fn outcomes(text: &str, variables: &[(&str, &str)]) -> Vec<Outcome> {
    let file = watchdog::directory("refused").join("gateway.toml");
    fs::write(&file, text).expect("a file");
    let path = file.display().to_string();
    let each = COMMANDS.iter();
    each.map(|command| run(&[*command, &["--config", &path]].concat(), variables))
        .collect()
}

/// All commands end with 2 and the same error, which names `origin` and `key` and holds no secret.
fn refused_by_all(text: &str, variables: &[(&str, &str)], origin: &str, key: &str) {
    let outcomes = outcomes(text, variables);
    for outcome in &outcomes {
        assert_eq!(outcome.code, 2, "{text}{variables:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{text}{variables:?}");
        assert_eq!(outcome.stderr, outcomes[0].stderr);
        let named = outcome.stderr.contains(origin) && outcome.stderr.contains(key);
        assert!(named, "{origin}, {key}: {}", outcome.stderr);
        let lower = outcome.stderr.to_lowercase();
        assert!(!lower.contains("s3cret"), "{}", outcome.stderr);
    }
}

#[test]
fn check_and_start_refuse_the_same() {
    // Remote, so that the start would use every one of them.
    let remote = "[backend]\nmode = \"remote\"\n";
    for (key, value) in [
        ("broker.url", "\"\""),
        ("broker.url", "\"amqp://\""),
        ("broker.url", "\"amqp://h:x/\""),
        ("broker.url", "\"amqp://u:s3cret@h:x/\""),
        ("broker.url", "\"amqp://u:s3cret@h/?heartbeat=5\""),
        ("broker.url", "\"amqp://u:s3cret@h/a/b\""),
        ("broker.url", "\"http://[::1\""),
        ("broker.url", "[\"amqp://u:s3cret@h/\"]"),
        ("services.user", "\"http://[::1\""),
        ("services.message", "[\"http://h:1\", \"http://h:x\"]"),
        ("services.presence", "\"http://u:s3cret@h:1\""),
        ("services.user", "\"https://u:s3cret@h:1\""),
        ("services.ca", "\"/no/such/file.pem\""),
        ("broker.ca", "\"/no/such/file.pem\""),
        ("broker.url", "\"amqps://u:s3cret@h/a/b\""),
        ("services.user", "\"http://h:1/path\""),
        ("services.user", "\"etcd:///user-service\""),
        ("discovery.endpoints", "[\"https://u:s3cret@h:1\"]"),
        ("discovery.ttl", "\"1s\""),
        ("listen.path", "\"/a#b\""),
        ("listen.allowed_origins", "[\"https://h/\"]"),
        ("gateway.id", "\"a\\u0000\""),
        ("admin.addr", "\"localhost:1\""),
        ("admin.token", "\"s3cret with blanks\""),
        ("embedded.tokens", "{ s3cret = 7 }"),
        ("embedded.tokens", "{ s3cret = { user = \"a\" } }"),
        ("embedded.tokens", "{ a = { s3cret = \"a\" } }"),
        ("embedded.tokens", "\"s3cret\""),
        ("embedded.groups", "{ team = [\"\"] }"),
    ] {
        let (table, name) = key.split_once('.').expect("table.key");
        let text = format!("{remote}[{table}]\n{name} = {value}\n");
        refused_by_all(&text, &[], "gateway.toml", key);
        // In the environment, a string is not quoted, and has no escapes.
        if value != "\"s3cret\"" && !value.contains('\\') {
            let variable = format!("GATEWAY_{}__{}", table, name).to_uppercase();
            let value = value.trim_matches('"');
            refused_by_all(remote, &[(&variable, value)], &variable, key);
        }
    }
    let unquoted = "[embedded.tokens]\ns3cret = alice\n";
    refused_by_all(unquoted, &[], "gateway.toml", "line 2");
    let variable = "GATEWAY_EMBEDDED__TOKENS__S3CRET";
    refused_by_all(
        "",
        &[(variable, "7")],
        "EMBEDDED__TOKENS",
        "embedded.tokens",
    );
}

#[test]
fn arguments_of_services_are_named() {
    for (arguments, naming) in [
        (["--broker", "amqp://u:s3cret@h:x/"], "--broker"),
        (["--broker", "amqp://u:s3cret@h/?heartbeat=5"], "--broker"),
        (["--broker", "amqp://"], "--broker"),
        (["--database", ""], "--database"),
        (["--listen", "0.0.0.0:0"], "--listen"),
        (["--listen", "[::]:0"], "--listen"),
    ] {
        let outcome = run(&[&["services"], &arguments[..]].concat(), &[]);
        assert_eq!(outcome.code, 2, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(naming), "{outcome:?}");
        assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");
    }
}

/// What depends on the system, not on how it is written, ends with 1.
#[test]
fn an_address_in_use_is_no_fault_of_the_configuration() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    let (mut process, _directory) =
        Gateway::launch(&chat::settings().set("listen.addr", addr.as_str()), &[]);
    assert_eq!(process.exit_code(), 1);
    let outcome = run(
        &["services", "--listen", &addr, "--database", ":memory:"],
        &[],
    );
    assert_eq!(outcome.code, 1, "{outcome:?}");
}

/// Files that a SIGHUP finds, none of which may let everybody in.
fn with_sample_tokens() -> Vec<Settings> {
    let lost = Settings::from_text("[log]\nlevel = \"debug\"\n");
    let mut one = chat::settings();
    one.put_token("alice-token", "mallory");
    vec![
        // The address that it names is not the one that is bound.
        lost.clone().set("listen.addr", "127.0.0.1:0"),
        lost.clone().set("listen.addr", "[::1]:0"),
        lost.clone().set("backend.mode", "remote"),
        lost.clone().set("listen.addr", "0.0.0.0:0"),
        lost,
        one,
    ]
}

/// Settings without a sample token: token `own` is olga's.
fn own_tokens() -> Settings {
    let mut settings = Settings::new();
    settings.put_token("own", "olga");
    settings
}

fn status(gateway: &Gateway, token: &str) -> u16 {
    let target = format!("{}?token={token}", gateway.path);
    gateway.raw().get_with(&target, &UPGRADE).status
}

fn refuses_to_reload(process: &Process, number: usize) {
    process.signal(Signal::HUP);
    let lines = || {
        let log = process.stderr();
        let told = log
            .lines()
            .filter(|line| line.contains("the old one stays"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    crate::support::wait_until("it is refused", || lines().len() > number);
    let line = &lines()[number];
    assert!(line.contains("ERROR"), "{line}");
    let named = ["embedded.tokens", "listen.addr"];
    assert!(named.iter().any(|key| line.contains(key)), "{line}");
    assert!(line.contains("sample tokens"), "{line}");
}

#[test]
fn a_hangup_puts_no_sample_token_in_force_on_a_public_address() {
    for public in ["0.0.0.0:0", "[::]:0"] {
        let gateway = Gateway::start(&own_tokens().set("listen.addr", public));
        for (number, settings) in with_sample_tokens().iter().enumerate() {
            settings.write(&gateway.directory);
            refuses_to_reload(&gateway, number);
            assert_eq!(status(&gateway, "alice-token"), 401, "{public}: {number}");
            Client::connect(&gateway, "own").close();
        }
        let mut settings = own_tokens();
        settings.put_token("another", "oscar");
        settings.write(&gateway.directory);
        gateway.signal(Signal::HUP);
        gateway.stderr_line("tokens and groups are in force");
        Client::connect(&gateway, "another").close();
    }
}

#[test]
fn on_a_loopback_address_a_hangup_may_bring_them() {
    for loopback in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let gateway = Gateway::start(&own_tokens().set("listen.addr", loopback));
        assert_eq!(status(&gateway, "alice-token"), 401);
        Settings::from_text("").write(&gateway.directory);
        gateway.signal(Signal::HUP);
        gateway.stderr_line("tokens and groups are in force");
        Client::connect(&gateway, "alice-token").close();
    }
}

#[test]
fn the_services_have_the_same_guard() {
    let broker = Broker::shared().vhost();
    let services = Services::start_listening("0.0.0.0:0", &own_tokens(), &broker);
    for (number, settings) in with_sample_tokens().iter().enumerate() {
        settings.write(services.directory());
        refuses_to_reload(&services, number);
    }
    services.reload(&own_tokens());
    services.stderr_line("tokens and groups are in force");
}
