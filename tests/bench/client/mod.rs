//! The client, a process of its own with one thread: opens many connections and counts what they
//! bring. It is told what to do over a socket, a line for each command, and answers in JSON:
//!
//! | command | answer |
//! | --- | --- |
//! | `connect ADDR COUNT WINDOW PROTOCOL` | once all are served or refused; WINDOW at a time |
//! | `expect COUNT timed\|untimed` | at once; from now on each connection is to get COUNT pushes |
//! | `report SECONDS` | once all have come, or none for SECONDS |
//! | `exchange CLIENTS SECONDS COUNT` | after a closed loop: each client sends, waits, sends |
//! | `schedule CLIENTS SECONDS RATE` | after an open loop: RATE requests a second in all |

mod connection;
mod exchange;
mod handle;
mod opening;
mod schedule;
mod stream;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::clock::{self, Stamps, percentile};
use crate::remote;
use connection::{Connection, Phase};
use exchange::Exchange;
pub use handle::Client;
use opening::Opening;
use schedule::Schedule;

/// Names the command socket among the events; the others are connections by their number.
const CONTROL: u64 = u64::MAX;
/// Names the timer of a schedule.
const TIMER: u64 = CONTROL - 1;
/// Room for the longest frame behind what one read takes.
const BUFFER: usize = stream::ROOM + 1024 * 1024;

/// What the next answer waits for.
enum Goal {
    Nothing,
    Opened(Opening),
    /// All pushes, or none for so many nanoseconds since this moment.
    Counted {
        patience: u64,
        since: u64,
    },
    Exchanged(Exchange),
    Scheduled(Schedule),
}

/// What came since the last `expect`.
#[derive(Default)]
struct Count {
    /// What each connection is to get.
    expected: u32,
    pushes: u64,
    /// Of their payloads.
    bytes: u64,
    /// Connections that got as many as expected.
    complete: usize,
    /// Connections that ended before.
    cut: usize,
    first: u64,
    last: u64,
    /// Microseconds from the stamp in the content to the read.
    latencies: Option<Vec<u32>>,
    /// This process' processor time at the first push.
    cpu: Duration,
}

/// The process' state; its methods are the commands and the events.
struct Load {
    epoll: OwnedFd,
    control: TcpStream,
    commands: Vec<u8>,
    /// How the servers that have TLS are spoken to.
    tls: Option<Arc<ClientConfig>>,
    connections: Vec<Connection>,
    goal: Goal,
    count: Count,
    stamps: Stamps,
}

/// `bench client [CA]`: says where it takes commands, and takes them until their socket ends. With
/// an authority's file it speaks TLS.
pub fn run(arguments: &[String]) {
    let control = remote::control();
    control.set_nonblocking(true).expect("a socket");
    let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
    epoll::add(
        &epoll,
        &control,
        EventData::new_u64(CONTROL),
        EventFlags::IN,
    )
    .expect("an event");
    let mut load = Load {
        epoll,
        control,
        commands: Vec::new(),
        tls: arguments.first().map(|ca| stream::trusting(ca)),
        connections: Vec::new(),
        goal: Goal::Nothing,
        count: Count::default(),
        stamps: Stamps::of_contents(),
    };
    load.serve();
}

impl Load {
    fn serve(&mut self) {
        let mut buffer = vec![0; BUFFER];
        let mut events = Vec::with_capacity(512);
        loop {
            events.clear();
            // Deadlines are looked at this often.
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            let waited = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&tick));
            if waited.is_err_and(|error| error != rustix::io::Errno::INTR) {
                return;
            }
            let now = clock::now();
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                match data.u64() {
                    CONTROL => {
                        if !self.commanded() {
                            return;
                        }
                    }
                    TIMER => {
                        if let Goal::Scheduled(schedule) = &mut self.goal {
                            schedule.proceed(&mut self.connections);
                        }
                    }
                    number => self.ready(number as usize, flags, now, &mut buffer),
                }
            }
            self.check(clock::now());
        }
    }

    /// Reads commands; false at their end.
    fn commanded(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.control.read(&mut bytes) {
            Ok(0) | Err(_) => return false,
            Ok(count) => self.commands.extend_from_slice(&bytes[..count]),
        }
        while let Some(end) = self.commands.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.commands.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            self.command(&line.split_whitespace().collect::<Vec<_>>());
        }
        true
    }

    fn command(&mut self, words: &[&str]) {
        let number = |place: usize| words[place].parse::<usize>().expect("a number");
        match words[0] {
            "connect" => {
                let addr = words[1].parse().expect("an address");
                let tls = self.tls.clone();
                let protocol = words[4].parse().expect("a protocol");
                let (count, window) = (number(2), number(3));
                let opening = Opening::new(addr, protocol, tls, count, window, clock::now());
                self.goal = Goal::Opened(opening);
            }
            "expect" => {
                self.expect(number(1) as u32, words[2] == "timed");
                self.answer(&json!({}));
            }
            "report" => {
                self.goal = Goal::Counted {
                    patience: number(1) as u64 * 1_000_000_000,
                    since: clock::now(),
                };
            }
            "exchange" => {
                self.expect(0, false);
                let exchange = Exchange::new(number(1), number(2) as u64, number(3) as u64);
                self.goal = Goal::Exchanged(exchange);
            }
            "schedule" => {
                self.expect(0, false);
                let (seconds, rate) = (number(2) as u64, number(3) as u64);
                let schedule = Schedule::new(number(1), seconds, rate, &self.epoll, TIMER);
                self.goal = Goal::Scheduled(schedule);
            }
            other => panic!("no such command: {other}"),
        }
    }

    fn expect(&mut self, expected: u32, timed: bool) {
        for connection in &mut self.connections {
            connection.received = 0;
        }
        self.count = Count {
            expected,
            latencies: timed.then(Vec::new),
            ..Count::default()
        };
    }

    /// A connection's socket can be read or, while it connects, written.
    fn ready(&mut self, number: usize, flags: EventFlags, now: u64, buffer: &mut [u8]) {
        let Self {
            connections,
            count,
            goal,
            stamps,
            epoll,
            ..
        } = self;
        let Some(connection) = connections.get_mut(number) else {
            return;
        };
        if connection.phase == Phase::Connecting && flags.contains(EventFlags::OUT) {
            let data = EventData::new_u64(number as u64);
            let _ = epoll::modify(&*epoll, connection.socket(), data, EventFlags::IN);
            connection.upgrade();
        }
        connection.read(buffer, |connection, payload| match kind(payload) {
            b"message" | b"group_message" => {
                count.push(connection, payload.len(), now);
                if let Some(latencies) = &mut count.latencies
                    && let Some(stamp) = stamps.read(payload)
                {
                    let micros = clock::now().saturating_sub(stamp) / 1_000;
                    latencies.push(u32::try_from(micros).unwrap_or(u32::MAX));
                }
            }
            kind @ (b"message_sent" | b"error") => match goal {
                Goal::Exchanged(exchange) => {
                    exchange.answered(number, connection, kind == b"error");
                }
                Goal::Scheduled(schedule) => schedule.answered(payload, kind == b"error"),
                _ => {}
            },
            b"connected" => {
                if let Goal::Opened(opening) = goal {
                    opening.connected(now);
                }
            }
            // It comes again after a route that is confirmed late.
            b"offline_complete" if !connection.complete => {
                connection.complete = true;
                if let Goal::Opened(opening) = goal {
                    opening.completed(now);
                }
            }
            _ => {}
        });
        if connection.phase == Phase::Closed {
            let _ = epoll::delete(&*epoll, connection.socket());
            count.cut += usize::from(connection.received < count.expected);
            match goal {
                Goal::Opened(opening) => opening.closed(connection),
                Goal::Exchanged(exchange) => exchange.closed(connection),
                Goal::Scheduled(schedule) => schedule.closed(),
                Goal::Nothing | Goal::Counted { .. } => {}
            }
        }
    }

    /// Answers what has come true.
    fn check(&mut self, now: u64) {
        let answer = match &mut self.goal {
            Goal::Nothing => return,
            Goal::Opened(opening) => {
                let unread = self.count.pushes;
                opening.proceed(&mut self.connections, &self.epoll, unread, now)
            }
            Goal::Counted { patience, since } => {
                let all = self.count.complete + self.count.cut == self.connections.len();
                let late = now > self.count.last.max(*since) + *patience;
                (all || late).then(|| self.count.report(&self.connections))
            }
            Goal::Exchanged(exchange) => {
                exchange.proceed(&mut self.connections);
                exchange.check(&self.count, now)
            }
            Goal::Scheduled(schedule) => schedule.check(&self.count, now),
        };
        if let Some(answer) = answer {
            self.goal = Goal::Nothing;
            self.answer(&answer);
        }
    }

    fn answer(&mut self, answer: &Value) {
        // It is short: the socket takes it.
        let _ = self.control.write_all(format!("{answer}\n").as_bytes());
    }
}

impl Count {
    fn push(&mut self, connection: &mut Connection, size: usize, now: u64) {
        self.pushes += 1;
        self.bytes += size as u64;
        connection.received += 1;
        self.complete += usize::from(connection.received == self.expected);
        if self.first == 0 {
            self.first = now;
            self.cpu = own_cpu();
        }
        self.last = now;
    }

    fn report(&mut self, connections: &[Connection]) -> Value {
        let missing = |c: &Connection| u64::from(self.expected.saturating_sub(c.received));
        let extra = |c: &Connection| u64::from(c.received.saturating_sub(self.expected));
        let closed = connections.iter().filter(|c| c.phase == Phase::Closed);
        let codes: Vec<_> = closed
            .clone()
            .filter_map(|c| c.close_code)
            .take(3)
            .collect();
        let mut latencies = self.latencies.take().unwrap_or_default();
        latencies.sort_unstable();
        json!({
            "pushes": self.pushes,
            "bytes": self.bytes,
            "lost": connections.iter().map(missing).sum::<u64>(),
            "extra": connections.iter().map(extra).sum::<u64>(),
            "closed": closed.count(),
            "close_codes": codes,
            "first": self.first,
            "last": self.last,
            "stamped": latencies.len(),
            "p50_us": percentile(&latencies, 0.5),
            "p99_us": percentile(&latencies, 0.99),
            "max_us": percentile(&latencies, 1.0),
            "client_cpu_s": (own_cpu() - self.cpu).as_secs_f64(),
        })
    }
}

/// The value of `type`, which all servers write first.
fn kind(payload: &[u8]) -> &[u8] {
    const BEFORE: &[u8] = br#"{"type":""#;
    let Some(rest) = payload.strip_prefix(BEFORE) else {
        return b"";
    };
    let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(0);
    &rest[..end]
}

/// The processor time that this process used.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
