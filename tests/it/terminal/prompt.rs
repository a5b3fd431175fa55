//! At a terminal, with a screen that is looked at.

use super::{chat, url};
use crate::chat::settings;
use crate::support::process::Signal;
use crate::support::terminal::Terminal;
use crate::support::{Gateway, wait_until};

/// Alice's, with this at the end of its command line, connected.
fn alice(gateway: &Gateway, arguments: &[&str]) -> Terminal {
    let terminal = Terminal::start(&chat(&url(gateway), "alice", arguments));
    terminal.shows("connected to");
    terminal
}

#[test]
fn messages_come_above_the_prompt_and_a_half_typed_line_stays() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    let mut alice = alice(&gateway, &["--to", "bob"]);
    alice.prompts("bob> ");
    alice.press("half a li");
    alice.prompts("bob> half a li");
    bob.send_message("alice", "hello there");
    let line = alice.shows("hello there");
    let (clock, rest) = line.split_at(5);
    assert!(clock.chars().nth(2) == Some(':'), "{line}");
    assert_eq!(rest, " bob: hello there");
    alice.prompts("bob> half a li");
    alice.press("ne\r");
    assert_eq!(
        bob.expect_that("it", |m| m["content"] == "half a line")["to_user_id"],
        "bob"
    );
    alice.shows("sent to bob");
    alice.prompts("bob> ");
    let screen = alice.screen();
    assert_eq!(
        screen.matches("half a line").count(),
        1,
        "no copy of it: {screen}"
    );

    alice.press("\u{4}");
    assert_eq!(alice.exit_code(), 0);
    assert!(alice.is_as_found());
}

#[test]
fn commands_do_what_help_says() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    bob.send_message("alice", "from before");
    let mut alice = alice(&gateway, &[]);
    alice.shows("1 message was unread");
    alice.shows("bob is online");
    alice.press("nobody yet\r");
    alice.shows("to whom?");
    alice.press("/who\r/to bob\r");
    alice.prompts("bob> ");
    alice.press("//slash\r");
    bob.expect_that("it", |m| m["content"] == "/slash");
    alice.press("/group team\r");
    alice.prompts("#team> ");
    alice.press("all\r");
    assert_eq!(bob.expect("group_message")["content"], "all");
    alice.press("/to bob\r/history 2\r");
    alice.shows("alice to bob: /slash");
    alice.shows("so far");
    alice.press("/history 0\r");
    alice.shows("/history: a number from 1 to 100");
    alice.press("/nonsense\r");
    alice.shows("there is no /nonsense");
    alice.press("/raw\rraw\r");
    alice.shows("> {\"type\":\"send_message\"");
    alice.press("/raw\r");
    alice.shows("shows no frames");
    alice.press("/help\r");
    for line in [
        "/to USER",
        "/group GROUP",
        "/history [N]",
        "/who",
        "/raw",
        "/quit",
        "//text",
    ] {
        alice.shows(line);
    }
    alice.press("/quit\r");
    assert_eq!(alice.exit_code(), 0);
}

/// The one before, to be sent again.
#[test]
fn lines_are_edited_and_remembered() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    let mut alice = alice(&gateway, &["--to", "bob"]);
    alice.press("first\r");
    alice.shows("sent to bob");
    // Up, to its beginning, and two letters deleted.
    alice.press("\u{1b}[A\u{1}\u{4}\u{4}\r");
    bob.expect_that("it", |m| m["content"] == "rst");
    // Pasted: the lines are one message.
    alice.press("\u{1b}[200~one\rtwo\u{1b}[201~\r");
    bob.expect_that("it", |m| m["content"] == "one\ntwo");
    alice.press("\u{3}");
    assert_eq!(alice.exit_code(), 0);
}

#[test]
fn what_others_write_moves_nothing_on_the_screen() {
    let gateway = Gateway::start(&settings());
    let mut alice = alice(&gateway, &["--to", "bob", "--raw"]);
    alice.press("typed");
    let hostile = "\u{1b}]0;title\u{7}\u{1b}[2J\u{1b}[1;1Hevil\u{9b}2J\r\nnext\u{8}";
    gateway.connect("bob").send_message("alice", hostile);
    alice.shows("\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{1b}[1;1Hevil\\u{9b}2J");
    alice.shows("      next\\u{8}");
    alice.shows("connected to");
    alice.prompts("bob> typed");
    let bytes = alice.bytes();
    for obeyed in ["\u{1b}]0;", "\u{1b}[2J", "\u{1b}[1;1H", "\u{9b}", "\u{7}"] {
        assert!(!bytes.contains(obeyed), "{obeyed:?} in {bytes:?}");
    }
}

#[test]
fn a_terminal_that_is_resized_is_drawn_anew() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    let mut alice = alice(&gateway, &["--to", "bob"]);
    let long = "0123456789".repeat(6);
    alice.press(&long);
    alice.prompts(&format!("bob> {long}"));
    alice.resize(24, 40);
    alice.press("!");
    alice.shows("56789!");
    bob.send_message("alice", "after");
    alice.shows("bob: after");
    alice.press("\r");
    let content = format!("{long}!");
    bob.expect_that("it", |m| m["content"] == content.as_str());
}

#[test]
fn colours_are_for_who_wants_them() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    for (no_color, is_coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let mut command = chat(&url(&gateway), "alice", &[]);
        no_color.map(|value| command.env("NO_COLOR", value));
        let alice = Terminal::start(&command);
        alice.shows("connected to");
        bob.send_message("alice", "colour");
        alice.shows("colour");
        let bytes = alice.bytes();
        let bold = bytes.contains("\u{1b}[1m");
        assert_eq!(bold, is_coloured, "NO_COLOR={no_color:?}: {bytes:?}");
    }
}

#[test]
fn a_dumb_terminal_has_lines_and_no_escape_sequence() {
    let gateway = Gateway::start(&settings());
    let mut bob = gateway.connect("bob");
    let mut command = chat(&url(&gateway), "alice", &["--to", "bob"]);
    let mut alice = Terminal::start(command.env("TERM", "dumb"));
    alice.press("plain\n");
    bob.expect_that("it", |m| m["content"] == "plain");
    alice.shows("message_sent");
    alice.press("\u{4}");
    assert_eq!(alice.exit_code(), 0);
    assert!(!alice.bytes().contains('\u{1b}'), "{}", alice.bytes());
}

#[test]
fn whoever_is_disconnected_has_their_terminal_back() {
    let gateway = Gateway::start(&settings());
    let mut alice = alice(&gateway, &["--to", "bob"]);
    alice.press("half a line");
    alice.prompts("bob> half a line");
    assert!(!alice.is_as_found(), "the line editor has it");
    let headers = [("X-Gateway-Admin", "1")];
    gateway
        .admin
        .ask("POST", "/users/alice/disconnect", &headers);
    assert_eq!(alice.exit_code(), 3);
    alice.shows("closed with 4005, disconnected by an operator");
    assert!(alice.is_as_found());
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let gateway = Gateway::start(&settings());
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut alice = alice(&gateway, &["--to", "bob"]);
        alice.prompts("bob> ");
        alice.signal(signal);
        assert_eq!(alice.exit_code(), code);
        assert!(alice.is_as_found());
    }
}

#[test]
fn people_wait_for_a_gateway_that_restarts_and_lose_no_line() {
    let gateway = Gateway::start(&settings());
    let addr = gateway.addr;
    let mut alice = alice(&gateway, &["--to", "bob"]);
    assert_eq!(gateway.stop(), 0);
    alice.shows("closed with 1012");
    alice.press("meanwhile\r");
    alice.shows("not connected: it is sent once you are");
    let gateway = Gateway::start_at(addr, &settings());
    let mut bob = gateway.connect_cold("bob");
    bob.expect_that("it", |m| m["content"] == "meanwhile");
    alice.shows("connected again");
    alice.shows("sent to bob");
    alice.press("/quit\r");
    assert_eq!(alice.exit_code(), 0);

    let mut alice = Terminal::start(&chat(&url(&gateway), "alice", &["--to", "bob"]));
    alice.shows("connected to");
    gateway.stop_with_clients(&mut [&mut bob]);
    wait_until("it is lost", || alice.screen().contains("closed with 1012"));
    alice.press("never\r\u{4}");
    assert_eq!(alice.exit_code(), 1, "one line is left");
    alice.shows("1 message was not sent");
}
