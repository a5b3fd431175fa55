//! Clients that vanish, that read too slowly, that all come at once.

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde_json::Value;

use super::{Drill, Figures};
use crate::support::backend::Backend;
use crate::support::broker::{Broker, free_port};
use crate::support::client::is_push;
use crate::support::cluster::remote;
use crate::support::ledger::Ledger;
use crate::support::process::Signal;
use crate::support::raw::{Raw, UPGRADE, head};
use crate::support::settings::token_of;
use crate::support::{Client, DEADLINE, Event, Gateway, Settings, puppet};

pub const DRILLS: &[Drill] = &[
    Drill {
        name: "client-vanishes",
        about: "200 clients are frozen without a FIN, and come back for what they missed",
        run: || vanish(200, 20, 100),
    },
    Drill {
        name: "slow-client",
        about: "two members of a group of 200 read next to nothing; latencies of the others",
        run: || {
            slow(Slow {
                members: 200,
                messages: 1_000,
                rate: 30,
            })
        },
    },
    Drill {
        name: "reconnect-storm",
        about: "5,000 clients reconnect at once after the gateway was killed and started again",
        run: || storm(5_000).0,
    },
];

fn users(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number:03}"))
        .collect()
}

/// `session.idle_timeout` where clients vanish.
pub const IDLE: Duration = Duration::from_secs(3);

/// So many clients, in one process, are stopped. Each misses so many messages of this length.
pub fn vanish(clients: usize, messages: usize, length: usize) -> Figures {
    let frozen = users("frozen", clients);
    let settings = Settings::new()
        .users(frozen.iter().map(String::as_str))
        .users(["alice"])
        .set("session.idle_timeout", "3s")
        .set("session.ping_interval", "500ms")
        .set("services.timeout", "2s")
        // Who is still in the registry keeps its user from coming back.
        .set("limits.max_connections_per_user", 1)
        .set("session.send_queue_bytes", 64 << 20)
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let mut alice = gateway.connect("alice");
    let before = gateway.settled(1);
    let ledger = Ledger::default();
    for user in &frozen {
        ledger.device(user, user);
    }

    let process = puppet::start(&gateway, &frozen);
    process.signal(Signal::STOP);
    let stopped = Instant::now();
    // As long as the gateway does not know, and after.
    let mut gone = HashMap::new();
    for _ in 0..messages {
        for user in &frozen {
            let id = alice.send_message(user, &"x".repeat(length));
            ledger.committed("alice", &[user], &id);
        }
        alice.take_held();
        note_gone(&gateway, stopped, &mut gone);
    }
    while gone.len() < clients {
        assert!(
            stopped.elapsed() < IDLE + DEADLINE,
            "{} of {clients} are gone",
            gone.len()
        );
        alice.request("ping", Value::Null);
        note_gone(&gateway, stopped, &mut gone);
        thread::sleep(Duration::from_millis(10));
    }
    let last = gone.values().max().copied().unwrap_or_default();
    assert!(
        last <= IDLE + Duration::from_secs(1),
        "the last one was gone after {last:?}"
    );
    let after = gateway.settled(1);
    assert_eq!(
        (after.threads, after.descriptors),
        (before.threads, before.descriptors)
    );

    for user in &frozen {
        let mut back = gateway.connect(user);
        for push in back.take_held().iter().filter(|frame| is_push(frame)) {
            ledger.received(user, push["id"].as_str().expect("an id"));
        }
        back.close();
    }
    drop(process);
    assert_eq!(gateway.stop(), 0);
    let mut figures = Figures::of(ledger.report());
    figures.note(format!(
        "the last of {clients} was gone after {last:?}, with an idle timeout of {IDLE:?}"
    ));
    figures
}

/// Enters whose connection the gateway has said to be closed.
fn note_gone(gateway: &Gateway, since: Instant, gone: &mut HashMap<String, Duration>) {
    for line in gateway.stderr().lines() {
        if let Some((_, rest)) = line.split_once("Connection closed: user=frozen") {
            let user = rest.split(',').next().expect("a user").to_owned();
            gone.entry(user).or_insert_with(|| since.elapsed());
        }
    }
}

/// A group of so many members, two of whom become slow; so many messages, a third of them before
/// that.
#[derive(Clone, Copy)]
pub struct Slow {
    pub members: usize,
    pub messages: usize,
    pub rate: u32,
}

/// How much longer a push may take while somebody is slow: twice as long, or as long as anything
/// may take on a machine that has other things to do. A gateway that waits for a slow client keeps
/// the others for `session.write_timeout`, 3 s.
const FLOOR: Duration = Duration::from_secs(1);
/// The length of a message, so that sockets fill while a test lasts.
const CONTENT: usize = 16_000;
/// Members whose pushes are timed; the others' are only read.
const TIMED: usize = 8;

/// One member reads nothing, another one a byte a second, while messages flow to their group.
pub fn slow(size: Slow) -> Figures {
    let members = users("member", size.members);
    let all = || members.iter().map(String::as_str).chain(["alice"]);
    let settings = Settings::new()
        .users(all())
        .group("all", all())
        .set("session.send_queue", 16)
        .set("session.write_timeout", "3s")
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let ledger = Arc::new(Ledger::default());
    for member in &members {
        ledger.device(member, member);
    }
    let [silent, drip, others @ ..] = &members[..] else {
        panic!("a group of {} is too small", size.members)
    };
    let (timed, read) = others.split_at(TIMED);
    let timing = Arc::new(Timing::default());
    let timed: Vec<_> = timed
        .iter()
        .map(|member| {
            let client = gateway.connect(member);
            let (ledger, timing) = (Arc::clone(&ledger), Arc::clone(&timing));
            thread::spawn(move || timing.live(client, &ledger))
        })
        .collect();
    let slow_ones = [(silent, Duration::MAX), (drip, Duration::from_secs(1))];
    let slow_ones = slow_ones.map(|(user, pause)| {
        let socket = reluctant(&gateway, user);
        let timing = Arc::clone(&timing);
        thread::spawn(move || timing.slow_down(socket, pause))
    });
    let crowd = Crowd::start(&gateway, read);
    let mut alice = gateway.connect("alice");
    let mut committed = 0;
    let mut flow = |goal: usize, is_enough: &dyn Fn() -> bool| {
        let pause = Duration::from_secs(1) / size.rate;
        let (mut next, end) = (Instant::now(), Instant::now() + DEADLINE * 3);
        while committed < goal || !is_enough() {
            assert!(Instant::now() < end, "the slow ones are not closed");
            committed += 1;
            // The pace of the flow.
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += pause;
            let content = format!("{} {}", timing.now(), "x".repeat(CONTENT));
            let id = alice.send_group_message("all", &content);
            let recipients: Vec<&str> = members.iter().map(String::as_str).collect();
            ledger.committed("alice", &recipients, &id);
            alice.take_held();
        }
    };
    flow(size.messages / 3, &|| true);
    timing.somebody_is_slow.store(true, Ordering::SeqCst);
    let closed = || {
        let log = gateway.stderr();
        let closed = log
            .lines()
            .filter(|line| line.contains("Connection closed"));
        closed.map(str::to_owned).collect::<Vec<_>>()
    };
    flow(size.messages, &|| closed().len() >= 2);
    let closed = closed();
    assert_eq!(closed.len(), 2, "{closed:?}");
    for user in [silent, drip] {
        let mut of_user = closed
            .iter()
            .filter(|line| line.contains(&format!("user={user},")));
        let line = of_user
            .next()
            .unwrap_or_else(|| panic!("{user}: {closed:?}"));
        assert!(
            line.contains("slow_consumer") || line.contains("write_timeout"),
            "{line}"
        );
    }

    // Nobody else was closed, and nobody misses anything.
    timing.over.store(true, Ordering::SeqCst);
    for member in slow_ones {
        member.thread().unpark();
        member.join().expect("a slow member");
    }
    for member in timed {
        member.join().expect("a member who is served to the end");
    }
    crowd.expect_all_here();
    for user in [silent, drip] {
        let mut back = gateway.connect(user);
        for push in back.take_held().iter().filter(|frame| is_push(frame)) {
            ledger.received(user, push["id"].as_str().expect("an id"));
        }
    }
    let mut figures = Figures::of(ledger.report());
    // The crowd's pushes are read and not counted.
    figures.lost.retain(|(user, _)| !read.contains(user));
    figures.missing.clear();
    let (before, during) = timing.p99();
    figures.note(format!(
        "p99 of the others: {before:?} before, {during:?} while two are slow (x{:.2})",
        during.as_secs_f64() / before.as_secs_f64()
    ));
    assert!(during <= (before * 2).max(FLOOR), "{figures}");
    figures
}

/// When pushes arrive at the members who are not slow.
struct Timing {
    start: Instant,
    somebody_is_slow: AtomicBool,
    over: AtomicBool,
    /// In microseconds, before and while somebody is slow.
    latencies: [std::sync::Mutex<Vec<u64>>; 2],
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            somebody_is_slow: AtomicBool::new(false),
            over: AtomicBool::new(false),
            latencies: Default::default(),
        }
    }
}

impl Timing {
    /// Microseconds since the start: what a message's content begins with.
    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Reads to the end of the flow, and then up to a fence.
    fn live(&self, mut client: Client, ledger: &Ledger) {
        let user = client.user.clone();
        let took = |frame: &Value| {
            if is_push(frame) {
                let content = frame["content"].as_str().expect("a content");
                let sent = content.split(' ').next().and_then(|sent| sent.parse().ok());
                let latency = self.now() - sent.unwrap_or_else(|| self.now());
                let during = usize::from(self.somebody_is_slow.load(Ordering::SeqCst));
                self.latencies[during].lock().unwrap().push(latency);
                ledger.received(&user, frame["id"].as_str().expect("an id"));
            }
        };
        while !self.over.load(Ordering::SeqCst) {
            match client.next_event(Duration::from_millis(50)) {
                Event::Frame(frame) => took(&frame),
                Event::Nothing => {}
                Event::End(ended) => panic!("{user} was ended: {ended:?}"),
            }
        }
        let end = Instant::now() + DEADLINE;
        while !ledger.has_all(&user) && Instant::now() < end {
            if let Event::Frame(frame) = client.next_event(Duration::from_millis(50)) {
                took(&frame);
            }
        }
    }

    /// Reads all that comes, and from some moment on a byte for each `pause`.
    fn slow_down(&self, mut socket: TcpStream, pause: Duration) {
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("an option");
        while !self.somebody_is_slow.load(Ordering::SeqCst) {
            let _ = socket.read(&mut [0; 16_384]);
        }
        while !self.over.load(Ordering::SeqCst) {
            thread::park_timeout(pause);
            let _ = socket.read(&mut [0]);
        }
    }

    fn p99(&self) -> (Duration, Duration) {
        let [before, during] = [0, 1].map(|phase: usize| {
            let mut latencies = self.latencies[phase].lock().unwrap();
            latencies.sort_unstable();
            Duration::from_micros(latencies[latencies.len() * 99 / 100])
        });
        (before, during)
    }
}

/// Clients that one thread serves: they read what comes, answer pings, and look at nothing.
struct Crowd {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
    size: usize,
}

impl Crowd {
    fn start(gateway: &Gateway, users: &[String]) -> Self {
        let sockets: Vec<Raw> = users.iter().map(|user| gateway.raw_session(user)).collect();
        let over = Arc::new(AtomicBool::new(false));
        let size = sockets.len();
        let thread = thread::spawn({
            let over = Arc::clone(&over);
            move || serve(sockets, &over)
        });
        Self { over, thread, size }
    }

    fn expect_all_here(self) {
        self.over.store(true, Ordering::SeqCst);
        let here = self.thread.join().expect("a thread");
        assert_eq!(here, self.size, "some of the crowd were closed");
    }
}

/// Answers how many are still connected in the end. Pings come too rarely to matter here.
fn serve(mut sockets: Vec<Raw>, over: &AtomicBool) -> usize {
    const LOOK: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    while !over.load(Ordering::SeqCst) {
        let mut polled: Vec<_> = sockets
            .iter()
            .map(|raw| PollFd::new(raw.stream(), PollFlags::IN))
            .collect();
        let _ = poll(&mut polled, Some(&LOOK));
        let ready: Vec<bool> = polled
            .iter()
            .map(|polled| polled.revents().contains(PollFlags::IN))
            .collect();
        let mut ready = ready.into_iter();
        sockets.retain(|raw| {
            !ready.next().expect("one for each")
                || matches!(raw.stream().read(&mut [0; 65_536]), Ok(1..))
        });
    }
    sockets.len()
}

/// A client with next to no receive buffer, past its handshake.
fn reluctant(gateway: &Gateway, user: &str) -> TcpStream {
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    sockopt::set_socket_recv_buffer_size(&socket, 4_096).expect("an option");
    rustix::net::connect(&socket, &gateway.addr).expect("the gateway listens");
    let mut raw = Raw::over(TcpStream::from(socket));
    raw.upgrade(&gateway.path, &token_of(user));
    raw.into_stream()
}

/// What a storm of reconnects came to at the User Service.
#[derive(Debug)]
pub struct Calls {
    pub validated: u64,
    pub at_a_time: u64,
}

/// So many clients are connected; the gateway is killed and started again, and all come at once.
pub fn storm(clients: usize) -> (Figures, Calls) {
    more_descriptors();
    let users = users("u", clients);
    let backend = Backend::start();
    // Long enough for handshakes to pile up.
    backend.slow("ValidateToken", Duration::from_millis(20));
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost())
        .set("gateway.id", "storm")
        .set("listen.addr", format!("127.0.0.1:{}", free_port()))
        .set("log.level", "warn");
    let mut gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let first = come_at_once(&gateway, &users);
    gateway.kill();
    drop(first);

    let gateway = Gateway::start_at(gateway.addr, &settings);
    let before = backend.calls("ValidateToken");
    let start = Instant::now();
    let mut back = come_at_once(&gateway, &users);
    let connected = start.elapsed();
    let validated = backend.calls("ValidateToken") - before;
    for raw in &mut back {
        raw.json_that(|frame| frame["type"] == "offline_complete");
    }
    let mut figures = Figures {
        recovered: Some(connected),
        ..Figures::default()
    };
    let calls = Calls {
        validated,
        at_a_time: backend.peak("ValidateToken"),
    };
    figures.note(format!(
        "all {clients} back within {connected:?}, and caught up within {:?}; {calls:?}",
        start.elapsed()
    ));
    (figures, calls)
}

/// All connect and send their request before the first one reads its answer; each must be let in.
/// They come from several addresses, each within its limit.
fn come_at_once(gateway: &Gateway, users: &[String]) -> Vec<Raw> {
    const PER_ADDRESS: usize = 500;
    let ask = |(number, user): (usize, &String)| {
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        let from = IpAddr::from(Ipv4Addr::new(127, 0, 0, 1 + (number / PER_ADDRESS) as u8));
        rustix::net::bind(&socket, &SocketAddr::new(from, 0)).expect("an address of the loopback");
        rustix::net::connect(&socket, &gateway.addr).expect("the gateway listens");
        let mut raw = Raw::over(TcpStream::from(socket));
        let bearer = format!("Bearer {}", token_of(user));
        let mut headers = UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        raw.send(head("GET", &gateway.path, &headers));
        raw
    };
    let mut all: Vec<Raw> = users.iter().enumerate().map(ask).collect();
    for raw in &mut all {
        let answer = raw.response();
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(raw.json()["type"], "connected");
    }
    all
}

/// Raises the limit of this process, which the gateways inherit.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("up to the hard limit");
}
