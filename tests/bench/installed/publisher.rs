//! Publishes to a server that has no broker in the path.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};

use crate::clock;
use crate::protocol::{Protocol, Said};
use crate::publisher::message;

/// How long a server may be busy with what was published.
const DEADLINE: Duration = Duration::from_secs(120);

pub struct Publisher {
    protocol: Protocol,
    stream: TcpStream,
    /// One for each time that the server said that it is done, read by a thread of its own: a
    /// server whose answers are not read would stop taking requests.
    done: Receiver<()>,
    published: u64,
}

impl Publisher {
    pub fn open(protocol: Protocol, addr: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(addr).expect("the server answers");
        // Without it a message would wait for the acknowledgement of the one before.
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&protocol.introduce()).expect("it reads");
        let answers = stream.try_clone().expect("a socket");
        let (said, done) = channel::unbounded();
        thread::spawn(move || read(protocol, answers, || said.send(()).is_ok()));
        Self {
            protocol,
            stream,
            done,
            published: 0,
        }
    }

    /// Publishes so many as fast as the server takes them; all say that they were published now.
    pub fn burst(&mut self, count: u64, size: usize) {
        let mut bytes = Vec::new();
        (0..count).for_each(|_| self.encode(size, &mut bytes));
        self.write(&bytes);
        self.settle(count);
    }

    /// Publishes `rate` a second, each at its own moment whatever became of the one before.
    pub fn paced(&mut self, count: u64, rate: f64, size: usize) {
        let mut bytes = Vec::new();
        let start = Instant::now();
        for number in 0..count {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            bytes.clear();
            self.encode(size, &mut bytes);
            self.write(&bytes);
        }
        self.settle(count);
    }

    fn encode(&mut self, size: usize, bytes: &mut Vec<u8>) {
        self.published += 1;
        let content = clock::content(clock::now(), size);
        self.protocol
            .publish(&message(self.published, &content), bytes);
    }

    /// Waits until the server has taken all `count`.
    fn settle(&mut self, count: u64) {
        let question = self.protocol.settle();
        self.write(&question);
        let answers = if question.is_empty() { count } else { 1 };
        for _ in 0..answers {
            self.done
                .recv_timeout(DEADLINE)
                .expect("the server takes what is published");
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // The thread has the socket too.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Reads answers until the connection ends, or `on_done` says that nobody asks any more.
fn read(protocol: Protocol, mut stream: TcpStream, on_done: impl Fn() -> bool) {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..count]);
        let mut taken = 0;
        while let Some((said, length)) = protocol.next_answer(&bytes[taken..]) {
            taken += length;
            match said {
                Said::Done if !on_done() => return,
                Said::Error => {
                    let text = String::from_utf8_lossy(&bytes);
                    eprintln!("The server refuses what is published: {text:?}");
                    return;
                }
                // NATS pings, and waits for minutes: longer than anybody publishes here.
                _ => {}
            }
        }
        bytes.drain(..taken);
    }
}
