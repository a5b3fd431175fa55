//! What is shown: at a terminal above the prompt, in words; in a pipe as JSON, a frame per line, with
//! notices on standard error. Whatever others wrote is escaped here.

use std::env;
use std::io::{self, Write};

use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::command::Target;
use super::escape;
use super::frames::Frame;
use super::keyboard::Printer;

/// SGR of ECMA-48: bold, faint, neither.
const BOLD: &str = "\u{1b}[1m";
const FAINT: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";

pub(super) struct Screen {
    /// Prints every frame.
    pub is_raw: bool,
    kind: Kind,
}

enum Kind {
    Terminal {
        printer: Printer,
        has_colours: bool,
        local: UtcOffset,
    },
    Pipe,
}

/// Standard output is closed, or the terminal is gone: nothing more can be shown.
#[derive(Debug)]
pub(super) struct Closed;

/// Which way a frame went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Sent,
    Came,
}

impl Screen {
    /// Above the prompt of the line editor whose printer this is.
    pub fn terminal(printer: Printer, is_raw: bool) -> Self {
        // no-color.org: set, and not empty.
        let is_unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            is_raw,
            kind: Kind::Terminal {
                printer,
                has_colours: !is_unwanted,
                local: UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC),
            },
        }
    }

    pub fn pipe(is_raw: bool) -> Self {
        let kind = Kind::Pipe;
        Self { is_raw, kind }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.kind, Kind::Terminal { .. })
    }

    /// A frame as it went over the wire, where all are wanted.
    pub fn frame(&mut self, way: Way, text: &str) -> Result<(), Closed> {
        let sign = match way {
            Way::Sent => '>',
            Way::Came => '<',
        };
        if !self.is_raw {
            return Ok(());
        }
        let line = format!("{sign} {}", escape::json(text));
        match &mut self.kind {
            Kind::Terminal { .. } => self.print(FAINT, &line),
            Kind::Pipe => output(&line),
        }
    }

    /// A frame that came and is of interest: its `text` in a pipe, its `words` at a terminal.
    pub fn show(&mut self, text: &str, words: &Words<'_>) -> Result<(), Closed> {
        match &mut self.kind {
            Kind::Terminal { .. } if matches!(words, Words::Nothing) => Ok(()),
            Kind::Terminal { local, .. } => {
                let local = *local;
                let (style, line) = words.line(local);
                self.print(style, &line)
            }
            Kind::Pipe if self.is_raw => Ok(()),
            Kind::Pipe => output(&escape::json(text)),
        }
    }

    /// Something that this program has to say. `text` is harmless.
    pub fn notice(&mut self, text: &str) -> Result<(), Closed> {
        match &mut self.kind {
            Kind::Terminal { .. } => self.print(FAINT, &format!("-- {text}")),
            Kind::Pipe => {
                // Whoever closed standard error does not want to know.
                let _ = writeln!(io::stderr(), "ws-gateway: {text}");
                Ok(())
            }
        }
    }

    /// At a terminal, above the prompt.
    fn print(&mut self, style: &str, line: &str) -> Result<(), Closed> {
        let Kind::Terminal {
            printer,
            has_colours,
            ..
        } = &mut self.kind
        else {
            return Ok(());
        };
        let line = match (*has_colours, line.split_once('\t')) {
            (true, Some((head, rest))) => format!("{style}{head}{PLAIN} {rest}\n"),
            (true, None) => format!("{style}{line}{PLAIN}\n"),
            (false, _) => format!("{}\n", line.replacen('\t', " ", 1)),
        };
        // Whoever has just ended a line does not print any more.
        let printed = printer.print(line.clone()).map_err(|_| Closed);
        printed.or_else(|Closed| output(line.trim_end()))
    }
}

fn output(line: &str) -> Result<(), Closed> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|_| Closed)
}

/// A frame in words. `me` is whose connection it is.
pub(super) enum Words<'a> {
    Message {
        frame: &'a Frame,
        me: &'a str,
    },
    Presence(&'a Frame),
    Sent {
        frame: &'a Frame,
        to: &'a Target,
    },
    /// What is said of it is said otherwise.
    Nothing,
}

impl Words<'_> {
    /// How it is set off, and the line, in which the first tab ends what is set off.
    fn line(&self, local: UtcOffset) -> (&'static str, String) {
        match self {
            Self::Message { frame, me } => (BOLD, message(frame, me, local)),
            Self::Presence(frame) => {
                let (user, status) = (escape::line(&frame.user_id), escape::line(&frame.status));
                (FAINT, format!("-- {user} is {status}"))
            }
            Self::Sent { frame, to } => {
                let at = clock(frame.timestamp, local);
                (FAINT, format!("-- {at} sent to {}", name(to)))
            }
            Self::Nothing => (PLAIN, String::new()),
        }
    }
}

fn message(frame: &Frame, me: &str, local: UtcOffset) -> String {
    let at = clock(frame.timestamp, local);
    let from = escape::line(&frame.from_user_id);
    let content = escape::paragraph(&frame.content);
    let (group, to) = (
        escape::line(&frame.group_id),
        escape::line(&frame.to_user_id),
    );
    match (group.as_str(), frame.from_user_id == me) {
        ("", true) => format!("{at} {from} to {to}:\t{content}"),
        ("", false) => format!("{at} {from}:\t{content}"),
        (group, _) => format!("{at} #{group} {from}:\t{content}"),
    }
}

/// As the prompt names it.
pub(super) fn name(target: &Target) -> String {
    match target {
        Target::User(user) => escape::line(user),
        Target::Group(group) => format!("#{}", escape::line(group)),
    }
}

/// The time of day, and the day if it is another one.
fn clock(timestamp: i64, local: UtcOffset) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp(timestamp) else {
        return "--:--".into();
    };
    let time = time.to_offset(local);
    let today = OffsetDateTime::now_utc().to_offset(local).date();
    let shown = match time.date() == today {
        true => time.format(format_description!("[hour]:[minute]")),
        false => time.format(format_description!("[year]-[month]-[day] [hour]:[minute]")),
    };
    shown.unwrap_or_else(|_| "--:--".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(content: &str, group: &str) -> Frame {
        Frame {
            from_user_id: "al\u{1b}ice".into(),
            to_user_id: if group.is_empty() {
                "bob".into()
            } else {
                String::new()
            },
            group_id: group.into(),
            content: content.into(),
            timestamp: 1_000_000_000,
            ..Frame::default()
        }
    }

    fn line(frame: &Frame, me: &str) -> String {
        Words::Message { frame, me }.line(UtcOffset::UTC).1
    }

    #[test]
    fn a_message_says_when_from_whom_and_where() {
        let at = "2001-09-09 01:46";
        let (single, group) = (frame("hello", ""), frame("hello", "team"));
        let alice = "al\\u{1b}ice";
        assert_eq!(line(&single, "bob"), format!("{at} {alice}:\thello"));
        assert_eq!(
            line(&single, "al\u{1b}ice"),
            format!("{at} {alice} to bob:\thello")
        );
        assert_eq!(line(&group, "bob"), format!("{at} #team {alice}:\thello"));
        let forged = frame("a\n12:00 carol:\tx\u{1b}[2J", "");
        assert_eq!(
            line(&forged, "bob"),
            format!("{at} {alice}:\ta\n      12:00 carol:\\tx\\u{{1b}}[2J")
        );
    }

    #[test]
    fn a_time_beyond_the_calendar_is_none() {
        assert_eq!(clock(i64::MAX, UtcOffset::UTC), "--:--");
        let now = OffsetDateTime::now_utc().unix_timestamp();
        assert_eq!(clock(now, UtcOffset::UTC).len(), 5);
    }
}
