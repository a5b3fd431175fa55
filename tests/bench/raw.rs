//! The raw limit: a loop that sends the same bytes to the same number of sockets with one system
//! call each. It knows no broker, no queue and no threads, and so no gateway can be much cheaper
//! when it is not behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ws_gateway::client::frame::Frame;

use crate::client::Client;
use crate::clock;
use crate::publisher::message;
use crate::remote::{self, Remote};
use crate::session::PATIENCE_S;
use crate::window::{Figures, Window};

/// The benchmark's end of a raw process, with its clients connected.
pub struct Raw {
    remote: Remote,
    client: Client,
}

impl Raw {
    pub fn start(connections: usize) -> Self {
        let mut remote = Remote::start(&["raw", &connections.to_string()]);
        let listening = remote.process.stdout_line("listening ws://");
        let addr: SocketAddr = listening.parse().expect("an address");
        let mut client = Client::start(None);
        // It answers one handshake after the other.
        client.connect(addr, connections, 1);
        Self { remote, client }
    }

    /// Sends `count` messages to all, `rate` a second; 0: as fast as it goes.
    pub fn send(&mut self, count: u64, rate: f64, size: usize) -> Figures {
        self.client.expect(count, rate > 0.0);
        let window = Window::open(&self.remote.process);
        self.remote.ask(&format!("send {count} {rate} {size}"));
        let report = self.client.report(PATIENCE_S);
        window.close(&self.remote.process, &report)
    }
}

/// `bench raw COUNT`: lets so many clients in, then sends what it is told to.
pub fn run(arguments: &[String]) {
    let connections = arguments[0].parse().expect("a number");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut control = BufReader::new(remote::control());
    let addr = listener.local_addr().expect("an address");
    println!("listening ws://{addr}");
    let mut clients: Vec<TcpStream> = (0..connections).map(|_| accept(&listener)).collect();
    let mut line = String::new();
    while control.read_line(&mut line).is_ok_and(|count| count > 0) {
        let number = |place| line.split_whitespace().nth(place).expect("a number");
        send(
            &mut clients,
            number(1).parse().expect("a count"),
            number(2).parse().expect("a rate"),
            number(3).parse().expect("a size"),
        );
        writeln!(control.get_mut(), "{{}}").expect("the benchmark reads");
        line.clear();
    }
}

/// As much of a handshake as the client looks at.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut client, _) = listener.accept().expect("a client");
    client.set_nodelay(true).expect("a socket");
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).expect("a request");
        request.push(byte[0]);
    }
    let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    answer.extend(frame(r#"{"type":"connected"}"#));
    answer.extend(frame(r#"{"type":"offline_complete"}"#));
    client.write_all(&answer).expect("a client that reads");
    client
}

fn send(clients: &mut [TcpStream], count: u64, rate: f64, size: usize) {
    let start = Instant::now();
    for number in 0..count {
        if rate > 0.0 {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let content = clock::content(clock::now(), size);
        let frame = frame(&message(number, &content));
        for client in &mut *clients {
            client.write_all(&frame).expect("a client that reads");
        }
    }
}

fn frame(payload: &str) -> Vec<u8> {
    Frame::text(|bytes| bytes.extend(payload.as_bytes()))
        .bytes()
        .to_vec()
}
