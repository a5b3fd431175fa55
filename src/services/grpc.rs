//! The services over gRPC: async inside, blocking outside.
//!
//! A small tokio runtime carries the calls. A caller's thread hands its call over and waits for
//! the answer; it never polls a future itself, so that connection threads touch little stack.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::answer::{Checked, MAX_ANSWER};
use super::failure::Failure;
use super::proto::message_service_client::MessageServiceClient;
use super::proto::presence_service_client::PresenceServiceClient;
use super::proto::user_service_client::UserServiceClient;
use super::proto::*;
use super::upstream::Upstream;
use super::{ErrorCode, Result, ServiceError, Services, Told};
use crate::config;

/// How long the runtime may take to end.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// The User, Message and Presence services at the configured addresses.
pub struct Grpc {
    /// Taken out when this is dropped.
    runtime: Option<Runtime>,
    /// Those handed over. It has no bound of its own: each caller waits for its answer.
    calls: mpsc::UnboundedSender<Call>,
    user: Service,
    message: Service,
    presence: Service,
    timeout: Duration,
}

/// A call under way, from its first attempt to its caller's being told.
type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Clone)]
struct Service {
    name: &'static str,
    upstream: Arc<Upstream>,
}

fn user(channel: Checked) -> UserServiceClient<Checked> {
    UserServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

fn message(channel: Checked) -> MessageServiceClient<Checked> {
    MessageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

fn presence(channel: Checked) -> PresenceServiceClient<Checked> {
    PresenceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

impl Grpc {
    /// Starts the runtime; connects to a service when it is first called. An error is an address
    /// that is none, or a system without room for a thread.
    pub fn start(config: &config::Services) -> std::result::Result<Self, String> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.worker_threads)
            .thread_name("grpc")
            .enable_all()
            .build()
            .map_err(|error| format!("the gRPC runtime does not start: {error}"))?;
        let _within = runtime.enter();
        let service = |name, addresses: &config::Addresses, ping| {
            Upstream::new(&addresses.0, config.timeout, ping)
                .map(|upstream| Service {
                    name,
                    upstream: Arc::new(upstream),
                })
                .map_err(|error| format!("{name} at {:?}: {error}", addresses.0))
        };
        let user = service("User Service", &config.user, |channel| {
            Box::pin(async move {
                user(channel)
                    .validate_token(ValidateTokenRequest::default())
                    .await
                    .map(drop)
            })
        })?;
        let message = service("Message Service", &config.message, |channel| {
            Box::pin(async move {
                message(channel)
                    .ack_messages(AckMessagesRequest::default())
                    .await
                    .map(drop)
            })
        })?;
        let presence = service("Presence Service", &config.presence, |channel| {
            Box::pin(async move {
                presence(channel)
                    .user_offline(UserOfflineRequest::default())
                    .await
                    .map(drop)
            })
        })?;
        drop(_within);
        let (calls, handed_over) = mpsc::unbounded_channel();
        runtime.spawn(carry(handed_over));
        Ok(Self {
            runtime: Some(runtime),
            calls,
            user,
            message,
            presence,
            timeout: config.timeout,
        })
    }

    /// Carries one call to `service` and waits for its answer, at most the timeout.
    fn call<Q, A, F>(
        &self,
        service: &Service,
        idempotent: bool,
        request: Q,
        attempt: impl Fn(Checked, Request<Q>) -> F + Send + Sync + 'static,
    ) -> Result<A>
    where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = std::result::Result<Response<A>, Status>> + Send,
    {
        self.begin(service, idempotent, request, attempt).wait()
    }

    /// Hands one call over, to be waited for.
    fn begin<Q, A, F>(
        &self,
        service: &Service,
        idempotent: bool,
        request: Q,
        attempt: impl Fn(Checked, Request<Q>) -> F + Send + Sync + 'static,
    ) -> Pending<A>
    where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = std::result::Result<Response<A>, Status>> + Send,
    {
        let (answer, answered) = oneshot::channel();
        // The caller waits for nothing else, so it is still there.
        let told = |result| drop(answer.send(result));
        self.hand_over(service, idempotent, request, attempt, told);
        Pending {
            service: service.name,
            answered,
        }
    }

    /// Hands one call over, whose answer the runtime's thread passes to `told`. A call that panics
    /// ends alone and drops it, as does a runtime that has ended.
    fn hand_over<Q, A, F>(
        &self,
        service: &Service,
        idempotent: bool,
        request: Q,
        attempt: impl Fn(Checked, Request<Q>) -> F + Send + Sync + 'static,
        told: impl FnOnce(std::result::Result<A, Failure>) + Send + 'static,
    ) where
        Q: Clone + Send + Sync + 'static,
        A: Send + 'static,
        F: Future<Output = std::result::Result<Response<A>, Status>> + Send,
    {
        let upstream = Arc::clone(&service.upstream);
        let deadline = Instant::now() + self.timeout;
        let call = async move {
            // Boxed here, so that the worker's stack builds the call: it is several KiB large, and
            // moving it through a connection thread's would cost each connection that much.
            told(Box::pin(upstream.call(deadline, idempotent, request, attempt)).await);
        };
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        let _ = self.calls.send(Box::pin(call));
    }
}

/// Carries the calls that are handed over, all within one task. A task for each would be allocated
/// aligned to 128 bytes, which glibc's malloc does slowly and with holes: a quarter of the runtime's
/// time, and 8 KiB more for each connection once it had sent a few messages.
async fn carry(mut handed_over: mpsc::UnboundedReceiver<Call>) {
    let mut under_way = FuturesUnordered::new();
    poll_fn(|context| {
        while let Poll::Ready(call) = handed_over.poll_recv(context) {
            match call {
                Some(call) => under_way.push(call),
                None => return Poll::Ready(()),
            }
        }
        while let Poll::Ready(Some(())) = under_way.poll_next_unpin(context) {}
        Poll::Pending
    })
    .await;
}

/// A call that was handed over.
struct Pending<A> {
    service: &'static str,
    answered: oneshot::Receiver<std::result::Result<A, Failure>>,
}

impl<A> Pending<A> {
    fn wait(self) -> Result<A> {
        match self.answered.blocking_recv() {
            Ok(answer) => answer.map_err(|failure| failure.for_client(self.service)),
            Err(_) => Err(ServiceError::new(
                ErrorCode::ServiceUnavailable,
                "The gateway is stopping",
            )),
        }
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(SHUTDOWN);
        }
    }
}

impl Services for Grpc {
    fn validate_token(&self, request: ValidateTokenRequest) -> Result<ValidateTokenResponse> {
        self.call(&self.user, true, request, |channel, request| async move {
            user(channel).validate_token(request).await
        })
    }

    fn group_members(&self, request: GetGroupMembersRequest, told: Told<Vec<String>>) {
        let name = self.user.name;
        self.hand_over(
            &self.user,
            true,
            request,
            |channel, request| async move { user(channel).get_group_members(request).await },
            move |answer| match answer {
                Ok(answer) => told(Ok(answer.user_ids)),
                Err(failure) => told(Err(failure.for_client(name))),
            },
        );
    }

    fn send_message(&self, request: SendMessageRequest) -> Result<SendMessageResponse> {
        let repeatable = !request.client_message_id.is_empty();
        self.call(
            &self.message,
            repeatable,
            request,
            |channel, request| async move { message(channel).send_message(request).await },
        )
        .and_then(sent)
    }

    fn send_group_message(&self, request: SendGroupMessageRequest) -> Result<SendMessageResponse> {
        let repeatable = !request.client_message_id.is_empty();
        self.call(
            &self.message,
            repeatable,
            request,
            |channel, request| async move { message(channel).send_group_message(request).await },
        )
        .and_then(sent)
    }

    fn history(&self, request: GetHistoryRequest) -> Result<GetHistoryResponse> {
        self.call(
            &self.message,
            true,
            request,
            |channel, request| async move { message(channel).get_history(request).await },
        )
    }

    fn group_history(&self, request: GetGroupHistoryRequest) -> Result<GetHistoryResponse> {
        self.call(
            &self.message,
            true,
            request,
            |channel, request| async move { message(channel).get_group_history(request).await },
        )
    }

    fn offline_messages(
        &self,
        request: GetOfflineMessagesRequest,
    ) -> Result<GetOfflineMessagesResponse> {
        self.call(
            &self.message,
            true,
            request,
            |channel, request| async move { message(channel).get_offline_messages(request).await },
        )
    }

    fn ack_messages(&self, request: AckMessagesRequest) -> Result<()> {
        self.call(
            &self.message,
            true,
            request,
            |channel, request| async move { message(channel).ack_messages(request).await },
        )
        .map(drop)
    }

    fn users_online(&self, requests: Vec<UserOnlineRequest>) -> Vec<Result<()>> {
        let begin = |request| {
            self.begin(
                &self.presence,
                true,
                request,
                |channel, request| async move { presence(channel).user_online(request).await },
            )
        };
        wait_for_all(requests.into_iter().map(begin))
    }

    fn users_offline(&self, requests: Vec<UserOfflineRequest>) -> Vec<Result<()>> {
        let begin = |request| {
            self.begin(
                &self.presence,
                true,
                request,
                |channel, request| async move { presence(channel).user_offline(request).await },
            )
        };
        wait_for_all(requests.into_iter().map(begin))
    }

    fn renew_lease(&self, request: RenewLeaseRequest) -> Result<bool> {
        let answer = self.call(
            &self.presence,
            true,
            request,
            |channel, request| async move { presence(channel).renew_lease(request).await },
        )?;
        Ok(answer.known)
    }
}

/// Begins all before it waits for the first.
fn wait_for_all<A>(calls: impl Iterator<Item = Pending<A>>) -> Vec<Result<()>> {
    let begun: Vec<_> = calls.collect();
    begun
        .into_iter()
        .map(|call| call.wait().map(drop))
        .collect()
}

/// An answer without an id is none: the client could acknowledge nothing.
fn sent(answer: SendMessageResponse) -> Result<SendMessageResponse> {
    if answer.id.is_empty() {
        let error = ServiceError::new(ErrorCode::Internal, "The Message Service failed");
        return Err(ServiceError {
            cause: "an answer without an id".into(),
            ..error
        });
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
        let there = config::Addresses::one(format!("http://{free}"));
        let config = config::Services {
            user: there.clone(),
            message: there.clone(),
            presence: there,
            ..config::Services::default()
        };
        let failed = Grpc::start(&config)
            .unwrap()
            .validate_token(ValidateTokenRequest::default());
        let failed = failed.unwrap_err();
        assert_eq!(failed.code, ErrorCode::ServiceUnavailable);
        assert!(failed.cause.to_lowercase().contains("refused"), "{failed}");
    }
}
