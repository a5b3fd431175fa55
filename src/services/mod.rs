//! The backend as the gateway sees it: a plain blocking trait, one method for each call of the
//! wire contract. [`grpc`] implements it; tests implement it with fakes. Nothing outside this
//! folder knows gRPC or async.

mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fake;
pub mod grpc;
#[cfg(test)]
mod tests {
    mod addresses;
    mod decorators;
}
mod unary;
mod upstream;

use failure::Why;

pub use crate::error::ErrorCode;
pub use upstream::{Tls, Upstream};

/// The types of `proto/*.proto`, package `im.v1`.
#[expect(missing_docs, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("im.v1");
}

use proto::*;

/// The User, Message and Presence services. Each method blocks until the answer is there or the
/// call's deadline has passed, save where it says otherwise; the contract's comments say what each
/// call means. What is to be done with every call, such as counting, is a decorator: it implements
/// this for any `S: Services` that it holds.
pub trait Services: Send + Sync + 'static {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse>;
    /// Returns at once, for the thread that delivers to all groups waits for none. `told` is called
    /// with the answer, on a thread that it must not keep; or is dropped, when none will come.
    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>);

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse>;
    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse>;
    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse>;
    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse>;
    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse>;
    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()>;

    /// Tells of several users, with all calls under way at once. Answers in their order.
    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>>;
    /// As [`Services::users_online`].
    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>>;
    /// Answers whether the Presence Service still knew this gateway's lease.
    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool>;
}

/// What a service call came to.
pub type Result<T, E = ServiceError> = std::result::Result<T, E>;

/// Takes a call's answer.
pub type Told<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}{}", in_brackets(.cause))]
pub struct ServiceError {
    pub code: ErrorCode,
    /// For the client.
    pub message: String,
    /// For the log alone: what lies behind it, empty where the message says it all.
    pub cause: String,
    /// How a call failed; `None`: no call to a service came to this.
    why: Option<Why>,
}

impl ServiceError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            cause: String::new(),
            why: None,
        }
    }

    /// An answer that is larger than may be sent or taken: no fault of the client's request.
    #[cfg(test)]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self {
            why: Some(Why::TooLarge),
            ..Self::new(ErrorCode::Internal, message)
        }
    }

    /// Nobody answered: the call may succeed later, and another call tells nothing new.
    pub fn is_out_of_reach(&self) -> bool {
        let unanswered = [ErrorCode::ServiceUnavailable, ErrorCode::DeadlineExceeded];
        unanswered.contains(&self.code) || self.why == Some(Why::Failed)
    }

    /// The answer would be too large: asking for less may help, asking again does not.
    pub fn is_too_large(&self) -> bool {
        self.why == Some(Why::TooLarge)
    }
}

/// The cause behind the message, as it is logged.
fn in_brackets(cause: &str) -> String {
    match cause {
        "" => String::new(),
        _ => format!(" ({cause})"),
    }
}
