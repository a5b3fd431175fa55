//! The error codes that clients see, in `error` frames and in the bodies of HTTP errors.

use std::fmt;

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

/// What went wrong, as a client is told. An error answers its request and leaves the connection open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ErrorCode {
    /// Not JSON, not an object, or a field that is missing, wrong or there twice: the message names it. A
    /// service may refuse a value with it, too.
    InvalidMessage,
    /// No request has this `type`.
    UnknownMessageType,
    /// The token is missing, invalid or expired.
    Unauthenticated,
    /// The user may not do this.
    PermissionDenied,
    /// What is asked for is not there.
    NotFound,
    /// Too many requests or connections: ask again later, and less often.
    RateLimited,
    /// A service is not in reach, or the gateway takes nobody now: ask again later.
    ServiceUnavailable,
    /// A service did not answer in time. The request may have been carried out: repeat it with the same
    /// `client_message_id`.
    DeadlineExceeded,
    /// A fault of the gateway's or a service's.
    Internal,
}

impl ErrorCode {
    /// The code as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A check, and why it fails if it does.
pub fn ensure(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
