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

use std::fmt;
use std::io;
use std::path::Path;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use self::outbox::OutboxPage;
use super::error::ReferenceError;
use super::thread::Worker;

/// Jobs that wait for the store thread. Whoever brings one more waits for room.
const QUEUE: usize = 1024;
/// The most jobs of one group commit, so that the first of them is not kept waiting for long.
const BATCH: usize = 256;

type Query = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;
type Change = Box<dyn FnOnce(&Connection) -> rusqlite::Result<Answer> + Send>;
/// Tells the caller of a change that it is committed. Dropped instead, it tells of failure.
type Answer = Box<dyn FnOnce() + Send>;

enum Job {
    Query(Query),
    Change(Change),
    /// The outbox up to this row is published.
    Published(i64),
    Stop,
}

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
    pub fn serve(self, committed: impl Fn() + Send + 'static) -> io::Result<(Store, Worker)> {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let thread = StoreThread {
            connection: self.connection,
            jobs,
            durable: None,
        };
        let worker = Worker::spawn("ref-store", move || thread.run(&committed))?;
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

    /// The first `limit` rows of the outbox after row `after`. Blocks.
    pub fn outbox(&self, after: i64, limit: u32) -> Result<OutboxPage, StoreError> {
        self.blocking_query(move |connection| outbox::page(connection, after, limit))
    }

    /// Has the outbox deleted up to row `last`, some time soon. Blocks while the queue is full.
    pub fn published(&self, last: i64) {
        // A store that has stopped cannot forget them: they are published again after a restart.
        let _ = self.jobs.blocking_send(Job::Published(last));
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

struct StoreThread {
    connection: Connection,
    jobs: mpsc::Receiver<Job>,
    /// Whether a commit waits for the disk now; `None`: not said yet.
    durable: Option<bool>,
}

/// The changes that share a transaction.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    published: Option<i64>,
    stop: bool,
}

impl StoreThread {
    fn run(mut self, committed: &dyn Fn()) {
        while let Some(first) = self.jobs.blocking_recv() {
            let batch = self.gather(first);
            let (changes, stop) = (batch.changes.len(), batch.stop);
            match self.commit(batch) {
                Ok(answers) => {
                    // First, so that a stop after an answer finds that there is work left.
                    if changes > 0 {
                        committed();
                    }
                    answers.into_iter().for_each(|answer| answer());
                }
                Err(error) => {
                    log::error!("event=store_commit_failed changes={changes} error=\"{error}\"");
                }
            }
            if stop {
                return;
            }
        }
    }

    /// Takes what waits: queries are run at once, changes gathered.
    fn gather(&mut self, first: Job) -> Batch {
        let mut batch = Batch::default();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(job) = next {
            match job {
                Job::Query(query) => {
                    if let Err(error) = query(&self.connection) {
                        log::error!("event=store_query_failed error=\"{error}\"");
                    }
                }
                Job::Change(change) => batch.changes.push(change),
                Job::Published(last) => batch.published = batch.published.max(Some(last)),
                Job::Stop => batch.stop = true,
            }
            taken += 1;
            let more = taken < BATCH && !batch.stop;
            next = if more {
                self.jobs.try_recv().ok()
            } else {
                None
            };
        }
        batch
    }

    /// All of the batch, or nothing: what SQLite itself refuses (a full disk, say) it would
    /// refuse to the others of the batch as well. A caller's own mistake is no error here but a
    /// value that its change returns.
    fn commit(&mut self, batch: Batch) -> rusqlite::Result<Vec<Answer>> {
        if batch.changes.is_empty() && batch.published.is_none() {
            return Ok(Vec::new());
        }
        self.set_durable(!batch.changes.is_empty())?;
        let transaction = self.connection.transaction()?;
        let answers = batch
            .changes
            .into_iter()
            .map(|change| change(&transaction))
            .collect::<rusqlite::Result<Vec<_>>>()?;
        if let Some(last) = batch.published {
            outbox::delete(&transaction, last)?;
        }
        transaction.commit()?;
        Ok(answers)
    }

    /// Changes are on the disk before they are answered. Deletions from the outbox need not be:
    /// after a power cut those rows are published again, and nothing is lost.
    fn set_durable(&mut self, durable: bool) -> rusqlite::Result<()> {
        if self.durable != Some(durable) {
            let synchronous = if durable { "FULL" } else { "NORMAL" };
            self.connection
                .pragma_update(None, "synchronous", synchronous)?;
            self.durable = Some(durable);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
