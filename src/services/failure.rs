//! A call that did not succeed: what that tells of the service and of its address, and whether the
//! call may be repeated.

use std::error::Error;
use std::iter;

use http::StatusCode;
use percent_encoding::percent_decode;
use tonic::{Code, ConnectError, TimeoutExpired};

use super::{ErrorCode, ServiceError};

/// How much of a status message is passed on, in characters.
const MAX_TEXT: usize = 256;

/// How servers say that their answer is larger than they may send: tonic, grpc-go, the C core and
/// what is built on it, .NET, Node.
const OWN_LIMIT: [&str; 5] = [
    "encoded message length too large",
    "trying to send message larger than max",
    "sent message larger than max",
    "sending message exceeds the maximum",
    "attempted to send message with a size larger",
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub why: Why,
    /// Safe to show: short, and without control characters.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The service said so.
    Told(Code),
    /// The answer is larger than the service may send, or than is taken.
    TooLarge,
    /// No server was reached.
    Unreached,
    /// The connection went away before the call was written or looked at.
    GoingAway,
    /// The server refused the call before it looked at it.
    Refused,
    /// No answer came, or none that is gRPC: nobody knows what became of the call.
    Lost,
    /// As [`Why::Lost`]: an answer that is no gRPC, whose HTTP status does not say that the service is
    /// away.
    Failed,
    /// No answer came in time.
    Late,
}

/// What an address is good for, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Well,
    /// It turns calls or connections away, as one does that is about to be restarted, and a proxy
    /// after each thousand calls.
    Leaving,
    Broken,
}

impl Failure {
    pub fn new(why: Why, text: &str) -> Self {
        let readable = text.chars().filter(|char| !char.is_control());
        let text = readable.take(MAX_TEXT).collect();
        Self { why, text }
    }

    /// What the service says, in its own words.
    pub fn told(code: Code, message: &[u8]) -> Self {
        let text = percent_decode(message).decode_utf8_lossy();
        let lower = text.to_lowercase();
        let is_own_limit = OWN_LIMIT.iter().any(|words| lower.contains(words));
        let why = match code {
            Code::OutOfRange | Code::ResourceExhausted if is_own_limit => Why::TooLarge,
            // How tonic's servers say that the call's deadline, which they are told, is over.
            Code::Cancelled if text == "Timeout expired" => Why::Late,
            _ => Why::Told(code),
        };
        Self::new(why, &text)
    }

    /// An answer that is no gRPC: unavailable by gRPC's mapping of HTTP statuses, or failed. 401 and
    /// 403 are about this gateway, which the proxy does not let through; taken for the User Service's
    /// word they would log every client out. 200 says nothing here.
    pub fn not_grpc(status: StatusCode, what: &str) -> Self {
        let why = match status.as_u16() {
            200 | 401 | 403 | 429 | 502..=504 => Why::Lost,
            _ => Why::Failed,
        };
        let text = format!("no gRPC: HTTP status {}, {what}", status.as_u16());
        Self::new(why, &text)
    }

    /// An answer that a service gave, and that is none of the contract's: the service's own fault.
    pub fn unusable(text: &str) -> Self {
        Self::new(Why::Told(Code::Internal), text)
    }

    /// What went wrong on the way to an answer, in better words than the error's own, if there are.
    pub fn on_the_way(error: &(dyn Error + 'static), explained: Option<String>) -> Self {
        let why = chain(error).find_map(certain).unwrap_or(Why::Lost);
        Self::new(why, &explained.unwrap_or_else(|| root(error)))
    }

    /// What the address is good for, after this. Whatever else it tells, one that speaks for the
    /// service is well; one that is late may have much to do.
    pub fn health(&self) -> Health {
        match self.why {
            Why::Told(Code::Unavailable) => Health::Broken,
            Why::Told(_) | Why::TooLarge | Why::Late => Health::Well,
            Why::GoingAway | Why::Refused => Health::Leaving,
            Why::Unreached | Why::Lost | Why::Failed => Health::Broken,
        }
    }

    /// What a client is told. A service's own words are passed on where they concern the request;
    /// what went wrong inside stays inside.
    pub fn for_client(self, service: &str) -> ServiceError {
        let late = (ErrorCode::DeadlineExceeded, " did not answer in time");
        let away = (ErrorCode::ServiceUnavailable, " is not available");
        let (code, words) = match self.why {
            Why::Told(Code::InvalidArgument | Code::OutOfRange) => (ErrorCode::InvalidMessage, ""),
            Why::Told(Code::Unauthenticated) => (ErrorCode::Unauthenticated, ""),
            Why::Told(Code::PermissionDenied) => (ErrorCode::PermissionDenied, ""),
            Why::Told(Code::NotFound) => (ErrorCode::NotFound, ""),
            Why::Told(Code::ResourceExhausted) => (ErrorCode::RateLimited, ""),
            Why::Told(Code::DeadlineExceeded) | Why::Late => late,
            Why::Told(Code::Unavailable) => away,
            Why::Told(_) | Why::Failed => (ErrorCode::Internal, " failed"),
            Why::TooLarge => (ErrorCode::Internal, "'s answer is too large"),
            Why::Unreached | Why::GoingAway | Why::Refused | Why::Lost => away,
        };
        let mut error = match words {
            "" => ServiceError::new(code, self.text.as_str()),
            words => ServiceError::new(code, format!("The {service}{words}")),
        };
        error.why = Some(self.why);
        if error.message != self.text {
            error.cause = self.text;
        }
        error
    }
}

/// What an error says for certain of a call; only that counts as not processed. A GOAWAY covers only
/// the calls above its last stream (RFC 9113, 6.8), and h2 gives its error to no other.
fn certain(error: &(dyn Error + 'static)) -> Option<Why> {
    let from_server = |error: &&h2::Error| error.is_remote();
    match error.downcast_ref::<h2::Error>().filter(from_server) {
        Some(http2) if http2.is_go_away() => Some(Why::GoingAway),
        Some(http2) if http2.reason() == Some(h2::Reason::REFUSED_STREAM) => Some(Why::Refused),
        _ if error.is::<ConnectError>() => Some(Why::Unreached),
        _ if error.is::<TimeoutExpired>() => Some(Why::Late),
        // hyper still had the whole request.
        _ if error.downcast_ref().is_some_and(hyper::Error::is_canceled) => Some(Why::GoingAway),
        _ => None,
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The last error of the chain: "connection refused", not "transport error".
pub(super) fn root(error: &(dyn Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_of(code: Code, message: &str) -> ServiceError {
        Failure::told(code, message.as_bytes()).for_client("User Service")
    }

    #[test]
    fn statuses_become_error_codes() {
        for (status, code) in [
            (Code::Unauthenticated, ErrorCode::Unauthenticated),
            (Code::PermissionDenied, ErrorCode::PermissionDenied),
            (Code::NotFound, ErrorCode::NotFound),
            (Code::InvalidArgument, ErrorCode::InvalidMessage),
            (Code::OutOfRange, ErrorCode::InvalidMessage),
            (Code::ResourceExhausted, ErrorCode::RateLimited),
            (Code::Unavailable, ErrorCode::ServiceUnavailable),
            (Code::DeadlineExceeded, ErrorCode::DeadlineExceeded),
            (Code::Cancelled, ErrorCode::Internal),
            (Code::DataLoss, ErrorCode::Internal),
            (Code::Unknown, ErrorCode::Internal),
        ] {
            let failed = client_of(status, "x");
            assert_eq!(failed.code, code);
            let out_of_reach = matches!(status, Code::Unavailable | Code::DeadlineExceeded);
            assert_eq!(failed.is_out_of_reach(), out_of_reach, "{failed}");
            assert!(!failed.is_too_large(), "{failed}");
        }
    }

    /// Either end may be the first to notice.
    #[test]
    fn a_server_that_gives_up_at_the_deadline_was_late() {
        let failed = client_of(Code::Cancelled, "Timeout expired");
        assert_eq!(failed.code, ErrorCode::DeadlineExceeded);
        assert!(failed.is_out_of_reach(), "{failed}");
    }

    #[test]
    fn what_went_wrong_inside_is_for_the_log_alone() {
        let failed = client_of(Code::Internal, "table users is locked");
        assert_eq!(failed.message, "The User Service failed");
        assert_eq!(failed.cause, "table users is locked");
        assert_eq!(client_of(Code::NotFound, "no such group").cause, "");
    }

    #[test]
    fn an_answer_that_a_server_may_not_send_is_no_fault_of_the_client() {
        for (code, message) in [
            (
                Code::OutOfRange,
                "Error, encoded message length too large: found 9 bytes, the limit is: 1 bytes",
            ),
            (
                Code::ResourceExhausted,
                "grpc: trying to send message larger than max (9 vs. 1)",
            ),
            (
                Code::ResourceExhausted,
                "Sent message larger than max (9 vs. 1)",
            ),
            (
                Code::ResourceExhausted,
                "Sending message exceeds the maximum configured message size.",
            ),
        ] {
            let failed = client_of(code, message);
            assert!(
                failed.is_too_large() && !failed.is_out_of_reach(),
                "{failed}"
            );
            assert_eq!(failed.code, ErrorCode::Internal);
        }
        // The request was too large, or something else is meant.
        for (code, message) in [
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 9 bytes",
            ),
            (Code::ResourceExhausted, "too many requests"),
            (Code::ResourceExhausted, "message too large"),
        ] {
            let failed = client_of(code, message);
            assert!(!failed.is_too_large(), "{failed}");
        }
    }

    #[test]
    fn http_statuses_become_error_codes_and_none_is_an_answer() {
        for (status, code) in [
            (200, ErrorCode::ServiceUnavailable),
            (204, ErrorCode::Internal),
            (302, ErrorCode::Internal),
            (400, ErrorCode::Internal),
            (401, ErrorCode::ServiceUnavailable),
            (403, ErrorCode::ServiceUnavailable),
            (404, ErrorCode::Internal),
            (408, ErrorCode::Internal),
            (429, ErrorCode::ServiceUnavailable),
            (431, ErrorCode::Internal),
            (500, ErrorCode::Internal),
            (502, ErrorCode::ServiceUnavailable),
            (503, ErrorCode::ServiceUnavailable),
            (504, ErrorCode::ServiceUnavailable),
            (520, ErrorCode::Internal),
        ] {
            let failed = Failure::not_grpc(StatusCode::from_u16(status).unwrap(), "text/html");
            assert_eq!(failed.health(), Health::Broken, "{status}");
            let failed = failed.for_client("User Service");
            assert_eq!(failed.code, code, "{status}");
            assert!(failed.is_out_of_reach(), "{status}");
            assert!(failed.cause.contains(&status.to_string()), "{failed}");
        }
    }

    #[test]
    fn a_status_message_is_made_readable() {
        let long = "ü".repeat(100_000);
        for (message, told) in [
            (&b"plain"[..], "plain"),
            (b"J%C3%BCrgen", "Jürgen"),
            (b"J\xfcrgen", "J\u{fffd}rgen"),
            (b"J%FCrgen", "J\u{fffd}rgen"),
            (b"100% of %zz %", "100% of %zz %"),
            (b"a%00b%0d%0ac%1b[31md", "abc[31md"),
            (b"", ""),
            (long.as_bytes(), &long[..2 * MAX_TEXT]),
        ] {
            assert_eq!(Failure::told(Code::NotFound, message).text, told);
        }
    }
}
