//! The benchmark's end of the client process.

use std::iter;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::protocol::Protocol;
use crate::remote::Remote;

/// A running client process; its connections end with it.
pub struct Client(Remote);

impl Client {
    /// `ca`: whom it trusts, where TLS is spoken.
    pub fn start(ca: Option<&Path>) -> Self {
        let ca = ca.map(|ca| ca.to_str().expect("a path in UTF-8"));
        let arguments: Vec<&str> = iter::once("client").chain(ca).collect();
        Self(Remote::start(&arguments))
    }

    /// Connects users u0 to `count`, `window` at a time; all must be served.
    pub fn connect(&mut self, addr: SocketAddr, count: usize, window: usize) -> Value {
        let answer = self.try_connect(addr, count, window);
        assert_eq!(answer["complete"], count, "not all are served: {answer}");
        answer
    }

    /// As [`connect`](Self::connect), whoever is refused.
    pub fn try_connect(&mut self, addr: SocketAddr, count: usize, window: usize) -> Value {
        self.connect_with(Protocol::Gateway, addr, count, window)
    }

    /// As [`try_connect`](Self::try_connect), to a server that speaks something else.
    pub fn connect_with(
        &mut self,
        protocol: Protocol,
        addr: SocketAddr,
        count: usize,
        window: usize,
    ) -> Value {
        self.0
            .ask(&format!("connect {addr} {count} {window} {protocol}"))
    }

    /// From now on each connection is to get `count` pushes. `timed`: takes their latency.
    pub fn expect(&mut self, count: u64, timed: bool) {
        let how = if timed { "timed" } else { "untimed" };
        self.0.ask(&format!("expect {count} {how}"));
    }

    /// What came of what is expected, once it is there, or once nothing came for `seconds`.
    pub fn report(&mut self, seconds: u64) -> Value {
        self.0.ask(&format!("report {seconds}"))
    }

    /// The first `clients` connections send to each other, for `seconds` and `limit` each at most.
    pub fn exchange(&mut self, clients: usize, seconds: u64, limit: u64) -> Value {
        self.0.ask(&format!("exchange {clients} {seconds} {limit}"))
    }

    /// The first `clients` connections send to each other, `rate` a second in all, for `seconds`.
    pub fn schedule(&mut self, clients: usize, seconds: u64, rate: u64) -> Value {
        self.0.ask(&format!("schedule {clients} {seconds} {rate}"))
    }
}
