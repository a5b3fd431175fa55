//! The refuser: one thread that answers all the connections for which there is no room, so that
//! they cost none. It answers health checks and pages, too, and blocks on nobody.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::answer::Answer;
use super::handshake::page;
use super::head::{Head, parse_head};
use super::permits::{Permit, Permits};
use super::{Context, failpoint};
use crate::threads::{Fatal, contain, supervise};

/// How many wait for their answer at a time, each with a descriptor. Those beyond are cut off without
/// one.
pub(crate) const CAPACITY: usize = 256;
/// How long each has to send its head: an answer that is sent before the request was read is lost
/// to a reset. And how long, once it has its answer, it may go on sending.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long each may take to receive its answer.
const RECEIVE_WITHIN: Duration = Duration::from_secs(10);
/// How often newcomers are looked for while others are waited for.
const ROUND: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

pub(super) struct Refuser {
    places: Arc<Permits>,
    refused: Mutex<Option<Sender<Refused>>>,
    /// When somebody was last cut off.
    cut: Mutex<Option<Instant>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A connection that is being refused.
struct Refused {
    socket: Arc<TcpStream>,
    answer: Answer,
    head: Vec<u8>,
    state: State,
    deadline: Instant,
    _place: Permit,
}

/// How far it is.
enum State {
    /// Its head is awaited.
    Reading,
    /// It is sent the rest of this.
    Writing { bytes: Vec<u8>, written: usize },
    /// It has its answer, and is to close its end.
    Answered,
}

impl Refuser {
    pub fn start(context: Arc<Context>, fatal: &Fatal) -> io::Result<Self> {
        // Each has a place, so that there is room for all.
        let (sender, receiver) = bounded(CAPACITY);
        let fatal = fatal.clone();
        // Outlives a panic, so that it is nobody else's.
        let mut waiting = Vec::new();
        let thread = thread::Builder::new()
            .name("refuser".into())
            .spawn(move || {
                supervise("refuser", &fatal, || run(&receiver, &mut waiting, &context));
            })?;
        Ok(Self {
            places: Permits::new(CAPACITY),
            refused: Mutex::new(Some(sender)),
            cut: Mutex::default(),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Answers `socket` with `answer` once its head is there.
    pub fn refuse(&self, socket: Arc<TcpStream>, answer: Answer) {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let Some(place) = self.places.acquire_within(Duration::ZERO) else {
            return self.tell();
        };
        let refused = Refused {
            socket,
            answer,
            head: Vec::new(),
            state: State::Reading,
            deadline: Instant::now() + PATIENCE,
            _place: place,
        };
        let sender = self.refused.lock().clone();
        // It has ended, or else there is room.
        if let Some(sender) = sender {
            let _ = sender.try_send(refused);
        }
    }

    /// Those who come to be cut off come by the thousand.
    fn tell(&self) {
        let now = Instant::now();
        let is_news = |last: Instant| now - last >= PATIENCE;
        let last = self.cut.lock().replace(now);
        if last.is_none_or(is_news) {
            warn!("Too many connections to refuse: they are cut off without an answer");
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

fn run(newcomers: &Receiver<Refused>, waiting: &mut Vec<Refused>, context: &Context) {
    loop {
        let patience = if waiting.is_empty() {
            Duration::from_secs(3600)
        } else {
            Duration::ZERO
        };
        match newcomers.recv_timeout(patience) {
            Ok(newcomer) => {
                failpoint::reached("refuser", newcomer.peer());
                waiting.push(newcomer);
                if !newcomers.is_empty() {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if waiting.is_empty() => return,
            // The gateway ends, and waits for them.
            Err(RecvTimeoutError::Disconnected) => {
                let end = Instant::now() + PATIENCE;
                let deadlines = waiting.iter_mut().map(|refused| &mut refused.deadline);
                deadlines.for_each(|deadline| *deadline = end.min(*deadline));
            }
        }
        let mut sockets: Vec<_> = waiting.iter().map(Refused::awaited).collect();
        // A failed poll is a round without news; deadlines end it.
        let _ = poll(&mut sockets, Some(&ROUND));
        let now = Instant::now();
        waiting.retain_mut(|refused| contain(|| refused.is_to_stay(now, context)) == Some(true));
    }
}

impl Refused {
    fn awaited(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Writing { .. } => PollFlags::OUT,
            State::Reading | State::Answered => PollFlags::IN,
        };
        PollFd::new(&self.socket, flags)
    }

    /// Goes on as far as the socket lets it. False when it is over.
    fn is_to_stay(&mut self, now: Instant, context: &Context) -> bool {
        let went_on = match self.state {
            State::Reading => self.read_on(now, context),
            State::Writing { .. } => self.write_on(now),
            State::Answered => self.read().map(drop),
        };
        went_on.is_ok() && now < self.deadline
    }

    fn read_on(&mut self, now: Instant, context: &Context) -> io::Result<()> {
        let read = self.read()?;
        self.head.extend(read);
        let answer = match parse_head(&self.head) {
            Ok(None) => return Ok(()),
            Ok(Some(head)) => self.answer_to(&head, context),
            Err(answer) => answer,
        };
        if answer.is_refusal() {
            info!("Connection refused: status={}", answer.status());
        }
        let bytes = answer.bytes();
        self.state = State::Writing { bytes, written: 0 };
        self.deadline = now + RECEIVE_WITHIN;
        self.write_on(now)
    }

    fn answer_to(&self, head: &Head<'_>, context: &Context) -> Answer {
        failpoint::reached("answer", self.peer());
        page(head, context).unwrap_or_else(|| self.answer.clone())
    }

    /// The socket is closed once the client has closed its end, or at the deadline.
    fn write_on(&mut self, now: Instant) -> io::Result<()> {
        while let State::Writing { bytes, written } = &mut self.state {
            match (&*self.socket).write(&bytes[*written..]) {
                Ok(count) => *written += count,
                Err(error) => return unless_for_later(error),
            }
            if *written == bytes.len() {
                self.socket.shutdown(Shutdown::Write)?;
                self.state = State::Answered;
                self.deadline = now + PATIENCE;
            }
        }
        Ok(())
    }

    /// What has come by now; the end is an error.
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = [0; 1024];
        match (&*self.socket).read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(bytes[..read].to_vec()),
            Err(error) => unless_for_later(error).map(|()| Vec::new()),
        }
    }

    /// For log and tests; unspecified when the client is gone.
    fn peer(&self) -> IpAddr {
        let peer = self.socket.peer_addr();
        peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip())
    }
}

fn unless_for_later(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::client::connection::Connection;
    use crate::client::{ConnectionObserver, OverUserLimit, Route};
    use crate::services::fake::FakeServices;

    struct Nobody;

    impl ConnectionObserver for Nobody {
        fn connected(&self, _: &Arc<Connection>) -> Result<Route, OverUserLimit> {
            Ok(Route::Away)
        }
        fn disconnected(&self, _: &Connection) {}
    }

    /// A refuser whose page is so large.
    fn refuser(page: usize) -> Refuser {
        let context = Context {
            config: crate::config::load::parse("test", "", [], None).unwrap(),
            services: Arc::new(FakeServices::default()),
            observer: Arc::new(Nobody),
            readiness: Arc::default(),
            draining: Arc::new(AtomicBool::new(false)),
            pacing: Permits::new(1),
            validating: Permits::new(1),
            page: Some("x".repeat(page)),
        };
        Refuser::start(Arc::new(context), &crossbeam::channel::unbounded().0).unwrap()
    }

    fn refused(refuser: &Refuser, request: &str) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (&client).write_all(request.as_bytes()).unwrap();
        let patience = Some(Duration::from_secs(20));
        client.set_read_timeout(patience).unwrap();
        let socket = Arc::new(listener.accept().unwrap().0);
        refuser.refuse(socket, Answer::unavailable("no room"));
        client
    }

    const PAGE: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n";

    /// More than any socket takes at once, to a client that begins to read late and ends its own
    /// side early; while others are answered.
    #[test]
    fn an_answer_of_any_size_is_sent_whole() {
        const SIZE: usize = 16 << 20;
        let refuser = refuser(SIZE);
        let slow = refused(&refuser, PAGE);
        slow.shutdown(Shutdown::Write).unwrap();
        let mut other = String::new();
        refused(&refuser, UPGRADE)
            .read_to_string(&mut other)
            .unwrap();
        assert!(other.starts_with("HTTP/1.1 503 "), "{other}");
        let mut bytes = Vec::new();
        (&slow).read_to_end(&mut bytes).unwrap();
        let body = bytes.iter().rev().take_while(|byte| **byte == b'x');
        assert_eq!(body.count(), SIZE);
        refuser.stop();
    }

    #[test]
    fn a_stop_waits_for_nobody_who_does_not_read() {
        let refuser = refuser(16 << 20);
        let _clients: Vec<_> = (0..3).map(|_| refused(&refuser, PAGE)).collect();
        let start = Instant::now();
        refuser.stop();
        assert!(start.elapsed() < RECEIVE_WITHIN / 2);
    }

    #[test]
    fn those_beyond_its_capacity_are_cut() {
        let refuser = refuser(1);
        let silent: Vec<_> = (0..CAPACITY).map(|_| refused(&refuser, "")).collect();
        let mut beyond = refused(&refuser, "");
        assert_eq!(beyond.read(&mut [0]).unwrap(), 0);
        drop(silent);
        refuser.stop();
    }
}
