//! The three services over gRPC, each on a connection of its own, as if they were apart.

use std::error::Error as _;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use ws_gateway::services::ErrorCode;
use ws_gateway::services::proto::message_service_client::MessageServiceClient;
use ws_gateway::services::proto::presence_service_client::PresenceServiceClient;
use ws_gateway::services::proto::user_service_client::UserServiceClient;

const TIMEOUT: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 16 << 20;

/// The clients. They are cloned for each call, which shares the connection.
#[derive(Clone)]
pub struct Services {
    user: UserServiceClient<Channel>,
    message: MessageServiceClient<Channel>,
    presence: PresenceServiceClient<Channel>,
}

impl Services {
    /// Connects when they are first called.
    pub fn new(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(address.to_owned())?
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(TIMEOUT)
            .keep_alive_while_idle(true);
        let message = MessageServiceClient::new(endpoint.connect_lazy());
        Ok(Self {
            user: UserServiceClient::new(endpoint.connect_lazy()),
            message: message.max_decoding_message_size(MAX_ANSWER),
            presence: PresenceServiceClient::new(endpoint.connect_lazy()),
        })
    }

    pub fn user(&self) -> UserServiceClient<Channel> {
        self.user.clone()
    }

    pub fn message(&self) -> MessageServiceClient<Channel> {
        self.message.clone()
    }

    pub fn presence(&self) -> PresenceServiceClient<Channel> {
        self.presence.clone()
    }
}

/// A failed call, as the client is told of it.
pub struct Refused {
    pub code: ErrorCode,
    pub message: String,
}

/// The answer of the service called `name`.
pub fn answer<A>(name: &str, result: Result<Response<A>, Status>) -> Result<A, Refused> {
    let status = match result {
        Ok(response) => return Ok(response.into_inner()),
        Err(status) => status,
    };
    let told = status.message().to_owned();
    let (code, message) = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => (ErrorCode::InvalidMessage, told),
        Code::Unauthenticated => (ErrorCode::Unauthenticated, told),
        Code::PermissionDenied => (ErrorCode::PermissionDenied, told),
        Code::NotFound => (ErrorCode::NotFound, told),
        Code::ResourceExhausted => (ErrorCode::RateLimited, told),
        // What tonic makes of its own timeout.
        Code::DeadlineExceeded | Code::Cancelled => (
            ErrorCode::DeadlineExceeded,
            format!("The {name} did not answer in time"),
        ),
        code if code == Code::Unavailable || status.source().is_some() => (
            ErrorCode::ServiceUnavailable,
            format!("The {name} is not available"),
        ),
        _ => (ErrorCode::Internal, format!("The {name} failed")),
    };
    Err(Refused { code, message })
}
