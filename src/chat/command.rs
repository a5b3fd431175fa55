//! What a line typed at the prompt means.

use crate::ids::{InvalidId, is_id};

/// How many messages `/history` shows unless it is told, and at most: the protocol's bound.
const HISTORY: u32 = 20;
const HISTORY_MOST: u32 = 100;

pub(super) const HELP: &str = "\
/to USER       write to a user
/group GROUP   write to a group
/history [N]   the last N messages with them, 20 unless you say
/who           who was seen coming and going
/raw           shows every frame, or no longer
/quit          ends, as Ctrl-D and Ctrl-C do
//text         sends /text";

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    User(String),
    Group(String),
}

impl Target {
    pub fn id(&self) -> &str {
        match self {
            Self::User(id) | Self::Group(id) => id,
        }
    }
}

/// A line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// A message to whom the prompt names.
    Text(String),
    To(Target),
    History(u32),
    Who,
    Raw,
    Help,
    Quit,
    Nothing,
}

impl Command {
    /// An error says what is wrong with the line.
    pub fn parse(line: &str) -> Result<Self, String> {
        let Some(command) = line.strip_prefix('/') else {
            let text = line.trim_end();
            return Ok(match text.trim_start() {
                "" => Self::Nothing,
                _ => Self::Text(text.into()),
            });
        };
        if command.starts_with('/') {
            return Ok(Self::Text(command.trim_end().into()));
        }
        let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
        let argument = argument.trim();
        let id = || match is_id(argument) {
            true => Ok(argument.to_owned()),
            false => Err(format!("/{name}: whom? {InvalidId}")),
        };
        match name.trim_end() {
            "to" => Ok(Self::To(Target::User(id()?))),
            "group" => Ok(Self::To(Target::Group(id()?))),
            "history" => Ok(Self::History(count(argument)?)),
            "who" => Ok(Self::Who),
            "raw" => Ok(Self::Raw),
            "help" => Ok(Self::Help),
            "quit" => Ok(Self::Quit),
            _ => Err(format!("there is no /{name}; /help names the commands")),
        }
    }
}

fn count(argument: &str) -> Result<u32, String> {
    let count = match argument {
        "" => Some(HISTORY),
        text => text.parse().ok(),
    };
    let count = count.filter(|count| (1..=HISTORY_MOST).contains(count));
    count.ok_or_else(|| format!("/history: a number from 1 to {HISTORY_MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_unless_it_begins_with_a_slash() {
        let text = |line| match Command::parse(line) {
            Ok(Command::Text(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(text("hello /to bob "), "hello /to bob");
        assert_eq!(text("  indented"), "  indented");
        assert_eq!(text("//etc/passwd"), "/etc/passwd");
        assert_eq!(text("//"), "/");
        assert_eq!(Command::parse(" \t"), Ok(Command::Nothing));
    }

    #[test]
    fn commands_are_understood() {
        let user = |id: &str| Command::To(Target::User(id.into()));
        for (line, command) in [
            ("/to bob", user("bob")),
            ("/to  bob  ", user("bob")),
            ("/to Bob B.", user("Bob B.")),
            ("/group team", Command::To(Target::Group("team".into()))),
            ("/history", Command::History(20)),
            ("/history 100", Command::History(100)),
            ("/who", Command::Who),
            ("/raw", Command::Raw),
            ("/help", Command::Help),
            ("/quit ", Command::Quit),
        ] {
            assert_eq!(Command::parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_sent_but_explained() {
        for (line, told) in [
            ("/too bob", "no /too"),
            ("/", "/help"),
            ("/to", "/to"),
            ("/to a\u{1b}b", "control characters"),
            ("/history 0", "1 to 100"),
            ("/history 101", "1 to 100"),
            ("/history all", "1 to 100"),
        ] {
            let error = Command::parse(line).expect_err(line);
            assert!(error.contains(told), "{line}: {error}");
        }
    }
}
