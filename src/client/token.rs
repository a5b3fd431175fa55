//! What a session's token is worth: whose it is, and for how long.

use super::protocol::timestamp;
use crate::ids::UserId;
use crate::services::proto::ValidateTokenRequest;
use crate::services::{ErrorCode, ServiceError, Services};

/// Whose a token is.
#[derive(Debug)]
pub(super) struct Identity {
    pub user: UserId,
    /// When the token expires, in Unix seconds; 0 means never.
    pub expires_at: i64,
}

/// Why a token lets nobody in.
#[derive(Debug)]
pub(super) enum TokenError {
    /// The User Service does not know it, or no longer.
    Refused(ServiceError),
    /// Its time is over.
    Expired,
    /// The User Service is out of reach or answers nonsense: ask again later.
    Unavailable(ServiceError),
}

/// Asks the User Service whose `token` is.
pub(super) fn validate(services: &dyn Services, token: &str) -> Result<Identity, TokenError> {
    let token = token.into();
    let answer = services.validate_token(ValidateTokenRequest { token });
    let identity = answer.map_err(|error| match error.code {
        ErrorCode::Unauthenticated
        | ErrorCode::InvalidMessage
        | ErrorCode::PermissionDenied
        | ErrorCode::NotFound => TokenError::Refused(error),
        _ => TokenError::Unavailable(error),
    })?;
    let expires_at = identity.expires_at;
    let user = UserId::new(&identity.user_id).map_err(|invalid| {
        let mut error = ServiceError::new(ErrorCode::Internal, "The User Service failed");
        error.cause = format!("it named a user that is none: {invalid}");
        TokenError::Unavailable(error)
    })?;
    if seconds_left(expires_at) == Some(0) {
        return Err(TokenError::Expired);
    }
    Ok(Identity { user, expires_at })
}

/// How many seconds are left until `expires_at`, in Unix seconds; `None` when it is 0: for ever.
pub(super) fn seconds_left(expires_at: i64) -> Option<u64> {
    let left = expires_at.saturating_sub(timestamp());
    (expires_at != 0).then(|| u64::try_from(left).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_in_the_past_is_the_past() {
        let now = timestamp();
        assert_eq!(seconds_left(0), None);
        for past in [i64::MIN, i64::MIN + 1, i64::MIN / 2, -1, 1, now - 1, now] {
            assert_eq!(seconds_left(past), Some(0), "{past}");
        }
        assert!(seconds_left(now + 60).is_some_and(|left| left > 50));
        assert!(seconds_left(i64::MAX).is_some_and(|left| left > 1 << 60));
    }
}
