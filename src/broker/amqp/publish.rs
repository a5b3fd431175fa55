//! What the reference services need to publish, and nobody else: publishing itself, publisher
//! confirms (which publications of a channel the broker has answered, and how), and whether the
//! broker is in alarm.
//!
//! amiquip's own `ConfirmSmoother` is not used: an ack with `multiple` overwrites the nacks that
//! came before it for single publications, which then count as published.

use std::collections::BTreeMap;
use std::time::Instant;

use amiquip::{AmqpProperties, Confirm, ConfirmPayload, ConnectionBlockedNotification, Publish};
use crossbeam::channel::{Receiver, Select, TryRecvError};

use super::channel::Channel;
use super::connection::AmqpConnection;
use super::error::{Result, during, lost};

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in every queue that it is for.
    Published,
    /// Some queue that it is for had no room: to be published again after a while.
    Refused,
}

/// Whether the broker takes publications.
pub struct Alarm {
    news: Receiver<ConnectionBlockedNotification>,
    active: bool,
}

impl AmqpConnection {
    /// Tells, from now on, whether the broker takes no publications (a memory or disk alarm).
    pub fn alarm(&mut self) -> Result<Alarm> {
        let news = self.connection.listen_for_connection_blocked();
        Ok(Alarm {
            news: news.map_err(during("listening for alarms"))?,
            active: false,
        })
    }
}

impl Alarm {
    pub fn is_active(&mut self) -> bool {
        for news in self.news.try_iter() {
            self.active = matches!(news, ConnectionBlockedNotification::Blocked(_));
        }
        self.active
    }
}

/// The broker's answers to what is published on one channel; a `T` says what that was.
pub struct Confirms<T> {
    answers: Receiver<Confirm>,
    unconfirmed: Unconfirmed<T>,
}

impl Channel {
    /// Asks the broker to confirm what this channel publishes from now on. Each publication has
    /// to be [expected](Confirms::expect).
    pub fn confirms<T>(&self) -> Result<Confirms<T>> {
        let what = "asking for confirms";
        let answers = self.0.listen_for_publisher_confirms();
        let answers = answers.map_err(during(what))?;
        let enabled = self.0.enable_publisher_confirms();
        enabled.map_err(during(what))?;
        Ok(Confirms {
            answers,
            unconfirmed: Unconfirmed::default(),
        })
    }

    /// Publishes a persistent message without waiting; `kind` is its AMQP `type` property.
    pub fn publish(&self, exchange: &str, key: &str, kind: &str, body: &[u8]) -> Result<()> {
        const PERSISTENT: u8 = 2;
        let properties = AmqpProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_type_(kind.to_owned());
        let message = Publish::with_properties(body, key, properties);
        let sent = self.0.basic_publish(exchange, message);
        sent.map_err(during(format_args!("publishing to exchange {exchange}")))
    }
}

impl<T> Confirms<T> {
    /// The channel has just published this.
    pub fn expect(&mut self, what: T) {
        self.unconfirmed.published(what);
    }

    /// Whether the broker owes no answer.
    pub fn is_empty(&self) -> bool {
        self.unconfirmed.waiting.is_empty()
    }

    /// Waits until the broker has answered something, something is received from `wake`, or
    /// `deadline` has passed; and tells what became of publications, each once.
    pub fn next(&mut self, deadline: Instant, wake: &Receiver<()>) -> Result<Vec<(T, Outcome)>> {
        let mut select = Select::new();
        select.recv(&self.answers);
        select.recv(wake);
        // Whichever it was, or neither, what has come is looked at.
        let _ = select.ready_deadline(deadline);
        // It only ended the wait.
        let _ = wake.try_recv();
        let mut settled = Vec::new();
        loop {
            match self.answers.try_recv() {
                Ok(Confirm::Ack(answer)) => {
                    settled.extend(self.unconfirmed.settle(answer, Outcome::Published));
                }
                Ok(Confirm::Nack(answer)) => {
                    settled.extend(self.unconfirmed.settle(answer, Outcome::Refused));
                }
                Err(TryRecvError::Disconnected) if settled.is_empty() => {
                    return Err(lost("the connection ended"));
                }
                Err(_) => return Ok(settled),
            }
        }
    }
}

/// Publications without an answer, by their tags, which count from 1.
struct Unconfirmed<T> {
    last: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Unconfirmed<T> {
    fn default() -> Self {
        Self {
            last: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> Unconfirmed<T> {
    fn published(&mut self, what: T) {
        self.last += 1;
        self.waiting.insert(self.last, what);
    }

    /// What an answer is about: one tag, or all up to it that have no answer yet (AMQP 0-9-1,
    /// `basic.ack`: with `multiple`, tag 0 means all).
    fn settle(&mut self, answer: ConfirmPayload, outcome: Outcome) -> Vec<(T, Outcome)> {
        let ConfirmPayload {
            delivery_tag: tag,
            multiple,
        } = answer;
        let settled = if !multiple {
            self.waiting.remove(&tag).into_iter().collect()
        } else if tag == 0 {
            std::mem::take(&mut self.waiting).into_values().collect()
        } else {
            let later = self.waiting.split_off(&tag.saturating_add(1));
            let settled = std::mem::replace(&mut self.waiting, later);
            settled.into_values().collect::<Vec<_>>()
        };
        settled.into_iter().map(|what| (what, outcome)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload {
            delivery_tag,
            multiple,
        }
    }

    #[test]
    fn an_ack_of_several_does_not_undo_a_nack_before_it() {
        let mut unconfirmed = Unconfirmed::default();
        (1..=5).for_each(|what| unconfirmed.published(what));
        let refused = unconfirmed.settle(answer(2, false), Outcome::Refused);
        assert_eq!(refused, [(2, Outcome::Refused)]);
        let published = unconfirmed.settle(answer(4, true), Outcome::Published);
        assert_eq!(published, [1, 3, 4].map(|what| (what, Outcome::Published)));
        let rest = unconfirmed.settle(answer(0, true), Outcome::Refused);
        assert_eq!(rest, [(5, Outcome::Refused)]);
    }

    #[test]
    fn tags_that_nobody_waits_for_mean_nothing() {
        let mut unconfirmed = Unconfirmed::default();
        unconfirmed.published("one");
        for (tag, multiple) in [(0, false), (2, false), (u64::MAX, false)] {
            assert_eq!(
                unconfirmed.settle(answer(tag, multiple), Outcome::Published),
                []
            );
        }
        let all = unconfirmed.settle(answer(u64::MAX, true), Outcome::Published);
        assert_eq!(all, [("one", Outcome::Published)]);
        assert_eq!(
            unconfirmed.settle(answer(1, true), Outcome::Refused),
            [],
            "each is told of once"
        );
    }

    /// A small deterministic generator (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    /// Against a model that keeps one slot for each publication and walks over all of them.
    #[test]
    fn any_course_of_answers_comes_to_what_a_naive_model_says() {
        for seed in 1..=500 {
            let mut random = Random(seed);
            let mut unconfirmed = Unconfirmed::default();
            let mut model: Vec<Option<Outcome>> = Vec::new();
            let mut told: Vec<Option<Outcome>> = Vec::new();
            for _ in 0..200 {
                if model.is_empty() || random.below(2) == 0 {
                    unconfirmed.published(model.len());
                    model.push(None);
                    told.push(None);
                    continue;
                }
                let tag = random.below(model.len()) + 1;
                let multiple = random.below(3) == 0;
                let outcome = [Outcome::Published, Outcome::Refused][random.below(2)];
                for (index, slot) in model.iter_mut().enumerate() {
                    let meant = index + 1 == tag || (multiple && index < tag);
                    if meant && slot.is_none() {
                        *slot = Some(outcome);
                    }
                }
                for (index, outcome) in unconfirmed.settle(answer(tag as u64, multiple), outcome) {
                    assert_eq!(
                        told[index].replace(outcome),
                        None,
                        "seed {seed}: told twice"
                    );
                }
                assert_eq!(told, model, "seed {seed}");
            }
            let open = model.iter().filter(|slot| slot.is_none()).count();
            assert_eq!(unconfirmed.waiting.len(), open, "seed {seed}");
        }
    }
}
