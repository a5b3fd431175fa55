//! What an operator asks of a gateway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::DEADLINE;
use super::raw::{Raw, Response};

/// A gateway's admin listener, as somebody asks it.
#[derive(Debug, Clone)]
pub struct Admin {
    pub addr: SocketAddr,
    token: Option<String>,
}

impl Admin {
    pub fn at(addr: SocketAddr) -> Self {
        Self { addr, token: None }
    }

    /// The same, asked with a token.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            addr: self.addr,
            token: Some(token.into()),
        }
    }

    /// On a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut raw = Raw::connect(self.addr);
        raw.send(self.head(method, path, headers));
        match method {
            "HEAD" => raw.response_to_the_end().0,
            _ => raw.response(),
        }
    }

    /// A request head; `headers` come after Host, and one of them may be another Host.
    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if headers.iter().all(|(name, _)| *name != "Host") {
            head += &format!("Host: {}\r\n", self.addr);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        head + "\r\n"
    }

    pub fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[])
    }

    /// The body of a page, of a gateway that may be gone any moment.
    pub fn try_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.addr, DEADLINE).ok()?;
        let head = self.head("GET", path, &[("Connection", "close")]);
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
    }

    /// The JSON of a page that is there.
    pub fn json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert_eq!(response.status, 200, "{response:?}");
        response.json()
    }

    pub fn post(&self, path: &str) -> Response {
        self.ask("POST", path, &[("X-Gateway-Admin", "1")])
    }

    /// A sample of `/metrics`, by its name with labels as it stands there; 0 where it is not.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let found = lines.find(|(key, _)| *key == name);
        found.map_or(0.0, |(_, value)| value.parse().expect("a number"))
    }
}
