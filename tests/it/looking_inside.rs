//! The chapter on looking inside: each of its commands is run as it is written there, and prints what
//! it shows, numbers and ids apart. `IT_RECORD=1` writes what they print into the chapter.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};

use crate::chat;
use crate::support::process::Signal;
use crate::support::{Client, Gateway, wait_until};

fn chapter() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/docs/looking_inside.md"
    ))
}

/// A command of the chapter and what it shows of its output.
struct Example<'t> {
    command: &'t str,
    shown: &'t str,
}

fn examples(text: &str) -> Vec<Example<'_>> {
    let blocks = text.split("```text\n$ ").skip(1);
    let example = |block| {
        let (block, _): (&str, _) = str::split_once(block, "\n```").expect("an end");
        let (command, shown) = block.split_once('\n').unwrap_or((block, ""));
        Example { command, shown }
    };
    blocks.map(example).collect()
}

/// The chapter's scene: alice and bob are connected.
struct Scene {
    gateway: Gateway,
    alice: Client,
    bob: Client,
}

impl Scene {
    fn new() -> Self {
        // No ping comes in between.
        let settings = chat::settings().set("session.idle_timeout", "2h");
        let gateway = Gateway::start(&settings.set("session.ping_interval", "1h"));
        let (alice, bob) = (gateway.connect("alice"), gateway.connect("bob"));
        Self {
            gateway,
            alice,
            bob,
        }
    }

    /// Starts `command` in a shell that knows what the chapter's reader knows.
    fn start(&self, command: &str) -> Child {
        let mut shell = Command::new("timeout");
        shell.args(["60", "sh", "-c", command]);
        shell.env("PID", self.gateway.pid().to_string());
        shell.env("ADMIN", self.gateway.admin.addr.to_string());
        shell.env("BOB", &self.bob.connection_id()[..12]);
        shell.stdin(Stdio::null()).stdout(Stdio::piped());
        shell.spawn().expect("a shell")
    }

    fn output(&mut self, command: &str) -> String {
        if command.starts_with("strace") {
            return self.traced(command);
        }
        let output = self.start(command).wait_with_output().expect("its output");
        String::from_utf8(output.stdout)
            .expect("text")
            .trim_end()
            .into()
    }

    /// What is printed of one message, until all that was sent of it has been.
    fn traced(&mut self, command: &str) -> String {
        // So that each line is here as soon as it is printed.
        let mut shell = self.start(&command.replace("grep -E", "grep --line-buffered -E"));
        let mut lines = BufReader::new(shell.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        // Strace is attached when it has printed where both readers are.
        let mut printed: Vec<String> = (0..2).map(|_| line()).collect();
        let data = json!({"to_user_id": "bob", "content": "Hello"});
        let answer = self.alice.request("send_message", data);
        let id = answer["id"].as_str().expect("an id");
        let pushes = [self.bob.expect_message(id), self.alice.expect_message(id)];
        let expected: usize = pushes.iter().chain([&answer]).map(on_the_wire).sum();
        while printed.iter().map(|line| sent(line)).sum::<usize>() < expected {
            printed.push(line());
        }
        // timeout(1) passes it on to all that it has started.
        let shell_id = i32::try_from(shell.id()).ok().and_then(Pid::from_raw);
        kill_process(shell_id.expect("a process id"), Signal::TERM).expect("it runs");
        shell.wait().expect("its end");
        self.gateway_is_free();
        printed.join("\n")
    }

    /// Nobody traces it any more.
    fn gateway_is_free(&self) {
        let status = format!("/proc/{}/status", self.gateway.pid());
        wait_until("strace lets go", || {
            let status = fs::read_to_string(&status).expect("/proc");
            status.contains("TracerPid:\t0\n")
        });
    }
}

/// How many bytes the frame has on the wire.
fn on_the_wire(frame: &Value) -> usize {
    let length = frame.to_string().len();
    length + if length < 126 { 2 } else { 4 }
}

/// How many bytes a line of strace says were sent.
fn sent(line: &str) -> usize {
    let result = line.contains("sendto").then(|| line.rsplit_once("= "));
    let result = result.flatten().and_then(|(_, result)| result.parse().ok());
    result.unwrap_or(0)
}

/// What is the same each time: the words of each line. A connection's id in a name is none, and what
/// a client has sent is masked.
fn shape(output: &str) -> BTreeSet<Vec<String>> {
    let line = |line: &str| {
        let (line, _) = line.split_once("resumed>").unwrap_or((line, ""));
        let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || "_-:<>".contains(c)));
        let word = |word: &str| match word.trim_matches(|c: char| c.is_ascii_digit() || c == '<') {
            name if name.starts_with("r-") || name.starts_with("w-") => name[..2].to_owned(),
            word if word.chars().filter(char::is_ascii_alphabetic).count() < 3 => String::new(),
            word if word.chars().all(|c| c.is_ascii_hexdigit()) => String::new(),
            word => word.to_owned(),
        };
        words.map(word).filter(|word| !word.is_empty()).collect()
    };
    output.lines().map(line).collect()
}

#[test]
fn each_command_of_the_chapter_prints_what_it_shows() {
    let text = fs::read_to_string(chapter()).expect("the chapter");
    let mut scene = Scene::new();
    let mut recorded = text.clone();
    let mut differing = Vec::new();
    let examples = examples(&text);
    assert_eq!(examples.len(), 5, "the chapter is read");
    for Example { command, shown } in examples {
        let mut output = scene.output(command);
        // Whoever holds the write side writes for the other one, too: so some are to be seen again.
        for _ in 0..10 {
            if shape(&output) == shape(shown) {
                break;
            }
            output = scene.output(command);
        }
        assert!(output.lines().count() > 1, "{command}: {output}");
        if shape(&output) != shape(shown) {
            differing.push(format!("$ {command}\nshown:\n{shown}\nprinted:\n{output}"));
        }
        let end = if shown.is_empty() { "" } else { "\n" };
        let old = format!("$ {command}{end}{shown}\n```");
        assert!(recorded.contains(&old));
        recorded = recorded.replace(&old, &format!("$ {command}\n{output}\n```"));
    }
    if std::env::var_os("IT_RECORD").is_some() {
        fs::write(chapter(), recorded).expect("the chapter");
        return;
    }
    assert!(
        differing.is_empty(),
        "IT_RECORD=1 writes the chapter anew:\n{}",
        differing.join("\n\n")
    );
}

#[test]
fn every_thread_that_runs_is_in_the_table_of_the_first_page() {
    let scene = Scene::new();
    let page = include_str!("../../src/lib.rs");
    let table = page.split("//! # The threads").nth(1).expect("the table");
    let table = table.split("//! # ").next().expect("a section");
    let named = table.split('`').skip(1).step_by(2);
    // `-group` goes with the name before it.
    let mut names: Vec<String> = Vec::new();
    for name in named {
        let head = names.last().and_then(|last| last.split('-').next());
        let full = match (name.strip_prefix('-'), head) {
            (Some(tail), Some(head)) => format!("{head}-{tail}"),
            _ => name.to_owned(),
        };
        names.push(full);
    }
    let is_named = |thread: &str| {
        names.iter().any(|name| match name.split_once('<') {
            Some((beginning, _)) => thread.starts_with(beginning),
            None => name[..name.len().min(15)] == *thread,
        })
    };
    for thread in scene.gateway.thread_names() {
        assert!(thread == "ws-gateway" || is_named(&thread), "{thread}");
    }
    assert!(!is_named("somebody"));
}
