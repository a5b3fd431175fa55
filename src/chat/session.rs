//! The loop: one thread that owns the connection, reads what comes, sends what is to be sent, and
//! connects again when the connection is lost.

mod arrivals;
mod input;
mod upkeep;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hashlink::LruCache;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use super::close::{self, Next};
use super::connect::Dialer;
use super::drafts::Drafts;
use super::inbox::Inbox;
use super::keyboard::Keyboard;
use super::liveness::Liveness;
use super::mailbox::{Event, Mailbox};
use super::pipe::Pipe;
use super::screen::{Closed, Screen, Way};
use super::socket::{Incoming, Socket};
use super::{EXIT_FAILURE, EXIT_SIGNAL, Failure, escape, frames};
use crate::backoff::Backoff;

/// Waits between two tries to connect.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(20);
/// How long is waited at the end, for answers and for what is unread.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How many frames are read before anything else has its turn.
const FRAMES: usize = 64;
/// How many own messages are known again as a push.
const OWN: usize = 1_000;

/// Where lines come from.
pub(super) enum Input {
    Keyboard(Keyboard),
    Pipe(Pipe),
}

/// The connection, or what is done about it.
enum Link {
    /// Connects at this time.
    Waiting(Instant),
    Dialing,
    Up(Box<Up>),
}

struct Up {
    socket: Socket,
    liveness: Liveness,
    since: Instant,
    /// `connected` has come: the gateway reads requests.
    is_greeted: bool,
    /// `offline_complete` has come.
    is_caught_up: bool,
}

pub(super) struct Session {
    dialer: Dialer,
    mailbox: Mailbox,
    input: Input,
    screen: Screen,
    link: Link,
    backoff: Backoff,
    drafts: Drafts,
    inbox: Inbox,
    /// The `client_message_id`s of what was sent here.
    own: LruCache<String, ()>,
    /// Who was said to be what.
    presence: BTreeMap<String, String>,
    me: String,
    /// In bytes, as the gateway says.
    max_message_size: usize,
    requests: u64,
    was_connected: bool,
    /// Since when there is no connection.
    lost_since: Option<Instant>,
    /// Why there is none, as was told last.
    told: String,
    /// There is something to read from the pipe.
    is_readable: bool,
    /// Frames may wait that no poll would tell of.
    has_more: bool,
    /// Since when there is no more input.
    ended: Option<Instant>,
    not_sent: usize,
}

impl Session {
    pub fn new(dialer: Dialer, mailbox: Mailbox, input: Input, screen: Screen) -> Self {
        let now = Instant::now();
        Self {
            dialer,
            mailbox,
            input,
            screen,
            link: Link::Waiting(now),
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            drafts: Drafts::new(),
            inbox: Inbox::new(),
            own: LruCache::new(OWN),
            presence: BTreeMap::new(),
            me: String::new(),
            max_message_size: usize::MAX,
            requests: 0,
            was_connected: false,
            lost_since: Some(now),
            told: String::new(),
            is_readable: false,
            has_more: false,
            ended: None,
            not_sent: 0,
        }
    }

    pub fn run(mut self) -> Result<(), Failure> {
        let outcome = self.chat();
        if let Input::Keyboard(keyboard) = self.input {
            keyboard.stop();
        }
        if let Link::Up(up) = self.link {
            up.socket.close();
        }
        outcome
    }

    fn chat(&mut self) -> Result<(), Failure> {
        loop {
            for event in self.mailbox.take() {
                self.event(event)?;
            }
            self.read_pipe()?;
            self.read_socket()?;
            let now = Instant::now();
            self.keep_connected(now)?;
            self.send_what_is_due(now)?;
            if let Some(signal) = self.mailbox.signal() {
                let code = EXIT_SIGNAL + i32::try_from(signal).unwrap_or_default();
                return Err(Failure::new(code, format!("ended by signal {signal}")));
            }
            if self.is_done(now) {
                return self.end();
            }
            self.wait(now);
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Typed(command, target) => Ok(self.typed(command, target)?),
            Event::Misunderstood(why) => Ok(self.screen.notice(&escape::line(&why))?),
            Event::InputEnds => {
                self.ended.get_or_insert(Instant::now());
                Ok(())
            }
            Event::Connected(outcome) => match *outcome {
                Ok(socket) => {
                    self.connected(socket);
                    Ok(())
                }
                Err(refusal) => self.refused(refusal),
            },
        }
    }

    fn read_socket(&mut self) -> Result<(), Failure> {
        for _ in 0..FRAMES {
            self.has_more = false;
            let Link::Up(up) = &mut self.link else {
                return Ok(());
            };
            let Some(incoming) = up.socket.read() else {
                return Ok(());
            };
            up.liveness.heard();
            match incoming {
                Incoming::Text(text) => {
                    self.screen.frame(Way::Came, &text)?;
                    self.frame(&text)?;
                }
                Incoming::Ping => {
                    self.screen.frame(Way::Came, "(ping)")?;
                    self.screen.frame(Way::Sent, "(pong)")?;
                }
                Incoming::Other => {}
                Incoming::Closed { code, reason } => {
                    self.screen
                        .frame(Way::Came, &format!("(close {code}) {reason}"))?;
                    let (next, told) = close::understand(code, &reason);
                    self.lost(&next, &escape::line(&told))?;
                }
                Incoming::Cut(why) => {
                    self.lost(&Next::Reconnect(None), &escape::line(&why))?;
                }
            }
        }
        self.has_more = true;
        Ok(())
    }

    fn send_what_is_due(&mut self, now: Instant) -> Result<(), Closed> {
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        // An error shows when it is read.
        let _ = up.socket.flush();
        if up.liveness.wants_ping(now) {
            let request_id = self.next_request_id();
            self.send(frames::ping(&request_id))?;
        }
        if !self.is_greeted() {
            return Ok(());
        }
        while let Some(ids) = self.inbox.take_due(now) {
            let request_id = self.next_request_id();
            self.send(frames::ack(&ids, &request_id))?;
        }
        let request_id = (self.requests + 1).to_string();
        let Some(draft) = self.drafts.send(&request_id, now) else {
            return Ok(());
        };
        self.requests += 1;
        let text = frames::message(&draft.target, &draft.content, &draft.id, &request_id);
        if text.len() <= self.max_message_size {
            return self.send(text);
        }
        // The gateway would end the connection.
        let most = self.max_message_size;
        match self.drafts.take() {
            Some(draft) => self.give_up(
                &draft,
                &format!("it is longer than {most} bytes with all around"),
            ),
            None => Ok(()),
        }
    }

    fn send(&mut self, text: String) -> Result<(), Closed> {
        self.screen.frame(Way::Sent, &text)?;
        if let Link::Up(up) = &mut self.link {
            // An error shows when it is read.
            let _ = up.socket.send(text);
        }
        Ok(())
    }

    fn next_request_id(&mut self) -> String {
        self.requests += 1;
        self.requests.to_string()
    }

    fn is_greeted(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.is_greeted)
    }

    /// Whether there is no reason to go on.
    fn is_done(&self, now: Instant) -> bool {
        let Some(ended) = self.ended else {
            return false;
        };
        let is_late = now >= ended + LAST_WORDS;
        match (&self.link, self.screen.is_terminal()) {
            (Link::Up(_), true) => self.drafts.is_empty() || is_late,
            (_, true) => true,
            // What is unread is printed as well.
            (Link::Up(up), false) => self.drafts.is_empty() && (up.is_caught_up || is_late),
            (_, false) => self.drafts.is_empty() && self.was_connected,
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        // At a terminal what was shown last may not have been seen, and comes again.
        while !self.screen.is_terminal()
            && let Some(ids) = self.inbox.take()
        {
            let request_id = self.next_request_id();
            self.send(frames::ack(&ids, &request_id))?;
        }
        match self.not_sent + self.drafts.len() {
            0 => Ok(()),
            1 => Err(Failure::new(EXIT_FAILURE, "1 message was not sent")),
            count => Err(Failure::new(
                EXIT_FAILURE,
                format!("{count} messages were not sent"),
            )),
        }
    }

    /// Until something is to be read, or due.
    fn wait(&mut self, now: Instant) {
        let due = match &self.link {
            Link::Waiting(at) => Some(*at),
            Link::Dialing => None,
            Link::Up(up) => {
                let drafts = self.drafts.due(now).filter(|_| up.is_greeted);
                let late = self.ended.map(|ended| ended + LAST_WORDS);
                let due = [drafts, self.inbox.due(), late].into_iter().flatten();
                due.chain([up.liveness.due()]).min()
            }
        };
        let due = if self.has_more { Some(now) } else { due };
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = vec![PollFd::new(&self.mailbox, PollFlags::IN)];
        if let Link::Up(up) = &self.link {
            polled.push(PollFd::new(&up.socket, up.socket.interest()));
        }
        let is_reading = match &self.input {
            Input::Pipe(pipe) if self.ended.is_none() && self.drafts.is_empty() => {
                polled.push(PollFd::new(pipe, PollFlags::IN));
                true
            }
            _ => false,
        };
        // An error is that of a signal, which the mailbox tells of.
        let is_polled = poll(&mut polled, left.as_ref()).is_ok();
        let pipe = polled.pop().filter(|_| is_reading && is_polled);
        // Readable, at its end, or broken: reading says which.
        self.is_readable = pipe.is_some_and(|pipe| !pipe.revents().is_empty());
    }
}

/// A random number from 0 up to 1.
fn share() -> f64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    (high >> 32) as f64 / 2f64.powi(32)
}

impl From<Closed> for Failure {
    fn from(_: Closed) -> Self {
        Self::new(EXIT_FAILURE, "standard output is closed")
    }
}
