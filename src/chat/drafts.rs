//! What is to be sent, until it is answered: one at a time, so that the order holds whatever is refused
//! or lost, and again under the same `client_message_id`, so that it is sent once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::command::Target;
use super::frames::Frame;
use crate::backoff::Backoff;

/// How many may wait.
const WAITING: usize = 1_000;
/// How long one is tried again that is refused for reasons that pass.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Errors of which a later try may know nothing.
const PASSING: [&str; 4] = [
    "RATE_LIMITED",
    "SERVICE_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
];

pub(super) struct Draft {
    /// The `client_message_id`.
    pub id: String,
    pub target: Target,
    pub content: String,
    /// Which line of the input it was.
    pub line: usize,
    /// When it was sent for the first time.
    tried: Option<Instant>,
}

impl Draft {
    pub fn new(target: Target, content: String, line: usize) -> Self {
        Self {
            id: Uuid::new_v4().simple().to_string(),
            target,
            content,
            line,
            tried: None,
        }
    }
}

/// What an answer means for a draft.
pub(super) enum Verdict {
    Sent(Draft),
    Refused(Draft),
    /// It is tried again.
    Later,
}

pub(super) struct Drafts {
    waiting: VecDeque<Draft>,
    /// The `request_id` under which the first one is on its way.
    in_flight: Option<String>,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Drafts {
    pub fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: None,
            not_before: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// An error: too many wait.
    pub fn push(&mut self, draft: Draft) -> Result<(), Draft> {
        match self.waiting.len() < WAITING {
            true => self.waiting.push_back(draft),
            false => return Err(draft),
        }
        Ok(())
    }

    /// The one to send now under this `request_id`, if any.
    pub fn send(&mut self, request_id: &str, now: Instant) -> Option<&Draft> {
        let is_early = self.not_before.is_some_and(|earliest| now < earliest);
        if self.in_flight.is_some() || is_early {
            return None;
        }
        let draft = self.waiting.front_mut()?;
        draft.tried.get_or_insert(now);
        self.in_flight = Some(request_id.into());
        Some(draft)
    }

    /// When there is one to send.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let is_next = self.in_flight.is_none() && !self.waiting.is_empty();
        is_next.then(|| self.not_before.unwrap_or(now))
    }

    /// `None`: `frame` answers none of them.
    pub fn answered(&mut self, frame: &Frame, now: Instant) -> Option<Verdict> {
        if frame.request_id.is_none() || frame.request_id != self.in_flight {
            return None;
        }
        self.in_flight = None;
        if frame.kind == "message_sent" {
            return self.take().map(Verdict::Sent);
        }
        let tried = self.waiting.front()?.tried.unwrap_or(now);
        if PASSING.contains(&frame.code.as_str()) && now < tried + PATIENCE {
            self.not_before = Some(now + self.backoff.next());
            return Some(Verdict::Later);
        }
        self.take().map(Verdict::Refused)
    }

    /// The first one is done with, without an answer.
    pub fn take(&mut self) -> Option<Draft> {
        self.backoff.reset();
        (self.in_flight, self.not_before) = (None, None);
        self.waiting.pop_front()
    }

    /// What was on its way is sent again.
    pub fn disconnected(&mut self) {
        self.in_flight = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(contents: &[&str]) -> Drafts {
        let mut drafts = Drafts::new();
        for content in contents {
            let draft = Draft::new(Target::User("bob".into()), (*content).into(), 1);
            assert!(drafts.push(draft).is_ok());
        }
        drafts
    }

    fn answer(kind: &str, code: &str, request_id: &str) -> Frame {
        Frame {
            kind: kind.into(),
            code: code.into(),
            request_id: Some(request_id.into()),
            ..Frame::default()
        }
    }

    #[test]
    fn one_is_sent_at_a_time_in_order() {
        let (mut drafts, now) = (drafts(&["a", "b"]), Instant::now());
        assert_eq!(drafts.send("1", now).expect("one").content, "a");
        assert!(drafts.send("2", now).is_none() && drafts.due(now).is_none());
        let other = answer("message_sent", "", "7");
        assert!(drafts.answered(&other, now).is_none(), "another request's");
        let sent = drafts.answered(&answer("message_sent", "", "1"), now);
        assert!(matches!(sent, Some(Verdict::Sent(draft)) if draft.content == "a"));
        assert_eq!(drafts.send("2", now).expect("one").content, "b");
    }

    #[test]
    fn what_was_on_its_way_is_sent_again_under_the_same_id() {
        let (mut drafts, now) = (drafts(&["a"]), Instant::now());
        let first = drafts.send("1", now).expect("one").id.clone();
        drafts.disconnected();
        assert_eq!(drafts.send("2", now).expect("one").id, first);
        assert!(
            drafts
                .answered(&answer("message_sent", "", "1"), now)
                .is_none()
        );
    }

    #[test]
    fn what_passes_is_tried_again_for_a_while_and_nothing_overtakes_it() {
        let (mut drafts, start) = (drafts(&["a", "b"]), Instant::now());
        for code in PASSING {
            let now = drafts.due(start).expect("one waits");
            assert_eq!(drafts.send(code, now).expect("one").content, "a");
            let verdict = drafts.answered(&answer("error", code, code), now);
            assert!(matches!(verdict, Some(Verdict::Later)), "{code}");
            assert!(drafts.send("early", now).is_none());
        }
        let late = start + PATIENCE;
        assert_eq!(drafts.send("late", late).expect("one").content, "a");
        let verdict = drafts.answered(&answer("error", "INTERNAL", "late"), late);
        assert!(matches!(verdict, Some(Verdict::Refused(draft)) if draft.content == "a"));
        assert_eq!(drafts.send("next", late).expect("one").content, "b");
    }

    #[test]
    fn what_does_not_pass_is_refused_at_once() {
        for code in ["NOT_FOUND", "PERMISSION_DENIED", "INVALID_MESSAGE", "NEW"] {
            let (mut drafts, now) = (drafts(&["a"]), Instant::now());
            drafts.send("1", now);
            let verdict = drafts.answered(&answer("error", code, "1"), now);
            assert!(matches!(verdict, Some(Verdict::Refused(_))), "{code}");
            assert!(drafts.is_empty());
        }
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let mut drafts = drafts(&["a"; WAITING]);
        let one_more = Draft::new(Target::User("bob".into()), "b".into(), 1);
        assert!(drafts.push(one_more).is_err());
        assert_eq!(drafts.len(), WAITING);
    }
}
