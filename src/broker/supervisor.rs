//! The `broker` thread: keeps one session with RabbitMQ alive, from the first connection to
//! the last, and says whether it is.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use log::{error, info, warn};
use parking_lot::Mutex;

use super::Endpoint;
use super::amqp::{AmqpError, Cutter, Opener};
use super::deliver::Deliver;
use super::routes::Routes;
use super::session::{Parts, Session};
use super::topology::Topology;
use crate::backoff::Backoff;
use crate::client::failpoint;
use crate::threads::contain;
use crate::threads::{StopGuard, StopSignal};

/// How often is looked whether an exchange was deleted.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Waits between two tries are jittered: half of these, up to all.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(20);
/// Where nobody listens, asking costs the broker nothing, and it is found soon when it returns.
const RETRY_UNHEARD: Duration = Duration::from_secs(2);
/// How long after the deadline a connection that was cut may take to end.
const CUT_WITHIN: Duration = Duration::from_millis(500);
/// Ample for what a prefetch holds, and short beside `shutdown.drain`.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What the supervisor needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    pub endpoint: Endpoint,
    pub gateway_id: String,
    /// Whole seconds.
    pub heartbeat: Duration,
    pub prefetch: u16,
    /// The first wait after a connection is lost: [`RETRY_FIRST`], save in tests of many losses.
    pub retry_first: Duration,
    /// [`LOOK_EVERY`], save in tests.
    pub look_every: Duration,
}

/// What the composition root is told, on the `broker` thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerEvent {
    /// The queues are this gateway's own, for the first time.
    Owned,
    /// The gateway cannot work, and trying again would not help: another gateway has its id, or
    /// the broker refuses its topology. Nothing is tried any more.
    Fatal(String),
}

/// Owns the `broker` thread.
pub struct Supervisor {
    shared: Arc<Shared>,
    quitter: StopGuard,
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Up,
    /// With the reason.
    Down(String),
}

struct Shared {
    state: Mutex<State>,
    /// Ends the present connection.
    cutter: Mutex<Option<Arc<Cutter>>>,
}

impl Supervisor {
    /// Starts the thread; the broker may come later.
    pub fn start(
        settings: Settings,
        deliver: Arc<Deliver>,
        routes: Arc<Routes>,
        on_event: impl Fn(BrokerEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Down("not connected yet".into())),
            cutter: Mutex::new(None),
        });
        let (quitter, quit) = StopSignal::pair();
        let (at_end, ended) = bounded(0);
        let topology = Topology::new(&settings.gateway_id);
        let name = format!("ws-gateway {}", settings.gateway_id);
        let mut watch = Watch {
            parts: Parts {
                topology,
                prefetch: settings.prefetch,
                look_every: settings.look_every,
                deliver,
                routes,
            },
            backoff: Backoff::new(settings.retry_first, RETRY_LONGEST),
            opener: Opener::new(settings.endpoint.clone(), name, settings.heartbeat),
            settings,
            shared: Arc::clone(&shared),
            quit,
            on_event: Box::new(on_event),
            owned: false,
            in_use_since: None,
        };
        let thread = thread::Builder::new()
            .name("broker".into())
            .spawn(move || {
                let _at_end = at_end;
                watch.run();
            })?;
        Ok(Self {
            shared,
            quitter,
            ended,
            thread,
        })
    }

    /// Answers, whenever it is asked, why the broker is not in reach, for `/readyz`.
    pub fn check(&self) -> impl Fn() -> Result<(), String> + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || match &*shared.state.lock() {
            State::Up => Ok(()),
            State::Down(reason) => Err(reason.clone()),
        }
    }

    /// Finishes and acknowledges the deliveries in hand, deletes the queues and takes leave. A
    /// broker that does not answer is left after 5 s, and at `deadline`: the connection is cut, and
    /// what is left then is a call to a service, at most, which is not waited for.
    pub fn stop(self, deadline: Instant) {
        drop(self.quitter);
        let mut wait_until = deadline.min(Instant::now() + STOP_WITHIN);
        while let Err(RecvTimeoutError::Timeout) = self.ended.recv_deadline(wait_until) {
            // Again, should a connection have been opened just now.
            if let Some(cutter) = &*self.shared.cutter.lock() {
                cutter.cut();
            }
            if Instant::now() > deadline + CUT_WITHIN {
                return warn!("Broker thread left behind");
            }
            wait_until = Instant::now() + Duration::from_millis(100);
        }
        if self.thread.join().is_err() {
            error!("Broker thread panicked");
        }
    }
}

/// The thread's own state.
struct Watch {
    parts: Parts,
    settings: Settings,
    opener: Opener,
    shared: Arc<Shared>,
    quit: StopSignal,
    on_event: Box<dyn Fn(BrokerEvent) + Send>,
    /// The queues have been ours: from now on they are not deleted, and conflicts are not final.
    owned: bool,
    /// Since when somebody else has had the queues.
    in_use_since: Option<Instant>,
    backoff: Backoff,
}

/// What failed: it decides whether trying again may help.
enum Failure {
    Opening(AmqpError),
    Serving(AmqpError),
}

impl Watch {
    fn run(&mut self) {
        while let Err(failure) = self.serve_contained() {
            if self.quit.is_given() {
                break;
            }
            if let Some(reason) = self.fatal(&failure) {
                error!("Broker unusable: reason={reason}");
                self.down(reason.clone());
                (self.on_event)(BrokerEvent::Fatal(reason));
                return;
            }
            let wait = self.report(failure);
            if self.quit.within(wait) {
                break;
            }
        }
        self.down("shutting down".into());
    }

    /// As [`Self::serve`]; a panic ends this connection, and the next one is opened.
    fn serve_contained(&mut self) -> Result<(), Failure> {
        let panicked = || AmqpError::Lost("the broker thread panicked".into());
        contain(|| self.serve()).unwrap_or_else(|| Err(Failure::Serving(panicked())))
    }

    /// One connection, from opening to its end; `Ok` when told to quit.
    fn serve(&mut self) -> Result<(), Failure> {
        let link = self.opener.open(&self.quit).map_err(Failure::Opening)?;
        *self.shared.cutter.lock() = Some(link.cutter());
        let session = Session::declare(&self.parts, link, !self.owned).map_err(Failure::Serving)?;
        let up = || {
            failpoint::reached("broker", "up");
            *self.shared.state.lock() = State::Up;
            info!("Broker up: address={}", self.settings.endpoint.address());
            self.backoff.reset();
            if !mem::replace(&mut self.owned, true) {
                (self.on_event)(BrokerEvent::Owned);
            }
        };
        // Not logged: what broke the connection is known once it is closed.
        let lost = |error: &AmqpError| {
            let mut state = self.shared.state.lock();
            if *state == State::Up {
                *state = State::Down(format!("about to reconnect: {error}"));
            }
        };
        let outcome = session.run(&self.quit, up, lost);
        outcome.map_err(Failure::Serving)
    }

    /// The reason to give up, if there is one. Only at the start is there any.
    fn fatal(&mut self, failure: &Failure) -> Option<String> {
        let id = &self.settings.gateway_id;
        match failure {
            _ if self.owned => None,
            Failure::Serving(AmqpError::InUse(text)) => {
                // A predecessor that died a moment ago is found out after two heartbeats.
                let patience = self.settings.heartbeat * 3 + Duration::from_secs(5);
                let since = *self.in_use_since.get_or_insert_with(Instant::now);
                let gone = since.elapsed() > patience;
                gone.then(|| format!("another gateway runs with gateway.id {id:?}: {text}"))
            }
            Failure::Serving(error @ AmqpError::Refused(_)) => Some(error.to_string()),
            _ => {
                self.in_use_since = None;
                None
            }
        }
    }

    /// Says what is wrong, if that is news; answers how long to wait before the next try.
    fn report(&mut self, failure: Failure) -> Duration {
        let (Failure::Opening(error) | Failure::Serving(error)) = failure;
        let wait = match error {
            AmqpError::NotListening(_) | AmqpError::InUse(_) => {
                self.backoff.next_up_to(RETRY_UNHEARD)
            }
            AmqpError::Lost(_) | AmqpError::Refused(_) => self.backoff.next(),
        };
        let reason = error.to_string();
        if self.down(reason.clone()) {
            match error {
                AmqpError::Refused(_) => error!("Broker down: reason={reason}, retry_in={wait:?}"),
                _ => warn!("Broker down: reason={reason}, retry_in={wait:?}"),
            }
        }
        wait
    }

    /// Whether this is news.
    fn down(&self, reason: String) -> bool {
        *self.shared.cutter.lock() = None;
        let state = State::Down(reason);
        let before = mem::replace(&mut *self.shared.state.lock(), state.clone());
        before != state
    }
}
