//! The reference services: User, Message and Presence, as real gRPC servers over one SQLite
//! store, for the embedded mode and for `ws-gateway services`.
//!
//! ```text
//!  gRPC ─► server ─► user, message, presence ─► store (SQLite, one thread: group commits)
//!                                  │               │ committed
//!                       presence   └──► outbox ◄───┘
//!                       changes         (publisher thread) ─► Publisher: RabbitMQ, local bus
//! ```
//!
//! Threads: `reference`, the one worker of a tokio runtime, which only ever waits for the others;
//! `ref-store`, which owns the database; `ref-publisher`, which owns the [`Publisher`].

mod arguments;
mod bus;
mod directory;
pub mod embedded;
mod error;
mod lanes;
mod leases;
mod message;
mod outbox;
mod outgoing;
mod presence;
pub mod publisher;
mod rabbit;
mod server;
mod store;
mod user;
mod watchers;

use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::directory::{Directories, Directory};
use self::leases::Leases;
use self::message::Messages;
use self::outbox::PublisherThread;
use self::outgoing::Outgoing;
use self::presence::Presence;
use self::publisher::Publisher;
use self::server::Services;
use self::store::{Opened, Store};
use self::user::Users;
use self::watchers::Announcer;
use crate::backoff::Backoff;
use crate::config;
use crate::threads::{Fatal, Worker};

pub use self::error::ReferenceError;
pub use self::rabbit::AmqpPublisher;

/// The waits before publishing again are jittered: half of these, up to all. A broker that returns
/// is found within the longest: what is committed meanwhile waits for that.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// How long a [`Reference`] that is dropped without [`Reference::stop`] takes to end, at most.
const DROP_DEADLINE: Duration = Duration::from_secs(2);

/// The running reference services.
///
/// Its methods block: call them from plain threads, never from a task of a tokio runtime.
pub struct Reference {
    addr: SocketAddr,
    directories: Directories,
    /// One reload at a time.
    reloading: Mutex<()>,
    store: Store,
    /// `None`: stopped.
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    server: JoinHandle<()>,
    stop_server: oneshot::Sender<()>,
    outgoing: Arc<Outgoing>,
    publisher_thread: Worker,
    store_thread: Worker,
}

impl Reference {
    /// Opens the database, listens on `listen` (port 0: a free one, see [`addr`](Self::addr)) and
    /// starts the services with the tokens and groups of `embedded`. They answer when this
    /// returns, and publish to `publisher`; first of all what was left at the last end. `fatal` is
    /// told if a part of them cannot go on.
    pub fn start(
        listen: SocketAddr,
        embedded: &config::Embedded,
        publisher: Box<dyn Publisher>,
        fatal: &Fatal,
    ) -> Result<Self, ReferenceError> {
        let backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        Self::start_with(listen, embedded, publisher, backoff, fatal)
    }

    fn start_with(
        listen: SocketAddr,
        embedded: &config::Embedded,
        publisher: Box<dyn Publisher>,
        backoff: Backoff,
        fatal: &Fatal,
    ) -> Result<Self, ReferenceError> {
        let (listener, addr) = bind(listen)?;
        let opened = Opened::open(&embedded.database)?;
        let first = Directory::new(embedded, &Directory::default(), SystemTime::now());
        let directories = Directories::new(first);

        let outgoing = Arc::new(Outgoing::new());
        let committed = Arc::clone(&outgoing);
        let (store, store_thread) = opened
            .serve(fatal, move || committed.committed())
            .map_err(ReferenceError::Start)?;
        let leases = Arc::new(Mutex::new(Leases::default()));
        let presence = Arc::new(Presence::new(Arc::clone(&leases), Arc::clone(&outgoing)));
        let services = Services {
            users: Users {
                directories: directories.clone(),
            },
            messages: Messages {
                directories: directories.clone(),
                store: store.clone(),
            },
            presence: Arc::clone(&presence),
        };
        let runtime = runtime().map_err(ReferenceError::Start)?;
        let (stop_server, stopping) = oneshot::channel();
        let server = {
            let _entered = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|error| ReferenceError::Listen { addr, error })?;
            let served = services.serve(listener, stopping);
            runtime.spawn(or_fatal("the services", fatal.clone(), served))
        };
        runtime.spawn(or_fatal("the leases", fatal.clone(), presence.keep_time()));
        let announcer = Announcer {
            directories: directories.clone(),
            leases,
            store: store.clone(),
        };
        let publisher_thread = PublisherThread::new(
            Arc::clone(&outgoing),
            store.clone(),
            announcer,
            publisher,
            backoff,
        );
        let publisher_thread = publisher_thread
            .spawn(fatal)
            .map_err(ReferenceError::Start)?;
        log::info!(
            "Services started: addr={addr}, database={}, tokens={}, groups={}",
            embedded.database.display(),
            embedded.tokens.len(),
            embedded.groups.len()
        );
        let running = Running {
            runtime,
            server,
            stop_server,
            outgoing,
            publisher_thread,
            store_thread,
        };
        let reloading = Mutex::new(());
        Ok(Self {
            addr,
            directories,
            reloading,
            store,
            running: Some(running),
        })
    }

    /// Where the services listen.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Puts the tokens and groups of `embedded` in force, and has the differences published:
    /// `group_members_changed` for each group whose members changed, `session_revoked` for the
    /// user of each token that is gone or now another's. A token that is written as before keeps
    /// its expiry. `embedded.database` is not looked at.
    ///
    /// After [`ReferenceError::Reload`] the tokens and groups from before are in force.
    pub fn reload(&self, embedded: &config::Embedded) -> Result<(), ReferenceError> {
        let one_at_a_time = self.reloading.lock();
        let now = SystemTime::now();
        let previous = self.directories.current();
        let next = Arc::new(Directory::new(embedded, &previous, now));
        let differences = next.differences(&previous, now);
        let count = differences.len();

        // On the store thread, so that each message was committed under the one or the other;
        // and before the commit that lets the differences be published.
        let directories = self.directories.clone();
        let stored = self.store.blocking_change(move |connection| {
            directories.replace(next);
            differences
                .iter()
                .try_for_each(|difference| store::outbox::insert(connection, difference))
        });
        if stored.is_err() {
            self.directories.replace(previous);
            return Err(ReferenceError::Reload);
        }
        drop(one_at_a_time);
        log::info!("Tokens and groups read again: differences={count}");
        Ok(())
    }

    /// Stops the services, by `deadline` at the latest: no new calls, calls in hand answered,
    /// what is committed published as far as that works at once, all threads joined. The rest is
    /// in the database, and published after the next start. Repeating it does nothing.
    pub fn stop(&mut self, deadline: Instant) {
        let Some(running) = self.running.take() else {
            return;
        };
        let Running {
            runtime,
            server,
            stop_server,
            outgoing,
            publisher_thread,
            store_thread,
        } = running;
        // The server may have ended already.
        let _ = stop_server.send(());
        // Each step may take half of what is left, so that the next ones have time too.
        if runtime
            .block_on(async { timeout(half(deadline), server).await })
            .is_err()
        {
            log::warn!("Calls cut: reason=deadline");
        }
        outgoing.stop_by(Instant::now() + half(deadline));
        publisher_thread.stop(Instant::now() + half(deadline));
        // Without room in its queue until then, the thread is stuck on the disk, and is left.
        drop(runtime.block_on(async { timeout(half(deadline), self.store.stop()).await }));
        store_thread.stop(deadline);
        runtime.shutdown_timeout(left(deadline));
        log::info!("Services stopped");
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.stop(Instant::now() + DROP_DEADLINE);
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn half(deadline: Instant) -> Duration {
    left(deadline) / 2
}

fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), ReferenceError> {
    let bound = || {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    };
    bound().map_err(|error| ReferenceError::Listen {
        addr: listen,
        error,
    })
}

/// A task that the services cannot do without: a panic in it is fatal.
async fn or_fatal(name: &'static str, fatal: Fatal, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        // Nobody listens when the process is ending anyway.
        let _ = fatal.send(format!("{name}: a panic"));
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("reference")
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests;
