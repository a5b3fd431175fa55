//! The accept loop: takes connections from the listener and gives each its turn and a thread, or, over
//! a limit, hands it to the [`refuser`](super::refuser), which spends none on it. It waits for nobody.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::admission::{Admission, Limits, no_room};
use super::answer::Answer;
use super::handshakes::{Handshakes, Newcomer, Turn};
use super::refuser::Refuser;
use super::stack::STACK;
use super::{Context, failpoint, session};
use crate::ids::ConnectionId;
use crate::threads::{Fatal, Threads, contain, supervise};

/// std listens with 128: two thousand clients that come at once would overflow it.
const BACKLOG: i32 = 4_096;
/// The wait after a failed accept, which the system's next moment may mend.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often those who wait for a handshake are looked after while nobody comes.
const ROUND: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// The client listener and everything behind it.
pub struct Listener {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

struct Shared {
    context: Arc<Context>,
    threads: Arc<Threads>,
    limits: Limits,
    handshakes: Arc<Handshakes>,
    refuser: Refuser,
    stopped: AtomicBool,
}

impl Listener {
    /// Binds `addr`. Clients wait in the backlog until the listener starts.
    pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(addr)?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    }

    /// Accepts from now on. `fatal` is told if that cannot go on.
    pub fn start(listener: TcpListener, context: Arc<Context>, fatal: &Fatal) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        // A client may go away between the news of it and its accept: nobody waits for the next one.
        listener.set_nonblocking(true)?;
        let listener = Arc::new(listener);
        let config = &context.config;
        let shared = Arc::new(Shared {
            threads: Arc::default(),
            limits: Limits::new(config),
            handshakes: Handshakes::new(
                config.limits.max_handshakes,
                config.listen.handshake_timeout,
            ),
            refuser: Refuser::start(Arc::clone(&context), fatal)?,
            stopped: AtomicBool::new(false),
            context,
        });
        let acceptor = thread::Builder::new().name("accept".into()).spawn({
            let (shared, listener, fatal) =
                (Arc::clone(&shared), Arc::clone(&listener), fatal.clone());
            move || supervise("accept", &fatal, || shared.accept(&listener))
        })?;
        Ok(Self {
            addr,
            listener,
            shared,
            acceptor,
        })
    }

    /// The address that was really bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers, whenever it is asked, whether another connection would be admitted.
    pub fn has_room(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let connections = self.shared.limits.connections();
        move || connections.available() > 0
    }

    /// Stops accepting and waits for the connection threads. Answers how many are left at
    /// `deadline`.
    pub fn stop(self, deadline: Instant) -> usize {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // On Linux this ends the wait for a client. It fails when that has ended already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        // A panic was reported when it happened.
        let _ = self.acceptor.join();
        for newcomer in self.shared.handshakes.take_waiting() {
            self.shared.refuser.refuse(newcomer.socket, no_room());
        }
        self.shared.refuser.stop();
        self.shared.handshakes.cut();
        self.shared.threads.join(deadline)
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut spare = open_spare();
        while !self.stopped.load(Ordering::SeqCst) {
            let patience = self.handshakes.has_waiting().then_some(&ROUND);
            // A failed poll is a round without news, save that the accept will say why.
            if poll(&mut [PollFd::new(listener, PollFlags::IN)], patience) != Ok(0) {
                self.accept_one(listener, &mut spare);
            }
            while let Some(turn) = self.handshakes.next(Instant::now()) {
                match turn {
                    Turn::Begin(newcomer) => drop(contain(|| self.begin(newcomer))),
                    Turn::Refuse(newcomer) => self.refuser.refuse(newcomer.socket, no_room()),
                }
            }
        }
    }

    fn accept_one(&self, listener: &TcpListener, spare: &mut Option<File>) {
        if spare.is_none() {
            *spare = open_spare();
        }
        match listener.accept() {
            Ok((socket, peer)) => self.take(socket, peer.ip().to_canonical()),
            Err(error) if is_exhausted(&error) => self.take_with_spare(listener, spare, &error),
            // The client went away before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) if self.stopped.load(Ordering::SeqCst) => {}
            Err(error) => {
                error!("Accept failed, will be retried: error={error}");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }

    /// Has a socket wait for its turn, or refuses it.
    fn take(&self, socket: TcpStream, peer: IpAddr) {
        failpoint::reached("accept", peer);
        // Frames leave when they are written; a failure says that the client is gone already.
        let _ = socket.set_nodelay(true);
        let socket = Arc::new(socket);
        let admitted = contain(|| {
            failpoint::reached("take", peer);
            self.admit(peer)
        });
        match admitted {
            Some(Ok(admission)) => self.handshakes.queue(Newcomer {
                id: ConnectionId::random(),
                socket,
                admission,
            }),
            Some(Err(answer)) => self.refuser.refuse(socket, answer),
            None => {}
        }
    }

    /// Gives a newcomer whose turn it is a thread.
    fn begin(&self, newcomer: Newcomer) {
        let Newcomer {
            id,
            socket,
            admission,
        } = newcomer;
        let peer = admission.peer();
        // Boxed, so that it takes no room on the connection's stack.
        let admission = Box::new(admission);
        let context = Arc::clone(&self.context);
        let own = Arc::clone(&socket);
        let spawned = self
            .threads
            .spawn(format!("r-{}", id.short()), STACK, move || {
                session::run(id, own, admission, &context);
            });
        if let Err(error) = spawned {
            error!("No thread for a connection: peer={peer}, error={error}");
            self.refuser.refuse(socket, no_room());
        }
    }

    /// Out of descriptors: the spare one makes room to answer a client instead of leaving it
    /// waiting. If there is a spare one again by then, so is room.
    fn take_with_spare(&self, listener: &TcpListener, spare: &mut Option<File>, why: &io::Error) {
        error!("Accept failed, refusing until there is room: error={why}");
        drop(spare.take());
        let accepted = listener.accept();
        *spare = open_spare();
        match accepted {
            Ok((socket, peer)) if spare.is_some() => self.take(socket, peer.ip().to_canonical()),
            Ok((socket, _)) => self.refuser.refuse(Arc::new(socket), no_room()),
            // The refuser has the spare one, for a moment.
            Err(_) if spare.is_none() => thread::sleep(ACCEPT_RETRY),
            Err(_) => {}
        }
    }

    fn admit(&self, peer: IpAddr) -> Result<Admission, Answer> {
        self.context.let_in()?;
        self.limits.admit(peer)
    }
}

/// A descriptor to give away.
fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_exhausted(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}
