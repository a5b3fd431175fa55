//! Catch-up: the one mechanism for unread messages, run by the connection's writer thread.
//!
//! It fetches what is unread page by page, each once the client has taken most of what it was sent
//! before, and writes it behind what is queued: so it goes at the pace of the client and never
//! causes a 4001. Pushes that arrive meanwhile wait in the [`DeliveryGate`](super::gate::DeliveryGate).
//!
//! A service that does not get on, by errors, by a page that is too large or by pages that lead in
//! circles, is asked ever more slowly, and holds up live pushes for [`HOLD_LONGEST`] at most, or where
//! so many others ask it that no turn comes, for [`TURN_LONGEST`]: then they go past, and what is unread
//! comes later, when the service can be had.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::Context;
use super::connection::Connection;
use super::gate::Finish;
use super::protocol::{ChatMessage, Outgoing, Push, timestamp};
use crate::backoff::Backoff;
use crate::services::ErrorCode;
use crate::services::proto::{GetOfflineMessagesRequest, GetOfflineMessagesResponse, Message};

/// Messages asked for at once, at most.
const PAGE: i32 = 50;
/// The first wait after a failure; it doubles up to [`MAX_BACKOFF_ANSWERED`], and where the service may
/// be back any moment, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF_ANSWERED: Duration = Duration::from_secs(60);
/// How long live pushes wait for a service that does not get on.
const HOLD_LONGEST: Duration = Duration::from_secs(10);
/// The same, while it waits for its turn to ask the service.
const TURN_LONGEST: Duration = Duration::from_secs(60);
/// How long a page waits for its permit before the thread looks after the connection again.
const PERMIT_WITHIN: Duration = Duration::from_secs(1);
/// How much a client may have yet to take of what it was sent when the next page is fetched, in
/// bytes. What it has taken it may have acknowledged, and then is not sent again.
const LOW_WATER: u64 = 64 << 10;
/// How long until the next look at how much that is; it doubles up to [`MAX_POLL_INTERVAL`].
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long ids are remembered after a catch-up, and after the last push of one of them: longer than a
/// publication is on its way while all is well, and than a broker's return takes. A message that comes
/// later still is sent again under its same id.
const SETTLING: Duration = Duration::from_secs(5);

/// One connection's catch-up.
pub(super) struct CatchUp {
    context: Arc<Context>,
    stage: Stage,
    /// Nothing up to this message is missing; empty: nothing is known.
    position: String,
    trail: Trail,
    limit: i32,
    /// How many were sent; `None` once `offline_complete` has told the client.
    sent: Option<usize>,
    /// How long until the next look at a client that has enough to take.
    polls: Backoff,
    /// The service does not get on: when live pushes go past.
    open_at: Option<Instant>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The next page is to be fetched at this time, or earlier when catch-up is requested.
    Running(Instant),
    /// All pages are written; what was held is to be.
    Finishing,
    /// All is sent, and ids are remembered until this time.
    Settling(Instant),
}

impl CatchUp {
    /// Runs for the first time at `start`, or earlier when it is requested. Where nobody has
    /// requested it, the user's route is not there yet: then another one is due, and pushes wait.
    pub fn new(context: Arc<Context>, start: Instant) -> Self {
        Self {
            context,
            stage: Stage::Running(start),
            position: String::new(),
            trail: Trail::default(),
            limit: PAGE,
            sent: None,
            polls: Backoff::new(MIN_POLL_INTERVAL, MAX_POLL_INTERVAL),
            open_at: None,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF_ANSWERED),
        }
    }

    /// Whether all is sent and nothing is due.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Settling(_))
    }

    /// Does what is due, at most one page; call it when nothing waits for the socket. Answers when
    /// it wants to be called again, if at all before the next request.
    pub fn advance(&mut self, connection: &Connection, now: Instant) -> Option<Instant> {
        // A request does not hurry a service that does not get on, nor does it hold up pushes for longer.
        if connection.gate.take_request() && self.open_at.is_none() {
            self.begin(now);
        }
        match self.stage {
            Stage::Running(due) if now >= due => self.page(connection, now),
            Stage::Finishing => self.finish(connection, now),
            Stage::Settling(end) if now >= end && connection.gate.settle() => {
                self.stage = Stage::Settling(now + SETTLING);
            }
            _ => {}
        }
        if self.open_at.is_some_and(|open_at| now >= open_at) {
            self.open(connection, now);
        }
        match self.stage {
            Stage::Running(due) => Some(self.open_at.map_or(due, |open_at| open_at.min(due))),
            Stage::Finishing => Some(now),
            Stage::Settling(end) => (now < end).then_some(end),
        }
    }

    fn begin(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Running(_)) {
            (self.limit, self.trail) = (PAGE, Trail::default());
        }
        self.stage = Stage::Running(now);
    }

    /// Fetches and sends the next page. Where nothing is said about when to go on, it is due still.
    ///
    /// Not inlined, since its frame is large: see [`stack`](super::stack).
    #[inline(never)]
    fn page(&mut self, connection: &Connection, now: Instant) {
        if connection.outbox.progress().in_flight > LOW_WATER {
            self.stage = Stage::Running(now + self.polls.next());
            return;
        }
        self.polls.reset();
        let request = GetOfflineMessagesRequest {
            user_id: connection.user().as_str().into(),
            after_id: self.position.clone(),
            limit: self.limit,
        };
        let called = Instant::now();
        let Some(permit) = self.context.pacing.acquire_within(PERMIT_WITHIN) else {
            // It may be for others that the service does not get on.
            self.open_at.get_or_insert(now + TURN_LONGEST);
            return;
        };
        let answer = self.context.services.offline_messages(request);
        drop(permit);
        let now = now + called.elapsed();
        match answer {
            Ok(page) => self.send(connection, &page, now),
            Err(error) if error.is_too_large() && self.limit > 1 => self.limit /= 2,
            Err(error) => {
                let soon = error.is_out_of_reach().then_some(MAX_BACKOFF);
                if error.code == ErrorCode::InvalidMessage {
                    // The service may have another store by now, to which the position means nothing.
                    self.position.clear();
                }
                let longest = soon.unwrap_or(MAX_BACKOFF_ANSWERED);
                self.retry(connection, now, &error, longest);
            }
        }
    }

    /// Sends what of a page was not sent before, and goes on to the next one.
    fn send(&mut self, connection: &Connection, page: &GetOfflineMessagesResponse, now: Instant) {
        let gate = &connection.gate;
        let messages = page.messages.iter();
        let unsent = messages.filter(|message| gate.claim(&message.id));
        let unsent = unsent.filter_map(ChatMessage::of);
        let pushes: Vec<_> = unsent.map(|message| Push::chat(&message)).collect();
        *self.sent.get_or_insert(0) += pushes.len();
        if !pushes.is_empty() && !self.trail.is_circle {
            self.gets_on();
        }
        self.write(connection, pushes);
        self.fit_limit(&page.messages);
        let last = page.messages.last().map_or("", |message| &message.id);
        if page.has_more && !self.trail.leads_on(&self.position, last) {
            let reason = "the Message Service leads in circles";
            return self.retry(connection, now, &reason, MAX_BACKOFF_ANSWERED);
        }
        if !last.is_empty() {
            last.clone_into(&mut self.position);
        }
        if !page.has_more {
            self.gets_on();
            self.finish(connection, now);
        }
    }

    /// Asks for fewer messages where they are large, and for more again where they are not.
    fn fit_limit(&mut self, messages: &[Message]) {
        // It waits in memory for its client.
        let max_bytes = self.context.config.session.send_queue_bytes;
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > max_bytes {
            self.limit = (self.limit / 2).max(1);
        } else if bytes < max_bytes / 4 {
            self.limit = (self.limit * 2).min(PAGE);
        }
    }

    /// All that is unread was sent: sends what was held.
    fn finish(&mut self, connection: &Connection, now: Instant) {
        self.stage = Stage::Finishing;
        while !connection.outbox.is_handed_over() {
            let finish = connection.gate.finish(self.sent.is_none());
            if finish == Finish::Again {
                self.stage = Stage::Running(now);
                return;
            }
            if let Some(count) = self.sent.take() {
                let complete = Outgoing::OfflineComplete { count }.frame(None, timestamp());
                connection.outbox.write_behind([complete]);
            }
            let Finish::Pushes(pushes) = finish else {
                self.stage = Stage::Settling(now + SETTLING);
                return;
            };
            self.write(connection, pushes);
        }
    }

    fn write(&self, connection: &Connection, pushes: Vec<Push>) {
        let count = |push: &Push| self.context.metrics.pushed(push.push_type, 1);
        pushes.iter().for_each(count);
        let frames = pushes.into_iter().map(|push| push.frame);
        connection.outbox.write_behind(frames);
    }

    /// Lets live pushes go past a service that does not get on.
    fn open(&mut self, connection: &Connection, now: Instant) {
        let gate = &connection.gate;
        let was_open = gate.is_open();
        gate.give_up();
        while let Finish::Pushes(pushes) = gate.finish(true) {
            self.write(connection, pushes);
            if connection.outbox.is_handed_over() {
                // Once more as soon as the client has taken them.
                return;
            }
        }
        if gate.is_open() && !was_open {
            warn!("Live pushes go past what is unread: {connection}");
        }
        // If it cannot be yet, since there is no route, it is tried again as late.
        self.open_at = Some(now + HOLD_LONGEST);
    }

    fn gets_on(&mut self) {
        self.open_at = None;
        self.backoff.reset();
    }

    /// The service has not got on: asks again, later each time.
    fn retry(&mut self, client: &Connection, now: Instant, why: &dyn Display, longest: Duration) {
        let by = now + HOLD_LONGEST;
        if self.open_at.is_some_and(|at| at <= by) {
            debug!("Catch-up does not get on: {client}, error={why}");
        } else {
            warn!("Catch-up does not get on, will be retried: {client}, error={why}");
            self.open_at = Some(by);
        }
        self.stage = Stage::Running(now + self.backoff.next_up_to(longest));
    }
}

/// The positions that a catch-up has come through, of which it remembers one: a later one each time
/// the way has doubled. So a circle is noticed after at most three times its length (Brent, 1980).
#[derive(Debug, Default)]
struct Trail {
    remembered: String,
    steps: u64,
    /// A position came again.
    is_circle: bool,
}

impl Trail {
    /// Whether the step between two positions leads to where nobody has been.
    fn leads_on(&mut self, from: &str, to: &str) -> bool {
        if to.is_empty() || to == from || to == self.remembered {
            self.is_circle = true;
            return false;
        }
        self.steps += 1;
        if self.steps.is_power_of_two() {
            to.clone_into(&mut self.remembered);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::client::fixture::{Client, context};
    use crate::client::protocol::Push;
    use crate::registry::Registry;
    use crate::services::fake::FakeServices;
    use crate::services::{Result, ServiceError};
    use crate::threads::semaphore::Semaphore;

    const PAGE_BYTES: usize = 1_000;

    fn message(id: &str) -> Message {
        Message {
            id: id.into(),
            from_user_id: "alice".into(),
            to_user_id: "bob".into(),
            ..Message::default()
        }
    }

    fn page(ids: &[&str], has_more: bool) -> Result<GetOfflineMessagesResponse> {
        Ok(GetOfflineMessagesResponse {
            messages: ids.iter().copied().map(message).collect(),
            has_more,
        })
    }

    fn failed<T>(code: ErrorCode) -> Result<T> {
        Err(ServiceError::new(code, "as told"))
    }

    /// A client's catch-up, and a clock that is put forward by hand.
    struct Scene {
        bob: Client,
        services: Arc<FakeServices>,
        catch_up: CatchUp,
        now: Instant,
    }

    impl Scene {
        /// The route is bound, and catch-up requested.
        fn new() -> Self {
            let bob = Client::connect(&Registry::default(), "bob");
            let (services, now) = (Arc::new(FakeServices::default()), Instant::now());
            let mut context = context(&services);
            context.config.session.send_queue_bytes = PAGE_BYTES;
            let catch_up = CatchUp::new(Arc::new(context), now + SETTLING);
            bob.connection.routed();
            Self {
                bob,
                services,
                catch_up,
                now,
            }
        }

        /// The Message Service answers so, each time it is asked.
        fn answers(
            &self,
            answer: impl FnMut(GetOfflineMessagesRequest) -> Result<GetOfflineMessagesResponse>
            + Send
            + 'static,
        ) {
            *self.services.pages.lock() = Some(Box::new(answer));
        }

        /// As the writer thread does it, for so long. Answers how often the service was asked.
        fn run(&mut self, time: Duration) -> usize {
            let asked = Arc::new(Mutex::new(0));
            let answer = self.services.pages.lock().take();
            if let Some(mut answer) = answer {
                let asked = Arc::clone(&asked);
                self.answers(move |request| {
                    *asked.lock() += 1;
                    answer(request)
                });
            }
            let end = self.now + time;
            while self.now < end {
                let outbox = &self.bob.connection.outbox;
                if outbox.is_handed_over() {
                    outbox.flush_blocking();
                    continue;
                }
                // Its clock is not the client's.
                if outbox.progress().in_flight > LOW_WATER {
                    std::thread::yield_now();
                    continue;
                }
                let next = self.catch_up.advance(&self.bob.connection, self.now);
                self.now = next.unwrap_or(end).clamp(self.now, end);
            }
            *asked.lock()
        }

        fn live(&self, id: &str) {
            let push = Push::message(&message(id), false);
            self.bob.connection.push(&push);
        }

        fn expect(&mut self, parts: &[&str]) {
            for part in parts {
                let text = self.bob.next();
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_waits_for_a_permit_looks_after_the_connection_and_holds_up_pushes_for_so_long() {
        let bob = Client::join(&Registry::default(), "bob");
        let mut context = context(&Arc::new(FakeServices::default()));
        // Nobody ends.
        context.pacing = Semaphore::new(0);
        let mut catch_up = CatchUp::new(Arc::new(context), Instant::now());
        let (told, returned) = crossbeam::channel::bounded(1);
        std::thread::spawn(move || {
            catch_up.advance(&bob.connection, Instant::now());
            let again = catch_up.advance(&bob.connection, Instant::now());
            bob.connection.request_catch_up();
            assert!(!bob.connection.gate.is_open());
            catch_up.advance(&bob.connection, Instant::now() + TURN_LONGEST);
            told.send(again.is_some() && bob.connection.gate.is_open())
        });
        assert_eq!(returned.recv_timeout(Duration::from_secs(20)), Ok(true));
    }

    /// Whoever waits for a turn may wait longer, until the turn comes and brings an error.
    #[test]
    fn a_call_that_fails_holds_up_pushes_no_longer_where_a_turn_was_missed_before() {
        let mut scene = Scene::new();
        scene.answers(|_| failed(ErrorCode::Internal));
        assert!(scene.bob.connection.gate.take_request());
        scene.catch_up.open_at = Some(scene.now + TURN_LONGEST);
        scene.run(SETTLING + HOLD_LONGEST - Duration::from_secs(1));
        assert!(!scene.bob.connection.gate.is_open());
        scene.run(Duration::from_secs(2));
        assert!(scene.bob.connection.gate.is_open());
    }

    #[test]
    fn the_count_is_of_all_that_was_sent_whatever_is_requested_before_it_is_told() {
        let mut scene = Scene::new();
        scene.answers(|request| {
            let large = Message {
                content: "x".repeat(8 << 20),
                ..message("m1")
            };
            let is_first = request.after_id.is_empty();
            Ok(GetOfflineMessagesResponse {
                messages: Vec::from_iter(is_first.then_some(large)),
                has_more: false,
            })
        });
        scene.catch_up.advance(&scene.bob.connection, scene.now);
        assert!(scene.bob.connection.outbox.is_handed_over(), "it drains");
        scene.bob.connection.request_catch_up();
        let reader = scene.bob.reads_all();
        scene.run(SETTLING);
        let text = scene.bob.has_read(reader);
        let counts = [0, 1].map(|count| text.matches(&format!("\"count\":{count}")).count());
        assert_eq!(counts, [0, 1]);
    }

    #[test]
    fn a_push_that_comes_as_catch_up_ends_stands_behind_the_frame_that_tells_it() {
        for _ in 0..100 {
            let mut scene = Scene::new();
            scene.answers(|_| page(&["m1"], false));
            let connection = Arc::clone(&scene.bob.connection);
            let other = std::thread::spawn(move || {
                while !connection.gate.is_open() {
                    std::hint::spin_loop();
                }
                connection.push(&Push::message(&message("live"), false));
                connection.outbox.flush();
            });
            scene.run(SETTLING);
            other.join().unwrap();
            scene.expect(&["m1", "\"count\":1", "live"]);
        }
    }

    /// The broker returns, or confirms the route, while a catch-up runs that may have looked before
    /// the last message that went past: what comes live is newer.
    #[test]
    fn what_comes_before_the_catch_up_that_is_due_waits_for_it() {
        let mut scene = Scene::new();
        scene.bob.connection.unrouted();
        *scene.services.unread.lock() = vec![message("m1")];
        scene.run(SETTLING);
        *scene.services.unread.lock() = vec![message("m2"), message("m3")];
        scene.live("m3");
        scene.bob.connection.routed();
        scene.live("m4");
        scene.run(SETTLING);
        let complete = "offline_complete";
        scene.expect(&["m1", complete, "m2", "m3", complete, "m4"]);
    }

    #[test]
    fn a_position_that_the_service_no_longer_knows_is_given_up() {
        let mut scene = Scene::new();
        *scene.services.unread.lock() = vec![message("old")];
        scene.run(MINUTE);
        *scene.services.unread.lock() = vec![message("new")];
        scene.bob.connection.request_catch_up();
        scene.run(MINUTE);
        scene.expect(&["old", "offline_complete", "new", "offline_complete"]);
    }

    /// Each way of not getting on, and how often it is asked within ten minutes.
    #[test]
    fn a_service_that_does_not_get_on_is_asked_ever_more_slowly_and_holds_up_nobody_for_ever() {
        type Answer =
            Box<dyn FnMut(GetOfflineMessagesRequest) -> Result<GetOfflineMessagesResponse> + Send>;
        let in_circles = |length: usize| -> Answer {
            let ids: Vec<String> = (0..length).map(|number| format!("m{number}")).collect();
            Box::new(move |request| {
                let at = ids.iter().position(|id| *id == request.after_id);
                let next = at.map_or(0, |at| (at + 1) % ids.len());
                page(&[&ids[next]], true)
            })
        };
        let mut pages = 0;
        let cases: Vec<(&str, Answer)> = vec![
            ("fails", Box::new(|_| failed(ErrorCode::Internal))),
            ("refuses", Box::new(|_| failed(ErrorCode::InvalidMessage))),
            ("limits", Box::new(|_| failed(ErrorCode::RateLimited))),
            (
                "knows no position",
                Box::new(|request| match request.after_id.as_str() {
                    "" => page(&["m1", "m2"], true),
                    _ => failed(ErrorCode::InvalidMessage),
                }),
            ),
            (
                "fails at the second page",
                Box::new(|request| match request.after_id.as_str() {
                    "" => page(&["m1", "m2"], true),
                    _ => failed(ErrorCode::Internal),
                }),
            ),
            ("is too large", Box::new(|_| Err(too_large()))),
            ("says more and has none", Box::new(|_| page(&[], true))),
            (
                "two pages in turns",
                Box::new(move |_| {
                    pages += 1;
                    page(&[["m1", "m2"][pages % 2]], true)
                }),
            ),
            ("a circle of 1", in_circles(1)),
            ("a circle of 2", in_circles(2)),
            ("a circle of 3", in_circles(3)),
            ("a circle of 100", in_circles(100)),
            ("a circle of more than is remembered", in_circles(5_000)),
        ];
        for (name, answer) in cases {
            let mut scene = Scene::new();
            // Whoever reads it all does not hold it up.
            let reader = scene.bob.reads_all();
            scene.answers(answer);
            let first = scene.run(HOLD_LONGEST);
            assert!(first < 20_000, "{name}: {first} calls");
            let gate = &scene.bob.connection.gate;
            assert!(!gate.is_open(), "{name}: it waits");
            scene.live("live");
            scene.run(HOLD_LONGEST);
            assert!(scene.bob.connection.gate.is_open(), "{name}: for ever");
            let later = scene.run(10 * MINUTE);
            assert!((5..50).contains(&later), "{name}: {later} calls");
            let text = scene.bob.has_read(reader);
            assert_eq!(text.matches("\"live\"").count(), 1, "{name}: {text}");
        }
    }

    fn too_large() -> ServiceError {
        ServiceError::too_large("as told")
    }

    #[test]
    fn out_of_reach_it_is_asked_every_few_seconds() {
        let mut scene = Scene::new();
        scene.answers(|_| failed(ErrorCode::ServiceUnavailable));
        let asked = scene.run(10 * MINUTE);
        assert!((100..260).contains(&asked), "{asked} calls");
        scene.answers(|_| page(&["m1"], false));
        scene.run(MAX_BACKOFF);
        scene.expect(&["m1", "offline_complete"]);
    }

    /// A request, such as another fall back to the inbox, does not hurry it either.
    #[test]
    fn requests_do_not_hurry_a_service_that_does_not_get_on() {
        let mut scene = Scene::new();
        scene.answers(|_| failed(ErrorCode::Internal));
        let asked: usize = (0..600)
            .map(|_| {
                scene.bob.connection.request_catch_up();
                scene.run(Duration::from_secs(1))
            })
            .sum();
        assert!((5..50).contains(&asked), "{asked} calls");
    }

    #[test]
    fn a_page_that_is_too_large_is_asked_for_in_smaller_ones() {
        let mut scene = Scene::new();
        scene.answers(|request| {
            let next = match request.after_id.strip_prefix('m') {
                Some(last) => last.parse::<i32>().map_or(0, |last| last + 1),
                None => 0,
            };
            let end = (next + request.limit).min(40);
            // Number 20 takes half of what an answer may hold.
            if next <= 20 && end > 20 && request.limit > 2 {
                return Err(too_large());
            }
            let ids: Vec<_> = (next..end).map(|number| format!("m{number}")).collect();
            let ids: Vec<_> = ids.iter().map(String::as_str).collect();
            page(&ids, end < 40)
        });
        let asked = scene.run(SETTLING);
        assert!(asked < 40, "{asked} calls");
        let ids: Vec<_> = (0..40).map(|number| format!("\"m{number}\"")).collect();
        scene.expect(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        scene.expect(&["\"count\":40"]);
    }

    #[test]
    fn what_was_sent_is_remembered_as_long_as_pushes_of_it_come() {
        let mut scene = Scene::new();
        scene.answers(|_| page(&["m1", "m2"], false));
        scene.run(SETTLING / 2);
        scene.expect(&["m1", "m2", "\"count\":2"]);
        // Late, as after the return of a broker.
        scene.live("m1");
        scene.run(SETTLING);
        scene.live("m2");
        scene.run(2 * SETTLING);
        scene.live("m2");
        scene.bob.connection.outbox.flush();
        scene.expect(&["m2"]);
    }

    #[test]
    fn pages_of_large_messages_get_smaller() {
        let mut scene = Scene::new();
        let limits = Arc::new(Mutex::new(Vec::new()));
        scene.answers({
            let limits = Arc::clone(&limits);
            move |request| {
                limits.lock().push(request.limit);
                let message = |number| Message {
                    content: "x".repeat(PAGE_BYTES / 4),
                    ..message(&format!("m{}-{number}", limits.lock().len()))
                };
                Ok(GetOfflineMessagesResponse {
                    messages: (0..request.limit).map(message).collect(),
                    has_more: limits.lock().len() < 6,
                })
            }
        });
        let reader = scene.bob.reads_all();
        scene.run(SETTLING);
        assert_eq!(*limits.lock(), [50, 25, 12, 6, 3, 3]);
        assert!(scene.bob.has_read(reader).contains("\"count\":99"));
    }

    #[test]
    fn a_circle_is_noticed_and_a_way_is_none() {
        for length in 1..200 {
            let mut trail = Trail::default();
            let steps = (0..10_000).take_while(|step| {
                let at = |step: usize| format!("m{}", step % length);
                trail.leads_on(
                    &if *step == 0 {
                        String::new()
                    } else {
                        at(step - 1)
                    },
                    &at(*step),
                )
            });
            let steps = steps.count();
            assert!(steps <= 3 * length, "{steps} of a circle of {length}");
        }
        let mut trail = Trail::default();
        assert!((0..10_000).all(|step| trail.leads_on(&step.to_string(), &(step + 1).to_string())));
    }
}
