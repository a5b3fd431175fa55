//! A named thread that can be joined with a deadline.

use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};

use crate::threads::{Fatal, supervise};

/// A running thread. Std joins without a deadline only, so the thread also holds the sending end
/// of a channel: that it is gone says that the thread has ended, also by a panic.
pub(super) struct Worker {
    name: &'static str,
    handle: JoinHandle<()>,
    ended: Receiver<Infallible>,
}

impl Worker {
    /// A panic has `run` called again; `fatal` is told if that is of no use.
    pub fn spawn(
        name: &'static str,
        fatal: &Fatal,
        run: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (running, ended) = bounded(0);
        let fatal = fatal.clone();
        let handle = Builder::new().name(name.into()).spawn(move || {
            let _running = running;
            supervise(name, &fatal, run);
        })?;
        Ok(Self {
            name,
            handle,
            ended,
        })
    }

    /// Joins the thread if it ends before `deadline`; else it is left behind, and logged.
    pub fn join_by(self, deadline: Instant) {
        match self.ended.recv_deadline(deadline) {
            Err(RecvTimeoutError::Disconnected) => {
                if self.handle.join().is_err() {
                    log::error!("Thread panicked: thread={}", self.name);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                log::error!("Thread left behind: thread={}, reason=deadline", self.name);
            }
            Ok(never) => match never {},
        }
    }
}
