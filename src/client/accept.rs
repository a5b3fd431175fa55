//! The accept loop: takes connections from the listener and gives each its turn and a thread, or, over
//! a limit, hands it to the [`refuser`](super::refuser), which spends none on it. It waits for nobody.

use std::fs::File;
use std::io;
use std::io::ErrorKind::{ConnectionAborted, WouldBlock};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::error;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::address::Peer;
use super::admission::{Admission, Limits, no_room};
use super::head::wait_until;
use super::refuser::Refuser;
use super::stack::STACK;
use super::transport::{Opener, Socket};
use super::{Context, failpoint, session};
use crate::threads::{Fatal, StopSignal, Threads, Worker, contain};

/// std listens with 128: two thousand clients that come at once would overflow it.
const BACKLOG: i32 = 4_096;
/// The wait after a failed accept, which the system's next moment may mend.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often those who wait for a handshake are looked after while nobody comes.
const ROUND: Duration = Duration::from_millis(2);
/// What the acceptor and the refuser have to end at least: those who are refused last are answered.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The client listener and everything behind it.
pub struct Listener {
    addr: SocketAddr,
    acceptor: Arc<Acceptor>,
    accepting: Worker,
    refusing: Worker,
}

struct Acceptor {
    listener: TcpListener,
    open: Opener,
    context: Arc<Context>,
    limits: Arc<Limits>,
    refuser: Refuser,
    threads: Arc<Threads>,
}

impl Listener {
    /// Binds `addr`. Clients wait in the backlog until the listener starts.
    pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(addr)?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    }

    /// Accepts from now on. `fatal` is told if that cannot go on.
    pub fn start(
        listener: TcpListener,
        open: Opener,
        context: Arc<Context>,
        fatal: &Fatal,
    ) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        // A client may go away between the news of it and its accept: nobody waits for the next one.
        listener.set_nonblocking(true)?;
        let (refuser, refusing) = Refuser::start(Arc::clone(&context), fatal)?;
        let acceptor = Arc::new(Acceptor {
            listener,
            open,
            limits: Limits::new(&context.config),
            context,
            refuser,
            threads: Arc::default(),
        });
        let own = Arc::clone(&acceptor);
        let accepting = Worker::start("accept", fatal, move |stop| own.run(stop))?;
        Ok(Self {
            addr,
            acceptor,
            accepting,
            refusing,
        })
    }

    /// The address that was really bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How much of the limits is used.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.acceptor.limits)
    }

    /// Stops accepting and waits for the connection threads. Answers how many are left at
    /// `deadline`.
    pub fn stop(mut self, deadline: Instant) -> usize {
        let soon = deadline.max(Instant::now() + STOP_WITHIN);
        let acceptor = &self.acceptor;
        self.accepting.tell_to_stop();
        // On Linux this ends the wait for a client. It fails when that has ended already.
        let _ = rustix::net::shutdown(&acceptor.listener, rustix::net::Shutdown::Both);
        self.accepting.stop(soon);
        while let Some(waiting) = acceptor.limits.next_waiting() {
            acceptor.refuse(&waiting.socket, waiting.peer);
        }
        self.refusing.stop(soon);
        acceptor.limits.cut_silent();
        acceptor.threads.join(deadline)
    }
}

impl Acceptor {
    fn run(&self, stop: &StopSignal) {
        let mut spare = open_spare();
        while !stop.is_given() {
            let round = self.limits.has_waiting().then(|| Instant::now() + ROUND);
            if wait_until(round, &mut [PollFd::new(&self.listener, PollFlags::IN)]) {
                self.accept(&mut spare, stop);
            }
            while let Some(admission) = self.limits.next(Instant::now()) {
                contain(|| self.begin(admission));
            }
            while let Some(overdue) = self.limits.next_overdue(Instant::now()) {
                self.refuse(&overdue.socket, overdue.peer);
            }
        }
    }

    /// Out of descriptors, the `spare` one makes room to answer a client instead of leaving it
    /// waiting. If there is a spare one again by then, so is room.
    fn accept(&self, spare: &mut Option<File>, stop: &StopSignal) {
        *spare = spare.take().or_else(open_spare);
        let mut accepted = self.accept_socket();
        let exhausted = accepted.as_ref().err().filter(|error| is_exhausted(error));
        if let Some(error) = exhausted {
            error!("Accept failed, refusing until there is room: error={error}");
            drop(spare.take());
            accepted = self.accept_socket();
            *spare = open_spare();
        }
        match accepted {
            Ok((socket, peer)) if spare.is_some() => self.take(&socket, peer),
            Ok((socket, peer)) => self.refuse(&socket, peer),
            // The refuser has the spare one, for a moment.
            Err(error) if is_exhausted(&error) => thread::sleep(ACCEPT_RETRY),
            // The client went away before it was accepted.
            Err(error) if matches!(error.kind(), ConnectionAborted | WouldBlock) => {}
            Err(_) if stop.is_given() => {}
            Err(error) => {
                error!("Accept failed, will be retried: error={error}");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }

    fn refuse(&self, socket: &Socket, peer: Peer) {
        self.refuser.refuse(socket, peer, no_room());
    }

    fn accept_socket(&self) -> io::Result<(Socket, Peer)> {
        let (socket, peer) = self.listener.accept()?;
        // Frames leave when they are written; a failure says that the client is gone already.
        let _ = socket.set_nodelay(true);
        let peer = Peer::Socket(peer.ip().to_canonical());
        Ok(((self.open)(socket, peer), peer))
    }

    /// Has a socket wait for its turn, or refuses it.
    fn take(&self, socket: &Socket, peer: Peer) {
        failpoint::reached("accept", peer.address());
        let admitted = contain(|| {
            failpoint::reached("take", peer.address());
            self.context.reject_if_draining()?;
            self.limits.admit(socket, peer)
        });
        if let Some(Err(refusal)) = admitted {
            self.refuser.refuse(socket, peer, refusal);
        }
    }

    /// Gives a connection whose turn it is a thread.
    fn begin(&self, admission: Admission) {
        let (peer, name) = (admission.peer, format!("r-{}", admission.id.short()));
        let (socket, context) = (Arc::clone(&admission.socket), Arc::clone(&self.context));
        // Boxed, so that it takes no room on the connection's stack.
        let admission = Box::new(admission);
        let run = move || session::run(admission, &context);
        if let Err(error) = self.threads.spawn(name, STACK, run) {
            let address = peer.address();
            error!("No thread for a connection: peer={address}, error={error}");
            self.refuse(&socket, peer);
        }
    }
}

/// A descriptor to give away.
fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|code| exhausted.contains(&code))
}
