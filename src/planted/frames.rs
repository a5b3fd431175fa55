//! What one client is sent, rewritten: with a frame more or less, changed, or in another place.

use std::mem;
use std::thread;

use serde_json::Value;
use uuid::Uuid;

use super::{Defect, Planted};
use crate::client::frame::Frame;

/// How the answer to the upgrade request begins, behind which there are frames.
const UPGRADED: &[u8] = b"HTTP/1.1 101 ";
/// The end of a request's or an answer's head.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// The first byte of a text frame that is its whole message, and that of a Close frame (RFC 6455,
/// section 5.2).
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

/// What has been sent to one client, as far as it matters.
#[derive(Default)]
pub struct Frames {
    is_upgraded: bool,
    /// Who it is, once `connected` has said so.
    user: String,
    /// `offline_complete` has been sent.
    is_caught_up: bool,
    /// Whether the newest unread message is to come late; `None`: there has been none.
    is_late: Option<bool>,
    /// A frame that comes later, and what it says.
    held: Option<(Vec<u8>, Value)>,
}

/// A single message on its way to whose it is not.
pub struct Astray {
    frame: Vec<u8>,
    /// Whose it is.
    users: [String; 2],
}

/// One frame, and what it says; nothing, if that is no JSON.
struct Outgoing<'a> {
    bytes: &'a [u8],
    said: Value,
}

impl Outgoing<'_> {
    fn text(&self, key: &str) -> &str {
        text(&self.said, key)
    }

    fn is_chat(&self) -> bool {
        ["message", "group_message"].contains(&self.text("type"))
    }

    fn is_answer(&self) -> bool {
        self.said.get("request_id").is_some()
    }

    fn is_close(&self) -> bool {
        self.bytes[0] == CLOSE
    }

    /// The same with another value for `key`.
    fn with(&self, key: &str, value: String) -> Frame {
        let mut said = self.said.clone();
        said[key] = value.into();
        Frame::text(|bytes| bytes.extend(said.to_string().as_bytes()))
    }
}

fn text<'a>(said: &'a Value, key: &str) -> &'a str {
    said[key].as_str().unwrap_or_default()
}

/// Whose messages to whom come in order.
fn pair(said: &Value) -> [&str; 3] {
    ["from_user_id", "to_user_id", "group_id"].map(|key| text(said, key))
}

impl Frames {
    /// What is to be sent in place of `bytes`: whole frames, and before the first of them an HTTP answer.
    pub fn rewrite(&mut self, bytes: &[u8], planted: &Planted) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
        if !self.is_upgraded && bytes.starts_with(UPGRADED) {
            let mut windows = bytes.windows(HEAD_END.len());
            let end = windows.position(|window| window == HEAD_END);
            let end = end.map_or(bytes.len(), |end| end + HEAD_END.len());
            out.extend(&bytes[..end]);
            rest = &bytes[end..];
            self.is_upgraded = true;
        }
        while self.is_upgraded
            && let Some((frame, payload)) = first_frame(rest)
        {
            rest = &rest[frame.len()..];
            let said = match frame[0] {
                TEXT => serde_json::from_slice(payload).unwrap_or_default(),
                _ => Value::Null,
            };
            let frame = Outgoing { bytes: frame, said };
            if frame.text("type") == "connected" {
                frame.text("user_id").clone_into(&mut self.user);
            }
            self.is_caught_up |= frame.text("type") == "offline_complete";
            self.pass(&frame, planted, &mut out);
        }
        // An answer that refuses.
        out.extend(rest);
        out
    }

    /// Appends to `out` what is to be sent in place of `frame`.
    fn pass(&mut self, frame: &Outgoing<'_>, planted: &Planted, out: &mut Vec<u8>) {
        let Some(defect) = planted.defect else {
            return out.extend(frame.bytes);
        };
        match defect {
            Defect::LosesLive if self.is_live(frame) && planted.acts(defect) => {}
            Defect::AnswersNothing if frame.is_answer() && planted.acts(defect) => {}
            Defect::AnswersTwice if frame.is_answer() && planted.acts(defect) => {
                out.extend(frame.bytes);
                out.extend(frame.bytes);
            }
            Defect::Invents if frame.is_chat() && planted.acts(defect) => {
                out.extend(frame.bytes);
                out.extend(frame.with("id", invented_id()).bytes());
            }
            Defect::Alters if frame.is_chat() && planted.acts(defect) => {
                let content = format!("{} (altered)", frame.text("content"));
                out.extend(frame.with("content", content).bytes());
            }
            Defect::Disorders => self.disorder(frame, planted, out),
            Defect::UnreadLater => self.delay_unread(frame, planted, out),
            Defect::Misdelivers => {
                out.extend(frame.bytes);
                self.misdeliver(frame, planted, out);
            }
            _ => out.extend(frame.bytes),
        }
    }

    /// Whether it is for the user, and not a copy of what they have sent.
    fn is_received(&self, frame: &Outgoing<'_>) -> bool {
        frame.is_chat() && frame.text("from_user_id") != self.user
    }

    /// Whether it is a message that catch-up has not sent, as far as can be seen: that, and what is sent
    /// to a client that is behind, comes from the writer thread.
    fn is_live(&self, frame: &Outgoing<'_>) -> bool {
        let thread = thread::current();
        let is_writer = thread.name().is_some_and(|name| name.starts_with("w-"));
        self.is_caught_up && !is_writer && self.is_received(frame)
    }

    /// Holds a message back until the next one of the same pair has gone past, at most until the next
    /// ping.
    fn disorder(&mut self, frame: &Outgoing<'_>, planted: &Planted, out: &mut Vec<u8>) {
        let comes_before = |(_, held): &(_, Value)| {
            frame.is_chat()
                && pair(held) == pair(&frame.said)
                && text(held, "id") != frame.text("id")
        };
        let is_unordered = frame.is_chat() || frame.is_answer() || frame.text("type") == "presence";
        if self.held.as_ref().is_some_and(comes_before) {
            planted.acted.inc();
            out.extend(frame.bytes);
            self.release(out);
        } else if self.held.is_some() && !is_unordered {
            self.release(out);
            out.extend(frame.bytes);
        } else if self.held.is_none()
            && self.is_received(frame)
            && planted.is_due(Defect::Disorders)
        {
            self.held = Some((frame.bytes.to_vec(), frame.said.clone()));
        } else {
            out.extend(frame.bytes);
        }
    }

    /// Holds the newest unread message back until `offline_complete` has gone past.
    fn delay_unread(&mut self, frame: &Outgoing<'_>, planted: &Planted, out: &mut Vec<u8>) {
        let is_unread = !self.is_caught_up && frame.is_chat();
        let mut is_late = || planted.is_due(Defect::UnreadLater);
        if is_unread && *self.is_late.get_or_insert_with(&mut is_late) {
            self.release(out);
            self.held = Some((frame.bytes.to_vec(), Value::Null));
        } else if frame.is_close() {
            self.release(out);
            out.extend(frame.bytes);
        } else {
            out.extend(frame.bytes);
            if self.is_caught_up && self.held.is_some() {
                planted.acted.inc();
                self.release(out);
            }
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        let held = mem::take(&mut self.held);
        held.into_iter().for_each(|(frame, _)| out.extend(frame));
    }

    /// Sends a single message astray, or to this client one that is.
    fn misdeliver(&self, frame: &Outgoing<'_>, planted: &Planted, out: &mut Vec<u8>) {
        // Nothing may come behind a Close.
        let takes = self.is_caught_up && !frame.is_close();
        let mut astray = planted.astray.lock();
        let is_due = || planted.is_due(Defect::Misdelivers);
        let is_single = frame.text("type") == "message";
        if let Some(found) = astray.take_if(|astray| takes && !astray.users.contains(&self.user)) {
            planted.acted.inc();
            out.extend(found.frame);
        } else if is_single && is_due() {
            *astray = Some(Astray {
                frame: frame.bytes.to_vec(),
                users: ["from_user_id", "to_user_id"].map(|key| frame.text(key).to_owned()),
            });
        }
    }
}

/// An id that no message has.
pub fn invented_id() -> String {
    format!("planted-{}", Uuid::new_v4())
}

/// The first frame of `bytes` and its payload, if it is there entirely. A server's is unmasked.
pub(super) fn first_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (start, length) = match *bytes.get(1)? {
        126 => (4, u16::from_be_bytes(*bytes[2..].first_chunk()?).into()),
        127 => (10, u64::from_be_bytes(*bytes[2..].first_chunk()?)),
        short => (2, short.into()),
    };
    let end = usize::try_from(length).ok()?.checked_add(start)?;
    let frame = bytes.get(..end)?;
    Some((frame, &frame[start..]))
}
