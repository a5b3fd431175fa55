//! Starting, stopping, and being told nonsense: a clear error, and the right exit code.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use toml::Table;

use crate::chat;
use crate::support::broker::{Broker, free_port};
use crate::support::cluster::{Cluster, remote};
use crate::support::gateway::{Services, run};
use crate::support::process::Signal;
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings, wait_until, watchdog};

/// The key as it is written, the value as TOML, and what the error must say besides the key.
const WRONG: &[(&str, &str)] = &[
    ("gateway.ids", "\"g1\""),
    ("gatway.id", "\"g1\""),
    ("gateway.id", "7"),
    ("gateway.id", "\"a\\nb\""),
    ("listen.addr", "\"localhost\""),
    ("listen.path", "\"ws\""),
    ("listen.allowed_origins", "[\"*\"]"),
    ("listen.trusted_proxies", "[\"proxy\"]"),
    ("listen.handshake_timeout", "10"),
    ("listen.handshake_timeout", "\"soon\""),
    ("limits.max_connections", "0"),
    ("limits.max_connections", "-1"),
    ("limits.max_connections_per_user", "\"five\""),
    ("limits.over_limit", "\"close_newest\""),
    ("limits.max_message_size", "5"),
    ("limits.rate", "0"),
    ("limits.burst", "0"),
    ("session.ping_interval", "\"90s\""),
    ("session.idle_timeout", "\"0s\""),
    ("session.write_timeout", "\"0s\""),
    ("session.send_queue", "0"),
    ("session.send_queue", "1000000000000"),
    ("session.idle_timeout", "\"9999999999999s\""),
    ("backend.mode", "\"cloud\""),
    ("services.user", "\"localhost:50051\""),
    ("services.message", "[]"),
    ("services.timeout", "\"90s\""),
    ("services.worker_threads", "0"),
    ("broker.url", "\"http://localhost\""),
    ("broker.prefetch", "0"),
    ("broker.prefetch", "70000"),
    ("broker.heartbeat", "\"0s\""),
    ("groups.cache_ttl", "30"),
    ("presence.lease", "\"1s\""),
    ("presence.offline_grace", "\"9999999999999s\""),
    ("shutdown.drain", "\"0s\""),
    ("log.level", "\"loud\""),
    ("embedded.tokens", "[\"alice\"]"),
    ("embedded.groups", "{ team = \"alice\" }"),
];

fn check(text: &str, variables: &[(&str, &str)]) -> crate::support::gateway::Outcome {
    let file = watchdog::directory("check").join("gateway.toml");
    fs::write(&file, text).expect("a file");
    run(
        &["--config", &file.display().to_string(), "check"],
        variables,
    )
}

#[test]
fn a_wrong_key_is_named_with_its_file_and_ends_with_2() {
    for (key, value) in WRONG {
        let (table, name) = key.split_once('.').expect("table.key");
        let outcome = check(&format!("[{table}]\n{name} = {value}\n"), &[]);
        assert_eq!(outcome.code, 2, "{key} = {value}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{key} = {value}");
        let named = if *key == "gatway.id" { "gatway" } else { key };
        assert!(
            outcome.stderr.contains(named),
            "{key} = {value}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains("gateway.toml"),
            "{key} = {value}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn a_wrong_variable_is_named_and_ends_with_2() {
    for (variable, value, key) in [
        ("GATEWAY_LIMITS__RATE", "fast", "limits.rate"),
        ("GATEWAY_LIMITS__RATES", "5", "limits.rates"),
        ("GATEWAY_LIMIT__RATE", "5", "limit"),
        (
            "GATEWAY_SESSION__IDLE_TIMEOUT",
            "1 parsec",
            "session.idle_timeout",
        ),
        ("GATEWAY_LISTEN__ADDR", "nowhere", "listen.addr"),
        ("GATEWAY_SERVICES__USER", "[]", "services.user"),
    ] {
        let outcome = check("", &[(variable, value)]);
        assert_eq!(outcome.code, 2, "{variable}: {outcome:?}");
        assert!(
            outcome.stderr.contains(variable),
            "{variable}: {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains(key),
            "{variable}: {}",
            outcome.stderr
        );
    }
    assert_eq!(
        check("", &[("GATEWAY_ID", "ignored"), ("GATEWAYS__X", "ignored")]).code,
        0
    );
}

#[test]
fn nothing_starts_with_a_wrong_configuration() {
    for command in [vec!["services", "--listen", "127.0.0.1:0"], vec![]] {
        let file = watchdog::directory("wrong").join("gateway.toml");
        fs::write(&file, "[limits]\nrate = 0\n").expect("a file");
        let path = file.display().to_string();
        let arguments = [command, vec!["--config", &path]].concat();
        let outcome = run(&arguments, &[]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.stderr.contains("limits.rate"), "{outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
    let missing = run(&["--config", "/does/not/exist.toml"], &[]);
    assert_eq!(missing.code, 2, "{missing:?}");
    assert!(
        missing.stderr.contains("/does/not/exist.toml"),
        "{missing:?}"
    );
    let no_toml = check("[limits\n", &[]);
    assert_eq!(no_toml.code, 2, "{no_toml:?}");
    assert!(no_toml.stderr.contains("gateway.toml"), "{no_toml:?}");
}

#[test]
fn check_prints_what_holds_and_hides_secrets() {
    let text = "[broker]\nurl = \"amqp://me:s3cret@broker:5672/x\"\n[embedded.tokens]\nhush-token = \"alice\"\n";
    let outcome = check(
        text,
        &[
            ("GATEWAY_GATEWAY__ID", "g7"),
            ("GATEWAY_SESSION__IDLE_TIMEOUT", "2m"),
        ],
    );
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for secret in ["s3cret", "hush-token"] {
        assert!(!outcome.stdout.contains(secret), "{}", outcome.stdout);
        assert!(!outcome.stderr.contains(secret), "{}", outcome.stderr);
    }
    let printed: Table = outcome.stdout.parse().expect("TOML");
    assert_eq!(printed["gateway"]["id"].as_str(), Some("g7"));
    assert_eq!(printed["session"]["idle_timeout"].as_str(), Some("2m"));
    assert_eq!(
        printed["limits"]["rate"].as_integer(),
        Some(20),
        "defaults are printed too"
    );
    assert!(
        printed["broker"]["url"]
            .as_str()
            .expect("a URL")
            .contains("broker:5672")
    );
}

#[test]
fn an_environment_that_is_no_text_and_a_closed_output_are_no_matter() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_ws-gateway"))
        .arg("check")
        .env("GATEWAY_NO__TEXT", OsStr::from_bytes(b"\xff"))
        .current_dir(watchdog::directory("no-text"))
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn usage_is_explained_and_nonsense_ends_with_2() {
    for arguments in [
        vec!["--help"],
        vec!["services", "--help"],
        vec!["check", "--help"],
    ] {
        let outcome = run(&arguments, &[]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(outcome.stdout.contains("Usage"), "{outcome:?}");
    }
    for arguments in [
        &["--version"][..],
        &["services", "-V"],
        &["check", "--version"],
    ] {
        let outcome = run(arguments, &[]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let version = outcome.stdout.trim();
        assert!(
            version.ends_with(concat!(" ", env!("CARGO_PKG_VERSION"))),
            "{outcome:?}"
        );
        assert!(version.starts_with("ws-gateway"), "{outcome:?}");
    }
    for (arguments, naming) in [
        (vec!["sing"], "sing"),
        (vec!["--loud"], "--loud"),
        (vec!["services", "--listen", "nowhere"], "nowhere"),
        (vec!["check", "extra"], "extra"),
        (vec!["--config"], "--config"),
    ] {
        let outcome = run(&arguments, &[]);
        assert_eq!(outcome.code, 2, "{arguments:?}: {outcome:?}");
        assert!(
            outcome.stderr.contains(naming),
            "{arguments:?}: {outcome:?}"
        );
    }
}

#[test]
fn sample_tokens_are_for_loopback_alone() {
    let outcome = check("[listen]\naddr = \"0.0.0.0:0\"\n", &[]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("listen.addr"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("sample"),
        "it says why: {outcome:?}"
    );
    let own = check(
        "[listen]\naddr = \"0.0.0.0:0\"\n[embedded.tokens]\nmine = \"me\"\n",
        &[],
    );
    assert_eq!(own.code, 0, "{own:?}");
}

/// An error that names `naming`, no success, and no panic.
fn fails_to_start(settings: &Settings, naming: &str) {
    let (mut process, _) = Gateway::launch(settings, &[]);
    assert_ne!(process.exit_code(), 0, "{}", process.stderr());
    assert!(
        process.stderr().contains(naming),
        "it names {naming}: {}",
        process.stderr()
    );
    assert!(
        !process.stderr().contains("panicked"),
        "{}",
        process.stderr()
    );
    assert!(
        !process.stdout().contains("listening"),
        "{}",
        process.stdout()
    );
}

#[test]
fn a_database_that_cannot_be_written_is_named() {
    for path in ["/proc/none/chat.db", "/does/not/exist/chat.db", "/etc"] {
        fails_to_start(&chat::settings().set("embedded.database", path), path);
    }
    let file = watchdog::directory("not-sqlite").join("chat.db");
    fs::write(
        &file,
        "this is no SQLite database, however long it may be".repeat(100),
    )
    .expect("a file");
    let path = file.display().to_string();
    fails_to_start(
        &chat::settings().set("embedded.database", path.as_str()),
        &path,
    );
    let kept = fs::read_to_string(&file).expect("the file is still there");
    assert!(kept.starts_with("this is no SQLite"), "and what it held");

    let outcome = run(
        &[
            "services",
            "--listen",
            "127.0.0.1:0",
            "--broker",
            "amqp://x:x@127.0.0.1:1/x",
            "--database",
            "/proc/none/x",
        ],
        &[],
    );
    assert_ne!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("/proc/none/x"), "{outcome:?}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    fails_to_start(&chat::settings().set("listen.addr", addr.as_str()), &addr);
    let outcome = run(
        &[
            "services",
            "--listen",
            &addr,
            "--broker",
            "amqp://x:x@127.0.0.1:1/x",
            "--database",
            ":memory:",
        ],
        &[],
    );
    assert_ne!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains(&addr), "{outcome:?}");
}

#[test]
fn the_environment_overrides_the_file() {
    let variables = [
        ("GATEWAY_GATEWAY__ID", "from-the-environment"),
        ("GATEWAY_SESSION__PING_INTERVAL", "7s"),
    ];
    let (process, directory) =
        Gateway::launch(&chat::settings().set("gateway.id", "file"), &variables);
    let gateway = Gateway::listening(process, directory);
    let alice = gateway.connect("alice");
    assert_eq!(alice.hello["gateway_id"], "from-the-environment");
    assert_eq!(alice.hello["ping_interval"], 7);
}

#[test]
fn a_log_file_holds_no_token_and_no_content() {
    let directory = watchdog::directory("log");
    let file = directory.join("gateway.log");
    let settings = chat::settings()
        .set("log.file", file.display().to_string())
        .set("log.level", "trace");
    let gateway = Gateway::start(&settings);
    let mut alice = Client::connect_by_query(&gateway, &token_of("alice"));
    let mut bob = gateway.connect("bob");
    let id = alice.send_message("bob", "a-secret-in-the-content");
    bob.expect_message(&id);
    alice.send_text("not-json\u{1b}[31m\nforged=line");
    alice.expect("error");
    assert!(Client::try_connect(gateway.addr, &gateway.path, "wrong-secret-token").is_err());
    let connection = alice.connection_id().to_owned();
    assert_eq!(gateway.stop(), 0);
    let log = fs::read_to_string(&file).expect("a log file");
    for secret in [
        "alice-token",
        "bob-token",
        "wrong-secret-token",
        "a-secret-in-the-content",
        "\u{1b}",
    ] {
        assert!(!log.contains(secret), "{secret:?} in {log}");
    }
    assert!(
        !log.lines().any(|line| line.starts_with("forged=line")),
        "{log}"
    );
    assert!(
        log.contains(&connection) && log.contains("alice"),
        "who connected: {log}"
    );
}

#[test]
fn without_services_and_broker_it_starts_is_not_ready_says_so_and_heals() {
    let broker = Broker::shared().vhost();
    let services = format!("http://127.0.0.1:{}", free_port());
    let dead_broker = format!("amqp://guest:guest@127.0.0.1:{}/v", free_port());
    let settings = chat::settings().set("services.timeout", "500ms");
    let lonely = Gateway::start(&remote(&settings, &services, &dead_broker));
    let answer = lonely.get("/readyz");
    assert_eq!(answer.status, 503, "{answer:?}");
    for named in ["broker", "user", "message", "presence"] {
        assert!(
            answer.body.contains(named),
            "{named} is named: {}",
            answer.body
        );
    }
    assert_eq!(lonely.get("/healthz").status, 200);
    let refused = Client::try_connect(lonely.addr, &lonely.path, &token_of("alice"));
    assert_eq!(refused.err().expect("nobody can be asked").status, 503);
    assert_eq!(lonely.stop(), 0, "it can be stopped all the same");

    let gateway = Gateway::start(&remote(&settings, &services, &broker));
    wait_until("only the services are missing", || {
        let answer = gateway.get("/readyz");
        assert_eq!(answer.status, 503, "{answer:?}");
        answer.body.contains("broker")
    });
    let listen = services.strip_prefix("http://").expect("a URL");
    let _services = Services::start_listening(listen, &settings, &broker);
    gateway.wait_ready();
    chat::single_chat(&gateway);
}

/// The services publish to a broker that comes later what was committed before.
#[test]
fn services_start_before_their_broker() {
    let broker = Broker::private();
    let url = broker.vhost();
    broker.kill9();
    let settings = chat::settings();
    let services = Services::start(&settings, &url);
    let gateway = Gateway::start(&remote(&settings, &services.url(), &url));
    let answer = gateway.get("/readyz");
    assert!(
        answer.status == 503 && answer.body.contains("broker"),
        "{answer:?}"
    );
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let early = alice.send_message("bob", "committed while the broker is away");
    broker.restart();
    gateway.wait_ready();
    let live = alice.send_message("bob", "and one when it is there");
    // Either may be the first: one comes by catch-up, the other live.
    bob.expect_message(&early);
    bob.expect_message(&live);
}

#[test]
fn sigterm_and_sigint_end_with_0_and_a_second_one_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut gateway = Gateway::start(&chat::settings());
        let mut alice = gateway.connect("alice");
        gateway.signal(signal);
        alice.expect_close(1012);
        assert_eq!(gateway.exit_code(), 0, "{signal:?}");
    }
    let cluster = Cluster::start(&chat::settings());
    let mut alice = cluster.connect(0, "alice");
    let Cluster {
        mut gateways,
        mut services,
        ..
    } = cluster;
    gateways.remove(0).stop_with_clients(&mut [&mut alice]);
    services.signal(Signal::TERM);
    assert_eq!(services.exit_code(), 0);
    assert_eq!(
        gateways.remove(0).stop(),
        0,
        "also while the services are gone"
    );
}

/// A stopping gateway deletes its queues: what they held is unread in the Message Service.
#[test]
fn a_stopped_gateway_leaves_no_queue_and_no_user_behind() {
    let mut cluster = Cluster::start(&chat::settings());
    let amqp = cluster.amqp();
    let mut bob = cluster.connect(1, "bob");
    let mut alice = cluster.connect(0, "alice");
    bob.expect_presence("alice", "online");
    cluster
        .gateways
        .remove(0)
        .stop_with_clients(&mut [&mut alice]);
    bob.expect_presence("alice", "offline");
    assert!(amqp.exists("queue.gateway.g1.single"));
    let amqp = cluster.amqp();
    assert!(!amqp.exists("queue.gateway.g0.single"));
}

#[test]
fn a_second_gateway_with_the_same_id_says_so_and_ends() {
    let cluster = Cluster::on(
        Broker::shared(),
        &chat::settings().set("broker.heartbeat", "1s"),
        1,
    );
    let _alice = cluster.connect(0, "alice");
    let mut bob = cluster.connect(0, "bob");
    bob.expect_presence("alice", "online");
    let (mut second, _directory) = Gateway::launch(&cluster.settings("g0"), &[]);
    // It tries for three heartbeats and 5 s: a predecessor that died may still hold the queues.
    let code = second.exit_code_within(Duration::from_secs(40));
    assert_ne!(code, 0, "{}", second.stderr());
    assert!(
        second.stderr().contains("g0"),
        "it names the id: {}",
        second.stderr()
    );
    assert!(
        !second.stderr().contains("guest:guest"),
        "no password in the log: {}",
        second.stderr()
    );
    let _carol = cluster.connect(0, "carol");
    let next = bob.expect_that("carol, or somebody offline", |frame| {
        frame["type"] == "presence" && (frame["user_id"] == "carol" || frame["status"] == "offline")
    });
    assert_eq!(next["status"], "online", "the first one's users stay");
    drop((_alice, bob, _carol));
    chat::single_chat(&cluster);
}

/// A gateway that crashed is back under its id, at once.
#[test]
fn a_killed_gateway_starts_again_under_its_id() {
    let mut cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    let mut alice = cluster.connect(0, "alice");
    let id = alice.send_message("bob", "unread");
    cluster.gateways[0].kill();
    cluster.gateways[0] = Gateway::start(&cluster.settings("g0"));
    cluster.gateways[0].wait_ready();
    cluster.connect(0, "bob").expect_message(&id);
}
