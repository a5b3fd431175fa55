//! The store thread: it runs queries one by one, and commits changes in groups.

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::outbox;

/// The most jobs of one group commit, so that the first of them is not kept waiting for long.
pub(super) const BATCH: usize = 256;

pub(super) type Query = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;
pub(super) type Change = Box<dyn FnOnce(&Connection) -> rusqlite::Result<Answer> + Send>;
/// Tells the caller of a change that it is committed. Dropped instead, it tells of failure.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// What the thread is asked to do.
pub(super) enum Job {
    Query(Query),
    Change(Change),
    /// These rows of the outbox are published.
    Published(Vec<i64>),
    Stop,
}

pub(super) struct StoreThread {
    connection: Connection,
    jobs: mpsc::Receiver<Job>,
    /// Rows of the outbox that are to be deleted with the next commit. One that fails leaves them
    /// for the next: forgotten, they would be published again after a restart.
    published: Vec<i64>,
    /// Whether a commit waits for the disk now; `None`: not said yet.
    durable: Option<bool>,
}

/// The changes that share a transaction.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    deletions: bool,
    stop: bool,
}

impl StoreThread {
    pub fn new(connection: Connection, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            connection,
            jobs,
            published: Vec::new(),
            durable: None,
        }
    }

    /// Does jobs until it is told to stop, or nobody is left who could bring one.
    pub fn run(&mut self, committed: &dyn Fn()) {
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
                    log::error!("Commit failed: changes={changes}, error={error}");
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
                        log::error!("Query failed: error={error}");
                    }
                }
                Job::Change(change) => batch.changes.push(change),
                Job::Published(rows) => {
                    self.published.extend(rows);
                    batch.deletions = true;
                }
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
        if batch.changes.is_empty() && !batch.deletions {
            return Ok(Vec::new());
        }
        self.set_durable(!batch.changes.is_empty())?;
        let transaction = self.connection.transaction()?;
        let answers = batch
            .changes
            .into_iter()
            .map(|change| change(&transaction))
            .collect::<rusqlite::Result<Vec<_>>>()?;
        outbox::delete(&transaction, &self.published)?;
        transaction.commit()?;
        self.published.clear();
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
