//! The error codes that clients see, in `error` frames and in the bodies of HTTP errors.

use std::fmt;

/// What went wrong, as a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    InvalidMessage,
    UnknownMessageType,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    DeadlineExceeded,
    Internal,
}

impl ErrorCode {
    pub const ALL: [Self; 9] = [
        Self::InvalidMessage,
        Self::UnknownMessageType,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::RateLimited,
        Self::ServiceUnavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// The code as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMessage => "INVALID_MESSAGE",
            Self::UnknownMessageType => "UNKNOWN_MESSAGE_TYPE",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::RateLimited => "RATE_LIMITED",
            Self::ServiceUnavailable => "SERVICE_UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal => "INTERNAL",
        }
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
