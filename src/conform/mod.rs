//! `ws-gateway conform`: a kit for those who write clients. It plays a gateway that follows a script of
//! the protocol's hard parts against whatever client connects, and says of each rule whether the client
//! kept it. The rules are those of the chapter on the [client protocol](crate::docs::protocol).
//!
//! The client is in its *test mode*: each message that it hands over to its user goes back to the sender
//! as a new message with the same content. So what a client makes of what it gets can be seen from here.
//!
//! One thread, one connection at a time: a script is read from top to bottom, and so is
//! [this one](script).

mod door;
mod kit;
mod peer;
mod report;
mod returns;
mod rules;
mod script;

use std::io::{self, Write};
use std::net::TcpListener;

use self::kit::Kit;
use self::report::Report;
use self::rules::{RULES, Rule};

/// For whoever asks how it is used.
pub const HELP: &str = "\
The client under test connects to the address that is printed, in its test mode: each message that it \
hands over to its user it sends back to the sender, as a new message with the same content. It may use any \
token, and has another one for when it is asked for a new one. It is to be started again when the kit \
prints `start the client again`. For each rule the kit prints `kept`, `broken` with what was expected, what \
was seen and the cure, or `not seen`. Exit code 0: all were kept; 1: a rule was broken or not seen; 2: wrong \
usage. The rules are those of the chapter on the client protocol, src/docs/protocol.md, with two clients \
that keep them.";

/// How to begin, for whoever reads what the kit prints.
const INTRODUCTION: &str = "\
Point your client there, in its test mode (each message that it hands over goes back to its sender), with
any token, and with other ones for when it is asked for a new one. When asked to, start it again.
";

/// Plays the script against the clients that come to `listener`, and writes what it sees to `out`. Answers
/// whether every rule was kept.
pub fn run(listener: TcpListener, out: impl Write + 'static) -> io::Result<bool> {
    let mut report = Report::new(Box::new(out) as Box<dyn Write>);
    report.line(format_args!("listening ws://{}/ws", listener.local_addr()?));
    report.line(INTRODUCTION.trim_end());
    let mut kit = Kit::new(listener, report);
    for rule in &RULES {
        let verdict = (rule.play)(&mut kit);
        kit.report
            .verdict(rule.name, rule.must, rule.cure, &verdict);
    }
    Ok(kit.report.summary())
}

/// The rules, a line each.
pub fn list() -> String {
    let line = |rule: &Rule| format!("{:16}{}\n", rule.name, rule.must);
    RULES.iter().map(line).collect()
}
