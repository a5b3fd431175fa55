//! What other threads, and signals, say to the thread that polls.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

use super::command::{Command, Target};
use super::connect::Refusal;
use super::socket::Socket;

pub(super) enum Event {
    /// A line at the prompt, and whom it is for.
    Typed(Command, Option<Target>),
    /// A line that means nothing, and why.
    Misunderstood(String),
    /// There will be no more lines.
    InputEnds,
    Connected(Box<Result<Socket, Refusal>>),
}

pub(super) struct Mailbox {
    events: Receiver<Event>,
    sender: MailSender,
    /// Readable when there is something new.
    woken: UnixStream,
    /// The last one that came.
    signal: Arc<AtomicUsize>,
}

#[derive(Clone)]
pub(super) struct MailSender {
    events: Sender<Event>,
    waker: Arc<UnixStream>,
}

impl Mailbox {
    /// SIGTERM, SIGINT and SIGHUP are told here from now on, and end nothing by themselves.
    pub fn new() -> io::Result<Self> {
        let (woken, waker) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let signal = Arc::<AtomicUsize>::default();
        for number in [SIGTERM, SIGINT, SIGHUP] {
            // In this order, so that the flag is set when the thread wakes.
            flag::register_usize(number, Arc::clone(&signal), number.unsigned_abs() as usize)?;
            pipe::register(number, waker.try_clone()?)?;
        }
        let (sender, events) = unbounded();
        let waker = Arc::new(waker);
        let sender = MailSender {
            events: sender,
            waker,
        };
        Ok(Self {
            events,
            sender,
            woken,
            signal,
        })
    }

    pub fn sender(&self) -> MailSender {
        self.sender.clone()
    }

    /// What came, oldest first.
    pub fn take(&mut self) -> Vec<Event> {
        // First, so that whoever sends after this wakes again.
        let mut bytes = [0; 64];
        while matches!(self.woken.read(&mut bytes), Ok(1..)) {}
        self.events.try_iter().collect()
    }

    /// Whether to end, and by which signal.
    pub fn signal(&self) -> Option<usize> {
        Some(self.signal.load(Ordering::Relaxed)).filter(|number| *number != 0)
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}

impl MailSender {
    /// An error: nobody reads any more.
    pub fn send(&self, event: Event) -> Result<(), ()> {
        self.events.send(event).map_err(drop)?;
        // Full: it is awake, or will be.
        let _ = (&*self.waker).write(&[0]);
        Ok(())
    }
}
