//! A Prometheus that scrapes gateways, and promtool (Debian package `prometheus`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fmt::Write as _, fs, io::Write as _};

use serde_json::Value;

use super::broker::free_port;
use super::process::Process;
use super::raw::Raw;
use super::{wait_until, watchdog};

pub struct Prometheus {
    _process: Process,
    addr: SocketAddr,
}

impl Prometheus {
    /// Scrapes these targets several times a second, and is ready.
    pub fn start(targets: &[SocketAddr]) -> Self {
        let targets: Vec<_> = targets.iter().map(|target| format!("{target:?}")).collect();
        let targets = targets.join(", ").replace('"', "");
        let config = format!(
            "global: {{ scrape_interval: 250ms, scrape_timeout: 250ms }}\n\
             scrape_configs:\n\
             - job_name: gateway\n  static_configs:\n  - targets: [{targets}]\n"
        );
        let directory = watchdog::directory("prometheus");
        let file = directory.join("prometheus.yml");
        fs::write(&file, config).expect("a file");
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={addr}"));
        let process = Process::start("Prometheus", &mut command);
        process.stderr_line("Server is ready to receive web requests");
        Self {
            _process: process,
            addr,
        }
    }

    /// What a query comes to: each label set that it has, and its value.
    pub fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut escaped = String::new();
        for byte in query.bytes() {
            write!(escaped, "%{byte:02x}").expect("a String takes it");
        }
        let response = Raw::connect(self.addr).get(&format!("/api/v1/query?query={escaped}"));
        assert_eq!(response.status, 200, "{query}: {response:?}");
        let json = response.json();
        let results = json["data"]["result"].as_array().cloned();
        let value = |result: &Value| {
            let text = result["value"][1].as_str().expect("a sample");
            text.parse().expect("a number")
        };
        let results = results.unwrap_or_default().into_iter();
        results
            .map(|result| (result["metric"].clone(), value(&result)))
            .collect()
    }

    /// Waits until a query comes to one value, and that is `expected`.
    pub fn wait_for(&self, query: &str, expected: f64) {
        let mut last = Vec::new();
        wait_until(format!("{query} is {expected}"), || {
            last = self.query(query);
            matches!(&last[..], [(_, value)] if *value == expected)
        });
    }
}

/// What `promtool ARGUMENTS` says of a text on its standard input, or of files that it names; empty:
/// nothing.
pub fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of the package prometheus");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// For those who name a file.
pub fn file(name: &str, text: &str) -> PathBuf {
    let file = watchdog::directory("promtool").join(name);
    fs::write(&file, text).expect("a file");
    file
}
