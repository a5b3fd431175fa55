//! A client that was let in: what is pushed to it, and what it is heard to say. Its requests are
//! answered as a gateway would.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message, WebSocket};

use super::door::{self, Arrival};

/// The client's user, and who writes to them.
const USER: &str = "you";
pub const SENDER: &str = "kit";
/// In seconds: short, so that nobody waits for long.
pub const PING_INTERVAL: u64 = 1;

pub struct Peer {
    socket: WebSocket<TcpStream>,
    pub token: Option<String>,
    pub heard: Heard,
    /// What it sends is taken, and not answered.
    pub withholds: bool,
}

/// What a client has said on one connection.
pub struct Heard {
    since: Instant,
    pub is_open: bool,
    /// After how long the first ping came, of either kind.
    pub first_ping: Option<Duration>,
    pub pongs: Vec<Vec<u8>>,
    pub acked: BTreeSet<String>,
    /// What it sent, in order.
    pub sent: Vec<Sent>,
    /// The first thing that is no request.
    pub wrong: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Sent {
    pub content: String,
    pub client_message_id: String,
    pub is_answered: bool,
}

impl Heard {
    /// Whether a message came back.
    pub fn echoed(&self, content: &str) -> bool {
        self.sent.iter().any(|sent| sent.content == content)
    }
}

impl Peer {
    /// Answers with 101 and `connected`.
    pub fn admit(arrival: Arrival) -> std::io::Result<Self> {
        let token = arrival.token.clone();
        let (stream, early) = arrival.admit()?;
        let heard = Heard {
            since: Instant::now(),
            is_open: true,
            first_ping: None,
            pongs: Vec::new(),
            acked: BTreeSet::new(),
            sent: Vec::new(),
            wrong: None,
        };
        let mut peer = Self {
            socket: WebSocket::from_partially_read(stream, early, Role::Server, None),
            token,
            heard,
            withholds: false,
        };
        peer.push(&json!({
            "type": "connected", "connection_id": "conform", "user_id": USER, "gateway_id": "conform",
            "ping_interval": PING_INTERVAL, "max_message_size": 65_536, "timestamp": timestamp(),
        }));
        Ok(peer)
    }

    pub fn push(&mut self, frame: &Value) {
        self.send(Message::text(frame.to_string()));
    }

    /// All that was unread has been pushed.
    pub fn complete(&mut self, count: usize) {
        self.push(&json!({"type": "offline_complete", "count": count, "timestamp": timestamp()}));
    }

    pub fn ping(&mut self, payload: &'static [u8]) {
        self.send(Message::Ping(payload.into()));
    }

    /// A frame in pieces, with a ping between any two.
    pub fn push_in_pieces(&mut self, frame: &Value, cuts: &[usize]) {
        let text = frame.to_string().into_bytes();
        let ends = cuts.iter().copied().chain([text.len()]);
        let mut start = 0;
        for end in ends {
            let kind = if start == 0 {
                Data::Text
            } else {
                Data::Continue
            };
            let piece = text[start..end].to_vec();
            let is_last = end == text.len();
            self.send(Message::Frame(Frame::message(
                piece,
                OpCode::Data(kind),
                is_last,
            )));
            if !is_last {
                self.ping(b"between");
            }
            start = end;
        }
    }

    /// A Close frame, and the end of what the gateway sends. The client's own end is left to it.
    pub fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        };
        self.send(Message::Close(Some(frame)));
        let _ = self.socket.get_ref().shutdown(Shutdown::Write);
    }

    /// Ends the connection without a word.
    pub fn cut(self) {
        door::cut(self.socket.into_inner());
    }

    fn send(&mut self, message: Message) {
        if self.socket.send(message).is_err() {
            self.heard.is_open = false;
        }
    }

    /// Listens until `done`, and answers whether it was; or until then, or the connection's end.
    pub fn listen(&mut self, within: Duration, mut done: impl FnMut(&Heard) -> bool) -> bool {
        let until = Instant::now() + within;
        loop {
            if done(&self.heard) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.heard.is_open {
                return false;
            }
            self.read(left);
        }
    }

    fn read(&mut self, within: Duration) {
        // 0 would be for ever.
        let within = within.max(Duration::from_millis(1));
        let _ = self.socket.get_ref().set_read_timeout(Some(within));
        match self.socket.read() {
            Ok(Message::Text(text)) => self.took(&text),
            Ok(Message::Ping(_)) => self.pinged(),
            Ok(Message::Pong(payload)) => self.heard.pongs.push(payload.to_vec()),
            Ok(Message::Binary(_)) => self.is_wrong("a binary frame"),
            Ok(Message::Frame(_)) => {}
            Err(Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Ok(Message::Close(_)) | Err(Error::Io(_) | Error::ConnectionClosed) => {
                self.heard.is_open = false;
            }
            Err(error) => {
                self.heard.is_open = false;
                self.is_wrong(&error.to_string());
            }
        }
    }

    fn pinged(&mut self) {
        let after = self.heard.since.elapsed();
        self.heard.first_ping.get_or_insert(after);
    }

    fn is_wrong(&mut self, what: &str) {
        self.heard.wrong.get_or_insert_with(|| what.to_owned());
    }

    /// One request, and its answer.
    fn took(&mut self, text: &str) {
        match request(text) {
            Ok((kind, request_id, data)) => {
                if let Some(mut answer) = self.answer(&kind, &data) {
                    if request_id.is_string() {
                        answer["request_id"] = request_id;
                    }
                    answer["timestamp"] = timestamp().into();
                    self.push(&answer);
                }
            }
            Err(wrong) => {
                self.is_wrong(&format!("{wrong}: {}", text.escape_debug()));
                self.push(&json!({
                    "type": "error", "code": "INVALID_MESSAGE", "message": wrong,
                    "timestamp": timestamp(),
                }));
            }
        }
    }

    fn answer(&mut self, kind: &str, data: &Value) -> Option<Value> {
        Some(match kind {
            "ping" => {
                self.pinged();
                json!({"type": "pong"})
            }
            "ack" => {
                let ids = data["message_ids"].as_array().into_iter().flatten();
                let ids = ids.filter_map(|id| id.as_str().map(str::to_owned));
                self.heard.acked.extend(ids);
                json!({"type": "acked"})
            }
            "send_message" | "send_group_message" => {
                let text = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
                let sent = Sent {
                    content: text("content"),
                    client_message_id: text("client_message_id"),
                    is_answered: !self.withholds,
                };
                let id = format!("of-{}", sent.client_message_id);
                let own = sent.client_message_id.clone();
                self.heard.sent.push(sent);
                if self.withholds {
                    return None;
                }
                json!({"type": "message_sent", "id": id, "client_message_id": own})
            }
            "refresh_token" => json!({"type": "token_refreshed", "expires_at": 0}),
            "get_history" => {
                json!({"type": "history", "user_id": data["user_id"], "messages": [], "has_more": false})
            }
            _ => {
                json!({"type": "group_history", "group_id": data["group_id"], "messages": [], "has_more": false})
            }
        })
    }
}

/// The type, the id and the data of a request; or what is wrong with it.
fn request(text: &str) -> Result<(String, Value, Value), String> {
    let mut request: Value =
        serde_json::from_str(text).map_err(|error| format!("no JSON ({error})"))?;
    let kind = request["type"].as_str().ok_or("no type")?.to_owned();
    let needed: &[&str] = match kind.as_str() {
        "send_message" => &["to_user_id", "content"],
        "send_group_message" => &["group_id", "content"],
        "get_history" => &["user_id"],
        "get_group_history" => &["group_id"],
        "refresh_token" => &["token"],
        "ack" | "ping" => &[],
        _ => return Err(format!("no such request as {kind:?}")),
    };
    let data = request["data"].take();
    let missing = needed.iter().find(|field| !data[**field].is_string());
    if let Some(field) = missing {
        return Err(format!("{kind} without data.{field}"));
    }
    let is_list = |ids: &Vec<Value>| ids.iter().all(Value::is_string);
    if kind == "ack" && !data["message_ids"].as_array().is_some_and(is_list) {
        return Err("ack without data.message_ids".into());
    }
    let id = request["request_id"].take();
    let fits = |id: &str| id.len() <= 64;
    if !id.is_null() && !id.as_str().is_some_and(fits) {
        return Err("a request_id that is no string of at most 64 bytes".into());
    }
    Ok((kind, id, data))
}

/// A message to the client's user.
pub fn message(id: &str, content: &str) -> Value {
    json!({
        "type": "message", "id": id, "from_user_id": SENDER, "to_user_id": USER, "content": content,
        "message_type": "text", "timestamp": timestamp(),
    })
}

/// Unix time in seconds.
fn timestamp() -> u64 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |now| now.as_secs())
}
