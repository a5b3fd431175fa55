//! One connection: looks the host up, connects and logs in, within [`OPEN_TIMEOUT`] together, and
//! takes leave. Each may hang for as long as the broker or the system likes, and so runs on a thread
//! of its own. Asked for something as the broker closes, amiquip's thread may panic: an end like any other.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning, Error};
use crossbeam::channel::select;
use scopeguard::guard;

use super::channel::Channel;
use super::error::{Result, bad_login, during, lost, no_thread};
use super::socket::{AbortHandle, CutOnDrop, Socket, Stage, Wrap};
use crate::broker::Endpoint;
use crate::threads::{Call, StopSignal};

/// For resolving, connecting and the AMQP handshake together.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// What RabbitMQ offers unless it is told otherwise. amiquip makes room for a whole frame at once.
const FRAME_MAX: u32 = 128 << 10;

/// A broker says something first of all.
const WORDLESS: &str =
    "closed without a word; where TLS is spoken, the URL is to begin with amqps://";

/// One connection to the broker.
pub struct AmqpConnection {
    /// Goes first: dropping a connection that is not cut would wait for the broker.
    abort_handle: CutOnDrop,
    pub(super) connection: Connection,
}

impl AmqpConnection {
    pub fn channel(&mut self) -> Result<Channel> {
        let channel = self.connection.open_channel(None);
        channel.map(Channel).map_err(during("opening a channel"))
    }

    /// What ends the connection at once, from any thread.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle::clone(&self.abort_handle)
    }

    /// Takes leave of the broker within `wait`, or else cuts the connection. An error is the reason why
    /// the connection had ended before, if it had: amiquip tells it nowhere else.
    pub fn close(self, wait: Duration) -> Result<()> {
        let connection = self.connection;
        let close = move || connection.close().map_err(during("connection"));
        let closing = Call::start("amqp-close", close).map_err(no_thread)?;
        let in_time = closing.ended.within(wait);
        self.abort_handle.abort();
        let closed = join(closing);
        if in_time {
            closed
        } else {
            Err(lost("no answer from the broker to close"))
        }
    }
}

/// Opens connections to one broker, one after the other.
///
/// The system's resolver knows no deadline, and a look-up cannot be ended. An attempt that takes too
/// long with it goes on, and the next call waits for that instead of beginning another: so there is
/// one such thread at most, and it is joined, unless the system still owes the answer when the
/// process ends.
pub struct Opener {
    broker: Arc<Broker>,
    looking_up: Option<(CutOnDrop, BrokerCall<Connection>)>,
}

impl Opener {
    /// `name` says who we are: under it the broker's management shows the connections.
    /// `heartbeat`: whole seconds. `wrap`: TLS, for an endpoint with it.
    pub fn new(endpoint: Endpoint, name: String, heartbeat: Duration, wrap: Option<Wrap>) -> Self {
        // The password never goes in the clear where TLS was asked for.
        assert!(wrap.is_some() || !endpoint.is_tls, "TLS as the URL says");
        let address = endpoint.address();
        let login = Auth::Plain {
            username: endpoint.user,
            password: endpoint.password,
        };
        let options = ConnectionOptions::default()
            .auth(login)
            .virtual_host(endpoint.vhost)
            .heartbeat(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX))
            .frame_max(FRAME_MAX)
            .connection_timeout(Some(OPEN_TIMEOUT))
            .information(Some(name));
        let broker = Arc::new(Broker {
            address,
            options,
            // In the clear, as the URL says.
            wrap: wrap.unwrap_or_else(|| Arc::new(|socket| Ok(Box::new(socket)))),
            look_up,
        });
        Self {
            broker,
            looking_up: None,
        }
    }

    /// `host:port`, for logs.
    pub fn address(&self) -> &str {
        &self.broker.address
    }

    /// Ends within [`OPEN_TIMEOUT`], and at once when told to quit.
    pub fn open(&mut self, quit: &StopSignal) -> Result<AmqpConnection> {
        self.open_within(OPEN_TIMEOUT, quit)
    }

    fn open_within(&mut self, wait: Duration, quit: &StopSignal) -> Result<AmqpConnection> {
        let (abort_handle, call) = self.looking_up.take().map_or_else(|| self.begin(), Ok)?;
        let given_up = select! {
            recv(call.ended.receiver()) -> _ => {
                let connection = join(call)?;
                return Ok(AmqpConnection { abort_handle, connection });
            }
            recv(quit.receiver()) -> _ => lost("told to stop"),
            default(wait) => match abort_handle.stage() {
                Stage::LookingUp => lost("the host's name was not resolved in time"),
                // RabbitMQ keeps silent for 3 s before it ends a connection with a wrong password.
                Stage::LoggingIn => bad_login(),
                _ => lost("no answer from the broker within 3 s"),
            }
        };
        if abort_handle.stage() == Stage::LookingUp {
            self.looking_up = Some((abort_handle, call));
        } else {
            abort_handle.abort();
            // What it came to is too late.
            drop(call.join());
        }
        Err(given_up)
    }

    fn begin(&self) -> Result<(CutOnDrop, BrokerCall<Connection>)> {
        let abort_handle: CutOnDrop = guard(AbortHandle::default(), |handle| handle.abort());
        let (broker, for_call) = (Arc::clone(&self.broker), AbortHandle::clone(&abort_handle));
        let call = Call::start("amqp-open", move || broker.open(&for_call));
        Ok((abort_handle, call.map_err(no_thread)?))
    }
}

type Addresses = io::Result<Vec<SocketAddr>>;

fn look_up(address: &str) -> Addresses {
    Ok(address.to_socket_addrs()?.collect())
}

/// Whom to connect to, and as whom.
struct Broker {
    address: String,
    options: ConnectionOptions<Auth>,
    wrap: Wrap,
    look_up: fn(&str) -> Addresses,
}

impl Broker {
    /// Connects to the host's first address where somebody listens.
    fn open(&self, abort: &AbortHandle) -> Result<Connection> {
        let addresses = (self.look_up)(&self.address);
        let addresses = addresses.map_err(|error| lost(format!("resolving: {error}")))?;
        let mut last = lost("the host's name has no address");
        for address in &addresses {
            match self.open_at(address, abort) {
                Err(error) if abort.stage() < Stage::Connected => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    fn open_at(&self, address: &SocketAddr, abort: &AbortHandle) -> Result<Connection> {
        let socket = Socket::connect(address, &self.wrap, abort);
        let socket = socket.map_err(|error| lost(format!("connecting: {error}")))?;
        // At its high-water mark amiquip would block whoever publishes, for as long as the broker
        // reads nothing. What may wait here is bounded by the callers: acks, a burst of binds, or
        // a window of publications, which are confirmed before more follow.
        let tuning = ConnectionTuning::default().buffered_writes_high_water(usize::MAX);
        let connection = Connection::insecure_open_stream(socket, self.options.clone(), tuning);
        connection.map_err(|error| match error {
            Error::UnexpectedSocketClose if abort.stage() == Stage::Connected => lost(WORDLESS),
            error => during("opening the connection")(error),
        })
    }
}

/// A call that may hang, until the connection that it waits for is cut.
type BrokerCall<T> = Call<Result<T>>;

/// Waits for its end.
fn join<T: Send + 'static>(call: BrokerCall<T>) -> Result<T> {
    let panicked = || Err(lost("a call to the broker panicked"));
    call.join().unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Condvar, Mutex, OnceLock};
    use std::thread;
    use std::time::Instant;

    use crossbeam::channel::{Receiver, unbounded};
    use mio::{Evented, Poll, PollOpt, Ready, Token};

    use super::*;
    use crate::broker::amqp::AmqpError;

    const PATIENCE: Duration = Duration::from_secs(20);
    const IMPATIENCE: Duration = Duration::from_millis(20);

    fn opener(at: SocketAddr) -> Opener {
        let endpoint = Endpoint::parse(&format!("amqp://{at}")).unwrap();
        Opener::new(endpoint, "test".into(), Duration::from_secs(1), None)
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
        static LISTENER: OnceLock<SocketAddr> = OnceLock::new();
        let (listener, at) = silent();
        LISTENER.set(at).unwrap();
        let opener = opener_that(|_| Ok(vec![unheard(), *LISTENER.wait(), unheard()]));
        let (broker, abort_handle) = (opener.broker, AbortHandle::default());
        let for_opener = abort_handle.clone();
        let opener = thread::spawn(move || broker.open(&for_opener));
        let accepted = listener.accept().unwrap();
        abort_handle.abort();
        let error = opener.join().unwrap().err().unwrap();
        assert!(matches!(error, AmqpError::Lost(_)), "{error}");
        drop(accepted);
    }

    #[test]
    fn what_is_no_broker_is_told() {
        let (listener, at) = silent();
        let answer = thread::spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            peer
        });
        let error = opener(at).open(&StopSignal::never()).err().unwrap();
        assert!(error.to_string().contains("no AMQP frame"), "{error}");
        drop(answer.join());
    }

    /// A socket whose next read waits, once there is a word for it: tells that it does, and is told to go on.
    struct Held {
        socket: mio::net::TcpStream,
        hold: Receiver<[Rendezvous; 2]>,
    }

    type Rendezvous = Arc<Barrier>;

    impl Read for Held {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Ok(hold) = self.hold.try_recv() else {
                return self.socket.read(into);
            };
            for point in hold {
                point.wait();
            }
            // As if nothing had come: more comes with what comes next.
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.socket.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.socket.flush()
        }
    }

    impl Evented for Held {
        fn register(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
            self.socket.register(p, t, interest, how)
        }

        fn reregister(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
            self.socket.reregister(p, t, interest, how)
        }

        fn deregister(&self, poll: &Poll) -> io::Result<()> {
            self.socket.deregister(poll)
        }
    }

    /// A method on channel 0.
    fn says(peer: &mut TcpStream, method: &[u8]) {
        let size = u32::try_from(method.len()).unwrap().to_be_bytes();
        let frame = [&[1, 0, 0], &size[..], method, &[0xCE]].concat();
        peer.write_all(&frame).unwrap();
    }

    /// The next method's class and number.
    fn hears(peer: &mut TcpStream) -> [u8; 4] {
        let mut head = [0; 7];
        peer.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes(*head.last_chunk().unwrap());
        let mut rest = vec![0; size as usize + 1];
        peer.read_exact(&mut rest).unwrap();
        *rest.first_chunk().unwrap()
    }

    /// Lets one client in.
    fn welcomes(listener: &TcpListener) -> TcpStream {
        let mut peer = listener.accept().unwrap().0;
        peer.read_exact(&mut [0; 8]).unwrap();
        // start: version, properties, mechanisms and locales.
        let start = b"\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
        says(&mut peer, start);
        assert_eq!(hears(&mut peer), [0, 10, 0, 11], "start-ok");
        // tune: at most 2,047 channels, frames of 128 KiB, a heartbeat each minute.
        says(&mut peer, b"\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c");
        assert_eq!(hears(&mut peer), [0, 10, 0, 31], "tune-ok");
        assert_eq!(hears(&mut peer), [0, 10, 0, 40], "open");
        says(&mut peer, b"\0\x0a\0\x29\0");
        peer
    }

    /// amiquip's thread finds both at a time, and panics.
    fn ends_as_the_broker_closes(ask: fn(AmqpConnection) -> Vec<Result<()>>) {
        let (listener, at) = silent();
        let broker = thread::spawn(move || welcomes(&listener));
        let (hold, held) = unbounded();
        let wrap: Wrap = Arc::new(move |socket| {
            let hold = held.clone();
            Ok(Box::new(Held { socket, hold }))
        });
        let endpoint = Endpoint::parse(&format!("amqp://{at}")).unwrap();
        let mut opener = Opener::new(endpoint, "test".into(), PATIENCE, Some(wrap));
        let connection = opener.open(&StopSignal::never()).unwrap();
        let mut broker = broker.join().unwrap();

        let points = [(); 2].map(|()| Arc::new(Barrier::new(2)));
        hold.send(points.clone()).unwrap();
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];
        broker.write_all(&HEARTBEAT).unwrap();
        points[0].wait();
        let asking = thread::spawn(move || ask(connection));
        // close: CONNECTION_FORCED, as by an operator.
        says(&mut broker, b"\0\x0a\0\x32\x01\x40\x03bye\0\0\0\0");
        // Until it has asked, most probably: where it has not, it gets an error all the same.
        thread::sleep(IMPATIENCE);
        points[1].wait();
        for answer in asking.join().unwrap() {
            assert!(matches!(answer, Err(AmqpError::Lost(_))), "{answer:?}");
        }
    }

    #[test]
    fn asking_for_a_channel_as_the_broker_closes_is_an_error_and_ends_the_connection() {
        ends_as_the_broker_closes(|mut connection| {
            let channel = connection.channel().map(drop);
            vec![channel, connection.close(PATIENCE)]
        });
    }

    #[test]
    fn taking_leave_as_the_broker_closes_ends_the_connection() {
        ends_as_the_broker_closes(|connection| vec![connection.close(PATIENCE)]);
    }

    fn opener_that(look_up: fn(&str) -> Addresses) -> Opener {
        let mut opener = opener(unheard());
        Arc::get_mut(&mut opener.broker).unwrap().look_up = look_up;
        opener
    }

    #[test]
    fn addresses_are_found_and_what_is_none_is_an_error() {
        assert_eq!(
            look_up("127.0.0.1:5").unwrap(),
            ["127.0.0.1:5".parse().unwrap()]
        );
        assert_eq!(look_up("[::1]:5").unwrap(), ["[::1]:5".parse().unwrap()]);
        assert!(
            look_up("localhost:5")
                .unwrap()
                .iter()
                .all(|at| at.ip().is_loopback())
        );
        assert!(look_up("no-host.invalid:5").is_err());
        let nothing = opener_that(|_| Ok(Vec::new())).open(&StopSignal::never());
        assert!(nothing.err().unwrap().to_string().contains("no address"));
    }

    #[test]
    fn a_look_up_that_takes_long_is_waited_for_again_and_not_repeated() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        let mut opener = opener_that(|_| {
            CALLS.fetch_add(1, Ordering::SeqCst);
            let shut = GATE.0.lock().unwrap();
            drop(GATE.1.wait_while(shut, |open| !*open).unwrap());
            Ok(vec![unheard()])
        });
        let (quitter, quit) = StopSignal::pair();
        for _ in 0..3 {
            let late = opener.open_within(IMPATIENCE, &quit).err().unwrap();
            assert!(late.to_string().contains("in time"), "{late}");
        }
        drop(quitter);
        let told = opener.open_within(PATIENCE, &quit).err().unwrap();
        assert!(told.to_string().contains("stop"), "{told}");
        *GATE.0.lock().unwrap() = true;
        GATE.1.notify_all();
        let found = opener.open_within(PATIENCE, &StopSignal::never());
        assert!(matches!(found, Err(AmqpError::NotListening(_))));
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        assert!(opener.looking_up.is_none(), "it is joined");
    }

    #[test]
    fn an_attempt_that_nobody_waits_for_ends_after_its_look_up() {
        static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        let mut opener = opener_that(|_| {
            let shut = GATE.0.lock().unwrap();
            drop(GATE.1.wait_while(shut, |open| !*open).unwrap());
            Ok(vec![unheard()])
        });
        let late = opener.open_within(IMPATIENCE, &StopSignal::never());
        assert!(late.is_err());
        let (abort_handle, attempt) = opener.looking_up.take().unwrap();
        abort_handle.abort();
        *GATE.0.lock().unwrap() = true;
        GATE.1.notify_all();
        let error = join(attempt).err().unwrap();
        assert!(error.to_string().contains("too late"), "{error}");
    }
}
