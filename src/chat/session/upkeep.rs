//! The connection comes and goes.

use std::time::{Duration, Instant};

use super::{Link, Session, Up, share};
use crate::chat::close::Next;
use crate::chat::connect::Refusal;
use crate::chat::liveness::Liveness;
use crate::chat::mailbox::Event;
use crate::chat::socket::Socket;
use crate::chat::{EXIT_FAILURE, EXIT_TOKEN, Failure};

/// A connection that lived so long was a good one: the next wait is a short one again.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// How long a script waits for a connection. People wait as long as they like.
const PATIENCE: Duration = Duration::from_secs(30);

impl Session {
    pub(super) fn connected(&mut self, socket: Socket) {
        let now = Instant::now();
        self.link = Link::Up(Box::new(Up {
            socket,
            liveness: Liveness::new(None, share(), now),
            since: now,
            is_greeted: false,
            is_caught_up: false,
        }));
    }

    /// The connection has ended. `told` is harmless.
    pub(super) fn lost(&mut self, next: &Next, told: &str) -> Result<(), Failure> {
        self.drafts.disconnected();
        let now = Instant::now();
        self.lost_since.get_or_insert(now);
        self.link = Link::Waiting(now);
        match next {
            Next::NewToken => Err(Failure::new(
                EXIT_TOKEN,
                format!("the connection is {told}"),
            )),
            Next::Stay => Err(Failure::new(
                EXIT_FAILURE,
                format!("the connection is {told}"),
            )),
            Next::Reconnect(after) => {
                self.retry(*after, &format!("the connection is lost: {told}"))
            }
        }
    }

    pub(super) fn refused(&mut self, refusal: Refusal) -> Result<(), Failure> {
        match refusal {
            Refusal::Token(told) => Err(Failure::new(EXIT_TOKEN, told)),
            Refusal::Final(told) => Err(Failure::new(EXIT_FAILURE, told)),
            // It may be the wrong address.
            Refusal::Unreachable(told) if !self.was_connected => {
                Err(Failure::new(EXIT_FAILURE, told))
            }
            Refusal::Unreachable(told) => self.retry(None, &told),
            Refusal::Busy(told, after) => self.retry(after, &told),
        }
    }

    /// Connects again `after` so long, or as backoff has it.
    fn retry(&mut self, after: Option<Duration>, told: &str) -> Result<(), Failure> {
        let now = Instant::now();
        let since = self.lost_since.unwrap_or(now);
        let wait = after.unwrap_or_else(|| self.backoff.next());
        if !self.screen.is_terminal() && now + wait > since + PATIENCE {
            let left = self.drafts.len();
            let told = format!("{told}; waited {PATIENCE:?}, {left} not sent");
            return Err(Failure::new(EXIT_FAILURE, told));
        }
        self.link = Link::Waiting(now + wait);
        if self.told != told {
            self.told = told.into();
            let seconds = wait.as_secs_f64();
            self.screen
                .notice(&format!("{told}; again in {seconds:.1} s"))?;
        }
        Ok(())
    }

    pub(super) fn keep_connected(&mut self, now: Instant) -> Result<(), Failure> {
        match &self.link {
            Link::Waiting(at) if now >= *at => {
                self.link = Link::Dialing;
                let sender = self.mailbox.sender();
                let dialed = self.dialer.dial(move |outcome| {
                    // Nobody listens any more where it is ending.
                    let _ = sender.send(Event::Connected(Box::new(outcome)));
                });
                dialed.map_err(|error| {
                    Failure::new(EXIT_FAILURE, format!("cannot start a thread: {error}"))
                })
            }
            Link::Up(up) if up.liveness.is_dead(now) => {
                self.lost(&Next::Reconnect(None), "no sign of life")
            }
            Link::Up(up) if now >= up.since + GOOD_AFTER => {
                self.backoff.reset();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
