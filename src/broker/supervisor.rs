//! The `broker` thread: keeps one connection with RabbitMQ alive, from the first connection to
//! the last, and says whether it is.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, error, info, log, warn};
use parking_lot::Mutex;

use super::amqp::{AbortHandle, AmqpConnection, AmqpError, Opener, lost};
use super::connection::BrokerConnection;
use super::source::DeliverySource;
use super::{DeliveryContext, Routes};
use crate::backoff::Backoff;
use crate::client::failpoint;
use crate::config::{Broker, Config};
use crate::readiness::LastOutcome;
use crate::threads::{Fatal, StopSignal, Worker, contain};

/// The longest wait after a connection is lost.
const RETRY_LONGEST: Duration = Duration::from_secs(20);
/// Where nobody listens, asking costs the broker nothing, and it is found soon when it returns.
const RETRY_UNHEARD: Duration = Duration::from_secs(2);
/// How long after the deadline a connection that was cut may take to end.
const CUT_WITHIN: Duration = Duration::from_millis(500);
/// Ample for what a prefetch holds, and short beside `shutdown.drain`.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What the supervisor needs to know.
pub struct Settings {
    pub opener: Opener,
    pub gateway_id: String,
    pub broker: Broker,
    /// The first wait after a connection is lost; waits between two tries are jittered: half of
    /// these, up to all.
    pub retry_first: Duration,
    /// How often is looked whether an exchange was deleted.
    pub exchange_poll_interval: Duration,
}

impl Settings {
    pub fn new(config: &Config, opener: Opener) -> Self {
        Self {
            opener,
            gateway_id: config.gateway.id.clone(),
            broker: config.broker.clone(),
            retry_first: Duration::from_secs(1),
            exchange_poll_interval: Duration::from_secs(30),
        }
    }
}

/// Owns the `broker` thread.
pub struct Supervisor {
    /// Why the broker is not in reach, if it is not.
    state: LastOutcome,
    /// Ends the present connection, or does nothing any more.
    abort_handle: Arc<Mutex<AbortHandle>>,
    thread: Worker,
}

impl Supervisor {
    /// Starts the thread; the broker may come later. `on_owned` is called on it when the queues are
    /// this gateway's own for the first time. `fatal` is told when the gateway cannot work and
    /// trying again would not help: another gateway has its id, or the broker refuses its topology.
    /// Nothing is tried any more then.
    pub fn start(
        settings: Settings,
        deliver: Arc<DeliveryContext>,
        routes: Arc<Routes>,
        fatal: &Fatal,
        on_owned: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let state = LastOutcome::new(Err("not connected yet".into()));
        let abort_handle = Arc::<Mutex<AbortHandle>>::default();
        let mut supervisor_loop = SupervisorLoop {
            backoff: Backoff::new(settings.retry_first, RETRY_LONGEST),
            settings,
            deliver,
            routes,
            state: state.clone(),
            abort_handle: Arc::clone(&abort_handle),
            fatal: fatal.clone(),
            on_owned: Some(Box::new(on_owned)),
            in_use_since: None,
        };
        let thread = Worker::start("broker", fatal, move |stop| supervisor_loop.run(stop))?;
        Ok(Self {
            state,
            abort_handle,
            thread,
        })
    }
}

impl DeliverySource for Supervisor {
    fn state(&self) -> LastOutcome {
        self.state.clone()
    }

    /// Finishes and acknowledges the deliveries in hand, deletes the queues and takes leave. A
    /// broker that does not answer is left after 5 s, and at `deadline`: the connection is cut, and
    /// what is left then is a call to a service, at most, which is not waited for.
    fn stop(mut self: Box<Self>, deadline: Instant) {
        self.thread.tell_to_stop();
        let mut wait_until = deadline.min(Instant::now() + STOP_WITHIN);
        while !self.thread.ends_by(wait_until) {
            // Again, should a connection have been opened just now.
            let abort_handle = self.abort_handle.lock().clone();
            abort_handle.abort();
            if Instant::now() > deadline + CUT_WITHIN {
                return warn!("Broker thread left behind");
            }
            wait_until = Instant::now() + Duration::from_millis(100);
        }
        self.thread.stop(deadline);
    }
}

/// The thread's own state.
struct SupervisorLoop {
    settings: Settings,
    deliver: Arc<DeliveryContext>,
    routes: Arc<Routes>,
    state: LastOutcome,
    abort_handle: Arc<Mutex<AbortHandle>>,
    fatal: Fatal,
    /// Taken when the queues are ours: from then on they are not deleted, and conflicts are not
    /// final.
    on_owned: Option<Box<dyn FnOnce() + Send>>,
    /// Since when somebody else has had the queues.
    in_use_since: Option<Instant>,
    backoff: Backoff,
}

impl SupervisorLoop {
    fn run(&mut self, stop: &StopSignal) {
        let mut wait = Duration::ZERO;
        while !stop.within(wait) {
            let opened = self.settings.opener.open(stop);
            let was_open = opened.is_ok();
            let outcome = opened.and_then(|amqp| self.serve(amqp, stop));
            let (Err(error), false) = (outcome, stop.is_given()) else {
                break;
            };
            if let Some(reason) = self.reason_to_give_up(&error, was_open) {
                error!("Broker unusable: reason={reason}");
                self.down(&reason);
                // Nobody listens any more when the gateway is ending anyway.
                let _ = self.fatal.send(reason);
                return;
            }
            wait = self.report(&error);
        }
        self.down("shutting down");
    }

    /// One connection, to its end; `Ok` when told to stop. A panic ends this connection, and the
    /// next one is opened.
    fn serve(&mut self, amqp: AmqpConnection, stop: &StopSignal) -> Result<(), AmqpError> {
        *self.abort_handle.lock() = amqp.abort_handle();
        let is_first = self.on_owned.is_some();
        let mut connection = BrokerConnection::declare(amqp, &self.settings.gateway_id, is_first)?;
        self.routes.begin();
        let outcome = contain(|| {
            connection.start_consumers(&self.deliver, self.settings.broker.prefetch)?;
            connection.start_routes(Arc::clone(&self.routes))?;
            self.up();
            connection.watch(stop, self.settings.exchange_poll_interval)
        });
        self.routes.end();
        let panicked = || Err(lost("the broker thread panicked"));
        let outcome = outcome.unwrap_or_else(panicked);
        // Before the threads are waited for, which may be in the middle of a call to a service. Not
        // logged: what broke the connection is known once it is closed.
        if let (Err(error), Ok(())) = (&outcome, self.state.get()) {
            self.down(&format!("about to reconnect: {error}"));
        }
        connection.leave(outcome)
    }

    fn up(&mut self) {
        failpoint::reached("broker", "up");
        self.state.record(&Ok(()));
        info!("Broker up: address={}", self.settings.opener.address());
        self.backoff.reset();
        match self.on_owned.take() {
            Some(tell) => tell(),
            None => self.deliver.metrics.broker_reconnects.inc(),
        }
    }

    /// The reason to give up, if there is one. Only at the start is there any, and not while no
    /// connection can be opened.
    fn reason_to_give_up(&mut self, error: &AmqpError, was_open: bool) -> Option<String> {
        let can_give_up = self.on_owned.is_some() && was_open;
        let since = self.in_use_since.take();
        match error {
            AmqpError::InUse(text) if can_give_up => {
                // A predecessor that died a moment ago is found out after two heartbeats.
                let patience = self.settings.broker.heartbeat * 3 + Duration::from_secs(5);
                let since = *self.in_use_since.insert(since.unwrap_or_else(Instant::now));
                let (id, gone) = (&self.settings.gateway_id, since.elapsed() > patience);
                gone.then(|| format!("another gateway runs with gateway.id {id:?}: {text}"))
            }
            AmqpError::Refused(_) if can_give_up => Some(error.to_string()),
            _ => None,
        }
    }

    /// Says what is wrong, if that is news; answers how long to wait before the next try.
    fn report(&mut self, error: &AmqpError) -> Duration {
        let (level, at_most) = match error {
            AmqpError::NotListening(_) | AmqpError::InUse(_) => (Level::Warn, RETRY_UNHEARD),
            AmqpError::Lost(_) => (Level::Warn, RETRY_LONGEST),
            AmqpError::Refused(_) => (Level::Error, RETRY_LONGEST),
        };
        let wait = self.backoff.next_up_to(at_most);
        let reason = format!("{}: {error}", self.settings.opener.address());
        if self.down(&reason) {
            log!(level, "Broker down: reason={reason}, retry_in={wait:.1?}");
        }
        wait
    }

    /// Whether this is news.
    fn down(&self, reason: &str) -> bool {
        self.state.record(&Err(reason.into()))
    }
}
