//! The store: one SQLite connection, owned by one thread, to which all others send their queries
//! and changes.
//!
//! One thread, because SQLite writes one transaction at a time in any case, and a queue makes a
//! virtue of it: all changes that wait share one transaction and one fsync (a *group commit*),
//! the order of the queue is the order of commits, and no caller ever meets a locked database.
//! Queries read what is committed; the longest wait of a query is that of one commit.

pub(super) mod messages;
pub(super) mod outbox;
mod schema;
mod thread;

use std::fmt;
use std::io;
use std::path::Path;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use self::outbox::{OutboxPage, OutboxQuery};
use self::thread::{Job, StoreThread};
use super::error::ReferenceError;
use crate::threads::{Fatal, Worker};

/// Jobs that wait for the store thread. Whoever brings one more waits for room.
const QUEUE: usize = 1024;

/// The store could not do it; its thread has logged why. The same may work later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreError;

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database cannot be read or written")
    }
}

/// Message ids: the database's random epoch and the number of the commit, in hex. They sort by
/// commit order; to everybody else they are opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageIds {
    epoch: u32,
}

impl MessageIds {
    /// The id of message `seq`.
    pub fn text(self, seq: i64) -> String {
        format!("{:08x}-{seq:012x}", self.epoch)
    }

    /// The number of the message with this id, if it is one of this database's ids.
    pub fn seq(self, text: &str) -> Option<i64> {
        let (_, number) = text.split_once('-')?;
        let seq = i64::from_str_radix(number, 16).ok()?;
        // Only what `text` writes: no sign, no capital letters, no other length.
        (self.text(seq) == text).then_some(seq)
    }
}

/// The way to the store thread.
#[derive(Clone)]
pub(super) struct Store {
    jobs: mpsc::Sender<Job>,
    pub ids: MessageIds,
}

/// An opened database that no thread serves yet.
pub(super) struct Opened {
    connection: Connection,
    ids: MessageIds,
}

impl Opened {
    /// Opens or creates the database at `path`.
    pub fn open(path: &Path) -> Result<Self, ReferenceError> {
        let (connection, ids) = schema::open(path)?;
        Ok(Self { connection, ids })
    }

    /// Starts the store thread. It calls `committed` after each commit of changes, and ends on
    /// [`Store::stop`], or once all `Store`s are gone.
    pub fn serve(
        self,
        fatal: &Fatal,
        committed: impl Fn() + Send + 'static,
    ) -> io::Result<(Store, Worker)> {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let mut thread = StoreThread::new(self.connection, jobs);
        let worker = Worker::start("ref-store", fatal, move |_| thread.run(&committed))?;
        Ok((
            Store {
                jobs: sender,
                ids: self.ids,
            },
            worker,
        ))
    }
}

impl Store {
    /// Runs `query` on what is committed.
    pub async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = query_job(query);
        self.jobs.send(job).await.map_err(|_| StoreError)?;
        answer.await.map_err(|_| StoreError)
    }

    /// Runs `change` in a transaction, maybe together with others, and answers once it is
    /// committed.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = change_job(change);
        self.jobs.send(job).await.map_err(|_| StoreError)?;
        answer.await.map_err(|_| StoreError)
    }

    /// As [`query`](Self::query), from a plain thread.
    pub fn blocking_query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = query_job(query);
        self.jobs.blocking_send(job).map_err(|_| StoreError)?;
        answer.blocking_recv().map_err(|_| StoreError)
    }

    /// As [`change`](Self::change), from a plain thread.
    pub fn blocking_change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = change_job(change);
        self.jobs.blocking_send(job).map_err(|_| StoreError)?;
        answer.blocking_recv().map_err(|_| StoreError)
    }

    /// Reads from the outbox. Blocks.
    pub fn outbox(&self, query: OutboxQuery) -> Result<OutboxPage, StoreError> {
        self.blocking_query(move |connection| outbox::page(connection, &query))
    }

    /// Has these rows of the outbox deleted, some time soon. Blocks while the queue is full.
    pub fn published(&self, rows: Vec<i64>) {
        // A store that has stopped cannot forget them: they are published again after a restart.
        let _ = self.jobs.blocking_send(Job::Published(rows));
    }

    /// Ends the store thread after what is queued.
    pub async fn stop(&self) {
        // It has ended already: so much the better.
        let _ = self.jobs.send(Job::Stop).await;
    }
}

fn query_job<T: Send + 'static>(
    query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> (Job, oneshot::Receiver<T>) {
    let (answer, answered) = oneshot::channel();
    let job = Job::Query(Box::new(move |connection| {
        // Nobody may be waiting any more; a query changes nothing.
        let _ = answer.send(query(connection)?);
        Ok(())
    }));
    (job, answered)
}

fn change_job<T: Send + 'static>(
    change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> (Job, oneshot::Receiver<T>) {
    let (answer, answered) = oneshot::channel();
    let job = Job::Change(Box::new(move |connection| {
        let value = change(connection)?;
        // A caller who no longer waits has a change all the same: it asks again, or knows later.
        Ok(Box::new(move || drop(answer.send(value))))
    }));
    (job, answered)
}

#[cfg(test)]
mod tests;
