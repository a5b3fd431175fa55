//! One lane: its name, what of it is loaded, and what it knows of the rest.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::backoff::Backoff;
use crate::reference::publisher::Publication;

/// What a publication takes beside its body. Generous.
const OVERHEAD: usize = 512;

/// A lane's name: exchange and routing key.
pub type Key = Arc<(String, String)>;

pub fn key_of(publication: &Publication) -> Key {
    let Publication {
        exchange,
        routing_key,
        ..
    } = publication;
    Arc::new((exchange.clone(), routing_key.clone()))
}

/// What one lane knows of its publications.
pub struct Lane {
    /// The next one first. It stays until it is published.
    pub loaded: VecDeque<Entry>,
    /// The last row that was loaded.
    pub last: i64,
    /// There are rows after `last` that were passed over.
    pub behind: bool,
    pub resting: bool,
    /// How long it rests when the next one is refused.
    pub backoff: Backoff,
}

impl Lane {
    pub fn new(backoff: &Backoff) -> Self {
        Self {
            loaded: VecDeque::new(),
            last: 0,
            behind: false,
            resting: false,
            backoff: backoff.clone(),
        }
    }
}

pub struct Entry {
    /// The outbox row; presence has none.
    pub row: Option<i64>,
    pub publication: Publication,
}

impl Entry {
    pub fn bytes(&self) -> usize {
        self.publication.body.len() + OVERHEAD
    }
}

pub fn bytes(entries: &VecDeque<Entry>) -> usize {
    entries.iter().map(Entry::bytes).sum()
}
