//! `ws-gateway chat`: scripts below, people at a terminal in [`prompt`], and the rules of the protocol
//! against a gateway that plays tricks in [`rules`].

mod prompt;
mod rules;

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::Value;

use crate::chat::settings;
use crate::support::gateway::{Outcome, binary};
use crate::support::process::{Process, Signal};
use crate::support::settings::token_of;
use crate::support::{Gateway, stream, wait_until, watchdog};

/// Where the gateway announced that it listens.
fn url(gateway: &Gateway) -> String {
    let stdout = gateway.stdout();
    let line = stdout.lines().next().expect("a line");
    line.strip_prefix("listening ").expect("where").to_owned()
}

/// The client as `user`, whose token is in the environment.
fn chat(url: &str, user: &str, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(["chat", "--url", url]).args(arguments);
    if url.starts_with("wss") {
        command.arg("--ca").arg(stream::identity_authority().file());
    }
    command.env("GATEWAY_CHAT_TOKEN", token_of(user));
    command.current_dir(watchdog::directory("chat"));
    command
}

/// Whose input goes on until it is dropped.
fn start(gateway: &Gateway, user: &str, arguments: &[&str]) -> (Process, ChildStdin) {
    Process::start_with_input(user, &mut chat(&url(gateway), user, arguments))
}

fn outcome(mut process: Process) -> Outcome {
    Outcome {
        code: process.exit_code(),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

/// Runs it to its end on `input`.
fn run(mut command: Command, input: &[u8]) -> Outcome {
    let (process, mut stdin) = Process::start_with_input("ws-gateway chat", &mut command);
    // Whoever ends before has no use for it.
    let _ = stdin.write_all(input);
    drop(stdin);
    outcome(process)
}

/// What it printed: a frame per line.
fn frames(outcome: &Outcome) -> Vec<Value> {
    let frame = |line| serde_json::from_str(line).expect("a line of JSON");
    outcome.stdout.lines().map(frame).collect()
}

fn of_type(outcome: &Outcome, kind: &str) -> Vec<Value> {
    let frames = frames(outcome).into_iter();
    frames.filter(|frame| frame["type"] == kind).collect()
}

#[test]
fn two_scripts_chat() {
    let gateway = Gateway::start(&settings());
    let (bob, input) = start(&gateway, "bob", &[]);
    let sent = run(chat(&url(&gateway), "alice", &["--to", "bob"]), b"hi\n");
    assert_eq!((sent.code, sent.stderr.as_str()), (0, ""), "{sent:?}");
    let marks = of_type(&sent, "message_sent");
    let [mark] = marks.as_slice() else {
        panic!("one mark for one line: {sent:?}");
    };
    wait_until("bob has it", || bob.stdout().contains("\"hi\""));
    drop(input);
    let bob = outcome(bob);
    assert_eq!(bob.code, 0, "{bob:?}");
    let messages = of_type(&bob, "message");
    assert_eq!(messages.len(), 1, "{bob:?}");
    assert_eq!(messages[0]["id"], mark["id"]);
    assert_eq!(messages[0]["client_message_id"], mark["client_message_id"]);

    // It was acknowledged, and is not unread any more.
    let again = run(chat(&url(&gateway), "bob", &[]), b"");
    assert_eq!(again.code, 0, "{again:?}");
    assert!(of_type(&again, "message").is_empty(), "{again:?}");
}

#[test]
fn what_is_unread_is_printed_to_whoever_has_nothing_to_say() {
    let gateway = Gateway::start(&settings());
    let sent: Vec<String> = {
        let mut alice = gateway.connect("alice");
        (0..3)
            .map(|n| alice.send_message("bob", &n.to_string()))
            .collect()
    };
    let bob = run(chat(&url(&gateway), "bob", &[]), b"");
    assert_eq!(bob.code, 0, "{bob:?}");
    let ids: Vec<Value> = of_type(&bob, "message")
        .iter()
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(ids, sent);
}

/// Three times what the rate lets through at once, and commands are text.
#[test]
fn lines_arrive_in_order_each_once_however_many_there_are() {
    let gateway = Gateway::start(&settings().set("limits.rate", 200));
    let mut bob = gateway.connect("bob");
    let lines: Vec<String> = (0..120).map(|n| format!("/quit {n}")).collect();
    let command = chat(&url(&gateway), "alice", &["--to", "bob"]);
    let sent = run(command, format!("{}\n\n", lines.join("\n")).as_bytes());
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(of_type(&sent, "message_sent").len(), lines.len());
    let fence = gateway.connect("alice").send_message("bob", "fence");
    let contents = bob.messages_until(&fence);
    let contents: Vec<_> = contents
        .iter()
        .filter_map(|m| m["content"].as_str())
        .collect();
    assert_eq!(contents[..lines.len()], lines);
}

#[test]
fn a_group_is_written_to() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    // The last line has no end.
    let sent = run(chat(&url(&gateway), "alice", &["--group", "team"]), b"all");
    assert_eq!(sent.code, 0, "{sent:?}");
    let message = bob.expect("group_message");
    assert_eq!(message["content"], "all");
    assert_eq!(message["group_id"], "team");
}

#[test]
fn what_the_gateway_refuses_is_said_and_ends_with_1() {
    let gateway = Gateway::start(&settings());
    let refused = run(
        chat(&url(&gateway), "alice", &["--group", "nobody"]),
        b"a\n",
    );
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(of_type(&refused, "error")[0]["code"], "NOT_FOUND");
    for told in ["line 1", "NOT_FOUND", "1 message was not sent"] {
        assert!(refused.stderr.contains(told), "{told}: {refused:?}");
    }
}

#[test]
fn a_line_that_cannot_be_sent_costs_itself_alone() {
    let gateway = Gateway::start(&settings().set("limits.max_message_size", 1_024));
    let mut input = b"one\n\xff\xfe\n".to_vec();
    input.extend_from_slice(&[b'x'; 2_000]);
    input.extend_from_slice(b"\nfour\n");
    let sent = run(chat(&url(&gateway), "alice", &["--to", "bob"]), &input);
    assert_eq!(sent.code, 1, "{sent:?}");
    assert_eq!(of_type(&sent, "message_sent").len(), 2, "{sent:?}");
    for told in [
        "line 2 is not sent: it is not UTF-8",
        "line 3",
        "1024 bytes",
        "2 messages",
    ] {
        assert!(sent.stderr.contains(told), "{told}: {sent:?}");
    }
}

#[test]
fn a_token_that_is_refused_ends_with_3_and_is_not_shown() {
    let gateway = Gateway::start(&settings());
    let refused = run(
        chat(&url(&gateway), "mallory", &["--to", "bob", "--raw"]),
        b"a\n",
    );
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("401"), "{refused:?}");
    for text in [&refused.stdout, &refused.stderr] {
        assert!(!text.contains(&token_of("mallory")), "{refused:?}");
    }
    assert!(!gateway.stderr().contains(&token_of("mallory")));
}

#[test]
fn a_session_that_is_revoked_ends_with_3_and_one_that_is_replaced_with_1() {
    let settings = settings().set("limits.max_connections_per_user", 1);
    let gateway = Gateway::start(&settings.set("limits.over_limit", "close_oldest"));
    for (code, told) in [(3, "4005"), (1, "4004")] {
        let (alice, _input) = start(&gateway, "alice", &["--raw"]);
        wait_until("alice is there", || {
            alice.stdout().contains("offline_complete")
        });
        let mut successor = None;
        if code == 3 {
            let headers = [("X-Gateway-Admin", "1")];
            gateway
                .admin
                .ask("POST", "/users/alice/disconnect", &headers);
        } else {
            successor = Some(gateway.connect("alice"));
        }
        let ended = outcome(alice);
        assert_eq!(ended.code, code, "{ended:?}");
        assert!(ended.stderr.contains(told), "{ended:?}");
        drop(successor);
    }
}

#[test]
fn nobody_there_is_1_and_says_what_to_do() {
    let command = chat("ws://127.0.0.1:1/ws", "alice", &["--to", "bob"]);
    let ended = run(command, b"a\n");
    assert_eq!(ended.code, 1, "{ended:?}");
    for told in ["127.0.0.1:1", "start the gateway", "--url"] {
        assert!(ended.stderr.contains(told), "{told}: {ended:?}");
    }
    let gateway = Gateway::start(&settings());
    let elsewhere = format!("{}/elsewhere", url(&gateway));
    let ended = run(chat(&elsewhere, "alice", &[]), b"");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("404"), "{ended:?}");
}

#[test]
fn wrong_usage_is_2_and_names_the_option() {
    let gateway = Gateway::start(&settings());
    let url = url(&gateway);
    let without_token = {
        let mut command = chat(&url, "alice", &[]);
        command.env_remove("GATEWAY_CHAT_TOKEN");
        command
    };
    for (command, named) in [
        (chat("http://127.0.0.1/", "alice", &[]), "--url"),
        (chat("ws://host/ws?token=s3cret", "alice", &[]), "--url"),
        (
            chat(&url, "alice", &["--to", "bob", "--group", "team"]),
            "--group",
        ),
        (chat(&url, "alice", &["--to", ""]), "--to"),
        (chat(&url, "alice", &["--token", "a\nb"]), "--token"),
        (chat("ws://host/ws", "alice", &["--ca", "/none"]), "--ca"),
        (chat(&url, "alice", &[]), "--to USER"),
        (without_token, "--token"),
    ] {
        let ended = run(command, b"a\n");
        assert_eq!(ended.code, 2, "{named}: {ended:?}");
        assert!(ended.stderr.contains(named), "{named}: {ended:?}");
        assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
    }
}

#[test]
fn raw_shows_every_frame_in_both_directions() {
    let gateway = Gateway::start(&settings());
    let sent = run(
        chat(&url(&gateway), "alice", &["--to", "bob", "--raw"]),
        b"a\n",
    );
    assert_eq!(sent.code, 0, "{sent:?}");
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for line in sent.stdout.lines() {
        let (way, json) = line.split_at(2);
        let frame: Value = serde_json::from_str(json).expect("JSON");
        let kind = frame["type"].as_str().expect("a type").to_owned();
        match way {
            "< " => came.push(kind),
            "> " => went.push(kind),
            other => panic!("{other:?} in {line}"),
        }
    }
    assert_eq!(came[0], "connected");
    for kind in ["offline_complete", "message_sent"] {
        assert!(came.contains(&kind.into()), "{kind}: {sent:?}");
    }
    assert_eq!(went, ["send_message"], "{sent:?}");
}

#[test]
fn a_line_that_is_typed_while_the_gateway_restarts_arrives_once() {
    let directory = watchdog::directory("restart");
    let database = directory.join("chat.db").display().to_string();
    let settings = settings().set("embedded.database", database);
    let first = Gateway::start(&settings);
    let addr = first.addr;
    let (alice, mut input) = start(&first, "alice", &["--to", "bob"]);
    writeln!(input, "before").expect("it reads");
    wait_until("it is sent", || alice.stdout().contains("message_sent"));
    assert_eq!(first.stop(), 0);
    writeln!(input, "meanwhile").expect("it reads");
    alice.stderr_line("closed with 1012, the gateway is shutting down; again in");
    let second = Gateway::start_at(addr, &settings);
    writeln!(input, "after").expect("it reads");
    drop(input);
    let alice = outcome(alice);
    assert_eq!(alice.code, 0, "{alice:?}");
    assert!(alice.stderr.contains("connected again"), "{alice:?}");
    let bob = run(chat(&url(&second), "bob", &[]), b"");
    let messages = of_type(&bob, "message");
    let contents: Vec<_> = messages.iter().map(|m| &m["content"]).collect();
    assert_eq!(contents, ["before", "meanwhile", "after"], "{bob:?}");
}

#[test]
fn nothing_that_others_write_reaches_a_terminal_unescaped() {
    let gateway = Gateway::start(&settings());
    let hostile = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\r\nforged";
    gateway.connect("alice").send_message("bob", hostile);
    let bob = run(chat(&url(&gateway), "bob", &[]), b"");
    let messages = of_type(&bob, "message");
    assert_eq!(messages[0]["content"], hostile, "it means the same");
    let is_obeyed = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!bob.stdout.contains(is_obeyed), "{:?}", bob.stdout);
    assert!(bob.stdout.lines().all(|line| line.starts_with('{')));
}

#[test]
fn whoever_closes_standard_output_is_not_written_to() {
    let gateway = Gateway::start(&settings());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = chat(&url(&gateway), "alice", &["--to", "bob"]);
    command
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    watchdog::kill_at_end(child.id());
    let mut stdin = child.stdin.take().expect("piped");
    // Without an end, as `yes` has none.
    while stdin.write_all(b"y\n").is_ok() {}
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("standard output is closed"), "{told}");
}

#[test]
fn a_signal_ends_it_with_128_and_its_number() {
    let gateway = Gateway::start(&settings());
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let (alice, _input) = start(&gateway, "alice", &["--raw"]);
        wait_until("alice is there", || alice.stdout().contains("connected"));
        alice.signal(signal);
        let ended = outcome(alice);
        assert_eq!(ended.code, code, "{ended:?}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn over_tls_only_who_is_trusted_is_told_the_token() {
    let gateway = Gateway::start(&settings().tls());
    let url = url(&gateway);
    assert!(url.starts_with("wss://"), "{url}");
    let mut bob = gateway.connect("bob");
    // More than a record holds.
    let long = "x".repeat(40_000);
    let sent = run(chat(&url, "alice", &["--to", "bob"]), long.as_bytes());
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(bob.expect("message")["content"], long.as_str());

    let stranger = crate::support::certificates::Authority::new("nobody's");
    let mut command = binary();
    command.args(["chat", "--url", &url, "--token", &token_of("alice"), "--ca"]);
    let refused = run(
        {
            command.arg(stranger.file());
            command
        },
        b"",
    );
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("self-signed, or by an authority"),
        "{refused:?}"
    );
    let clear = url.replacen("wss", "ws", 1);
    let refused = run(chat(&clear, "alice", &["--to", "bob"]), b"");
    assert_eq!(refused.code, 1, "{refused:?}");
}
