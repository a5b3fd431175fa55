//! Whether a session's token still holds: it is validated again each time the user's route is bound. A
//! revocation that was published before that reached nobody here, so this is where it is noticed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::Context;
use super::close::CloseReason;
use super::connection::Connection;
use super::liveness::Next;
use super::token::{TokenError, validate};
use crate::backoff::Backoff;

/// How long a call waits for its permit before the thread looks after the connection again.
const PERMIT_WITHIN: Duration = Duration::from_secs(1);
/// The first wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Validates a connection's token again when it is in doubt; the writer thread's work.
pub(super) struct TokenCheck {
    context: Arc<Context>,
    backoff: Backoff,
    /// When to ask, if it is in doubt.
    due: Option<Instant>,
}

impl TokenCheck {
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            due: None,
        }
    }

    /// Does what is due, at most one call. Answers when it wants to be called again, if at all before
    /// the next doubt; or why a connection whose token is refused is to end.
    pub fn advance(&mut self, connection: &Connection, now: Instant) -> Next {
        if connection.take_token_doubt() {
            self.due.get_or_insert(now);
        }
        if self.due.is_some_and(|due| now >= due) {
            self.due = self.ask(connection, now)?;
        }
        Ok(self.due)
    }

    /// Not inlined, since its frame is large: see [`stack`](super::stack).
    #[inline(never)]
    fn ask(&mut self, connection: &Connection, now: Instant) -> Next {
        let Some(permit) = self.context.validating.acquire_within(PERMIT_WITHIN) else {
            return Ok(Some(now));
        };
        let token = connection.token();
        let validated = validate(&*self.context.services, &token);
        drop(permit);
        match validated {
            Ok(identity) if identity.user == *connection.user() => {
                self.backoff.reset();
                Ok(None)
            }
            Err(TokenError::Unavailable(error)) => {
                warn!("Token not validated again, will be retried: {connection}, error={error}");
                Ok(Some(now + self.backoff.next()))
            }
            // The client has sent another one meanwhile: that counts.
            _ if connection.token() != token => Ok(Some(now)),
            Err(TokenError::Expired) => Err(CloseReason::TokenExpired),
            Ok(_) | Err(TokenError::Refused(_)) => {
                info!("Session revoked: {connection}");
                Err(CloseReason::SessionRevoked)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fixture::{Client, context};
    use crate::error::ErrorCode;
    use crate::registry::Registry;
    use crate::services::fake::FakeServices;
    use crate::services::proto::{ValidateTokenRequest, ValidateTokenResponse};
    use crate::services::{Result, ServiceError};
    use parking_lot::Mutex;

    struct Scene {
        bob: Client,
        services: Arc<FakeServices>,
        check: TokenCheck,
        now: Instant,
    }

    /// The User Service names this user, who expires at this time.
    fn identity(user: &str, expires_at: i64) -> Result<ValidateTokenResponse> {
        Ok(ValidateTokenResponse {
            user_id: user.into(),
            expires_at,
        })
    }

    fn failed<T>(code: ErrorCode) -> Result<T> {
        Err(ServiceError::new(code, "as told"))
    }

    impl Scene {
        fn new() -> Self {
            let services = Arc::new(FakeServices::default());
            let check = TokenCheck::new(Arc::new(context(&services)));
            Self {
                bob: Client::connect(&Registry::default(), "bob"),
                services,
                check,
                now: Instant::now(),
            }
        }

        fn answers(
            &self,
            answer: impl FnMut(ValidateTokenRequest) -> Result<ValidateTokenResponse> + Send + 'static,
        ) {
            *self.services.tokens.lock() = Some(Box::new(answer));
        }

        fn advance(&mut self) -> Option<Instant> {
            let next = self.check.advance(&self.bob.connection, self.now);
            // As the writer thread does it.
            next.unwrap_or_else(|reason| {
                self.bob.connection.close(reason);
                None
            })
        }
    }

    #[test]
    fn a_token_is_validated_once_for_each_time_the_route_is_bound() {
        let mut scene = Scene::new();
        assert_eq!(scene.advance(), None, "nobody doubts it");
        let asked = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&asked);
        scene.answers(move |request| {
            assert_eq!(request.token, "token");
            *counter.lock() += 1;
            identity("bob", 0)
        });
        for times in 1..4 {
            scene.bob.connection.routed();
            assert_eq!(scene.advance(), None);
            assert_eq!(scene.advance(), None);
            assert_eq!(*asked.lock(), times);
        }
        assert_eq!(scene.bob.close_reason(), None);
    }

    #[test]
    fn a_token_that_is_refused_by_then_ends_the_session() {
        type Answer = fn(ValidateTokenRequest) -> Result<ValidateTokenResponse>;
        let cases: [(Answer, CloseReason); 7] = [
            (
                |_| failed(ErrorCode::Unauthenticated),
                CloseReason::SessionRevoked,
            ),
            (|_| failed(ErrorCode::NotFound), CloseReason::SessionRevoked),
            (
                |_| failed(ErrorCode::PermissionDenied),
                CloseReason::SessionRevoked,
            ),
            (
                |_| failed(ErrorCode::InvalidMessage),
                CloseReason::SessionRevoked,
            ),
            (|_| identity("alice", 0), CloseReason::SessionRevoked),
            (|_| identity("bob", 1), CloseReason::TokenExpired),
            (|_| identity("bob", i64::MIN), CloseReason::TokenExpired),
        ];
        for (answer, reason) in cases {
            let mut scene = Scene::new();
            scene.answers(answer);
            scene.bob.connection.routed();
            scene.advance();
            assert_eq!(scene.bob.close_reason(), Some(&reason));
        }
    }

    #[test]
    fn a_user_service_that_is_out_of_reach_ends_no_session_and_is_asked_again() {
        let mut scene = Scene::new();
        scene.bob.connection.routed();
        for code in [
            ErrorCode::ServiceUnavailable,
            ErrorCode::DeadlineExceeded,
            ErrorCode::Internal,
            ErrorCode::RateLimited,
        ] {
            scene.answers(move |_| failed(code));
            let due = scene.advance().expect("a time");
            assert!(due > scene.now);
            scene.now = due;
        }
        scene.answers(|_| identity("", 0));
        scene.now = scene.advance().expect("a user that is none is no answer");
        assert_eq!(scene.bob.close_reason(), None);
        scene.answers(|_| failed(ErrorCode::Unauthenticated));
        scene.advance();
        assert_eq!(scene.bob.close_reason(), Some(&CloseReason::SessionRevoked));
    }

    #[test]
    fn a_token_that_was_replaced_meanwhile_is_the_one_that_counts() {
        let mut scene = Scene::new();
        scene.bob.connection.routed();
        let connection = Arc::clone(&scene.bob.connection);
        scene.answers(move |request| {
            connection.refresh("another", 0);
            match &*request.token {
                "another" => identity("bob", 0),
                _ => failed(ErrorCode::Unauthenticated),
            }
        });
        assert_eq!(scene.advance(), Some(scene.now));
        assert_eq!(scene.advance(), None);
        assert_eq!(scene.bob.close_reason(), None);
    }
}
