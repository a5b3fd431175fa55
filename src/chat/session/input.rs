//! What is typed, or read from a pipe.

use std::time::Instant;

use super::{Input, Session};
use crate::chat::command::{self, Command, Target};
use crate::chat::drafts::Draft;
use crate::chat::screen::{Closed, name};
use crate::chat::{EXIT_FAILURE, Failure, escape, frames};

impl Session {
    pub(super) fn typed(&mut self, command: Command, target: Option<Target>) -> Result<(), Closed> {
        let nobody = "to whom? /to USER or /group GROUP says it, /help names the commands";
        match (command, target) {
            (Command::Text(content), Some(target)) => self.compose(target, content, 0),
            (Command::History(limit), Some(target)) if self.is_greeted() => {
                let request_id = self.next_request_id();
                self.send(frames::history(&target, limit, &request_id))
            }
            (Command::History(_), Some(_)) => self.screen.notice("not connected"),
            (Command::Text(_) | Command::History(_), None) => self.screen.notice(nobody),
            (Command::Who, _) => self.who(),
            (Command::Raw, _) => {
                self.screen.is_raw = !self.screen.is_raw;
                let which = if self.screen.is_raw {
                    "every frame"
                } else {
                    "no frames"
                };
                self.screen.notice(&format!("shows {which}"))
            }
            (Command::Help, _) => command::HELP
                .lines()
                .try_for_each(|line| self.screen.notice(line)),
            // The prompt has seen to these.
            (Command::To(_) | Command::Quit | Command::Nothing, _) => Ok(()),
        }
    }

    fn who(&mut self) -> Result<(), Closed> {
        if self.presence.is_empty() {
            return self.screen.notice("nobody was seen yet");
        }
        let shown = |(user, status): (&String, &String)| {
            format!("{} is {}", escape::line(user), escape::line(status))
        };
        let lines: Vec<String> = self.presence.iter().map(shown).collect();
        lines.iter().try_for_each(|line| self.screen.notice(line))
    }

    /// `line`: its number, in a pipe.
    fn compose(&mut self, target: Target, content: String, line: usize) -> Result<(), Closed> {
        let draft = Draft::new(target, content, line);
        self.own.insert(draft.id.clone(), ());
        match self.drafts.push(draft) {
            Err(draft) => self.give_up(&draft, "too many wait to be sent"),
            Ok(()) if !self.is_greeted() && self.screen.is_terminal() => {
                self.screen.notice("not connected: it is sent once you are")
            }
            Ok(()) => Ok(()),
        }
    }

    /// It will not be sent. `why` is harmless.
    pub(super) fn give_up(&mut self, draft: &Draft, why: &str) -> Result<(), Closed> {
        self.not_sent += 1;
        match draft.line {
            0 => self
                .screen
                .notice(&format!("not sent to {}: {why}", name(&draft.target))),
            line => self
                .screen
                .notice(&format!("line {line} is not sent: {why}")),
        }
    }

    /// Takes up the next line, once the one before is done with.
    pub(super) fn read_pipe(&mut self) -> Result<(), Failure> {
        let Input::Pipe(pipe) = &mut self.input else {
            return Ok(());
        };
        if std::mem::take(&mut self.is_readable) {
            let filled = pipe.fill();
            filled
                .map_err(|error| Failure::new(EXIT_FAILURE, format!("standard input: {error}")))?;
        }
        while self.drafts.is_empty() {
            let Input::Pipe(pipe) = &mut self.input else {
                return Ok(());
            };
            let Some((number, line)) = pipe.next() else {
                if pipe.has_ended() {
                    self.ended.get_or_insert(Instant::now());
                }
                return Ok(());
            };
            let Some(target) = pipe.target.clone() else {
                return Err(Failure::usage(
                    "to whom? --to USER or --group GROUP says it",
                ));
            };
            match line {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => self.compose(target, line, number)?,
                Err(why) => {
                    self.not_sent += 1;
                    self.screen
                        .notice(&format!("line {number} is not sent: it {why}"))?;
                }
            }
        }
        Ok(())
    }
}
