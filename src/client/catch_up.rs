//! Catch-up: the one mechanism for unread messages, run by the connection's writer thread.
//!
//! It fetches what is unread page by page and writes each page with a blocking write, at the pace
//! of the client, behind what is queued: so it never causes a 4001. Pushes that arrive meanwhile
//! wait in the [`Hold`](super::hold::Hold). Failures are retried while the connection is served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use super::connection::Connection;
use super::permits::Permits;
use super::protocol::{ChatMessage, Outgoing, timestamp};
use crate::services::proto::GetOfflineMessagesRequest;
use crate::services::{ErrorCode, Services};

/// Messages asked for at once.
const PAGE: i32 = 50;
/// The first wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How long a page waits for its permit before the thread looks after the connection again.
const PERMIT_WITHIN: Duration = Duration::from_secs(1);
/// How long ids are remembered after a catch-up: longer than a publication is on its way while
/// all is well. A message that comes later still is sent again under its same id.
const SETTLING: Duration = Duration::from_secs(5);

/// One connection's catch-up.
pub(super) struct CatchUp {
    services: Arc<dyn Services>,
    /// How many connections of this gateway fetch a page at a time.
    pacing: Arc<Permits>,
    stage: Stage,
    /// Nothing up to this message is missing; empty: nothing is known.
    position: String,
    sent: usize,
    backoff: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Runs at this time, or earlier when it is requested.
    Waiting(Instant),
    /// The next page is to be fetched, not before this time.
    Running(Instant),
    /// Ids are remembered until this time.
    Settling(Instant),
    Idle,
}

impl CatchUp {
    /// Runs for the first time at `start`, or earlier when it is requested. Where nobody has
    /// requested it, the user's route is not there yet: then another one is due, and pushes wait.
    pub fn new(services: Arc<dyn Services>, pacing: Arc<Permits>, start: Instant) -> Self {
        Self {
            services,
            pacing,
            stage: Stage::Waiting(start),
            position: String::new(),
            sent: 0,
            backoff: MIN_BACKOFF,
        }
    }

    /// Does what is due, at most one page. Answers when it wants to be called again, if at all
    /// before the next request.
    pub fn advance(&mut self, connection: &Connection, now: Instant) -> Option<Instant> {
        if connection.hold.take_request() {
            self.begin(now);
        }
        match self.stage {
            Stage::Waiting(start) if now >= start => self.begin(now),
            Stage::Running(due) if now >= due => self.page(connection),
            Stage::Settling(end) if now >= end => {
                connection.hold.settle();
                self.stage = Stage::Idle;
            }
            _ => {}
        }
        match self.stage {
            Stage::Waiting(next) | Stage::Running(next) | Stage::Settling(next) => Some(next),
            Stage::Idle => None,
        }
    }

    fn begin(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Running(_)) {
            self.sent = 0;
            self.backoff = MIN_BACKOFF;
        }
        self.stage = Stage::Running(now);
    }

    fn page(&mut self, connection: &Connection) {
        let request = GetOfflineMessagesRequest {
            user_id: connection.user().as_str().into(),
            after_id: self.position.clone(),
            limit: PAGE,
        };
        let Some(permit) = self.pacing.acquire_within(PERMIT_WITHIN) else {
            self.stage = Stage::Running(Instant::now());
            return;
        };
        let answer = self.services.offline_messages(request);
        drop(permit);
        let page = match answer {
            Ok(page) => page,
            // The service has another store by now, to which the position means nothing.
            Err(error) if error.code == ErrorCode::InvalidMessage && !self.position.is_empty() => {
                warn!(
                    "Catch-up starts over: user={}, error={error}",
                    connection.user()
                );
                self.position.clear();
                self.stage = Stage::Running(Instant::now());
                return;
            }
            Err(error) => {
                warn!(
                    "Catch-up failed, will be retried: user={}, conn_id={}, error={error}",
                    connection.user(),
                    connection.id()
                );
                self.stage = Stage::Running(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                return;
            }
        };
        self.backoff = MIN_BACKOFF;

        let unsent = page
            .messages
            .iter()
            .filter(|message| connection.hold.claim(&message.id));
        let frames: Vec<_> = unsent
            .filter_map(ChatMessage::of)
            .map(|message| message.frame())
            .collect();
        self.sent += frames.len();
        connection.outbox.write_through(frames);
        let moved = page.messages.last().is_some_and(|last| {
            let moved = last.id != self.position;
            self.position.clone_from(&last.id);
            moved
        });
        // A service that says "more" and moves no further would be asked for ever.
        if page.has_more && moved || connection.hold.has_missed() {
            self.stage = Stage::Running(Instant::now());
        } else {
            self.complete(connection);
        }
    }

    fn complete(&mut self, connection: &Connection) {
        let complete = Outgoing::OfflineComplete {
            count: std::mem::take(&mut self.sent),
            timestamp: timestamp(),
        };
        connection.outbox.write_through([complete.frame()]);
        loop {
            let held = connection.hold.release();
            if held.is_empty() {
                break;
            }
            connection.outbox.write_through(held);
        }
        self.stage = if connection.hold.has_missed() {
            Stage::Running(Instant::now())
        } else {
            // Where a catch-up is due, this has nothing to settle.
            Stage::Settling(Instant::now() + SETTLING)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::fake::FakeUsers;
    use crate::client::fixture::Client;
    use crate::client::protocol::Push;
    use crate::registry::Registry;
    use crate::services::proto::Message;

    fn message(id: &str) -> Message {
        Message {
            id: id.into(),
            from_user_id: "alice".into(),
            to_user_id: "bob".into(),
            ..Message::default()
        }
    }

    #[test]
    fn whoever_waits_for_a_permit_still_looks_after_the_connection() {
        let bob = Client::join(&Registry::default(), "bob");
        let (services, nobody_ends) = (Arc::new(FakeUsers::default()), Permits::new(0));
        let mut catch_up = CatchUp::new(services, nobody_ends, Instant::now());
        let (told, returned) = crossbeam::channel::bounded(1);
        std::thread::spawn(move || {
            catch_up.advance(&bob.connection, Instant::now());
            catch_up.advance(&bob.connection, Instant::now());
            told.send(catch_up.advance(&bob.connection, Instant::now()).is_some())
        });
        assert_eq!(returned.recv_timeout(Duration::from_secs(20)), Ok(true));
    }

    /// The broker returns, or confirms the route, while a catch-up runs that may have looked before
    /// the last message that went past: what comes live is newer.
    #[test]
    fn what_comes_before_the_catch_up_that_is_due_waits_for_it() {
        let mut bob = Client::connect(&Registry::default(), "bob");
        let services = Arc::new(FakeUsers::default());
        let start = Instant::now();
        let mut catch_up = CatchUp::new(Arc::clone(&services) as _, Permits::new(1), start);
        let mut advance = || {
            for _ in 0..3 {
                catch_up.advance(&bob.connection, Instant::now());
            }
        };
        let live = |id| bob.connection.push(&Push::message(&message(id), false));
        *services.unread.lock() = vec![message("m1")];
        advance();
        *services.unread.lock() = vec![message("m2"), message("m3")];
        assert!(!live("m3"), "it waits");
        bob.connection.routed();
        assert!(!live("m4"), "it waits, too");
        advance();
        for expected in [
            "m1",
            "offline_complete",
            "m2",
            "m3",
            "offline_complete",
            "m4",
        ] {
            let text = bob.next();
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn a_position_that_the_service_no_longer_knows_is_given_up() {
        let mut bob = Client::join(&Registry::default(), "bob");
        let services = Arc::new(FakeUsers::default());
        let start = Instant::now();
        let mut catch_up = CatchUp::new(Arc::clone(&services) as _, Permits::new(1), start);
        let mut advance = |times| {
            for _ in 0..times {
                catch_up.advance(&bob.connection, Instant::now());
            }
        };
        *services.unread.lock() = vec![message("old")];
        advance(2);
        *services.unread.lock() = vec![message("new")];
        bob.connection.request_catch_up();
        advance(3);
        for expected in ["old", "offline_complete", "new", "offline_complete"] {
            let text = bob.next();
            assert!(text.contains(expected), "{text}");
        }
    }
}
