//! A window of time in which a server delivers: what it cost, and what else the machine did.

use std::time::Duration;

use serde_json::Value;

use crate::cpu::Others;
use crate::support::process::Process;

/// Opened before the server has anything to do.
pub struct Window {
    cpu: Duration,
    others: Others,
}

/// What the deliveries of a window cost.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// From the first push that the client read to the last one.
    pub per_second: f64,
    /// Processor time of the server, in microseconds per delivery.
    pub cpu_us: f64,
    /// From publish to the client's read.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Pushes that did not come, or came twice.
    pub lost: f64,
    /// The mean length of what the client read, in bytes.
    pub payload: f64,
    /// The share of one core that the client took, from the first push on: near 1 it would be what
    /// bounds the server.
    pub client_load: f64,
    /// The share of the machine that others took.
    pub others: f64,
}

impl Window {
    pub fn open(server: &Process) -> Self {
        Self {
            cpu: server.processor_time(),
            others: Others::watch(),
        }
    }

    /// Once the client has reported.
    pub fn close(self, server: &Process, report: &Value) -> Figures {
        let cpu = server.processor_time() - self.cpu;
        let number = |name: &str| report[name].as_f64().expect("a number");
        let deliveries = number("pushes").max(1.0);
        let seconds = ((number("last") - number("first")) / 1e9).max(1e-9);
        let lost = number("lost") + number("extra");
        if lost + number("closed") > 0.0 {
            eprintln!("not exact: {report}");
        }
        Figures {
            per_second: deliveries / seconds,
            cpu_us: cpu.as_secs_f64() * 1e6 / deliveries,
            p50_ms: number("p50_us") / 1e3,
            p99_ms: number("p99_us") / 1e3,
            lost,
            payload: number("bytes") / deliveries,
            client_load: number("client_cpu_s") / seconds,
            others: self.others.share(),
        }
    }
}
