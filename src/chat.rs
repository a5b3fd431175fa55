//! `ws-gateway chat`, an edge: a client of the gateway's own protocol, for people at a terminal and for
//! scripts. It keeps the rules of src/docs/protocol.md: reconnect as the Close frame says,
//! acknowledge what was shown, drop what was there before, send again under the same
//! `client_message_id` what was not answered.
//!
//! The caller's thread owns the connection ([`session`]): it polls the [`socket`], standard input
//! where that is a pipe ([`pipe`]), and a [`mailbox`] for what the other threads say. At a terminal,
//! `chat-input` edits lines ([`keyboard`]); `chat-connect` looks up names and connects
//! ([`connect`]), since both may hang.

mod close;
mod command;
mod connect;
mod drafts;
mod escape;
mod frames;
mod inbox;
mod keyboard;
mod liveness;
mod mailbox;
mod pipe;
mod screen;
mod server;
mod session;
mod socket;

use std::ffi::c_int;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::{env, fmt};

use self::command::Target;
use self::connect::Dialer;
use self::keyboard::Keyboard;
use self::mailbox::Mailbox;
use self::pipe::Pipe;
use self::screen::Screen;
use self::server::Server;
use self::session::{Input, Session};
use crate::ids::is_id;

/// Where a gateway listens that runs as it is shipped.
const DEFAULT_URL: &str = "ws://127.0.0.1:8080/ws";
/// A user there.
const SAMPLE_TOKEN: &str = "alice-token";
const TOKEN_VARIABLE: &str = "GATEWAY_CHAT_TOKEN";

/// Could not connect, or something was not sent.
const EXIT_FAILURE: c_int = 1;
const EXIT_USAGE: c_int = 2;
/// The token is not, or no longer, good for anything.
const EXIT_TOKEN: c_int = 3;
/// To be added to the number of the signal that ended it, as shells do.
const EXIT_SIGNAL: c_int = 128;

const AFTER_HELP: &str = "\
At a terminal, each line is a message; /help names the commands, and a line that starts with // sends \
one that starts with /.

In a pipe (standard input or output is no terminal), each line of standard input is a message, whatever \
it starts with. They are sent one by one, each once the one before was answered, and again if the \
connection is lost meanwhile, for up to 30 s; it ends when all are answered. Standard output has a JSON object per line, \
as the gateway sends them: message_sent for each line, or error, and what comes meanwhile, which is then \
acknowledged: message, group_message, presence. Control characters are written as \\u001b. With --raw it \
has every frame instead, behind > what was sent and behind < what came. Notices are on standard error.

Exit codes: 0, all was sent; 1, it could not connect, or something was refused or not sent; 2, wrong \
usage; 3, the token was refused (401), is over (4003) or was revoked (4005); 128 + N, ended by signal N.

Lines are edited at a terminal unless TERM is dumb; NO_COLOR keeps colours away.";

#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Where the gateway is [default: ws://127.0.0.1:8080/ws].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Who you are [default: $GATEWAY_CHAT_TOKEN; else, with the default URL, alice-token]. Everybody
    /// on this machine sees a command line, with ps: give a real token in the variable.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Whom you write to.
    #[arg(long, value_name = "USER", conflicts_with = "group")]
    to: Option<String>,
    /// Which group you write to.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Prints every frame, in both directions.
    #[arg(long)]
    raw: bool,
    /// Whom wss:// is to trust: a PEM file [default: the system's authorities].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Why it ends with something other than success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit_code: c_int,
    pub reason: String,
}

impl Failure {
    fn usage(reason: impl fmt::Display) -> Self {
        Self::new(EXIT_USAGE, reason)
    }

    fn new(exit_code: c_int, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self { exit_code, reason }
    }
}

/// Chats until there is nothing more to send, or until it is told to end.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let server = Server::parse(arguments.url.as_deref().unwrap_or(DEFAULT_URL));
    let server = server.map_err(|reason| Failure::usage(format!("--url: {reason}")))?;
    let token = token(&arguments)?;
    let target = target(&arguments)?;
    let dialer = Dialer::new(server, &token, arguments.ca.as_deref()).map_err(Failure::usage)?;
    let mailbox = Mailbox::new();
    let mailbox = mailbox.map_err(|error| Failure::new(EXIT_FAILURE, error))?;
    if is_interactive() {
        let started = Keyboard::start(target, mailbox.sender());
        let (keyboard, printer) = started.map_err(|reason| Failure::new(EXIT_FAILURE, reason))?;
        let screen = Screen::terminal(printer, arguments.raw);
        Session::new(dialer, mailbox, Input::Keyboard(keyboard), screen).run()
    } else {
        let input = Input::Pipe(Pipe::new(target));
        let screen = Screen::pipe(arguments.raw);
        Session::new(dialer, mailbox, input, screen).run()
    }
}

/// Whether somebody is there who edits lines.
fn is_interactive() -> bool {
    let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

/// Whose name is `USER` or `GROUP`.
fn target(arguments: &Arguments) -> Result<Option<Target>, Failure> {
    let (option, target) = match (&arguments.to, &arguments.group) {
        (Some(user), _) => ("--to", Target::User(user.clone())),
        (None, Some(group)) => ("--group", Target::Group(group.clone())),
        (None, None) => return Ok(None),
    };
    match is_id(target.id()) {
        true => Ok(Some(target)),
        false => Err(Failure::usage(format!(
            "{option}: {}",
            crate::ids::InvalidId
        ))),
    }
}

fn token(arguments: &Arguments) -> Result<String, Failure> {
    if let Some(token) = &arguments.token {
        return Ok(token.clone());
    }
    match env::var(TOKEN_VARIABLE) {
        Ok(token) if !token.is_empty() => Ok(token),
        Err(env::VarError::NotUnicode(_)) => {
            Err(Failure::usage(format!("{TOKEN_VARIABLE}: is not UTF-8")))
        }
        _ if arguments.url.is_none() => Ok(SAMPLE_TOKEN.into()),
        _ => Err(Failure::usage(format!(
            "--token: is needed with --url, or {TOKEN_VARIABLE} in the environment"
        ))),
    }
}
