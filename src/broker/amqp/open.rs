//! Opening a connection: look the host up, connect, log in, within [`OPEN_TIMEOUT`] together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{bounded, select};
use parking_lot::Mutex;

use super::resolve::Resolver;
use super::socket::{Cutter, Socket};
use super::{
    AmqpError, Auth, Connection, ConnectionOptions, ConnectionTuning, Error, Link, Result,
    bad_login, lost, told,
};
use crate::broker::Endpoint;
use crate::threads::StopSignal;

/// For resolving, connecting and the AMQP handshake together.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// What RabbitMQ offers unless it is told otherwise. amiquip makes room for a whole frame at once.
const FRAME_MAX: u32 = 128 << 10;

/// Opens connections to one broker, one after the other.
pub struct Opener {
    endpoint: Endpoint,
    /// Under this name the broker's management shows them.
    name: String,
    heartbeat: Duration,
    resolver: Resolver,
}

impl Opener {
    /// `name` says who we are. `heartbeat`: whole seconds.
    pub fn new(endpoint: Endpoint, name: String, heartbeat: Duration) -> Self {
        Self {
            resolver: Resolver::new(endpoint.address()),
            endpoint,
            name,
            heartbeat,
        }
    }

    /// Ends within [`OPEN_TIMEOUT`], and at once when told to quit.
    pub fn open(&mut self, quit: &StopSignal) -> Result<Link> {
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let attempt = Attempt {
            addresses: self.resolver.resolve(OPEN_TIMEOUT, quit)?,
            endpoint: self.endpoint.clone(),
            name: self.name.clone(),
            heartbeat: self.heartbeat,
            stage: Arc::default(),
        };
        let stage = Arc::clone(&attempt.stage);
        let (result, opened) = bounded(1);
        let opener = thread::Builder::new()
            .name("amqp-open".into())
            // The receiver waits until this thread has ended.
            .spawn(move || drop(result.send(attempt.open())))
            .map_err(|error| AmqpError::Lost(format!("no thread for connecting: {error}")))?;
        let outcome = select! {
            recv(opened) -> link => link.unwrap_or_else(|_| Err(lost("connecting panicked"))),
            recv(quit.receiver()) -> _ => Err(lost("told to stop")),
            // RabbitMQ keeps silent for 3 s before it ends a connection with a wrong password.
            default(deadline.saturating_duration_since(Instant::now())) => {
                match stage.at_login.load(Ordering::SeqCst) {
                    true => Err(bad_login()),
                    false => Err(lost("no answer from the broker within 3 s")),
                }
            }
        };
        if outcome.is_err() {
            stage.cut();
        }
        // It ends now: it has answered, or its socket was cut.
        let _ = opener.join();
        outcome
    }
}

/// How far an attempt has come, and what ends it.
#[derive(Default)]
pub struct Stage {
    /// Somebody listens: what fails now fails at the other addresses too.
    pub connected: AtomicBool,
    /// The broker judges the login.
    pub at_login: AtomicBool,
    socket: Mutex<Ends>,
}

#[derive(Default)]
enum Ends {
    #[default]
    Nothing,
    This(Arc<Cutter>),
    Ended,
}

impl Stage {
    fn cut(&self) {
        if let Ends::This(cutter) = std::mem::replace(&mut *self.socket.lock(), Ends::Ended) {
            cutter.cut();
        }
    }

    /// From now on `cut` ends this socket; `false` when it was called before.
    fn to_be_cut(&self, cutter: &Arc<Cutter>) -> bool {
        let mut socket = self.socket.lock();
        if let Ends::Ended = *socket {
            return false;
        }
        *socket = Ends::This(Arc::clone(cutter));
        true
    }
}

/// One attempt to open a connection.
struct Attempt {
    addresses: Vec<SocketAddr>,
    endpoint: Endpoint,
    name: String,
    heartbeat: Duration,
    stage: Arc<Stage>,
}

impl Attempt {
    /// Connects to the first address where somebody listens.
    fn open(&self) -> Result<Link> {
        let mut last = lost("the host's name has no address");
        for address in &self.addresses {
            match self.open_at(address) {
                Err(error) if !self.stage.connected.load(Ordering::SeqCst) => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    fn open_at(&self, address: &SocketAddr) -> Result<Link> {
        let (socket, cutter) = Socket::connect(address, &self.stage)
            .map_err(|error| AmqpError::Lost(format!("connecting: {error}")))?;
        let cutter = Arc::new(cutter);
        if !self.stage.to_be_cut(&cutter) {
            return Err(lost("too late"));
        }
        let login = Auth::Plain {
            username: self.endpoint.user.clone(),
            password: self.endpoint.password.clone(),
        };
        let options = ConnectionOptions::default()
            .auth(login)
            .virtual_host(&self.endpoint.vhost)
            .heartbeat(u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX))
            .frame_max(FRAME_MAX)
            .connection_timeout(Some(OPEN_TIMEOUT))
            .information(Some(self.name.clone()));
        // At its high-water mark amiquip would block whoever publishes, for as long as the broker
        // reads nothing. What may wait here is bounded by the callers: acks, a burst of binds, or
        // a window of publications, which are confirmed before more follow.
        let tuning = ConnectionTuning::default().buffered_writes_high_water(usize::MAX);
        let connection = Connection::insecure_open_stream(socket, options, tuning)
            .map_err(|error| failed(error, "opening the connection"))?;
        Ok(Link {
            connection: Some(connection),
            cutter,
        })
    }
}

/// As `told`; a connection that nobody accepts fails with its first write.
fn failed(error: Error, what: &str) -> AmqpError {
    match error {
        Error::IoErrorReadingSocket { source } | Error::IoErrorWritingSocket { source }
            if source.kind() == std::io::ErrorKind::ConnectionRefused =>
        {
            AmqpError::NotListening(source.to_string())
        }
        error => told(error, what),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn opener(at: SocketAddr) -> Opener {
        let endpoint = Endpoint::parse(&format!("amqp://{at}")).unwrap();
        Opener::new(endpoint, "test".into(), Duration::from_secs(1))
    }

    /// Someone who listens and never says a word.
    fn silent() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        (listener, at)
    }

    /// As `silent`, and its queue is full: the system answers no further connection.
    fn deaf() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
        let (listener, at) = silent();
        rustix::net::listen(&listener, 0).unwrap();
        let connect = |_| TcpStream::connect_timeout(&at, Duration::from_millis(100)).ok();
        let waiting = (0..8).map_while(connect).collect();
        (listener, waiting, at)
    }

    fn unheard() -> SocketAddr {
        silent().1
    }

    /// `open` joins its thread, so that its end is the thread's.
    #[test]
    fn an_attempt_ends_in_time_whoever_does_not_answer() {
        let (_silent, silent) = silent();
        let (_deaf, _waiting, deaf) = deaf();
        thread::scope(|scope| {
            for at in [silent, deaf] {
                scope.spawn(move || {
                    let began = Instant::now();
                    let error = opener(at).open(&StopSignal::never()).err().unwrap();
                    assert!(matches!(error, AmqpError::Lost(_)), "{error}");
                    assert!(began.elapsed() < OPEN_TIMEOUT + Duration::from_secs(2));

                    let (quitter, quit) = StopSignal::pair();
                    let began = Instant::now();
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(50));
                        drop(quitter);
                    });
                    assert!(opener(at).open(&quit).is_err());
                    assert!(began.elapsed() < OPEN_TIMEOUT / 2);
                });
            }
        });
    }

    #[test]
    fn where_nobody_listens_is_told_at_once() {
        let error = opener(unheard()).open(&StopSignal::never()).err().unwrap();
        assert!(matches!(error, AmqpError::NotListening(_)), "{error}");
    }

    #[test]
    fn the_first_address_where_somebody_listens_is_taken() {
        let (listener, at) = silent();
        let attempt = Attempt {
            addresses: vec![unheard(), at, unheard()],
            endpoint: Endpoint::parse("amqp://host").unwrap(),
            name: "test".into(),
            heartbeat: Duration::from_secs(1),
            stage: Arc::default(),
        };
        let stage = Arc::clone(&attempt.stage);
        let opener = thread::spawn(move || attempt.open());
        let accepted = listener.accept().unwrap();
        stage.cut();
        let error = opener.join().unwrap().err().unwrap();
        assert!(matches!(error, AmqpError::Lost(_)), "{error}");
        drop(accepted);
    }

    #[test]
    fn what_is_no_broker_is_told() {
        let (listener, at) = silent();
        let answer = thread::spawn(move || {
            use std::io::Write;
            let mut peer = listener.accept().unwrap().0;
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            peer
        });
        let error = opener(at).open(&StopSignal::never()).err().unwrap();
        assert!(error.to_string().contains("no AMQP frame"), "{error}");
        drop(answer.join());
    }
}
