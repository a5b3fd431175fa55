//! A line between a gateway and its broker that a test can break, or hold in one direction.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToBroker,
    FromBroker,
}

pub struct Wire {
    pub addr: SocketAddr,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: Option<Way>,
    /// Both ends of each connection.
    ends: Vec<TcpStream>,
    connections: usize,
    /// How often the line was cut: what was read before and not passed on is gone.
    cuts: usize,
}

impl Wire {
    /// Listens on a port of its own. It ends with this process.
    pub fn to(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("a bound address");
        let line = Arc::new(Line::default());
        let shared = Arc::clone(&line);
        thread::spawn(move || {
            for near in listener.incoming() {
                // A broker that is away: the connection ends at once.
                if let (Ok(near), Ok(far)) = (near, TcpStream::connect(broker)) {
                    shared.join(&near, &far);
                }
            }
        });
        Self { addr, line }
    }

    /// The URL of a broker by way of this line.
    pub fn url(&self, direct: &str) -> String {
        let (scheme_and_user, rest) = direct.split_once('@').expect("a user in the URL");
        let (_, vhost) = rest.split_once('/').expect("a virtual host in the URL");
        format!("{scheme_and_user}@{}/{vhost}", self.addr)
    }

    /// Breaks all connections; what is held is lost.
    pub fn cut(&self) {
        let mut state = self.line.state.lock().unwrap();
        state.cuts += 1;
        state.held = None;
        for end in state.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
        self.line.changed.notify_all();
    }

    /// Bytes that go this way wait, until [`release`](Self::release).
    pub fn hold(&self, way: Way) {
        self.line.state.lock().unwrap().held = Some(way);
    }

    pub fn release(&self) {
        self.line.state.lock().unwrap().held = None;
        self.line.changed.notify_all();
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.line.state.lock().unwrap().connections
    }
}

impl Line {
    fn join(self: &Arc<Self>, near: &TcpStream, far: &TcpStream) {
        let end = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let cuts = {
            let mut state = self.state.lock().unwrap();
            state.ends.extend([end(near), end(far)]);
            state.connections += 1;
            state.cuts
        };
        for (from, to, way) in [(near, far, Way::ToBroker), (far, near, Way::FromBroker)] {
            let (from, to, line) = (end(from), end(to), Arc::clone(self));
            from.set_nodelay(true).expect("a socket option");
            thread::spawn(move || {
                line.carry(&from, &to, way, cuts);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }

    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream, way: Way, cuts: usize) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            let mut state = self.state.lock().unwrap();
            while state.held == Some(way) && state.cuts == cuts {
                state = self.changed.wait(state).unwrap();
            }
            let cut = state.cuts != cuts;
            drop(state);
            if cut || to.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
    }
}
