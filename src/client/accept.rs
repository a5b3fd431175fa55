//! The accept loop: takes connections from the listener and gives each a thread, or, over a limit,
//! hands it to the [`refuser`](super::refuser), which spends none on it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::head::Answer;
use super::permits::{Permit, Permits};
use super::refuser::Refuser;
use super::{Context, STACK, session};
use crate::ids::ConnectionId;
use crate::threads::Threads;

/// std listens with 128: two thousand clients that come at once would overflow it.
const BACKLOG: i32 = 4_096;
/// How long a connection waits for others' handshakes before it is refused.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);
/// The wait after a failed accept, which the system's next moment may mend.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The client listener and everything behind it.
pub struct Listener {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    context: Arc<Context>,
    threads: Arc<Threads>,
    connections: Arc<Permits>,
    handshakes: Arc<Permits>,
    addresses: Arc<Addresses>,
    refuser: Refuser,
    draining: AtomicBool,
    stopped: AtomicBool,
}

impl Listener {
    /// Binds `listen.addr` and accepts from now on.
    pub fn start(context: Arc<Context>) -> io::Result<Self> {
        let listener = TcpListener::bind(context.config.listen.addr)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let addr = listener.local_addr()?;
        let limits = &context.config.limits;
        let shared = Arc::new(Shared {
            threads: Arc::default(),
            connections: Permits::new(limits.max_connections),
            handshakes: Permits::new(limits.max_handshakes),
            addresses: Arc::new(Addresses::new(limits.max_connections_per_ip)),
            refuser: Refuser::start(Arc::clone(&context))?,
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            context,
        });
        let acceptor = thread::Builder::new().name("accept".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        })?;
        Ok(Self {
            addr,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// The address that was really bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Free places under `limits.max_connections`.
    pub fn has_room(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let connections = Arc::clone(&self.shared.connections);
        move || connections.available() > 0
    }

    /// From now on newcomers are answered with 503.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Stops accepting and waits for the connection threads. Answers how many are left at
    /// `deadline`.
    pub fn stop(mut self, deadline: Instant) -> usize {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The accept loop looks at `stopped` when something comes.
        let _ = TcpStream::connect_timeout(&reachable(self.addr), Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            // It ends at the next connection, which is ours; a panic was reported when it happened.
            let _ = acceptor.join();
        }
        self.shared.refuser.stop();
        self.shared.threads.join(deadline)
    }
}

/// An address that reaches a listener bound to `addr`, which may be a wildcard.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, v6.port()).into()
        }
        addr => addr,
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut spare = File::open("/dev/null").ok();
        let mut patience = HANDSHAKE_PATIENCE;
        loop {
            let accepted = listener.accept();
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            match accepted {
                Ok((socket, peer)) => self.take(socket, peer.ip(), &mut patience),
                Err(error) if is_exhausted(&error) => {
                    self.refuse_with_spare(listener, &mut spare, &error);
                }
                // The client went away before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    error!("Accept failed, will be retried: error={error}");
                    thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    }

    /// Out of descriptors: the spare one makes room to answer a client instead of leaving it, and
    /// the loop with it, waiting.
    fn refuse_with_spare(&self, listener: &TcpListener, spare: &mut Option<File>, why: &io::Error) {
        error!("Accept failed, refusing until descriptors are free: error={why}");
        drop(spare.take());
        if let Ok((socket, _)) = listener.accept() {
            Answer::unavailable("The gateway has no room for another connection").send(&socket);
        }
        *spare = File::open("/dev/null").ok();
        if spare.is_none() {
            thread::sleep(ACCEPT_RETRY);
        }
    }

    /// Gives a socket its thread, or refuses it.
    fn take(self: &Arc<Self>, socket: TcpStream, peer: IpAddr, patience: &mut Duration) {
        // Frames leave when they are written; a failure says that the client is gone already.
        let _ = socket.set_nodelay(true);
        let admission = match self.admit(peer, patience) {
            Ok(admission) => admission,
            Err(answer) => return self.refuser.refuse(socket, answer),
        };
        let id = ConnectionId::random();
        let context = Arc::clone(&self.context);
        // The thread takes the socket from here, so that a failed spawn leaves it with us.
        let handed = Arc::new(Mutex::new(Some((socket, admission))));
        let taken = Arc::clone(&handed);
        let spawned = self
            .threads
            .spawn(format!("r-{}", id.short()), STACK, move || {
                let handed = taken.lock().take();
                if let Some((socket, admission)) = handed {
                    session::run(id, socket, admission, &context);
                }
            });
        if let Err(error) = spawned {
            error!("No thread for a connection: peer={peer}, error={error}");
            if let Some((socket, _)) = handed.lock().take() {
                let answer = "The gateway has no room for another connection";
                self.refuser.refuse(socket, Answer::unavailable(answer));
            }
        }
    }

    fn admit(&self, peer: IpAddr, patience: &mut Duration) -> Result<Admission, Answer> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(Answer::unavailable("The gateway is shutting down"));
        }
        let full = || Answer::unavailable("The gateway has no room for another connection");
        let connection = self
            .connections
            .acquire_within(Duration::ZERO)
            .ok_or_else(full)?;
        let proxied = self.context.config.listen.trusted_proxies.contains(&peer);
        let address = if proxied {
            None
        } else {
            Some(self.addresses.count(peer)?)
        };
        // A burst waits in the backlog. Once waiting has not helped, no one else waits for it.
        let handshake = self.handshakes.acquire_within(*patience);
        *patience = if handshake.is_some() {
            HANDSHAKE_PATIENCE
        } else {
            Duration::ZERO
        };
        let handshake = Some(handshake.ok_or_else(full)?);
        let addresses = Arc::clone(&self.addresses);
        Ok(Admission {
            peer,
            address,
            addresses,
            handshake,
            _connection: connection,
        })
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// What one connection occupies of the gateway's limits, given back when it is dropped.
pub(super) struct Admission {
    peer: IpAddr,
    /// `None` behind a trusted proxy, until the head says who the client is.
    address: Option<AddressPermit>,
    addresses: Arc<Addresses>,
    handshake: Option<Permit>,
    _connection: Permit,
}

impl Admission {
    /// The client's address, as far as it is known.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The head has said who the client behind a trusted proxy is.
    pub fn count_for(&mut self, client: IpAddr) -> Result<(), Answer> {
        self.peer = client;
        if self.address.is_none() {
            self.address = Some(self.addresses.count(client)?);
        }
        Ok(())
    }

    /// The head is read and the token validated: the next one may begin.
    pub fn handshake_is_over(&mut self) {
        self.handshake = None;
    }
}

/// Connections by address.
pub(super) struct Addresses {
    counts: Mutex<HashMap<IpAddr, usize>>,
    limit: usize,
}

struct AddressPermit {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn new(limit: usize) -> Self {
        Self {
            counts: Mutex::default(),
            limit,
        }
    }

    fn count(self: &Arc<Self>, address: IpAddr) -> Result<AddressPermit, Answer> {
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.limit {
            return Err(Answer::too_many("Too many connections from this address"));
        }
        *count += 1;
        Ok(AddressPermit {
            addresses: Arc::clone(self),
            address,
        })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
