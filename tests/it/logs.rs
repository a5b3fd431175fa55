//! What the log says, to whom, how much of it, and what it never says.

use std::fs;

use serde_json::{Value, json};
use toml::Table;

use crate::chat;
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::process::Signal;
use crate::support::raw::UPGRADE;
use crate::support::{Client, Gateway, Services, Settings, wait_until, watchdog};

#[test]
fn a_log_file_is_started_anew_after_it_was_moved_away() {
    let directory = watchdog::directory("log");
    let (file, old) = (
        directory.join("gateway.log"),
        directory.join("gateway.log.1"),
    );
    let gateway = Gateway::start(&chat::settings().set("log.file", file.display().to_string()));
    gateway.wait_ready();
    fs::rename(&file, &old).expect("moved");
    gateway.signal(Signal::HUP);
    let is_there = || fs::read_to_string(&file).is_ok_and(|log| log.contains("opened again"));
    wait_until("there is a new one", is_there);
    let alice = gateway.connect("alice");
    let id = alice.connection_id().to_owned();
    wait_until("what happens now is in the new one", || {
        fs::read_to_string(&file).is_ok_and(|log| log.contains(&id))
    });
    let old = fs::read_to_string(&old).expect("the old one");
    assert!(
        old.contains("Ready: listening") && !old.contains(&id),
        "{old}"
    );
    // The time is in UTC, each as wide as the other.
    for line in old.lines() {
        let (time, _) = line.split_once(' ').expect("a time");
        assert_eq!(
            (time.len(), &time[10..11], &time[19..20], &time[23..]),
            (24, "T", ".", "Z"),
            "{line}"
        );
    }
}

#[test]
fn a_group_of_modules_may_have_a_level_of_its_own() {
    let gateway = Gateway::start(&chat::settings().set("log.level", "error,client=debug"));
    gateway.wait_ready();
    gateway.connect("alice").request("ping", Value::Null);
    gateway.stderr_line("Message received: type=ping, user=alice");
    let log = gateway.stderr();
    assert!(
        !log.contains("Starting") && !log.contains("Service in reach"),
        "{log}"
    );

    let wrong = chat::settings().set("log.level", "info,brokr=debug");
    let (mut process, _) = Gateway::launch(&wrong, &[]);
    assert_eq!(process.exit_code(), 2);
    let said = process.stderr();
    assert!(
        said.contains("log.level: `brokr` is no group of modules: admin, broker"),
        "{said}"
    );
}

#[test]
fn whoever_has_no_token_does_not_fill_the_log() {
    const COUNT: usize = 300;
    let gateway = Gateway::start(&chat::settings());
    gateway.wait_ready();
    for _ in 0..COUNT {
        assert_eq!(
            gateway.raw().try_upgrade(&gateway.path, "wrong").status,
            401
        );
    }
    let refusals = |log: &str| -> Vec<String> {
        let lines = log.lines();
        let refusals = lines.filter(|line| line.contains("Connection refused"));
        refusals.map(str::to_owned).collect()
    };
    let left_out = |line: &String| -> Option<usize> {
        let (_, count) = line.rsplit_once("left_out=")?;
        Some(count.parse().expect("a number"))
    };
    wait_until("all are written, or told of by a later line", || {
        assert_eq!(
            gateway.raw().try_upgrade(&gateway.path, "wrong").status,
            401
        );
        let lines = refusals(&gateway.stderr());
        let told: usize = lines.iter().filter_map(left_out).sum();
        told + lines.len() >= COUNT
    });
    let lines = refusals(&gateway.stderr());
    let seconds: std::collections::BTreeSet<_> = lines.iter().map(|line| &line[..19]).collect();
    // A second of the clock may hold parts of two of the limit's.
    assert!(lines.len() <= seconds.len() * 10, "{} lines", lines.len());
    assert!(lines.len() < COUNT / 4, "{} lines", lines.len());
}

/// A whole exchange at trace level with a marker in each secret: none is in any log, in an answer of
/// the admin listener, or in an error.
#[test]
fn no_secret_is_shown_anywhere() {
    const PASSWORD: &str = "MARKER-password";
    const ADMIN: &str = "MARKER-admin";
    let broker = Broker::private();
    let url = broker.vhost();
    let vhost = url.rsplit_once('/').expect("a virtual host").1;
    broker.rabbitmqctl(&["add_user", "gateway", PASSWORD]);
    broker.rabbitmqctl(&["set_permissions", "-p", vhost, "gateway", ".*", ".*", ".*"]);
    let url = url.replace("guest:guest@", &format!("gateway:{PASSWORD}@"));
    assert!(url.contains(PASSWORD), "{url}");
    let mut settings = Settings::new()
        .set("log.level", "trace")
        .set("admin.token", ADMIN);
    for user in ["alice", "bob"] {
        settings.put_token(&format!("MARKER-token-{user}"), user);
    }
    let mut settings = settings.group("team", ["alice", "bob"]);
    let services = Services::start(&settings, &url);
    settings.put("embedded.tokens", Table::new());
    let gateway = Gateway::start(&remote(&settings, &services.url(), &url));
    gateway.wait_ready();
    let connect = |user: &str| Client::connect_by_query(&gateway, &format!("MARKER-token-{user}"));
    let (mut alice, mut bob) = (connect("alice"), connect("bob"));
    let id = alice.send_message("bob", "MARKER-content");
    bob.expect_message(&id);
    let id = alice.send_group_message("team", "MARKER-content");
    bob.expect_message(&id);
    alice.request("get_history", json!({ "user_id": "bob" }));
    alice.request("refresh_token", json!({ "token": "MARKER-token-alice" }));
    alice.expect_error(
        "refresh_token",
        json!({ "token": "MARKER-unknown" }),
        "UNAUTHENTICATED",
    );
    alice.expect_error(
        "send_message",
        json!({ "to_user_id": 7, "content": "MARKER-content" }),
        "INVALID_MESSAGE",
    );
    alice.send_text("{\"type\": \"MARKER-content");
    alice.expect("error");
    assert!(Client::try_connect(gateway.addr, &gateway.path, "MARKER-wrong").is_err());
    let mut headers = UPGRADE.to_vec();
    headers.push(("Sec-WebSocket-Protocol", "MARKER-protocol"));
    gateway
        .raw()
        .get_with(&format!("{}?token=MARKER-query", gateway.path), &headers);
    // MARKER-offered, and the same with padding.
    for offered in ["TUFSS0VSLW9mZmVyZWQ", "TUFSS0VSLW9mZmVyZWQ="] {
        let offered = format!("im.v1, base64url.bearer.{offered}");
        let mut headers = UPGRADE.to_vec();
        headers.push(("Sec-WebSocket-Protocol", &offered));
        gateway.raw().get_with(&gateway.path, &headers);
    }
    assert_eq!(
        gateway
            .admin
            .with_token("MARKER-guess")
            .get("/metrics")
            .status,
        401
    );
    // The broker goes and comes again, which is much talked about.
    broker.kill9();
    wait_until("it is missed", || !gateway.is_ready());
    let mut shown = vec![gateway.get("/readyz").body];
    broker.restart_without_waiting();
    broker.wait_up();
    gateway.wait_ready();
    bob.request("ping", Value::Null);

    let admin = gateway.admin.with_token(ADMIN);
    for path in ["/", "/readyz", "/metrics", "/connections", "/disconnects"] {
        let page = admin.get(path);
        assert_eq!(page.status, 200, "{path}");
        shown.push(page.body);
    }
    shown.push(services.stderr());
    shown.push(gateway.stderr());
    for text in &shown {
        let is_marked = |line: &&str| line.contains("MARKER") || line.contains("TUFSS0VS");
        let found = text.lines().find(is_marked);
        assert_eq!(found, None);
    }
    assert!(
        gateway
            .stderr()
            .contains("type=send_group_message, user=alice"),
        "it was at debug level"
    );
}
