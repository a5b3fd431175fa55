//! What the gateway says to clients: JSON in text frames, the *pushes* that come unasked and the
//! *answers* to requests. [`request`](super::request) is the other direction.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use log::warn;
use serde::Serialize;
use strum::IntoStaticStr;

use super::frame::Frame;
use crate::ids::{UserId, is_id};
use crate::metrics::PushType;
use crate::services::{ErrorCode, proto};

/// Unix time in seconds, as it stands in every frame.
pub fn timestamp() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs() as i64)
}

/// Something that a connection is sent unasked, encoded once for all of its recipients.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    pub frame: Frame,
    pub push_type: PushType,
    pub kind: PushKind,
    /// Of a chat message.
    pub message_id: Option<Arc<str>>,
}

/// What may become of a push that finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushKind {
    /// A chat message that is unread until the user acknowledges it.
    Unread,
    /// A message that the user sent themselves: never unread, so never pushed again.
    OwnCopy,
    /// Stale a moment later.
    Presence,
}

impl Push {
    /// A single message. `own_copy`: for the devices of its sender.
    pub fn message(message: &proto::Message, own_copy: bool) -> Self {
        Self::chat(&ChatMessage::single(message)).copy(own_copy)
    }

    /// A group message, for its recipients.
    pub fn group_message(message: &proto::Message) -> Self {
        Self::chat(&ChatMessage::group(message))
    }

    /// The same frame; `own_copy`: for the devices of its sender.
    pub fn copy(&self, own_copy: bool) -> Self {
        let own_copy = own_copy.then_some(PushKind::OwnCopy);
        Self {
            kind: own_copy.unwrap_or(self.kind),
            ..self.clone()
        }
    }

    /// `user` came online or went offline at `timestamp`, in Unix seconds.
    pub fn presence(user: &UserId, online: bool, timestamp: i64) -> Self {
        let (user_id, status) = (user.as_str(), if online { "online" } else { "offline" });
        Self {
            frame: Outgoing::Presence { user_id, status }.frame(None, timestamp),
            push_type: PushType::Presence,
            kind: PushKind::Presence,
            message_id: None,
        }
    }

    /// A chat message that is unread.
    pub(super) fn chat(message: &ChatMessage<'_>) -> Self {
        Self {
            frame: frame(message),
            push_type: message.kind,
            kind: PushKind::Unread,
            message_id: Some(message.id.into()),
        }
    }
}

/// A chat message as a push and as an entry of a history. Of `group_id` and `to_user_id` one is empty.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ChatMessage<'a> {
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(with = "String"))]
    kind: PushType,
    /// Names the message. What comes with an `id` that the client has seen is the same message again, to
    /// be dropped.
    #[cfg_attr(test, schemars(length(min = 1)))]
    id: &'a str,
    /// The group that it was sent to.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    group_id: &'a str,
    /// Who sent it.
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    from_user_id: &'a str,
    /// Whom it was sent to.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    to_user_id: &'a str,
    /// As it was sent.
    content: &'a str,
    /// As it was sent: what the content is, `text` unless the sender said something else.
    message_type: &'a str,
    /// When the Message Service committed it, in Unix seconds.
    timestamp: i64,
    /// What the sender named it by, where they did.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[cfg_attr(test, schemars(length(min = 1)))]
    client_message_id: &'a str,
}

impl<'a> ChatMessage<'a> {
    /// As a single or a group message, whichever it is; `None` when a service's ids are garbage.
    pub fn of(message: &'a proto::Message) -> Option<Self> {
        let (json, to) = if message.group_id.is_empty() {
            (Self::single(message), &message.to_user_id)
        } else {
            (Self::group(message), &message.group_id)
        };
        if message.id.is_empty() || !is_id(&message.from_user_id) || !is_id(to) {
            warn!("Message left out, its ids are garbage: id={:?}", message.id);
            return None;
        }
        Some(json)
    }

    fn single(message: &'a proto::Message) -> Self {
        Self {
            kind: PushType::Message,
            id: &message.id,
            group_id: "",
            from_user_id: &message.from_user_id,
            to_user_id: &message.to_user_id,
            content: &message.content,
            message_type: &message.message_type,
            timestamp: message.timestamp,
            client_message_id: &message.client_message_id,
        }
    }

    fn group(message: &'a proto::Message) -> Self {
        Self {
            kind: PushType::GroupMessage,
            group_id: &message.group_id,
            to_user_id: "",
            ..Self::single(message)
        }
    }
}

/// One page of a conversation's or a group's history. Of `user_id` and `group_id` one is empty.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct History<'a> {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "super::schema::RequestId"))]
    pub request_id: Option<&'a str>,
    /// The other user of the conversation.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    pub user_id: &'a str,
    /// The group.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[cfg_attr(test, schemars(with = "super::schema::Id"))]
    pub group_id: &'a str,
    /// Oldest first. Fewer than `limit` are no sign of the end: the answer may have been cut to fit.
    pub messages: &'a [ChatMessage<'a>],
    /// Whether there are older ones: ask for them with the first message's `id` as `before_id`.
    pub has_more: bool,
}

/// Everything else: its name is its `type`.
#[derive(Serialize, IntoStaticStr)]
#[cfg_attr(test, derive(schemars::JsonSchema, strum::VariantNames))]
#[serde(untagged)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Outgoing<'a> {
    /// The first frame of every connection.
    Connected {
        /// Names the connection, as the gateway's log does: 32 hex digits.
        #[cfg_attr(test, schemars(regex(pattern = "^[0-9a-f]{32}$")))]
        connection_id: &'a str,
        /// Whose token it was.
        #[cfg_attr(test, schemars(with = "super::schema::Id"))]
        user_id: &'a str,
        /// Names the gateway, as `gateway.id` does.
        gateway_id: &'a str,
        /// In seconds: a client that has heard nothing for several of these, no ping either, has lost its
        /// connection.
        ping_interval: u64,
        /// The longest message that may be sent, in bytes; a longer one ends the connection with 1009.
        max_message_size: usize,
    },
    /// Somebody came online or went offline. Pushed at the time, and never again.
    Presence {
        /// Who it is.
        #[cfg_attr(test, schemars(with = "super::schema::Id"))]
        user_id: &'a str,
        /// What has become of them.
        #[cfg_attr(test, schemars(extend("enum" = ["online", "offline"])))]
        status: &'a str,
    },
    /// The Message Service has committed the message: from now on it is pushed, until one of the
    /// recipient's devices acknowledges it.
    MessageSent {
        /// Names the message, as its push does.
        #[cfg_attr(test, schemars(length(min = 1)))]
        id: &'a str,
        /// The request's own, where it had one.
        #[serde(skip_serializing_if = "str::is_empty")]
        #[cfg_attr(test, schemars(length(min = 1)))]
        client_message_id: &'a str,
    },
    /// The messages are read: no connect pushes them again.
    Acked,
    /// The connection goes on with the new token.
    TokenRefreshed {
        /// When the new token expires, in Unix seconds; 0 means never.
        expires_at: i64,
    },
    /// What was unread has been pushed before this. It comes after every connect, and whenever the
    /// gateway caught up again: after it lost its broker, or when the client was behind.
    OfflineComplete {
        /// How many unread messages were pushed.
        count: usize,
    },
    /// The gateway is there.
    Pong,
    /// A request that failed; the connection stays open. An HTTP error before the upgrade has the same
    /// object as its body.
    Error {
        /// What went wrong, for programs.
        code: ErrorCode,
        /// What went wrong, for people.
        #[cfg_attr(test, schemars(length(min = 1)))]
        message: &'a str,
    },
}

/// What all of them have in common.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Envelope<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "super::schema::RequestId"))]
    request_id: Option<&'a str>,
    #[serde(flatten)]
    #[cfg_attr(test, schemars(skip))]
    outgoing: Outgoing<'a>,
    /// When it was said, in Unix seconds; of `message_sent`, when the message was committed.
    timestamp: i64,
}

impl Outgoing<'_> {
    /// Its text frame, with the id of the request that it answers, if that has one.
    pub fn frame(self, request_id: Option<&str>, timestamp: i64) -> Frame {
        frame(&Envelope {
            kind: (&self).into(),
            request_id,
            outgoing: self,
            timestamp,
        })
    }
}

/// The text frame of a [`ChatMessage`] or a [`History`].
pub(super) fn frame(json: &impl Serialize) -> Frame {
    Frame::text(|bytes| {
        // Serialising fails on a map key that is no string and on a failing `Serialize`: not these.
        serde_json::to_writer(bytes, json).expect("strings and numbers are JSON");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(frame: &Frame) -> &str {
        std::str::from_utf8(&frame.bytes()[2..]).unwrap_or_default()
    }

    #[test]
    fn an_error_is_the_seeds_field_for_field() {
        let error = |request_id| {
            let code = ErrorCode::InvalidMessage;
            let message = "Invalid";
            Outgoing::Error { code, message }.frame(request_id, 7)
        };
        assert_eq!(
            text(&error(None)),
            r#"{"type":"error","code":"INVALID_MESSAGE","message":"Invalid","timestamp":7}"#
        );
        assert_eq!(
            text(&error(Some("1"))),
            r#"{"type":"error","request_id":"1","code":"INVALID_MESSAGE","message":"Invalid","timestamp":7}"#
        );
    }

    #[test]
    fn an_answer_without_a_field_of_its_own_has_the_common_ones() {
        assert_eq!(
            text(&Outgoing::Pong.frame(Some("7"), 7)),
            r#"{"type":"pong","request_id":"7","timestamp":7}"#
        );
    }

    #[test]
    fn a_copy_for_the_sender_is_the_same_frame() {
        let message = proto::Message {
            id: "m1".into(),
            group_id: "g".into(),
            ..Default::default()
        };
        let push = Push::group_message(&message);
        let copy = push.copy(true);
        assert_eq!(copy.kind, PushKind::OwnCopy);
        assert!(std::ptr::eq(copy.frame.bytes(), push.frame.bytes()));
    }

    #[test]
    fn presence_names_user_and_status() {
        let user = UserId::new("bob").unwrap();
        assert_eq!(
            text(&Push::presence(&user, true, 7).frame),
            r#"{"type":"presence","user_id":"bob","status":"online","timestamp":7}"#
        );
    }
}
