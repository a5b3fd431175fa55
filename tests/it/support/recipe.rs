//! What `ws-gateway recipe` prints, changed as its comments say, and read by the tool that it is for.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::gateway::run;
use super::watchdog;

/// What the binary prints.
pub fn recipe(name: &str) -> String {
    let outcome = run(&["recipe", name], &[]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{name}");
    outcome.stdout + "\n"
}

/// The recipe with what has to be replaced replaced, each of it found there.
pub fn replaced(name: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = recipe(name);
    for (from, to) in replacements {
        assert!(text.contains(from), "{name} holds no {from}");
        text = text.replace(from, to);
    }
    text
}

/// Writes it into a directory of its own.
pub fn written(name: &str, text: &str) -> PathBuf {
    let file = watchdog::directory("recipe").join(name);
    fs::write(&file, text).expect("a file");
    file
}

/// Runs a tool, which must find nothing wrong; returns all that it printed.
pub fn approves(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}: `tests/run` installs what is missing")
    });
    let said = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {said}");
    said.into_owned()
}
