//! What the figures were measured on.

use std::fmt;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

pub struct Machine {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    rabbitmq: String,
    rustc: String,
    /// When the benchmark began: what others did then.
    load: String,
}

impl Machine {
    pub fn describe() -> Self {
        let memory_kib: f64 = field("/proc/meminfo", "MemTotal")
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        let rabbitmq = said(
            "dpkg-query",
            &["--show", "--showformat=${Version}", "rabbitmq-server"],
        );
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, |count| count.get()),
            memory_gib: memory_kib / 1024.0 / 1024.0,
            kernel: read("/proc/sys/kernel/osrelease"),
            rabbitmq,
            rustc: said("rustc", &["--version"]),
            load: read("/proc/loadavg"),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_gib": (self.memory_gib * 10.0).round() / 10.0,
            "kernel": self.kernel,
            "rabbitmq": self.rabbitmq,
            "rustc": self.rustc,
            "load_before": self.load,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, {:.0} GiB, Linux {}, RabbitMQ {} with one scheduler, {}",
            self.processor, self.cores, self.memory_gib, self.kernel, self.rabbitmq, self.rustc
        )
    }
}

/// The value of a `name : value` line.
fn field(file: &str, name: &str) -> String {
    let text = read(file);
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

fn read(file: &str) -> String {
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What a program prints.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}
