//! The admin listener's socket and threads: one that accepts, and one for each connection, of which
//! there are few. Whoever says nothing, or takes nothing, has its place for seconds only, so that
//! neither a scanner nor a slow browser keeps an operator out for long.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, poll};

use super::console::Console;
use crate::http::{Head, HttpResponse, parse_head};
use crate::threads::semaphore::Semaphore;
use crate::threads::{Fatal, StopSignal, Threads, USUAL_STACK, Worker, contain};

/// Connections at a time. Those beyond are answered 503.
const MAX_CONNECTIONS: usize = 16;
/// How long the next request on a connection is waited for, head and all.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// How long a client may take to receive a response.
const RECEIVE_WITHIN: Duration = Duration::from_secs(5);
/// How long it may go on sending after the last one: cutting it off would reset the connection.
const LINGER: Duration = Duration::from_millis(500);
/// How often a thread that waits looks whether it is to stop.
const TICK: Duration = Duration::from_millis(250);
/// The wait after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A running admin listener.
pub struct AdminListener {
    socket: Arc<TcpListener>,
    addr: SocketAddr,
    accepting: Worker,
    threads: Arc<Threads>,
}

impl AdminListener {
    /// Answers with `console` whoever connects to `socket`. `fatal` is told if that cannot go on.
    pub fn start(socket: TcpListener, console: Arc<Console>, fatal: &Fatal) -> io::Result<Self> {
        let addr = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        let (socket, threads) = (Arc::new(socket), Arc::<Threads>::default());
        let (listener, own) = (Arc::clone(&socket), Arc::clone(&threads));
        let accepting = Worker::start("admin", fatal, move |stop| {
            accept(&listener, &console, &own, stop);
        })?;
        Ok(Self {
            socket,
            addr,
            accepting,
            threads,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends it and its connections by `deadline`.
    pub fn stop(mut self, deadline: Instant) {
        self.accepting.tell_to_stop();
        // On Linux this ends the wait for a client. It fails when that has ended already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.accepting.stop(deadline);
        let left = self.threads.join(deadline);
        if left > 0 {
            warn!("Admin connections left behind: threads={left}");
        }
    }
}

fn accept(
    listener: &TcpListener,
    console: &Arc<Console>,
    threads: &Arc<Threads>,
    stop: &StopSignal,
) {
    let places = Semaphore::new(MAX_CONNECTIONS);
    while !stop.is_given() {
        // Not in accept, which would keep a descriptor for whoever comes next. A failed poll is news
        // that accept explains.
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], None);
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(_) if stop.is_given() => return,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => {
                warn!("Admin accept failed, will be retried: error={error}");
                thread::sleep(ACCEPT_RETRY);
                continue;
            }
        };
        let Some(place) = places.acquire_within(Duration::ZERO) else {
            let message = format!("{MAX_CONNECTIONS} admin connections are open: try again");
            let busy = HttpResponse::unavailable("busy", &message).bytes();
            // Whoever takes it at once has it; nobody is waited for.
            let _ = socket.set_nonblocking(true);
            let _ = (&socket).write(&busy);
            continue;
        };
        let (console, stop) = (Arc::clone(console), stop.clone());
        let serve = move || {
            let _place = place;
            // A client that is gone needs no answer.
            contain(|| serve(&socket, &console, &stop).ok());
        };
        if let Err(error) = threads.spawn("admin-request".into(), USUAL_STACK, serve) {
            warn!("No thread for an admin connection: error={error}");
        }
    }
}

/// Answers one request after the other, for as long as the client likes.
fn serve(socket: &TcpStream, console: &Console, stop: &StopSignal) -> io::Result<()> {
    let peer = socket.peer_addr()?.ip().to_canonical();
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(TICK))?;
    let mut received = Vec::new();
    loop {
        let Some(complete) = receive_head(socket, &mut received, stop)? else {
            return Ok(());
        };
        let (response, length, goes_on) = match parse_head(&received) {
            Ok(Some(head)) => {
                let response = console.respond(&head);
                if head.method == "POST" {
                    let (path, status) = (head.path.escape_default(), response.status());
                    info!("Admin request: peer={peer}, path={path}, status={status}");
                }
                (response, head.length, complete && wants_more(&head))
            }
            Ok(None) => (HttpResponse::timed_out("No request in time"), 0, false),
            Err(response) => (response, 0, false),
        };
        let goes_on = goes_on && !stop.is_given();
        received.drain(..length);
        send(socket, &response.bytes_keeping(goes_on))?;
        if !goes_on {
            return linger(socket);
        }
    }
}

/// Reads until `received` begins with a head, or with what can be none; true then, and false when
/// one has begun that does not come in time. `None`: there is nothing to answer.
fn receive_head(
    mut socket: &TcpStream,
    received: &mut Vec<u8>,
    stop: &StopSignal,
) -> io::Result<Option<bool>> {
    let deadline = Instant::now() + REQUEST_WITHIN;
    let mut chunk = [0; 4096];
    while let Ok(None) = parse_head(received) {
        if stop.is_given() || Instant::now() >= deadline {
            return Ok((!received.is_empty()).then_some(false));
        }
        match socket.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(read) => received.extend(&chunk[..read]),
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(true))
}

/// Whether another request may follow (RFC 9112, section 9.3).
fn wants_more(head: &Head<'_>) -> bool {
    // What cannot be read asks for nothing.
    let lists = |token| head.lists("Connection", token).unwrap_or(false);
    !lists("close") && (!head.is_http_1_0 || lists("keep-alive"))
}

fn send(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + RECEIVE_WITHIN;
    let mut unsent = bytes;
    while !unsent.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero is refused: the time is over.
        socket.set_write_timeout(Some(left))?;
        match socket.write(unsent) {
            Ok(sent) => unsent = &unsent[sent..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads for a moment what the client still sends, so that the response reaches it.
fn linger(mut socket: &TcpStream) -> io::Result<()> {
    socket.shutdown(std::net::Shutdown::Write)?;
    let deadline = Instant::now() + LINGER;
    let mut chunk = [0; 4096];
    while Instant::now() < deadline {
        match socket.read(&mut chunk) {
            Ok(0) => break,
            Err(error) if !is_wait(&error) => break,
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn is_wait(error: &io::Error) -> bool {
    let waits = [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
    ];
    waits.contains(&error.kind())
}
