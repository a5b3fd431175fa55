//! The refuser: one thread that answers all the connections for which there is no room, so that
//! they cost none. It answers health checks and pages, too, and waits for no client.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Select, Sender, bounded};

use super::address::{Peer, client_address};
use super::handshake::expect_upgrade;
use super::head::{RECEIVE_WITHIN, Responder, is_open, read_some, wait_until};
use super::transport::Socket;
use super::{Context, failpoint};
use crate::http::{HttpResponse, parse_head};
use crate::threads::semaphore::{Permit, Semaphore};
use crate::threads::{Fatal, StopSignal, Worker, contain};

/// How many wait for their answer at a time, each with a descriptor. Those beyond are cut off without
/// one.
pub(crate) const CAPACITY: usize = 256;
/// How long each has to send its head: an answer that is sent before the request was read is lost
/// to a reset.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// How often newcomers are looked for while others are waited for.
const ROUND: Duration = Duration::from_millis(10);

pub(super) struct Refuser {
    places: Arc<Semaphore>,
    newcomers: Sender<Refused>,
    context: Arc<Context>,
}

/// A connection that is being refused.
struct Refused {
    peer: Peer,
    responder: Responder,
    head: Vec<u8>,
    /// What an upgrade is answered, until the head is there.
    refusal: Option<HttpResponse>,
    _place: Permit,
}

impl Refuser {
    /// Whoever was refused before the thread is told to stop is still answered.
    pub fn start(context: Arc<Context>, fatal: &Fatal) -> io::Result<(Self, Worker)> {
        // Each has a place, so that there is room for all.
        let (newcomers, news) = bounded(CAPACITY);
        // Outlives a panic, so that it is nobody else's.
        let mut waiting = Vec::new();
        let own = Arc::clone(&context);
        let worker = Worker::start("refuser", fatal, move |stop| {
            run(&news, &mut waiting, &context, stop);
        })?;
        let refuser = Self {
            places: Semaphore::new(CAPACITY),
            newcomers,
            context: own,
        };
        Ok((refuser, worker))
    }

    /// Answers `socket` with `refusal` once its head is there.
    pub fn refuse(&self, socket: &Socket, peer: Peer, refusal: HttpResponse) {
        let Some(place) = self.places.acquire_within(Duration::ZERO) else {
            let message = "Cut off without an answer: too many connections to refuse";
            let unanswered = HttpResponse::unavailable("cut_off", message);
            return self.context.refused(peer, None, &unanswered);
        };
        // The thread has ended, or else there is room.
        let _ = self.newcomers.try_send(Refused {
            peer,
            responder: Responder::new(socket, Instant::now() + HEAD_TIMEOUT),
            head: Vec::new(),
            refusal: Some(refusal),
            _place: place,
        });
    }
}

fn run(news: &Receiver<Refused>, waiting: &mut Vec<Refused>, context: &Context, stop: &StopSignal) {
    loop {
        if waiting.is_empty() {
            let mut first = Select::new();
            first.recv(news);
            first.recv(stop.receiver());
            first.ready();
        }
        // In this order: nobody comes once the signal is given.
        let stops = stop.is_given();
        for newcomer in news.try_iter() {
            failpoint::reached("refuser", newcomer.peer.address());
            waiting.push(newcomer);
        }
        if stops && waiting.is_empty() {
            return;
        }
        if stops {
            // The gateway ends, and waits for them.
            let end = Instant::now() + HEAD_TIMEOUT;
            let responders = waiting.iter_mut().map(|refused| &mut refused.responder);
            responders.for_each(|responder| responder.deadline = end.min(responder.deadline));
        }
        let mut sockets: Vec<_> = waiting.iter().map(|it| it.responder.awaited()).collect();
        wait_until(Some(Instant::now() + ROUND), &mut sockets);
        let now = Instant::now();
        waiting.retain_mut(|refused| contain(|| refused.goes_on(now, context)) == Some(true));
    }
}

impl Refused {
    /// Goes on as far as the socket lets it. False when it is over.
    fn goes_on(&mut self, now: Instant, context: &Context) -> bool {
        if let Some(refusal) = &self.refusal {
            let read = read_some(&self.responder.socket, &mut self.head, || {});
            self.peer = self.responder.socket.client().unwrap_or(self.peer);
            let response = match read.and_then(|read| Ok((parse_head(&self.head)?, read))) {
                Ok((None, read)) => return is_open(&read) && now < self.responder.deadline,
                Ok((Some(head), _)) => {
                    failpoint::reached("answer", self.peer.address());
                    self.peer = client_address(&head, self.peer, &context.config.listen);
                    let upgrade = expect_upgrade(&head, context);
                    upgrade.err().unwrap_or_else(|| refusal.clone())
                }
                Err(response) => response,
            };
            context.refused(self.peer, None, &response);
            self.responder.unsent = response.bytes().into();
            self.responder.deadline = now + RECEIVE_WITHIN;
            self.refusal = None;
        }
        self.responder.goes_on(now)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

    use super::*;
    use crate::client::connection::Connection;
    use crate::client::{ConnectionObserver, OverUserLimit, Route};
    use crate::http::Page;
    use crate::metrics::Metrics;
    use crate::services::fake::FakeServices;

    struct Nobody;

    impl ConnectionObserver for Nobody {
        fn connected(&self, _: &Arc<Connection>) -> Result<Route, OverUserLimit> {
            Ok(Route::Away)
        }
        fn disconnected(&self, _: &Connection) {}
    }

    /// A refuser whose page is so large.
    fn refuser(size: usize) -> (Refuser, Worker) {
        let page = move || HttpResponse::page(200, "text/html", "x".repeat(size));
        let context = Context {
            config: crate::config::load::parse("test", "", [], None).unwrap(),
            services: Arc::new(FakeServices::default()),
            observer: Arc::new(Nobody),
            metrics: Arc::new(Metrics::new(&[])),
            drain: Arc::default(),
            pacing: Semaphore::new(1),
            validating: Semaphore::new(1),
            pages: vec![Page::new("/", page)],
            echo: false,
        };
        Refuser::start(Arc::new(context), &crossbeam::channel::unbounded().0).unwrap()
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn refused(refuser: &Refuser, request: &str) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (&client).write_all(request.as_bytes()).unwrap();
        let patience = Some(Duration::from_secs(20));
        client.set_read_timeout(patience).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let socket: Socket = Arc::new(socket);
        refuser.refuse(
            &socket,
            Peer::Socket(peer.ip()),
            HttpResponse::unavailable("no_room", "no room"),
        );
        client
    }

    const PAGE: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n";

    /// More than any socket takes at once, to a client that begins to read late and ends its own
    /// side early; while others are answered.
    #[test]
    fn an_answer_of_any_size_is_sent_whole() {
        const SIZE: usize = 16 << 20;
        let (refuser, worker) = refuser(SIZE);
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
        assert!(worker.stop(far()));
    }

    #[test]
    fn a_stop_waits_for_nobody_who_does_not_read() {
        let (refuser, worker) = refuser(16 << 20);
        let _clients: Vec<_> = (0..3).map(|_| refused(&refuser, PAGE)).collect();
        let start = Instant::now();
        assert!(worker.stop(far()));
        assert!(start.elapsed() < RECEIVE_WITHIN / 2);
    }

    #[test]
    fn those_beyond_its_capacity_are_cut() {
        let (refuser, worker) = refuser(1);
        let silent: Vec<_> = (0..CAPACITY).map(|_| refused(&refuser, "")).collect();
        let mut beyond = refused(&refuser, "");
        assert_eq!(beyond.read(&mut [0]).unwrap(), 0);
        drop(silent);
        assert!(worker.stop(far()));
    }
}
