//! The refuser: one thread that answers all the connections for which there is no room, so that
//! they cost none. It answers health checks, too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use log::{info, warn};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Context;
use super::answer::Answer;
use super::handshake::page;
use super::head::{Head, parse_head};

/// How many wait for their answer at a time. Those beyond are cut off without one.
const CAPACITY: usize = 256;
/// How long each has to send its head: an answer that is sent before the request was read is lost
/// to a reset.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often newcomers are looked for while others are waited for.
const ROUND: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// A connection, and what it is to be told.
type Newcomer = (Arc<TcpStream>, Answer);

pub(super) struct Refuser {
    refused: Mutex<Option<Sender<Newcomer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A connection that is being refused.
struct Refused {
    socket: Arc<TcpStream>,
    answer: Answer,
    head: Vec<u8>,
    answered: bool,
    deadline: Instant,
}

impl Refuser {
    pub fn start(context: Arc<Context>) -> io::Result<Self> {
        let (sender, receiver) = bounded(CAPACITY);
        let thread = thread::Builder::new()
            .name("refuser".into())
            .spawn(move || run(&receiver, &context))?;
        Ok(Self {
            refused: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Answers `socket` with `answer` once its head is there.
    pub fn refuse(&self, socket: Arc<TcpStream>, answer: Answer) {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let refused = self.refused.lock();
        if let Some(Err(TrySendError::Full(_))) =
            refused.as_ref().map(|to| to.try_send((socket, answer)))
        {
            warn!("Too many connections to refuse: one was cut off without an answer");
        }
    }

    /// Answers those who wait, and ends the thread.
    pub fn stop(&self) {
        *self.refused.lock() = None;
        if let Some(thread) = self.thread.lock().take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn run(newcomers: &Receiver<Newcomer>, context: &Context) {
    let mut waiting: Vec<Refused> = Vec::new();
    loop {
        let patience = if waiting.is_empty() {
            Duration::from_secs(3600)
        } else {
            Duration::ZERO
        };
        match newcomers.recv_timeout(patience) {
            Ok((socket, answer)) if waiting.len() < CAPACITY => {
                let deadline = Instant::now() + PATIENCE;
                waiting.push(Refused {
                    socket,
                    answer,
                    head: Vec::new(),
                    answered: false,
                    deadline,
                });
            }
            Ok(_) => warn!("Too many connections to refuse: one was cut off without an answer"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if waiting.is_empty() => return,
            Err(RecvTimeoutError::Disconnected) => {}
        }
        if !newcomers.is_empty() {
            continue;
        }
        let mut sockets: Vec<_> = waiting
            .iter()
            .map(|refused| PollFd::new(&refused.socket, PollFlags::IN))
            .collect();
        // A failed poll is a round without news; deadlines end it.
        let _ = poll(&mut sockets, Some(&ROUND));
        let now = Instant::now();
        waiting.retain_mut(|refused| refused.is_to_stay(now, context));
    }
}

impl Refused {
    /// Reads on, answers when the head is there. False when it is over.
    fn is_to_stay(&mut self, now: Instant, context: &Context) -> bool {
        let mut bytes = [0; 1024];
        match (&*self.socket).read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) if self.answered => {}
            Ok(read) => {
                self.head.extend(&bytes[..read]);
                match parse_head(&self.head) {
                    Ok(None) => {}
                    Ok(Some(head)) => self.send(&self.answer_to(&head, context)),
                    Err(answer) => self.send(&answer),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        now < self.deadline
    }

    fn answer_to(&self, head: &Head<'_>, context: &Context) -> Answer {
        page(head, context).unwrap_or_else(|| self.answer.clone())
    }

    /// An answer fits into the buffer of a fresh socket, so it never blocks; whoever is gone needs
    /// none. The socket is closed once the client has closed its end, or at the deadline.
    fn send(&mut self, answer: &Answer) {
        if answer.is_refusal() {
            info!("Connection refused: status={}", answer.status());
        }
        let _ = (&*self.socket).write_all(&answer.bytes());
        let _ = self.socket.shutdown(Shutdown::Write);
        self.answered = true;
    }
}
