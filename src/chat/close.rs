//! What a connection's end means for a client: the table of close codes in
//! src/docs/protocol.md, from the other side.

use std::time::Duration;

use serde::Deserialize;

/// The longest wait that a Close frame is believed.
const LONGEST: Duration = Duration::from_secs(300);

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Come back after so long; `None`: as backoff has it.
    Reconnect(Option<Duration>),
    /// Come back with another token, if at all.
    NewToken,
    /// Do not come back by yourself.
    Stay,
}

/// A Close frame's reason.
#[derive(Deserialize)]
struct Reason {
    reconnect: bool,
    after_ms: Option<u64>,
    #[serde(default)]
    reason: String,
}

/// What a Close frame says: what to do, and why in words for people. `code` is 1005 where there was
/// none.
pub(super) fn understand(code: u16, reason: &str) -> (Next, String) {
    let read: Option<Reason> = serde_json::from_str(reason).ok();
    let words = read.as_ref().map_or(reason, |read| read.reason.as_str());
    let told = match words {
        "" => format!("closed with {code}"),
        words => format!("closed with {code}, {words}"),
    };
    let next = match (code, read) {
        // That another token is needed, no JSON says.
        (4003 | 4005, _) => Next::NewToken,
        (_, Some(read)) if read.reconnect => {
            let after = read.after_ms.map(Duration::from_millis);
            Next::Reconnect(after.map(|after| after.min(LONGEST)))
        }
        (_, Some(_)) => Next::Stay,
        (1000 | 1002 | 1003 | 1007 | 1009 | 4004, None) => Next::Stay,
        // A proxy's 1001, or a code that is newer than this client.
        (_, None) => Next::Reconnect(None),
    };
    (next, told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_whether_and_when_to_come_back() {
        let after = |ms| Next::Reconnect(Some(Duration::from_millis(ms)));
        for (code, reason, next) in [
            (
                1012,
                r#"{"reconnect":true,"after_ms":4200,"reason":"x"}"#,
                after(4200),
            ),
            (4002, r#"{"reconnect":true,"after_ms":0}"#, after(0)),
            (4001, r#"{"reconnect":true}"#, Next::Reconnect(None)),
            (4010, r#"{"reconnect":false}"#, Next::Stay),
            (1011, r#"{"reconnect":false,"after_ms":1}"#, Next::Stay),
            (4004, r#"{"reconnect":false,"reason":"x"}"#, Next::Stay),
            (4003, r#"{"reconnect":true,"after_ms":7}"#, Next::NewToken),
            (4005, r#"{"reconnect":false}"#, Next::NewToken),
            (
                1012,
                r#"{"reconnect":true,"after_ms":18446744073709551615}"#,
                after(300_000),
            ),
        ] {
            assert_eq!(understand(code, reason).0, next, "{code} {reason}");
        }
    }

    #[test]
    fn without_json_the_code_says_it() {
        for reason in ["", "going away", "{", "[]", r#"{"reconnect":1}"#] {
            for code in [1000, 1002, 1003, 1007, 1009, 4004] {
                assert_eq!(understand(code, reason).0, Next::Stay, "{code}");
            }
            for code in [1001, 1005, 1011, 1012, 1013, 4001, 4002, 4006, 4999] {
                let (next, _) = understand(code, reason);
                assert_eq!(next, Next::Reconnect(None), "{code}");
            }
            assert_eq!(understand(4005, reason).0, Next::NewToken);
        }
    }

    #[test]
    fn people_are_told_in_words() {
        let told = |code, reason| understand(code, reason).1;
        let json = r#"{"reconnect":true,"after_ms":1,"reason":"slow consumer"}"#;
        assert_eq!(told(4001, json), "closed with 4001, slow consumer");
        assert_eq!(told(1001, "going away"), "closed with 1001, going away");
        assert_eq!(told(1005, ""), "closed with 1005");
    }
}
