//! An etcd of a test's own: free ports, its own data folder, to be killed, stopped and wiped. It is
//! asked in JSON, so that what the gateway makes of its protocol is seen by somebody else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::broker::free_port;
use super::process::{Process, Signal};
use super::wait::{DEADLINE, wait_for};
use super::watchdog;

const SERVER: &str = "/usr/bin/etcd";

pub struct Etcd {
    /// `None`: it was never started.
    server: Option<Process>,
    directory: PathBuf,
    pub addr: SocketAddr,
    peer: SocketAddr,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub value: String,
    /// Of its last change, among the revisions of the whole store.
    pub revision: i64,
    /// 0: none.
    pub lease: i64,
}

impl Entry {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.value).expect("JSON")
    }
}

impl Etcd {
    /// One that answers.
    pub fn start() -> Self {
        let mut etcd = Self::absent();
        etcd.restart();
        etcd
    }

    /// One that is to be started later: nobody listens at its address.
    pub fn absent() -> Self {
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            server: None,
            directory: watchdog::directory("etcd"),
            addr: here(free_port()),
            peer: here(free_port()),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.server.take().expect("it runs").kill();
    }

    /// Deletes all that it had on disk; it must be killed.
    pub fn wipe(&self) {
        assert!(self.server.is_none(), "it writes there");
        fs::remove_dir_all(self.data()).expect("a folder to remove");
    }

    /// Starts it, with what it has on disk. Returns once it answers.
    pub fn restart(&mut self) {
        self.restart_without_waiting();
        let what = format!("etcd answers at {}", self.addr);
        wait_for(DEADLINE, what, || {
            let server = self.server.as_mut().expect("started");
            assert!(server.is_running(), "etcd ended: {}", server.stderr());
            self.try_call("kv/range", &key("/")).map(drop)
        });
    }

    pub fn restart_without_waiting(&mut self) {
        assert!(
            Path::new(SERVER).exists(),
            "etcd is missing: `tests/run` installs the Debian package etcd-server"
        );
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut command = Command::new(SERVER);
        command
            .args(["--name", "it", "--log-level", "error", "--data-dir"])
            .arg(self.data())
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("it={peer}")]);
        self.server = Some(Process::start("etcd", &mut command));
    }

    /// SIGSTOP: its sockets stay open, and nothing answers.
    pub fn stop_signal(&self) {
        self.server.as_ref().expect("it runs").signal(Signal::STOP);
    }

    pub fn cont_signal(&self) {
        self.server.as_ref().expect("it runs").signal(Signal::CONT);
    }

    pub fn get(&self, name: &str) -> Option<Entry> {
        let answer = self.call("kv/range", &key(name));
        answer["kvs"].get(0).map(|entry| Entry {
            value: decode(&entry["value"]),
            revision: number(&entry["mod_revision"]),
            lease: number(&entry["lease"]),
        })
    }

    /// What the key holds, once it is there.
    pub fn wait_for(&self, name: &str) -> Entry {
        self.wait_for_within(DEADLINE, name, |_| true)
    }

    /// As [`wait_for`](Self::wait_for), once it is as it should be.
    pub fn wait_for_within(
        &self,
        deadline: Duration,
        name: &str,
        is_it: impl Fn(&Entry) -> bool,
    ) -> Entry {
        wait_for(deadline, format!("{name} is as it should be"), || {
            self.get(name).filter(&is_it)
        })
        .0
    }

    pub fn put(&self, name: &str, value: impl AsRef<[u8]>) {
        let mut request = key(name);
        request["value"] = encode(value);
        self.call("kv/put", &request);
    }

    pub fn delete(&self, name: &str) {
        let answer = self.call("kv/deleterange", &key(name));
        assert_eq!(number(&answer["deleted"]), 1, "{name} was there");
    }

    /// Forgets all revisions but the last.
    pub fn compact(&self) {
        let answer = self.call("kv/range", &key("/"));
        let revision = &answer["header"]["revision"];
        self.call("kv/compaction", &json!({"revision": revision}));
    }

    pub fn revoke(&self, lease: i64) {
        self.call("lease/revoke", &json!({"ID": lease.to_string()}));
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn call(&self, method: &str, request: &Value) -> Value {
        self.try_call(method, request)
            .unwrap_or_else(|| panic!("etcd does not answer {method} {request}"))
    }

    fn try_call(&self, method: &str, request: &Value) -> Option<Value> {
        let body = request.to_string();
        let mut stream = TcpStream::connect(self.addr).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        // In HTTP/1.0 the answer ends with the connection.
        let head = format!(
            "POST /v3/{method} HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let is_ok = head.split(' ').nth(1) == Some("200");
        is_ok.then(|| serde_json::from_str(body).expect("JSON"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn key(name: &str) -> Value {
    json!({"key": encode(name)})
}

fn encode(bytes: impl AsRef<[u8]>) -> Value {
    STANDARD.encode(bytes).into()
}

fn decode(text: &Value) -> String {
    let text = text.as_str().unwrap_or_default();
    let bytes = STANDARD.decode(text).expect("base64");
    String::from_utf8(bytes).expect("UTF-8")
}

/// 64 bits are a string in etcd's JSON, and what is 0 or empty is left out.
fn number(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or("0");
    text.parse().expect("a number")
}
