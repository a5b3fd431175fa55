//! The accept loop: takes connections from the listener and gives each a thread, or, over a limit,
//! hands it to the [`refuser`](super::refuser), which spends none on it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use rustix::io::Errno;

use super::admission::{Admission, Limits, no_room};
use super::answer::Answer;
use super::refuser::Refuser;
use super::stack::STACK;
use super::{Context, session};
use crate::ids::ConnectionId;
use crate::threads::Threads;

/// std listens with 128: two thousand clients that come at once would overflow it.
const BACKLOG: i32 = 4_096;
/// The wait after a failed accept, which the system's next moment may mend.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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

    /// Accepts from now on.
    pub fn start(listener: TcpListener, context: Arc<Context>) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            threads: Arc::default(),
            limits: Limits::new(&context.config),
            refuser: Refuser::start(Arc::clone(&context))?,
            stopped: AtomicBool::new(false),
            context,
        });
        let acceptor = thread::Builder::new().name("accept".into()).spawn({
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            move || shared.accept(&listener)
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
        // On Linux this ends a blocked accept, with an error. It fails when that has ended already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        // A panic was reported when it happened.
        let _ = self.acceptor.join();
        self.shared.refuser.stop();
        self.shared.limits.cut_handshakes();
        self.shared.threads.join(deadline)
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut spare = open_spare();
        while !self.stopped.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((socket, peer)) => self.take(socket, peer.ip().to_canonical()),
                Err(error) if is_exhausted(&error) => {
                    self.take_with_spare(listener, &mut spare, &error);
                }
                // The client went away before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) if self.stopped.load(Ordering::SeqCst) => {}
                Err(error) => {
                    error!("Accept failed, will be retried: error={error}");
                    thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    }

    /// Gives a socket its thread, or refuses it.
    fn take(self: &Arc<Self>, socket: TcpStream, peer: IpAddr) {
        // Frames leave when they are written; a failure says that the client is gone already.
        let _ = socket.set_nodelay(true);
        let id = ConnectionId::random();
        let socket = Arc::new(socket);
        let admission = match self.admit(id, &socket, peer) {
            Ok(admission) => admission,
            Err(answer) => return self.refuser.refuse(socket, answer),
        };
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

    /// Out of descriptors: the spare one makes room to answer a client instead of leaving it, and
    /// the loop with it, waiting. The wait for that client may be long: if there is a spare one
    /// again by then, so is room.
    fn take_with_spare(
        self: &Arc<Self>,
        listener: &TcpListener,
        spare: &mut Option<File>,
        why: &io::Error,
    ) {
        error!("Accept failed, refusing until there is room: error={why}");
        drop(spare.take());
        let accepted = listener.accept();
        *spare = open_spare();
        match accepted {
            Ok((socket, peer)) if spare.is_some() => self.take(socket, peer.ip().to_canonical()),
            Ok((socket, _)) => {
                no_room().send(&socket);
                drop(socket);
                *spare = open_spare();
            }
            Err(_) => {}
        }
        if spare.is_none() {
            thread::sleep(ACCEPT_RETRY);
        }
    }

    fn admit(
        &self,
        id: ConnectionId,
        socket: &Arc<TcpStream>,
        peer: IpAddr,
    ) -> Result<Admission, Answer> {
        self.context.let_in()?;
        self.limits.admit(id, socket, peer)
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
