//! What came: each message is shown once, and acknowledged once it was shown, many at a time.

use std::mem;
use std::time::{Duration, Instant};

use hashlink::LruCache;

/// How many ids are known again. What is unread comes again at a reconnect, and that is less.
const KNOWN: usize = 10_000;
/// How many ids go into one acknowledgement.
const BATCH: usize = 50;
/// How long one may wait for others.
const LINGER: Duration = Duration::from_millis(200);

pub(super) struct Inbox {
    known: LruCache<String, ()>,
    /// Shown and not acknowledged.
    shown: Vec<String>,
    /// Since when the first of them waits.
    since: Option<Instant>,
}

impl Inbox {
    pub fn new() -> Self {
        Self {
            known: LruCache::new(KNOWN),
            shown: Vec::new(),
            since: None,
        }
    }

    /// Whether the message is new.
    pub fn is_new(&mut self, id: &str) -> bool {
        self.known.insert(id.into(), ()).is_none()
    }

    /// Was shown; one that came twice is acknowledged twice, since the first time may not have counted.
    pub fn was_shown(&mut self, id: &str, now: Instant) {
        self.shown.push(id.into());
        self.since.get_or_insert(now);
    }

    /// When the next acknowledgement is due.
    pub fn due(&self) -> Option<Instant> {
        let is_full = self.shown.len() >= BATCH;
        self.since
            .map(|since| if is_full { since } else { since + LINGER })
    }

    /// What to acknowledge now, if it is time.
    pub fn take_due(&mut self, now: Instant) -> Option<Vec<String>> {
        let is_due = self.due().is_some_and(|due| due <= now);
        is_due.then(|| self.take()).flatten()
    }

    /// What to acknowledge before taking leave.
    pub fn take(&mut self) -> Option<Vec<String>> {
        let rest = self.shown.split_off(self.shown.len().min(BATCH));
        let batch = mem::replace(&mut self.shown, rest);
        if self.shown.is_empty() {
            self.since = None;
        }
        (!batch.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_of_an_id_is_not_new_but_is_acknowledged() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        assert!(inbox.is_new("m1"));
        inbox.was_shown("m1", now);
        assert_eq!(inbox.take_due(now), None, "others may come");
        assert_eq!(inbox.take_due(now + LINGER), Some(vec!["m1".into()]));
        assert_eq!(inbox.due(), None);
        assert!(!inbox.is_new("m1"));
        inbox.was_shown("m1", now);
        assert_eq!(inbox.take_due(now + LINGER), Some(vec!["m1".into()]));
    }

    #[test]
    fn a_full_batch_waits_for_nothing_and_is_bounded() {
        let (mut inbox, now) = (Inbox::new(), Instant::now());
        for id in 0..=2 * BATCH {
            inbox.was_shown(&id.to_string(), now);
        }
        assert_eq!(inbox.take_due(now).map(|ids| ids.len()), Some(BATCH));
        assert_eq!(inbox.take_due(now).map(|ids| ids.len()), Some(BATCH));
        assert_eq!(inbox.take_due(now), None);
        assert_eq!(inbox.take(), Some(vec![(2 * BATCH).to_string()]));
        assert_eq!(inbox.take(), None);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut inbox = Inbox::new();
        assert!((0..2 * KNOWN).all(|id| inbox.is_new(&id.to_string())));
        assert_eq!(inbox.known.len(), KNOWN);
        assert!(!inbox.is_new(&(2 * KNOWN - 1).to_string()));
    }
}
