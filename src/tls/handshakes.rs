//! Where handshakes are computed: by a thread for each core, and not by each connection's own. What a
//! handshake frees stays in the C library's cache for the thread that freed it (glibc's tcache), about
//! 9 KiB of small pieces, and would for as long as the connection lasts.

use std::io;
use std::thread::available_parallelism;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded, select, unbounded};

use crate::threads::{Fatal, Worker, contain};

type Job = Box<dyn FnOnce() + Send>;

/// Whoever has a handshake to be computed.
#[derive(Clone)]
pub(super) struct Handshakes(Sender<Job>);

/// The threads, once they are started. Its end is that of the jobs that nobody has begun.
pub(super) struct Pool {
    jobs: Receiver<Job>,
    workers: Vec<Worker>,
}

impl Handshakes {
    /// There are never more jobs than handshakes at a time.
    pub fn new() -> (Self, Pool) {
        let (jobs, taken) = unbounded();
        let pool = Pool {
            jobs: taken,
            workers: Vec::new(),
        };
        (Self(jobs), pool)
    }

    /// Waits for what `job` comes to. `None`: it panicked, or the threads have ended.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (tell, told) = bounded(1);
        let job = move || {
            // Whoever asked waits for it.
            let _ = tell.send(job());
        };
        self.0.send(Box::new(job)).ok()?;
        told.recv().ok()
    }
}

impl Pool {
    pub fn start(&mut self, fatal: &Fatal) -> io::Result<()> {
        for number in 1..=available_parallelism().map_or(1, usize::from) {
            let jobs = self.jobs.clone();
            let name = format!("tls-handshake-{number}");
            let worker = Worker::start(&name, fatal, move |stop| {
                loop {
                    select! {
                        recv(jobs) -> job => match job {
                            Ok(job) => _ = contain(job),
                            Err(_) => return,
                        },
                        recv(stop.receiver()) -> _ => return,
                    }
                }
            })?;
            self.workers.push(worker);
        }
        Ok(())
    }

    pub fn stop(self, deadline: Instant) {
        self.workers
            .into_iter()
            .for_each(|worker| _ = worker.stop(deadline));
    }
}
