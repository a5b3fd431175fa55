//! The services over gRPC: async inside, blocking outside.
//!
//! A small tokio runtime carries the calls. A caller's thread hands its call over and waits for
//! the answer; it never polls a future itself, so that connection threads touch little stack.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::RwLock;
use prost::Message;
use scopeguard::{ScopeGuard, guard};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::failure::Failure;
use super::proto::*;
use super::unary::Request;
use super::upstream::Upstream;
use super::{ErrorCode, Result, ServiceError, Services, Tls, Told};
use crate::config;

/// How long the runtime may take to end.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Methods of which it is also asked whether a service answers at all.
const VALIDATE_TOKEN: &str = "/im.v1.UserService/ValidateToken";
const ACK_MESSAGES: &str = "/im.v1.MessageService/AckMessages";
const USER_OFFLINE: &str = "/im.v1.PresenceService/UserOffline";

/// The User, Message and Presence services at the configured addresses.
pub struct Grpc {
    /// Has [`SHUTDOWN`] to end when this is dropped.
    _runtime: ScopeGuard<Runtime, fn(Runtime)>,
    user: Arc<Upstream>,
    message: Arc<Upstream>,
    presence: Arc<Upstream>,
}

impl Grpc {
    /// Starts the runtime; connects to a service when it is first called, over `tls` where the address
    /// says so. An error is the reason: the system has no room for the runtime, or an address is none.
    pub fn start(config: &config::Services, tls: Option<Arc<dyn Tls>>) -> Result<Self, String> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.worker_threads)
            .thread_name("grpc")
            .enable_all()
            .build()
            .map_err(|error| format!("the gRPC runtime does not start: {error}"))?;
        // Bounded by who call: a thread waits for its own call, and groups are asked for so many at a time.
        let (calls, handed_over) = mpsc::unbounded_channel();
        runtime.spawn(carry(handed_over));
        let upstream = |name, ping, addresses: &[String]| {
            let upstream = Arc::new(Upstream {
                name,
                ping,
                timeout: config.timeout,
                runtime: runtime.handle().clone(),
                calls: calls.clone(),
                tls: tls.clone(),
                addresses: RwLock::default(),
                turn: AtomicUsize::default(),
            });
            if config::in_etcd(addresses).is_none() {
                upstream.set_addresses(addresses)?;
            }
            Ok::<_, String>(upstream)
        };
        Ok(Self {
            user: upstream("User Service", VALIDATE_TOKEN, &config.user)?,
            message: upstream("Message Service", ACK_MESSAGES, &config.message)?,
            presence: upstream("Presence Service", USER_OFFLINE, &config.presence)?,
            _runtime: guard(runtime, |runtime| runtime.shutdown_timeout(SHUTDOWN)),
        })
    }

    /// The User, the Message and the Presence Service, for whoever sets their addresses.
    pub fn upstreams(&self) -> [Arc<Upstream>; 3] {
        [&self.user, &self.message, &self.presence].map(Arc::clone)
    }
}

/// The blocking face of a service.
impl Upstream {
    /// Carries one call and waits for its answer, at most the timeout.
    fn call<A: Message + Default + 'static>(self: &Arc<Self>, request: Request) -> Result<A> {
        self.begin(request)()
    }

    /// Begins all before it waits for the first.
    fn call_each(self: &Arc<Self>, requests: impl Iterator<Item = Request>) -> Vec<Result<()>> {
        let begun: Vec<_> = requests.map(|request| self.begin(request)).collect();
        begun.into_iter().map(|wait| wait()).collect()
    }

    /// Hands one call over. What is returned waits for its answer.
    fn begin<A: Message + Default + 'static>(
        self: &Arc<Self>,
        request: Request,
    ) -> impl FnOnce() -> Result<A> + use<A> {
        let (answer, answered) = oneshot::channel();
        // The caller waits for nothing else, so it is still there.
        self.hand_over(request, |result| drop(answer.send(result)));
        let code = ErrorCode::ServiceUnavailable;
        let stopping = move |_| Err(ServiceError::new(code, "The gateway is stopping"));
        move || answered.blocking_recv().unwrap_or_else(stopping)
    }

    /// Hands one call over, whose answer the runtime's thread passes to `told`. A call that panics
    /// ends alone and drops it, as does a runtime that has ended.
    fn hand_over<A: Message + Default>(
        self: &Arc<Self>,
        request: Request,
        told: impl FnOnce(Result<A>) + Send + 'static,
    ) {
        let (upstream, deadline) = (Arc::clone(self), Instant::now() + self.timeout);
        let call = async move {
            // Boxed here, so that the worker's stack builds the call: it is several KiB large, and
            // moving it through a connection thread's would cost each connection that much.
            let answer = Box::pin(upstream.ask(&request, deadline)).await;
            let answer = answer.and_then(|answer| {
                A::decode(answer).map_err(|error| Failure::unusable(&error.to_string()))
            });
            told(answer.map_err(|failure| failure.for_client(upstream.name)));
        };
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        let _ = self.calls.send(call.boxed());
    }
}

/// Carries the calls that are handed over, all within one task. A task for each would be allocated
/// aligned to 128 bytes, which glibc's malloc does slowly and with holes: a quarter of the runtime's
/// time, and 8 KiB more for each connection once it had sent a few messages.
async fn carry(mut handed_over: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>) {
    let calls = stream::poll_fn(|context| handed_over.poll_recv(context));
    calls.for_each_concurrent(None, |call| call).await;
}

impl Services for Grpc {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        self.user.call(Request::new(VALIDATE_TOKEN, &request))
    }

    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        let request = Request::new("/im.v1.UserService/GetGroupMembers", &request);
        let told = |answer: Result<GetGroupMembersResponse>| told(answer.map(|a| a.user_ids));
        self.user.hand_over(request, told);
    }

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        let mut send = Request::new("/im.v1.MessageService/SendMessage", &request);
        send.idempotent = !request.client_message_id.is_empty();
        self.message.call(send).and_then(sent)
    }

    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        let mut send = Request::new("/im.v1.MessageService/SendGroupMessage", &request);
        send.idempotent = !request.client_message_id.is_empty();
        self.message.call(send).and_then(sent)
    }

    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        let request = Request::new("/im.v1.MessageService/GetHistory", &request);
        self.message.call(request)
    }

    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        let request = Request::new("/im.v1.MessageService/GetGroupHistory", &request);
        self.message.call(request)
    }

    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        let request = Request::new("/im.v1.MessageService/GetOfflineMessages", &request);
        self.message.call(request)
    }

    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.message.call(Request::new(ACK_MESSAGES, &request))
    }

    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        let online = |user| Request::new("/im.v1.PresenceService/UserOnline", user);
        self.presence.call_each(requests.iter().map(online))
    }

    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        let offline = |user| Request::new(USER_OFFLINE, user);
        self.presence.call_each(requests.iter().map(offline))
    }

    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        let request = Request::new("/im.v1.PresenceService/RenewLease", &request);
        let answer: RenewLeaseResponse = self.presence.call(request)?;
        Ok(answer.known)
    }
}

/// An answer without an id is none: the client could acknowledge nothing.
fn sent(answer: SendMessageResponse) -> Result<SendMessageResponse> {
    if answer.id.is_empty() {
        return Err(Failure::unusable("an answer without an id").for_client("Message Service"));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_not_there_is_unavailable_at_once() {
        // Bound and dropped again: nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .unwrap();
        let there = vec![format!("http://{free}")];
        let config = config::Services {
            user: there.clone(),
            message: there.clone(),
            presence: there,
            ..config::Services::default()
        };
        let failed = Grpc::start(&config, None)
            .unwrap()
            .validate_token(ValidateTokenRequest::default());
        let failed = failed.unwrap_err();
        assert_eq!(failed.code, ErrorCode::ServiceUnavailable);
        assert!(failed.cause.to_lowercase().contains("refused"), "{failed}");
    }
}
