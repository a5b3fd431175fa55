//! Clients that read slowly, or not at all, in a group in which messages flow.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::clients::users;
use super::figures::rounded;
use super::{Drill, Figures};
use crate::support::client::is_push;
use crate::support::ledger::Ledger;
use crate::support::raw::{self, FIN, PING, PONG, Raw, TEXT};
use crate::support::sketch::patience;
use crate::support::{Client, DEADLINE, Event, Gateway, Settings};

pub const DRILLS: &[Drill] = &[
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
        name: "slow-members",
        about: "a third of a group of 100 reads 10 KB/s, a third 100 KB/s; latencies of the others",
        run: || {
            behind(Behind {
                members: 34,
                slow: 33,
                time: Duration::from_secs(90),
                rate: 40,
            })
        },
    },
    Drill {
        name: "slow-hundred",
        about: "100 of a group of 200 read 10 KB/s; latencies of the others",
        run: || {
            behind(Behind {
                members: 100,
                slow: 50,
                time: Duration::from_secs(60),
                rate: 20,
            })
        },
    },
];

/// A group of so many members, two of whom become slow; so many messages, a third of them before
/// that.
#[derive(Clone, Copy)]
pub struct Slow {
    pub members: usize,
    pub messages: usize,
    pub rate: u32,
}

/// Twice next to nothing is still next to nothing: below this, a p99 says more of the machine's
/// scheduler than of the gateway. A gateway that waits for a slow client keeps the others for
/// `session.write_timeout`, 3 s.
const FLOOR: Duration = Duration::from_millis(50);
/// The length of a message, so that sockets fill while a test lasts.
const CONTENT: usize = 16_000;
/// Members whose pushes are timed; the others' are only read.
const TIMED: usize = 8;

/// What is demanded of the others' p99; a machine that has other things to do may spoil it.
const P99: &str = "the others' p99 at most doubles";
/// So often it may do so.
const TRIES: usize = 3;

/// One member reads nothing, another one a byte a second, while messages flow to their group.
pub fn slow(size: Slow) -> Figures {
    let mut figures = slow_once(size);
    for _ in 1..TRIES {
        if figures.broken != [P99] {
            break;
        }
        println!("{figures}");
        figures = slow_once(size);
    }
    figures
}

fn slow_once(size: Slow) -> Figures {
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
        let socket = gateway.reluctant(user);
        let timing = Arc::clone(&timing);
        thread::spawn(move || timing.slow_down(socket, pause))
    });
    let crowd = Crowd::start(&gateway, read, &ledger);
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
    timing.phase.store(SLOW, Ordering::SeqCst);
    let closed = || {
        let log = gateway.stderr();
        let closed = log
            .lines()
            .filter(|line| line.contains("Connection closed"));
        closed.map(str::to_owned).collect::<Vec<_>>()
    };
    flow(0, &|| closed().len() >= 2);
    timing.phase.store(AFTER, Ordering::SeqCst);
    flow(size.messages, &|| true);
    let closed = closed();
    let reasons = [silent, drip].map(|user| {
        let of_user = format!("user={user},");
        let line = closed.iter().find(|line| line.contains(&of_user));
        let reason = line.and_then(|line| line.split("reason=").nth(1)?.split(',').next());
        reason.unwrap_or("none").to_owned()
    });

    timing.over.store(true, Ordering::SeqCst);
    for member in slow_ones {
        member.thread().unpark();
        member.join().expect("a slow member");
    }
    for member in timed {
        member.join().expect("a member who is served to the end");
    }
    let others_closed = crowd.closed();
    for user in [silent, drip] {
        let mut back = gateway.connect(user);
        for push in back.take_held().iter().filter(|frame| is_push(frame)) {
            ledger.received(user, push["id"].as_str().expect("an id"));
        }
    }
    let mut figures = Figures::of(ledger.report());
    figures.disconnects = closed.len();
    figures.demand_whole();
    let only_they = closed.len() == 2 && others_closed == 0;
    figures.demand(
        only_they,
        format!("only the slow ones are closed: {closed:?}"),
    );
    let allowed = ["slow_consumer", "write_timeout"];
    // The sketch gives no reason.
    let rightly = |reason: &String| gateway.is_sketch || allowed.contains(&&**reason);
    let rightly = reasons.iter().all(rightly);
    figures.demand(rightly, format!("as slow ones: {reasons:?}"));
    let (before, during) = timing.p99();
    figures.demand(during <= (before * 2).max(FLOOR), P99);
    figures.note(format!("closed: {}", reasons.join(", ")));
    figures.note(format!(
        "p99 of the others' pushes: {} before, {} while two are slow",
        rounded(before),
        rounded(during)
    ));
    figures
}

/// Phases: nobody is slow, two are, they are gone.
const BEFORE: usize = 0;
const SLOW: usize = 1;
const AFTER: usize = 2;

/// A group in which so many read what comes, and so many each at the paces of [`PACES`].
#[derive(Clone, Copy)]
pub struct Behind {
    pub members: usize,
    pub slow: usize,
    /// How long they are slow.
    pub time: Duration,
    pub rate: u32,
}

/// Bytes per second.
const PACES: [usize; 2] = [10_000, 100_000];
/// How often a slow member reads.
const READS_PER_SECOND: usize = 10;

/// Members read more slowly than messages flow to them, and in the end as fast as they can: nobody is
/// closed, all get all.
pub fn behind(size: Behind) -> Figures {
    let mut figures = behind_once(size);
    for _ in 1..TRIES {
        if figures.broken != [P99] {
            break;
        }
        println!("{figures}");
        figures = behind_once(size);
    }
    figures
}

fn behind_once(size: Behind) -> Figures {
    let members = users("member", size.members);
    let slow = users("slow", PACES.len() * size.slow);
    let all: Vec<&str> = members.iter().chain(&slow).map(String::as_str).collect();
    let settings = Settings::new()
        .users(all.iter().copied().chain(["alice"]))
        .group("all", all.iter().copied().chain(["alice"]))
        .set("session.send_queue", 64)
        // Whoever is thought to be idle is closed soon; but a ping may wait in a client's own
        // receive buffer, for 13 s at 10 KB/s.
        .set("session.ping_interval", "1s")
        .set("session.idle_timeout", "20s")
        .set("services.timeout", "3s")
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let ledger = Arc::new(Ledger::default());
    for member in &all {
        ledger.device(member, member);
    }
    let timing = Arc::new(Timing::default());
    let (timed, read) = members.split_at(TIMED.min(members.len()));
    let timed: Vec<_> = timed
        .iter()
        .map(|member| {
            let client = gateway.connect(member);
            let (ledger, timing) = (Arc::clone(&ledger), Arc::clone(&timing));
            thread::spawn(move || timing.live(client, &ledger))
        })
        .collect();
    let crowd = Crowd::start(&gateway, read, &ledger);
    let slow: Vec<_> = slow
        .iter()
        .enumerate()
        .map(|(number, user)| {
            let raw = gateway.raw_session(user);
            let (user, pace) = (user.clone(), PACES[number % PACES.len()]);
            let (ledger, timing) = (Arc::clone(&ledger), Arc::clone(&timing));
            thread::spawn(move || timing.read_at(raw, &user, pace, &ledger))
        })
        .collect();

    let mut alice = gateway.connect("alice");
    let mut flow = |time: Duration| {
        let pause = Duration::from_secs(1) / size.rate;
        let (start, mut next) = (Instant::now(), Instant::now());
        while start.elapsed() < time {
            // The pace of the flow.
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += pause;
            let content = format!("{} {}", timing.now(), "x".repeat(CONTENT));
            let id = alice.send_group_message("all", &content);
            ledger.committed("alice", &all, &id);
            alice.take_held();
        }
    };
    flow(size.time / 6);
    timing.phase.store(SLOW, Ordering::SeqCst);
    flow(size.time);
    timing.phase.store(AFTER, Ordering::SeqCst);
    timing.over.store(true, Ordering::SeqCst);

    let stayed = slow
        .into_iter()
        .all(|member| member.join().expect("a slow member"));
    for member in timed {
        member.join().expect("a member who is served to the end");
    }
    let others_closed = crowd.closed();
    let log = gateway.stderr();
    let fell_back = log.matches("Fell back to the inbox: user=slow").count();
    let others_fell_back = log.matches("Fell back to the inbox: user=member").count();
    let mut figures = Figures::of(ledger.report());
    figures.disconnects = others_closed + usize::from(!stayed);
    figures.demand_unnoticed();
    let are_behind = gateway.is_sketch || fell_back > 0;
    figures.demand(are_behind, "the slow ones are behind");
    let (before, during) = timing.p99();
    figures.demand(during <= (before * 2).max(FLOOR), P99);
    figures.note(format!(
        "fell back to their inbox: slow ones {fell_back} times, others {others_fell_back}"
    ));
    figures.note(format!(
        "p99 of the others' pushes: {} before, {} while {} are slow",
        rounded(before),
        rounded(during),
        PACES.len() * size.slow,
    ));
    figures
}

/// When pushes arrive at the members who are not slow.
struct Timing {
    start: Instant,
    phase: AtomicUsize,
    over: AtomicBool,
    /// In microseconds, in each phase.
    latencies: [std::sync::Mutex<Vec<u64>>; 3],
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            phase: AtomicUsize::new(BEFORE),
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
                let phase = self.phase.load(Ordering::SeqCst);
                self.latencies[phase].lock().unwrap().push(latency);
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
        let end = Instant::now() + patience();
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
        while self.phase.load(Ordering::SeqCst) == BEFORE {
            let _ = socket.read(&mut [0; 16_384]);
        }
        while !self.over.load(Ordering::SeqCst) {
            thread::park_timeout(pause);
            let _ = socket.read(&mut [0]);
        }
    }

    /// While others are slow, reads so many bytes a second; else what comes. Acknowledges it, and
    /// answers pings. False if the connection was ended before it had all.
    fn read_at(&self, mut raw: Raw, user: &str, pace: usize, ledger: &Ledger) -> bool {
        let share = pace / READS_PER_SECOND;
        let pause = Duration::from_secs(1) / READS_PER_SECOND as u32;
        // What still comes is not lost, however long it takes.
        let mut last = Instant::now();
        loop {
            let is_slow = self.phase.load(Ordering::SeqCst) == SLOW;
            let Some(frames) = raw.read_up_to(if is_slow { share } else { 1 << 20 }) else {
                return false;
            };
            let mut ids = Vec::new();
            for frame in &frames {
                if frame.opcode == PING {
                    // Whoever is gone is seen below.
                    let _ = raw.try_send(raw::frame(FIN | PONG, &frame.payload));
                } else if let Some(id) = message_id(&frame.payload) {
                    ledger.received(user, id);
                    ids.push(id);
                }
            }
            if !ids.is_empty() {
                last = Instant::now();
                let ack = json!({"type": "ack", "data": {"message_ids": ids}}).to_string();
                let _ = raw.try_send(raw::frame(FIN | TEXT, ack.as_bytes()));
            }
            if is_slow {
                // The pace of the member.
                thread::sleep(pause);
            }
            let is_over = self.over.load(Ordering::SeqCst);
            if is_over && (ledger.has_all(user) || last.elapsed() > patience() * 3) {
                return true;
            }
        }
    }

    fn p99(&self) -> (Duration, Duration) {
        let [before, during] = [BEFORE, SLOW].map(|phase: usize| {
            let mut latencies = self.latencies[phase].lock().unwrap();
            latencies.sort_unstable();
            Duration::from_micros(latencies[latencies.len() * 99 / 100])
        });
        (before, during)
    }
}

/// Clients that one thread serves: they read what comes.
struct Crowd {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
    size: usize,
}

impl Crowd {
    fn start(gateway: &Gateway, users: &[String], ledger: &Arc<Ledger>) -> Self {
        let connect = |user: &String| (user.clone(), gateway.raw_session(user));
        let members: Vec<_> = users.iter().map(connect).collect();
        let over = Arc::new(AtomicBool::new(false));
        let size = members.len();
        let thread = thread::spawn({
            let (over, ledger) = (Arc::clone(&over), Arc::clone(ledger));
            move || serve(members, &ledger, &over)
        });
        Self { over, thread, size }
    }

    /// Once all have all, or it is too late. Answers how many were closed.
    fn closed(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        self.size - self.thread.join().expect("a thread")
    }
}

/// Answers how many are still connected in the end.
fn serve(mut members: Vec<(String, Raw)>, ledger: &Ledger, over: &AtomicBool) -> usize {
    const LOOK: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    let mut over_by = None;
    loop {
        let sockets = members.iter().map(|(_, raw)| raw.stream());
        let mut polled: Vec<_> = sockets
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        let _ = poll(&mut polled, Some(&LOOK));
        let readable = |polled: &PollFd| polled.revents().contains(PollFlags::IN);
        let ready: Vec<bool> = polled.iter().map(readable).collect();
        let mut ready = ready.into_iter();
        members.retain_mut(|(user, raw)| {
            if !ready.next().expect("one for each") {
                return true;
            }
            let frames = raw.read_some();
            for frame in frames.iter().flatten() {
                if frame.opcode == PING {
                    // Whoever is gone is seen below.
                    let _ = raw.try_send(raw::frame(FIN | PONG, &frame.payload));
                } else if let Some(id) = message_id(&frame.payload) {
                    ledger.received(user, id);
                }
            }
            frames.is_some()
        });
        if over.load(Ordering::SeqCst) {
            let end = *over_by.get_or_insert_with(|| Instant::now() + patience());
            if Instant::now() > end || members.iter().all(|(user, _)| ledger.has_all(user)) {
                return members.len();
            }
        }
    }
}

/// The id in a push, which is near its start, or its end where the content comes before it; the whole
/// is not parsed, so that those who are timed are not held up.
fn message_id(payload: &[u8]) -> Option<&str> {
    let near = payload.len().min(200);
    let start = str::from_utf8(&payload[..near]).ok()?;
    let end = str::from_utf8(&payload[payload.len() - near..]).ok()?;
    let is_push = [start, end]
        .iter()
        .any(|part| part.contains(r#""type":"group_message""#));
    let mut ids = [start, end]
        .into_iter()
        .filter_map(|part| part.split_once(r#""id":""#));
    let (_, rest) = ids.next().filter(|_| is_push)?;
    Some(rest.split_once('"')?.0)
}
