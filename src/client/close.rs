//! Why a connection ends: the first reason wins, and says what the client and the log are told.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use strum::{EnumIter, IntoStaticStr};

use super::frame::Frame;

/// Why a connection ends. Logs and metrics name it as it is named here. The second paragraph of each is
/// what the client does next, as `proto/client.asyncapi.yaml` has it.
#[derive(Debug, Clone, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[cfg_attr(test, derive(strum::EnumMessage))]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// The client sent a Close frame, with this code if with any.
    ///
    /// It has its own code back, or 1000, and is done.
    ClientClosed(Option<u16>),
    /// The client's end of the TCP connection is gone.
    Vanished,
    /// The client broke RFC 6455.
    ///
    /// It mends itself.
    ProtocolError(String),
    /// A binary frame: this protocol is JSON in text frames.
    ///
    /// It mends itself.
    BinaryFrame,
    /// A text frame that is not UTF-8.
    ///
    /// It mends itself.
    NotUtf8,
    /// A message over `limits.max_message_size`.
    ///
    /// It says less at a time: `connected` names the most.
    TooLarge,
    /// A panic or a failure inside the gateway.
    ///
    /// It reconnects, each time after a longer while.
    InternalError,
    /// The gateway is shutting down, and the client is to come back after so long.
    ///
    /// It reconnects after `after_ms`: each is told another one, up to `shutdown.reconnect_spread`.
    Shutdown(Duration),
    /// The client is behind and takes next to nothing, or has no room for its own user's messages.
    ///
    /// It reconnects, and gets what is unread again.
    SlowConsumer,
    /// A ping that was not answered within `session.idle_timeout`.
    ///
    /// It reconnects.
    Idle,
    /// The client took nothing for `session.write_timeout`, and next to nothing for six of them.
    WriteTimeout,
    /// The token's time is over.
    ///
    /// It gets a new token, and reconnects.
    TokenExpired,
    /// The user has a newer connection, and `limits.over_limit` is `close_oldest`.
    ///
    /// It does not reconnect by itself: the newer one would have to go.
    Replaced,
    /// The User Service took the session away.
    ///
    /// It does not reconnect before its user has logged in again.
    SessionRevoked,
    /// An operator ended it.
    ///
    /// It does not reconnect by itself.
    Disconnected,
    /// Too many requests were refused by the rate limit.
    ///
    /// It asks less often, and reconnects, each time after a longer while.
    RateExceeded,
}

impl CloseReason {
    /// In one word.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// The code and the words of the Close frame, and when the client is to come back, counted from
    /// it, if it is to by itself. `None` when no one is there to read one.
    pub(super) fn describe(&self) -> Option<(u16, &'static str, Option<Range<Duration>>)> {
        let seconds = |from, to| Some(Duration::from_secs(from)..Duration::from_secs(to));
        Some(match self {
            Self::ClientClosed(code) => (code.unwrap_or(1000), "", None),
            Self::Vanished | Self::WriteTimeout => return None,
            Self::ProtocolError(_) => (1002, "protocol error", None),
            Self::BinaryFrame => (1003, "binary frames are not supported", None),
            Self::NotUtf8 => (1007, "not UTF-8", None),
            Self::TooLarge => (1009, "message too large", None),
            Self::InternalError => (1011, "internal error", seconds(1, 5)),
            Self::Shutdown(after) => (1012, "the gateway is shutting down", Some(*after..*after)),
            Self::SlowConsumer => (4001, "slow consumer", seconds(0, 1)),
            Self::Idle => (4002, "idle", seconds(0, 1)),
            Self::TokenExpired => (4003, "token expired", seconds(0, 1)),
            Self::Replaced => (4004, "replaced by a newer connection", None),
            Self::SessionRevoked => (4005, "session revoked", None),
            Self::Disconnected => (4005, "disconnected by an operator", None),
            Self::RateExceeded => (4006, "request rate exceeded", seconds(5, 10)),
        })
    }

    /// The Close frame's code; 1006, as the client's end says it, where there is none.
    pub fn code(&self) -> u16 {
        self.describe().map_or(1006, |(code, ..)| code)
    }

    /// The Close frame, if someone is there to read it. Its reason is JSON, in which the simplest client
    /// reads when to come back, if at all. `share` is the connection's own, from 0 up to 1, so that
    /// those who are closed together do not come together.
    pub(super) fn frame(&self, share: f64) -> Option<Frame> {
        let (code, words, returns) = self.describe()?;
        let text = match returns {
            Some(Range { start, end }) => {
                let after_ms = (start + (end - start).mul_f64(share)).as_millis();
                format!(r#"{{"reconnect":true,"after_ms":{after_ms},"reason":"{words}"}}"#)
            }
            None => format!(r#"{{"reconnect":false,"reason":"{words}"}}"#),
        };
        Some(Frame::close(code, &text))
    }

    /// Whether to wait, after the Close frame, for the client's own: cutting at once would reset
    /// the connection while the client still sends, and it might never read why. Whoever has
    /// closed already, or is silent, is not waited for.
    pub fn lingers(&self) -> bool {
        !matches!(
            self,
            Self::ClientClosed(_) | Self::Vanished | Self::WriteTimeout | Self::Idle
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::ProtocolError(what) => write!(f, " ({})", what.escape_default()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;
    use strum::IntoEnumIterator;

    use super::*;

    fn json(reason: &CloseReason, share: f64) -> Option<Value> {
        let frame = reason.frame(share)?;
        // Behind the header and the code. A reason that is too long is cut, and no JSON.
        Some(serde_json::from_slice(&frame.bytes()[4..]).expect("JSON"))
    }

    #[test]
    fn every_reason_is_json_that_fits_a_close_frame() {
        let longest = Duration::from_secs(365 * 24 * 60 * 60);
        let further = [
            CloseReason::ProtocolError("\\\"}".into()),
            CloseReason::Shutdown(longest),
        ];
        for reason in CloseReason::iter().chain(further) {
            if let Some(json) = json(&reason, 0.999) {
                assert_eq!(json["reconnect"], json["after_ms"].is_u64(), "{json}");
            }
        }
    }

    #[test]
    fn who_is_closed_together_comes_back_apart() {
        let after = |share| {
            let json = json(&CloseReason::RateExceeded, share).expect("a frame");
            json["after_ms"].as_u64().expect("a number")
        };
        assert_eq!([0.0, 0.5].map(after), [5_000, 7_500]);
        assert!(after(0.999) < 10_000);
    }

    /// The chapter on the protocol tells people what the Close frame tells programs.
    #[test]
    fn the_chapter_has_every_code_and_whether_to_come_back() {
        let chapter = include_str!("../docs/protocol.md");
        let (_, table) = chapter
            .split_once("\n| code | reason | reconnect? |\n")
            .expect("a table");
        let rows = table
            .lines()
            .skip(1)
            .map_while(|line| line.strip_prefix("| "));
        let cells = |row: &str| {
            let cells: Vec<_> = row.split(" | ").map(str::to_owned).collect();
            let code = cells[0].parse().expect("a code");
            (code, cells[2].trim_end_matches(" |").to_owned())
        };
        let mut rows: BTreeMap<u16, String> = rows.map(cells).collect();
        let mut told = BTreeSet::new();
        for reason in CloseReason::iter() {
            let Some((code, words, returns)) = reason.describe() else {
                continue;
            };
            let row = rows
                .get(&code)
                .unwrap_or_else(|| panic!("no row for {code}"));
            let seconds = |range: Range<Duration>| (range.start.as_secs(), range.end.as_secs());
            let as_written = match returns.map(seconds) {
                None => "no",
                // The iterator's, which has no time.
                Some((0, 0)) => "after `after_ms`: each",
                Some((0, 1)) => "(up to 1 s)",
                Some((1, 5)) => "(1 to 5 s)",
                Some((5, 10)) => "(5 to 10 s)",
                Some(other) => panic!("{words}: {other:?} is not in the chapter"),
            };
            assert!(row.contains(as_written), "{code}: {row}");
            assert_eq!(row.starts_with("no"), as_written == "no", "{code}: {row}");
            told.insert(code);
        }
        rows.retain(|code, _| !told.contains(code));
        assert!(rows.is_empty(), "the gateway never sends {rows:?}");
    }
}
