//! The chapter on looking inside a running gateway: what it shows is what the tools say now.
//!
//! `IT_RECORD=1 tests/run --test it looking_inside` writes what they say into the chapter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::chat::settings;
use crate::support::process::Process;
use crate::support::wait::{DEADLINE, wait_for};
use crate::support::{Client, Gateway, wait_until};

fn chapter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs/looking_inside.md")
}

/// The lines of a block, which stands behind `<!-- name -->`: the command, and what it says.
fn block(text: &str, name: &str) -> (String, Vec<String>) {
    let start = format!("<!-- {name} -->\n```text\n");
    let rest = text
        .split_once(&start)
        .unwrap_or_else(|| panic!("no block {name}"))
        .1;
    let inner = rest.split_once("\n```").expect("its end").0;
    let mut lines = inner.lines();
    let command = lines.next().expect("a command").strip_prefix("$ ");
    (
        command.expect("a prompt").to_owned(),
        lines.map(str::to_owned).collect(),
    )
}

/// What of a line is the same tomorrow: numbers, addresses, names of connections and what is quoted
/// are not.
fn kind(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        let mut kind = String::new();
        let mut rest = word;
        if let Some(side) = ["r-", "w-"].into_iter().find(|side| word.starts_with(side)) {
            (kind, rest) = (side.into(), "");
        }
        let mut chars = rest.chars().peekable();
        while let Some(c) = chars.next() {
            if c.is_ascii_digit() {
                kind.push('#');
                while chars
                    .next_if(|c| c.is_ascii_hexdigit() || *c == 'x')
                    .is_some()
                {}
            } else {
                kind.push(c);
            }
        }
        words.push(kind);
    }
    words.join(" ")
}

fn kinds<'l>(lines: impl IntoIterator<Item = &'l String>) -> BTreeSet<String> {
    lines.into_iter().map(|line| kind(line)).collect()
}

/// Holds what the chapter shows under `name` against what `look` finds, which may need a second look:
/// a thread may be at work just then. Or records it.
fn hold(name: &str, variables: &[(&str, &str)]) {
    let text = fs::read_to_string(chapter()).expect("the chapter");
    let (command, shown) = block(&text, name);
    if env::var_os("IT_RECORD").is_some() {
        let found = said(&command, variables);
        let (old, new) = [&shown, &found].map(|lines| lines.join("\n")).into();
        let command = format!("$ {command}\n");
        let text = text.replacen(&format!("{command}{old}"), &format!("{command}{new}"), 1);
        return fs::write(chapter(), text).expect("the chapter");
    }
    assert!(!shown.is_empty(), "{name} shows something");
    let mut missing = Vec::new();
    let look = || {
        let found = kinds(&said(&command, variables));
        missing = kinds(&shown).difference(&found).cloned().collect();
        missing.is_empty().then_some(())
    };
    // Said once, when it is too late.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(
            DEADLINE,
            format!("{command} says what the chapter shows"),
            look,
        )
    }));
    assert!(outcome.is_ok(), "{name}: missing: {missing:#?}");
}

/// Runs a command of the chapter, as a shell does.
fn said(command: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).envs(variables.iter().copied());
    let output = shell.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A gateway with two users, who are here from now on.
fn with_two_users() -> (Gateway, Client, Client) {
    // No ping comes in between.
    let settings = settings()
        .set("log.level", "warn")
        .set("session.idle_timeout", "2h");
    let settings = settings.set("session.ping_interval", "1h");
    let gateway = Gateway::start(&settings);
    let (alice, bob) = (gateway.connect("alice"), gateway.connect("bob"));
    (gateway, alice, bob)
}

/// The thread of this gateway whose name begins with `prefix`.
fn thread(gateway: &Gateway, prefix: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("/proc");
    let is_it = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(prefix))
    };
    let task = tasks.filter_map(|task| Some(task.ok()?.path())).find(is_it);
    let task = task.unwrap_or_else(|| panic!("no thread {prefix}"));
    task.file_name()
        .expect("a number")
        .to_string_lossy()
        .into_owned()
}

#[test]
fn top_proc_and_gdb_say_what_the_chapter_shows() {
    let (gateway, alice, _bob) = with_two_users();
    let pid = gateway.pid().to_string();
    let reader = format!("r-{}", &alice.connection_id()[..12]);
    let variables = [("PID", pid.as_str()), ("READER", reader.as_str())];
    for name in ["top", "proc", "gdb"] {
        hold(name, &variables);
    }
    // What the table of threads in lib.rs has to say of an embedded gateway is all there.
    let text = fs::read_to_string(chapter()).expect("the chapter");
    let shown = kinds(&block(&text, "proc").1);
    let shown: BTreeSet<&str> = shown
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for name in gateway.thread_names() {
        let name = kind(&name);
        // One for each further core; and of each check of this test's one.
        let varies = name.starts_with("fan-out") || name.starts_with("admin-request");
        assert!(
            varies || shown.contains(name.as_str()),
            "the chapter has no {name}"
        );
    }
}

/// One message, delivered: the consumer writes it, and neither thread of the recipient wakes.
#[test]
fn strace_says_what_the_chapter_shows() {
    let (gateway, mut alice, mut bob) = with_two_users();
    let bobs = &bob.connection_id()[..12].to_owned();
    let [consumer, reader, writer] = [
        "consume-single".to_owned(),
        format!("r-{bobs}"),
        format!("w-{bobs}"),
    ]
    .map(|name| thread(&gateway, &name));
    let text = fs::read_to_string(chapter()).expect("the chapter");
    let (command, shown) = block(&text, "strace");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec {command}"));
    shell.envs([
        ("CONSUMER", &consumer),
        ("READER", &reader),
        ("WRITER", &writer),
    ]);
    let strace = Process::start("strace", &mut shell);
    for thread in [&consumer, &reader, &writer] {
        strace.stderr_line(&format!("strace: Process {thread} attached"));
    }
    // Whatever the first one gives rise to is over once the second is written.
    for content in ["Hello", "again"] {
        let id = alice.send_message("bob", content);
        bob.expect_message(&id);
        alice.expect_message(&id);
    }
    // To the socket from which the reader waits to read; a line is whole once another call follows.
    let to_bob = |text: &str| {
        let reads = format!("[pid {reader:>5}] recvfrom(");
        let (_, bobs) = text.split_once(&reads)?;
        let (bobs, _) = bobs.split_once(',')?;
        Some(format!("[pid {consumer:>5}] sendto({bobs},"))
    };
    wait_until("the second is written", || {
        let text = strace.stderr();
        to_bob(&text).is_some_and(|to_bob| text.matches(&to_bob).count() >= 2)
    });
    let text = strace.stderr();
    let to_bob = to_bob(&text).expect("the reader reads");
    let calls = text.lines().skip_while(|line| line.starts_with("strace: "));
    let mut calls: Vec<String> = calls.map(|line| line.trim_end().to_owned()).collect();
    let first = calls.iter().position(|line| line.starts_with(&to_bob));
    let first = first.expect("a call");
    // It waits, unless the second comes at once.
    let behind = &calls[first + 1..];
    let is_over = |line: &String| line.contains("FUTEX_WAIT") || line.starts_with(&to_bob);
    let end = behind.iter().position(is_over).expect("the second");
    let end = if behind[end].starts_with(&to_bob) {
        end
    } else {
        end + 1
    };
    calls.truncate(first + 1 + end);
    let woken = |line: &&String| {
        line.starts_with(&format!("[pid {reader:>5}] <..."))
            || line.starts_with(&format!("[pid {writer:>5}]")) && line.ends_with("= 0")
    };
    let woken: Vec<_> = calls.iter().filter(woken).collect();
    assert!(
        woken.is_empty(),
        "bob's threads sleep on: {woken:?} of {calls:#?}"
    );
    // A lock of the queue from which it takes may be contended before, or wake nobody.
    let wakes = |line: &&String| line.contains("FUTEX_WAKE") && line.ends_with("= 1");
    assert_eq!(calls[first..].iter().filter(wakes).count(), 0, "{calls:#?}");
    let sends = calls
        .iter()
        .filter(|line| line.starts_with(&to_bob))
        .count();
    assert_eq!(sends, 1, "{calls:#?}");
    if env::var_os("IT_RECORD").is_some() {
        let chapter_text = fs::read_to_string(chapter()).expect("the chapter");
        let (old, new) = (shown.join("\n"), calls.join("\n"));
        let command = format!("$ {command}\n");
        let new = chapter_text.replacen(&format!("{command}{old}"), &format!("{command}{new}"), 1);
        return fs::write(chapter(), new).expect("the chapter");
    }
    // How long a call took to be resumed is told in its line; which call it was, is its kind.
    let call = |line: &String| {
        let call = line
            .split_once("] ")
            .map_or(line.as_str(), |(_, call)| call);
        let call = call.strip_prefix("<... ").unwrap_or(call);
        call.split(['(', ' ']).next().unwrap_or_default().to_owned()
    };
    let (shown, found): (BTreeSet<_>, BTreeSet<_>) = (
        shown.iter().map(call).collect(),
        calls.iter().map(call).collect(),
    );
    assert!(shown.is_subset(&found), "{shown:?} in {calls:#?}");
}
