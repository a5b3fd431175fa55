//! TLS at full rate in both directions: short writes, changed keys, clients that stop to read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use serde_json::{Value, json};

use super::clients::users;
use super::{Drill, Figures};
use crate::support::asyncapi::Exchange;
use crate::support::ledger::Ledger;
use crate::support::raw::{self, CLOSE, FIN, PING, PONG, TEXT, UPGRADE};
use crate::support::settings::token_of;
use crate::support::stream::Stream;
use crate::support::{DEADLINE, Gateway, Settings};

pub const DRILLS: &[Drill] = &[Drill {
    name: "tls-both-ways",
    about: "40 clients over TLS send and are sent all they can for two minutes, and change keys",
    run: || both_ways(40, Duration::from_secs(120)),
}];

/// Requests that one client has under way.
const AT_ONCE: usize = 8;

/// Each of so many clients sends to the next one for so long, and each is sent what the one before
/// it sends.
pub fn both_ways(clients: usize, time: Duration) -> Figures {
    let names = users("u", clients);
    let settings = Settings::new()
        .tls()
        .users(names.iter().map(String::as_str))
        .set("session.ping_interval", "50ms")
        .set("limits.rate", 1_000_000)
        .set("limits.burst", 1_000_000)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let ledger = Ledger::default();
    let mut pumps: Vec<Pump> = (0..clients)
        .map(|number| {
            ledger.device(&names[number], &names[number]);
            Pump::connect(&gateway, &names[number], &names[(number + 1) % clients])
        })
        .collect();
    let end = Instant::now() + time;
    thread::scope(|threads| {
        for share in pumps.chunks_mut(clients.div_ceil(2)) {
            threads.spawn(|| serve(share, &ledger, end));
        }
    });
    let mut figures = Figures::of(ledger.report());
    figures.asked = pumps.iter().map(|pump| pump.asked).sum();
    figures.refused = pumps.iter().map(|pump| pump.refused).sum();
    figures.disconnects = pumps.iter().filter(|pump| pump.closed.is_some()).count();
    figures.demand_unnoticed();
    figures.demand(figures.refused == 0, "nothing is refused");
    let whole = figures.asked == figures.committed;
    figures.demand(whole, format!("{} asked, all answered", figures.asked));
    let panics = gateway.stderr().contains("Panic");
    figures.demand(!panics, "no thread panics");
    let changes: usize = pumps.iter().map(|pump| pump.changed_keys).sum();
    let pongs: usize = pumps.iter().map(|pump| pump.pongs).sum();
    figures.demand(changes > 0 && pongs > 0, "keys change, pings are answered");
    figures.note(format!(
        "keys were changed {changes} times, {pongs} pings were answered"
    ));
    for closed in pumps.iter().filter_map(|pump| pump.closed.as_ref()) {
        figures.note(closed.clone());
    }
    drop(pumps);
    assert_eq!(gateway.stop(), 0);
    figures
}

/// One thread for many, none of which waits for anything.
fn serve(pumps: &mut [Pump], ledger: &Ledger, end: Instant) {
    let is_over =
        |pump: &Pump| pump.closed.is_some() || pump.waiting == 0 && ledger.has_all(&pump.user);
    let mut looked = Instant::now();
    loop {
        let now = Instant::now();
        let mut moved = false;
        for pump in &mut *pumps {
            moved |= pump.step(ledger, now, now < end);
        }
        if now > end && now > looked + Duration::from_millis(200) {
            looked = now;
            if pumps.iter().all(is_over) || now > end + DEADLINE * 3 {
                return;
            }
        }
        if !moved {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

struct Pump {
    user: String,
    to: String,
    socket: TcpStream,
    tls: ClientConnection,
    /// Frames that are not encrypted yet.
    unsent: Vec<u8>,
    /// What is decrypted and no whole frame.
    received: Vec<u8>,
    asked: usize,
    waiting: usize,
    refused: usize,
    unacknowledged: Vec<String>,
    steps: usize,
    changed_keys: usize,
    pongs: usize,
    /// It reads nothing until then.
    pauses_until: Instant,
    /// How it ended.
    closed: Option<String>,
    /// Holds what comes against `proto/client.asyncapi.yaml`.
    protocol: Exchange,
}

impl Pump {
    fn connect(gateway: &Gateway, user: &str, to: &str) -> Self {
        let socket = TcpStream::connect(gateway.addr).expect("the gateway listens");
        // So that its socket is full again and again.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 32 << 10).expect("an option");
        let mut stream = Stream::over(socket);
        let bearer = format!("Bearer {}", token_of(user));
        let mut headers = UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        let head = raw::head("GET", &gateway.path, &headers);
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut received = Vec::new();
        let end = loop {
            let mut more = [0; 512];
            let read = stream.read(&mut more).expect("an answer");
            assert!(read > 0, "the end");
            received.extend(&more[..read]);
            if let Some(end) = received.windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
        };
        assert!(received.starts_with(b"HTTP/1.1 101"));
        received.drain(..end);
        let (socket, tls) = stream.into_parts();
        socket.set_nonblocking(true).expect("an option");
        Self {
            user: user.into(),
            to: to.into(),
            socket,
            tls: tls.expect("TLS"),
            unsent: Vec::new(),
            received,
            asked: 0,
            waiting: 0,
            refused: 0,
            unacknowledged: Vec::new(),
            steps: 0,
            changed_keys: 0,
            pongs: 0,
            pauses_until: Instant::now(),
            closed: None,
            protocol: Exchange::default(),
        }
    }

    fn request(&mut self, kind: &str, data: &Value) {
        let text = json!({"type": kind, "request_id": kind, "data": data}).to_string();
        self.protocol.sent(&text);
        self.unsent.extend(raw::frame(FIN | TEXT, text.as_bytes()));
    }

    /// Goes on as far as its socket lets it. Answers whether it did anything.
    fn step(&mut self, ledger: &Ledger, now: Instant, sends: bool) -> bool {
        if self.closed.is_some() {
            return false;
        }
        self.steps += 1;
        let turn = self.steps;
        if sends && self.waiting < AT_ONCE {
            let length = if turn.is_multiple_of(50) {
                30_000
            } else {
                turn * 37 % 900 + 1
            };
            let content = "x".repeat(length);
            let to = self.to.clone();
            self.request(
                "send_message",
                &json!({"to_user_id": to, "content": content}),
            );
            self.asked += 1;
            self.waiting += 1;
        }
        if self.unacknowledged.len() >= 40 || !sends && !self.unacknowledged.is_empty() {
            let ids = std::mem::take(&mut self.unacknowledged);
            self.request("ack", &json!({"message_ids": ids}));
        }
        if sends && turn.is_multiple_of(5_000) {
            self.pauses_until = now + Duration::from_millis(500);
        }
        match self.exchange(turn, now >= self.pauses_until) {
            Ok(moved) => {
                self.frames(ledger);
                moved
            }
            Err(error) => {
                self.closed = Some(format!("{}: {error}", self.user));
                true
            }
        }
    }

    /// Encrypts, writes, reads, decrypts, a piece of each.
    fn exchange(&mut self, turn: usize, reads: bool) -> io::Result<bool> {
        let mut moved = false;
        if !self.tls.wants_write() && !self.unsent.is_empty() {
            let piece = self.unsent.len().min(turn * 131 % 20_000 + 1);
            self.tls.writer().write_all(&self.unsent[..piece])?;
            self.unsent.drain(..piece);
            if turn.is_multiple_of(64) && self.tls.refresh_traffic_keys().is_ok() {
                self.changed_keys += 1;
            }
            moved = true;
        }
        if self.tls.wants_write() {
            moved |= done(self.tls.write_tls(&mut self.socket))?.is_some();
        }
        if reads && let Some(read) = done(self.tls.read_tls(&mut self.socket))? {
            self.tls.process_new_packets().map_err(io::Error::other)?;
            let mut bytes = [0; 16 << 10];
            while let Some(more) = done(self.tls.reader().read(&mut bytes))? {
                if more == 0 {
                    return Err(io::Error::other("the end"));
                }
                self.received.extend(&bytes[..more]);
            }
            if read == 0 {
                return Err(io::Error::other("the end without a goodbye"));
            }
            moved = true;
        }
        Ok(moved)
    }

    fn frames(&mut self, ledger: &Ledger) {
        while let Some((first, payload, length)) = whole(&self.received) {
            // A server's frame is whole, and its opcode one that there is (RFC 6455, section 5.2).
            assert_eq!(first & 0xf0, FIN, "malformed: {first:#x}");
            match first & 0x0f {
                TEXT => {
                    let text = str::from_utf8(payload).expect("UTF-8");
                    let frame = self.protocol.received(text);
                    self.heard(&frame, ledger);
                }
                PING => {
                    self.pongs += 1;
                    self.unsent.extend(raw::frame(FIN | PONG, payload));
                }
                CLOSE => self.closed = Some(format!("{}: Close {payload:?}", self.user)),
                opcode => panic!("malformed: {opcode}"),
            }
            self.received.drain(..length);
        }
    }

    fn heard(&mut self, frame: &Value, ledger: &Ledger) {
        let id = || frame["id"].as_str().expect("an id");
        match frame["type"].as_str().expect("a type") {
            "message_sent" => {
                self.waiting -= 1;
                ledger.committed(&self.user, &[&self.to], id());
            }
            "message" => {
                ledger.received(&self.user, id());
                self.unacknowledged.push(id().to_owned());
            }
            "error" => {
                self.refused += 1;
                self.waiting -= usize::from(frame["request_id"] == "send_message");
            }
            _ => {}
        }
    }
}

/// What was done, if anything could be.
fn done(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first frame, if it is whole: its first byte, its payload, its length.
fn whole(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&[first, short], rest) = bytes.split_first_chunk()?;
    let (head, length) = match short {
        126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?,
        ),
        short => (2, usize::from(short)),
    };
    let payload = bytes.get(head..head + length)?;
    Some((first, payload, head + length))
}
