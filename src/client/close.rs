//! Why a connection ends: the first reason wins, and says what the client and the log are told.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

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
    /// The gateway is shutting down, and the client is to come back after so long.
    ShuttingDown(Duration),
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
    /// An operator ended it.
    Disconnected,
    /// Too many requests were refused by the rate limit.
    RateExceeded,
}

impl CloseReason {
    /// Each, with nothing to say beyond it.
    pub const ALL: [Self; 16] = [
        Self::ByClient(None),
        Self::Vanished,
        Self::Protocol(String::new()),
        Self::Binary,
        Self::NotUtf8,
        Self::TooLarge,
        Self::Internal,
        Self::ShuttingDown(Duration::ZERO),
        Self::SlowConsumer,
        Self::Idle,
        Self::WriteTimeout,
        Self::TokenExpired,
        Self::Replaced,
        Self::SessionRevoked,
        Self::Disconnected,
        Self::RateExceeded,
    ];

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
            Self::ShuttingDown(_) => ("shutdown", Some((1012, "the gateway is shutting down"))),
            Self::SlowConsumer => ("slow_consumer", Some((4001, "slow consumer"))),
            Self::Idle => ("idle", Some((4002, "idle"))),
            Self::WriteTimeout => ("write_timeout", None),
            Self::TokenExpired => ("token_expired", Some((4003, "token expired"))),
            Self::Replaced => ("replaced", Some((4004, "replaced by a newer connection"))),
            Self::SessionRevoked => ("session_revoked", Some((4005, "session revoked"))),
            Self::Disconnected => ("disconnected", Some((4005, "disconnected by an operator"))),
            Self::RateExceeded => ("rate_exceeded", Some((4006, "request rate exceeded"))),
        }
    }

    /// In one word, for logs and metrics.
    pub fn name(&self) -> &'static str {
        self.describe().0
    }

    /// The Close frame's code; `None` when no one is there to read one.
    pub fn code(&self) -> Option<u16> {
        self.describe().1.map(|(code, _)| code)
    }

    /// The Close frame's reason: JSON, in which the simplest client reads when to come back, if at all.
    /// `share` is the connection's own, from 0 up to 1, so that those who are closed together do not
    /// come together.
    pub fn text(&self, share: f64) -> String {
        let words = self.describe().1.map_or("", |(_, words)| words);
        match self.returns_within() {
            Some(Range { start, end }) => {
                let after_ms = (start + (end - start).mul_f64(share)).as_millis();
                format!(r#"{{"reconnect":true,"after_ms":{after_ms},"reason":"{words}"}}"#)
            }
            None => format!(r#"{{"reconnect":false,"reason":"{words}"}}"#),
        }
    }

    /// When the client is to come back, counted from the Close frame; `None`: not by itself.
    fn returns_within(&self) -> Option<Range<Duration>> {
        const fn seconds(start: u64, end: u64) -> Option<Range<Duration>> {
            Some(Duration::from_secs(start)..Duration::from_secs(end))
        }
        match self {
            Self::ShuttingDown(after) => Some(*after..*after),
            Self::SlowConsumer | Self::Idle | Self::TokenExpired => seconds(0, 1),
            Self::Internal => seconds(1, 5),
            Self::RateExceeded => seconds(5, 10),
            Self::ByClient(_)
            | Self::Vanished
            | Self::WriteTimeout
            | Self::Protocol(_)
            | Self::Binary
            | Self::NotUtf8
            | Self::TooLarge
            | Self::Replaced
            | Self::SessionRevoked
            | Self::Disconnected => None,
        }
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_text_is_json_that_fits_a_close_frame() {
        let longest = Duration::from_secs(365 * 24 * 60 * 60);
        let further = [
            CloseReason::Protocol("\\\"}".into()),
            CloseReason::ShuttingDown(longest),
        ];
        for reason in CloseReason::ALL.into_iter().chain(further) {
            let text = reason.text(0.999);
            assert!(text.len() <= 123, "{text}");
            let json: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(json["reconnect"], json["after_ms"].is_u64(), "{text}");
        }
    }

    #[test]
    fn who_is_closed_together_comes_back_apart() {
        let after = |share| {
            let text = CloseReason::RateExceeded.text(share);
            let json: Value = serde_json::from_str(&text).expect("JSON");
            json["after_ms"].as_u64().expect("a number")
        };
        assert_eq!([0.0, 0.5].map(after), [5_000, 7_500]);
        assert!(after(0.999) < 10_000);
    }
}
