//! Why a connection ends: the first reason wins, and says what the client and the log are told.

use std::fmt;

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent a Close frame, with this code if with any.
    ByClient(Option<u16>),
    /// The client's end of the TCP connection is gone.
    Vanished,
    /// The client broke RFC 6455.
    Protocol(String),
    /// A binary frame: this protocol is JSON in text frames.
    Binary,
    /// A text frame that is not UTF-8.
    NotUtf8,
    /// A message over `limits.max_message_size`.
    TooLarge,
    /// A panic or a failure inside the gateway.
    Internal,
    /// The gateway is shutting down.
    ShuttingDown,
    /// The client is behind and takes next to nothing, or has no room for its own user's messages.
    SlowConsumer,
    /// A ping that was not answered within `session.idle_timeout`.
    Idle,
    /// The client took nothing for `session.write_timeout`, and next to nothing for six of them.
    WriteTimeout,
    /// The token's time is over.
    TokenExpired,
    /// The user has a newer connection, and `limits.over_limit` is `close_oldest`.
    Replaced,
    /// The User Service took the session away.
    SessionRevoked,
    /// Too many requests were refused by the rate limit.
    RateExceeded,
}

impl CloseReason {
    /// The reason in one word, for logs; and the code and the words of the Close frame, where somebody
    /// is there to read one.
    fn describe(&self) -> (&'static str, Option<(u16, &'static str)>) {
        match self {
            Self::ByClient(code) => ("client_closed", Some((code.unwrap_or(1000), ""))),
            Self::Vanished => ("vanished", None),
            Self::Protocol(_) => ("protocol_error", Some((1002, "protocol error"))),
            Self::Binary => (
                "binary_frame",
                Some((1003, "binary frames are not supported")),
            ),
            Self::NotUtf8 => ("not_utf8", Some((1007, "not UTF-8"))),
            Self::TooLarge => ("too_large", Some((1009, "message too large"))),
            Self::Internal => ("internal_error", Some((1011, "internal error"))),
            Self::ShuttingDown => ("shutdown", Some((1012, "the gateway is shutting down"))),
            Self::SlowConsumer => ("slow_consumer", Some((4001, "slow consumer"))),
            Self::Idle => ("idle", Some((4002, "idle"))),
            Self::WriteTimeout => ("write_timeout", None),
            Self::TokenExpired => ("token_expired", Some((4003, "token expired"))),
            Self::Replaced => ("replaced", Some((4004, "replaced by a newer connection"))),
            Self::SessionRevoked => ("session_revoked", Some((4005, "session revoked"))),
            Self::RateExceeded => ("rate_exceeded", Some((4006, "request rate exceeded"))),
        }
    }

    /// The code and the words of the Close frame; `None` when no one is there to read one.
    pub fn frame(&self) -> Option<(u16, &'static str)> {
        self.describe().1
    }

    /// Whether to wait, after the Close frame, for the client's own: cutting at once would reset
    /// the connection while the client still sends, and it might never read why. Whoever has
    /// closed already, or is silent, is not waited for.
    pub fn lingers(&self) -> bool {
        !matches!(
            self,
            Self::ByClient(_) | Self::Vanished | Self::WriteTimeout | Self::Idle
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = self.describe();
        match self {
            Self::Protocol(what) => write!(f, "{name} ({})", what.escape_default()),
            _ => f.write_str(name),
        }
    }
}
