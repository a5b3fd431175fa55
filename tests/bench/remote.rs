//! A process of the benchmark's own, this very binary started again, that takes commands over a
//! socket: a line for each, answered by a line of JSON.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use serde_json::Value;

use crate::support::process::Process;

/// This very binary, also after cargo has built another one in its place.
pub const SELF: &str = "/proc/self/exe";

/// The benchmark's end. Dropped, it kills the process.
pub struct Remote {
    pub process: Process,
    control: BufReader<TcpStream>,
}

impl Remote {
    /// Starts `bench` with `arguments`.
    pub fn start(arguments: &[&str]) -> Self {
        let mut process = Process::start(arguments[0], Command::new(SELF).args(arguments));
        let addr = process.stdout_line("listening control ");
        let control = TcpStream::connect(addr).expect("it takes commands");
        control.set_nodelay(true).expect("a socket");
        Self {
            process,
            control: BufReader::new(control),
        }
    }

    /// Sends a command, and waits for its answer.
    pub fn ask(&mut self, command: &str) -> Value {
        let mut line = String::new();
        let asked = writeln!(self.control.get_mut(), "{command}")
            .and_then(|()| self.control.read_line(&mut line));
        asked.unwrap_or_else(|error| panic!("nobody is left to take {command:?}: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {command:?}: {line:?}"))
    }
}

/// The process' end: says where it takes commands, and waits for the benchmark to connect.
pub fn control() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("an address");
    println!("listening control {addr}");
    let (control, _) = listener.accept().expect("the benchmark connects");
    control.set_nodelay(true).expect("a socket");
    control
}
