//! A session's token: validated before the upgrade, and again each time the user's route is bound. A
//! revocation that was published before that reached nobody here, so this is where it is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;

use super::close::CloseReason;
use super::connection::Connection;
use super::permits::Permits;
use super::protocol::timestamp;
use crate::ids::UserId;
use crate::services::proto::ValidateTokenRequest;
use crate::services::{ErrorCode, ServiceError, Services};

/// How long a call waits for its permit before the thread looks after the connection again.
const PERMIT_WITHIN: Duration = Duration::from_secs(1);
/// The first wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

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
    let request = ValidateTokenRequest {
        token: token.into(),
    };
    let identity = services
        .validate_token(request)
        .map_err(|error| match error.code {
            ErrorCode::Unauthenticated
            | ErrorCode::InvalidMessage
            | ErrorCode::PermissionDenied
            | ErrorCode::NotFound => TokenError::Refused(error),
            _ => TokenError::Unavailable(error),
        })?;
    let user = UserId::new(&identity.user_id).map_err(|invalid| {
        let mut error = ServiceError::new(ErrorCode::Internal, "The User Service failed");
        error.cause = format!("it named a user that is none: {invalid}");
        TokenError::Unavailable(error)
    })?;
    if seconds_left(identity.expires_at) == Some(0) {
        return Err(TokenError::Expired);
    }
    Ok(Identity {
        user,
        expires_at: identity.expires_at,
    })
}

/// How many seconds are left until `expires_at`, in Unix seconds; `None` when it is 0: for ever.
pub(super) fn seconds_left(expires_at: i64) -> Option<u64> {
    let left = expires_at.saturating_sub(timestamp());
    (expires_at != 0).then(|| u64::try_from(left).unwrap_or(0))
}

/// The token of one connection. It is shown nowhere.
pub(super) struct Token {
    text: Mutex<Box<str>>,
    /// It may have been revoked since it was validated.
    doubted: AtomicBool,
}

impl Token {
    pub fn new(text: &str) -> Self {
        Self {
            text: Mutex::new(text.into()),
            doubted: AtomicBool::new(false),
        }
    }

    /// The client has sent another one, which is valid.
    pub fn replace(&self, text: &str) {
        *self.text.lock() = text.into();
    }

    /// It is to be validated again.
    pub fn doubt(&self) {
        self.doubted.store(true, SeqCst);
    }
}

/// Validates a connection's token again when it is in doubt; the writer thread's work.
pub(super) struct TokenCheck {
    services: Arc<dyn Services>,
    /// How many connections of this gateway ask at a time.
    pacing: Arc<Permits>,
    backoff: Duration,
    /// Not before this time.
    due: Option<Instant>,
}

impl TokenCheck {
    pub fn new(services: Arc<dyn Services>, pacing: Arc<Permits>) -> Self {
        Self {
            services,
            pacing,
            backoff: MIN_BACKOFF,
            due: None,
        }
    }

    /// Does what is due, at most one call. Closes a connection whose token is refused. Answers when
    /// it wants to be called again, if at all before the next doubt.
    pub fn advance(&mut self, connection: &Connection, now: Instant) -> Option<Instant> {
        if let Some(due) = self.due
            && now < due
        {
            return Some(due);
        }
        self.due = None;
        if connection.token.doubted.swap(false, SeqCst) {
            self.ask(connection, now)
        } else {
            None
        }
    }

    /// Not inlined, since its frame is large: see [`stack`](super::stack).
    #[inline(never)]
    fn ask(&mut self, connection: &Connection, now: Instant) -> Option<Instant> {
        let token = &connection.token;
        let Some(permit) = self.pacing.acquire_within(PERMIT_WITHIN) else {
            token.doubt();
            return Some(now);
        };
        let text = token.text.lock().clone();
        let validated = validate(&*self.services, &text);
        drop(permit);
        match validated {
            Ok(identity) if identity.user == *connection.user() => {
                self.backoff = MIN_BACKOFF;
                None
            }
            Err(TokenError::Unavailable(error)) => {
                warn!(
                    "Token not validated again, will be retried: user={}, conn_id={}, error={error}",
                    connection.user(),
                    connection.id()
                );
                token.doubt();
                self.due = Some(now + self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                self.due
            }
            // The client has sent another one meanwhile: that counts.
            _ if *token.text.lock() != text => {
                token.doubt();
                Some(now)
            }
            Err(TokenError::Expired) => {
                connection.close(CloseReason::TokenExpired);
                None
            }
            Ok(_) | Err(TokenError::Refused(_)) => {
                info!(
                    "Session revoked: user={}, conn_id={}",
                    connection.user(),
                    connection.id()
                );
                connection.close(CloseReason::SessionRevoked);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fixture::Client;
    use crate::registry::Registry;
    use crate::services::Result;
    use crate::services::fake::FakeServices;
    use crate::services::proto::ValidateTokenResponse;

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
            let check = TokenCheck::new(Arc::clone(&services) as _, Permits::new(1));
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
            self.check.advance(&self.bob.connection, self.now)
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
