//! The clients that the chapter on the protocol shows, as processes: as they are written there, or with
//! a mistake planted.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::OnceLock;

use serde_json::Value;

use super::process::Process;
use super::{chapter, watchdog};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    JavaScript,
    Python,
}

impl Language {
    /// The client and its driver, as the chapter has them.
    pub fn code(self) -> String {
        let [client, driver] = match self {
            Self::JavaScript => ["// chat.js:", "// drive.js,"],
            Self::Python => ["# chat.py:", "# drive.py,"],
        };
        format!("{}\n{}\n", chapter::code(client), chapter::code(driver))
    }

    fn command(self, code: &str) -> Command {
        let directory = watchdog::directory("example");
        let (name, mut command) = match self {
            Self::JavaScript => ("chat.js", node()),
            Self::Python => ("chat.py", python()),
        };
        let file = directory.join(name);
        std::fs::write(&file, code).expect("a file to run");
        command.arg(file).current_dir(directory);
        command
    }
}

/// A client that runs.
pub struct Example {
    pub process: Process,
    input: ChildStdin,
    /// How many lines of its output have been looked at.
    taken: usize,
}

impl Example {
    pub fn start(language: Language, arguments: &[&str]) -> Self {
        Self::run(language, &language.code(), arguments)
    }

    /// Runs this code instead of the chapter's.
    pub fn run(language: Language, code: &str, arguments: &[&str]) -> Self {
        let mut command = language.command(code);
        command.args(arguments);
        let (process, input) = Process::start_with_input(format!("{language:?}"), &mut command);
        Self {
            process,
            input,
            taken: 0,
        }
    }

    /// Has it send a message.
    pub fn say(&mut self, to: &str, content: &str) {
        writeln!(self.input, "{to} {content}").expect("it reads");
    }

    /// What it has handed over since this was last asked.
    pub fn handed_over(&mut self) -> Vec<Value> {
        let lines = self.process.stdout_lines(self.taken);
        self.taken += lines.len();
        let frame = |line: &String| serde_json::from_str(line);
        let frames = lines.iter().map(frame).collect::<Result<_, _>>();
        frames.unwrap_or_else(|error| panic!("{error}: {lines:?}"))
    }
}

fn node() -> Command {
    static THERE: OnceLock<()> = OnceLock::new();
    let node = || {
        let mut node = Command::new("node");
        node.arg("--experimental-websocket");
        node
    };
    THERE.get_or_init(|| {
        let output = node().args(["-e", "WebSocket"]).output();
        let has_sockets = output.is_ok_and(|output| output.status.success());
        assert!(has_sockets, "`node` must be Node.js, from 20.10 on");
    });
    node()
}

/// Debian's, with what `tests/run` puts beside the binary.
fn python() -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_ws-gateway"));
    let target = binary.ancestors().nth(2).expect("the target folder");
    let packages: PathBuf = target.join("python");
    assert!(
        packages.join("websockets").exists(),
        "{} has no Python package websockets: `tests/run` puts it there",
        packages.display()
    );
    let mut command = Command::new("/usr/bin/python3");
    command.env("PYTHONPATH", packages);
    command
}
