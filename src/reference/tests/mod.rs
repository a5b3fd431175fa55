//! The services as their callers see them: over gRPC, and through a publisher that records.

mod lifecycle;
mod messages;
mod outbox;
mod presence;
mod users;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use parking_lot::{Condvar, Mutex};
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::publisher::{Outcome, Publication, PublishError, Publisher};
use super::{Reference, ReferenceError};
use crate::backoff::Backoff;
use crate::config::{Embedded, Token};
use crate::services::proto::message_service_client::MessageServiceClient;
use crate::services::proto::presence_service_client::PresenceServiceClient;
use crate::services::proto::user_service_client::UserServiceClient;
use crate::services::proto::{
    AckMessagesRequest, GetGroupHistoryRequest, GetHistoryRequest, GetHistoryResponse,
    GetOfflineMessagesRequest, GetOfflineMessagesResponse, Message, SendGroupMessageRequest,
    SendMessageRequest, SendMessageResponse,
};

/// No wait in a test is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A publisher that records, and fails on demand.
#[derive(Clone, Default)]
struct Published(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

type SupervisorLoop = Box<dyn FnMut(&Publication) + Send>;

#[derive(Default)]
struct State {
    publications: VecDeque<Publication>,
    /// Calls that fail from now on.
    failures: usize,
    attempts: usize,
    /// Publications with these routing keys are refused.
    refused: BTreeSet<String>,
    refusals: usize,
    /// Calls do not return until this is false.
    stuck: bool,
    /// Called with each publication that succeeds.
    watch: Option<SupervisorLoop>,
    outcomes: Vec<(u64, Outcome)>,
    /// Routing keys of publications whose outcome is not told yet.
    in_flight: BTreeSet<String>,
    most_in_flight: usize,
}

impl Publisher for Published {
    fn publish(&mut self, ticket: u64, publication: &Publication) -> Result<(), PublishError> {
        let mut state = self.0.state.lock();
        state.attempts += 1;
        self.0.changed.notify_all();
        while state.stuck {
            self.0.changed.wait(&mut state);
        }
        if state.failures > 0 {
            state.failures -= 1;
            state.outcomes.clear();
            state.in_flight.clear();
            return Err(PublishError("the broker is away".into()));
        }
        let key = publication.routing_key.clone();
        assert!(state.in_flight.insert(key), "one of a key at a time");
        state.most_in_flight = state.most_in_flight.max(state.in_flight.len());
        if state.refused.contains(&publication.routing_key) {
            state.refusals += 1;
            state.outcomes.push((ticket, Outcome::Refused));
        } else {
            if let Some(watch) = &mut state.watch {
                watch(publication);
            }
            state.publications.push_back(publication.clone());
            state.outcomes.push((ticket, Outcome::Published));
        }
        self.0.changed.notify_all();
        Ok(())
    }

    fn outcomes(
        &mut self,
        deadline: Instant,
        wake: &Receiver<()>,
    ) -> Result<Vec<(u64, Outcome)>, PublishError> {
        let mut state = self.0.state.lock();
        let outcomes = std::mem::take(&mut state.outcomes);
        state.in_flight.clear();
        drop(state);
        if outcomes.is_empty() {
            let _ = wake.recv_deadline(deadline);
        }
        Ok(outcomes)
    }
}

impl Published {
    fn fail(&self, calls: usize) {
        self.0.state.lock().failures = calls;
    }

    fn refuse(&self, keys: impl IntoIterator<Item = String>) {
        self.0.state.lock().refused = keys.into_iter().collect();
    }

    fn stick(&self, stuck: bool) {
        self.0.state.lock().stuck = stuck;
        self.0.changed.notify_all();
    }

    fn watch(&self, watch: impl FnMut(&Publication) + Send + 'static) {
        self.0.state.lock().watch = Some(Box::new(watch));
    }

    fn wait_for(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.state.lock();
        while !reached(&state) {
            let timed_out = self.0.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!timed_out, "no {what}: {:?}", state.publications);
        }
    }

    /// Waits for the next `count` publications, and takes them.
    fn take(&self, count: usize) -> Vec<Publication> {
        self.wait_for("publications", |state| state.publications.len() >= count);
        self.0.state.lock().publications.drain(..count).collect()
    }

    /// As [`take`](Self::take): exchange, routing key, kind and content of `count` messages.
    fn take_messages(&self, count: usize) -> Vec<(String, String, String)> {
        let message = |publication: Publication| {
            assert_eq!(publication.kind, "message");
            let body = Message::decode(publication.body.as_slice()).unwrap();
            (publication.exchange, publication.routing_key, body.content)
        };
        self.take(count).into_iter().map(message).collect()
    }
}

/// Running services with a client. The client's runtime goes first, so that its connections are
/// closed when the services stop.
struct Rig {
    runtime: Runtime,
    users: UserServiceClient<Channel>,
    messages: MessageServiceClient<Channel>,
    presence: PresenceServiceClient<Channel>,
    published: Published,
    reference: Reference,
}

impl Rig {
    /// Alice, bob and carol in `team`, nothing kept.
    fn new() -> Self {
        Self::with(&sample(Path::new(":memory:")))
    }

    fn with(embedded: &Embedded) -> Self {
        Self::start(embedded, Published::default())
    }

    fn start(embedded: &Embedded, published: Published) -> Self {
        let reference = start(embedded, &published, any_port()).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("http://{}", reference.addr());
        let channel = Channel::from_shared(url).unwrap().connect_timeout(PATIENCE);
        let channel = runtime.block_on(channel.connect()).unwrap();
        Self {
            runtime,
            users: UserServiceClient::new(channel.clone()),
            messages: MessageServiceClient::new(channel.clone())
                .max_decoding_message_size(16 << 20)
                .max_encoding_message_size(usize::MAX),
            presence: PresenceServiceClient::new(channel),
            published,
            reference,
        }
    }

    /// The answer to a call.
    fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, call).await });
        answer.expect("no answer").map(Response::into_inner)
    }

    fn send_request(&self, request: SendMessageRequest) -> Result<SendMessageResponse, Status> {
        self.wait(self.messages.clone().send_message(request))
    }

    fn send(&self, from: &str, to: &str, content: &str) -> SendMessageResponse {
        self.send_request(single(from, to, content, "")).unwrap()
    }

    fn send_group_request(
        &self,
        request: SendGroupMessageRequest,
    ) -> Result<SendMessageResponse, Status> {
        self.wait(self.messages.clone().send_group_message(request))
    }

    fn send_group(&self, from: &str, group: &str, content: &str) -> SendMessageResponse {
        self.send_group_request(in_group(from, group, content, ""))
            .unwrap()
    }

    fn history(
        &self,
        user: &str,
        peer: &str,
        before_id: &str,
        limit: i32,
    ) -> Result<GetHistoryResponse, Status> {
        let (user_id, peer_id, before_id) = (user.into(), peer.into(), before_id.into());
        let request = GetHistoryRequest {
            user_id,
            peer_id,
            before_id,
            limit,
        };
        self.wait(self.messages.clone().get_history(request))
    }

    fn group_history(
        &self,
        user: &str,
        group: &str,
        before_id: &str,
        limit: i32,
    ) -> Result<GetHistoryResponse, Status> {
        let (user_id, group_id, before_id) = (user.into(), group.into(), before_id.into());
        let request = GetGroupHistoryRequest {
            user_id,
            group_id,
            before_id,
            limit,
        };
        self.wait(self.messages.clone().get_group_history(request))
    }

    fn offline(
        &self,
        user: &str,
        after_id: &str,
        limit: i32,
    ) -> Result<GetOfflineMessagesResponse, Status> {
        let (user_id, after_id) = (user.into(), after_id.into());
        let request = GetOfflineMessagesRequest {
            user_id,
            after_id,
            limit,
        };
        self.wait(self.messages.clone().get_offline_messages(request))
    }

    /// What is unread, up to 100 messages.
    fn unread(&self, user: &str) -> Vec<String> {
        contents(&self.offline(user, "", 100).unwrap().messages)
    }

    fn ack(&self, user: &str, ids: &[&str]) -> Result<(), Status> {
        let message_ids = ids.iter().map(|id| (*id).into()).collect();
        let request = AckMessagesRequest {
            user_id: user.into(),
            message_ids,
        };
        self.wait(self.messages.clone().ack_messages(request))
            .map(drop)
    }

    /// Makes the database refuse to be written, or not any more.
    fn refuse_writes(&self, refuse: bool) {
        let set = move |connection: &rusqlite::Connection| {
            connection.pragma_update(None, "query_only", refuse)
        };
        self.reference.store.blocking_query(set).unwrap();
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn start(
    embedded: &Embedded,
    published: &Published,
    listen: SocketAddr,
) -> Result<Reference, ReferenceError> {
    let first = Duration::from_millis(1);
    let backoff = Backoff::new(first, first * 4);
    let (fatal, _died) = crossbeam::channel::unbounded();
    Reference::start_with(
        listen,
        embedded,
        Box::new(published.clone()),
        backoff,
        &fatal,
    )
}

/// The sample tokens and group, with another database.
fn sample(database: &Path) -> Embedded {
    Embedded {
        database: database.into(),
        ..Embedded::default()
    }
}

fn group(embedded: &mut Embedded, name: &str, members: &[&str]) {
    let members = members.iter().map(|member| (*member).into()).collect();
    embedded.groups.insert(name.into(), members);
}

fn token(embedded: &mut Embedded, token: &str, user: &str) {
    embedded
        .tokens
        .insert(token.into(), Token::Unlimited(user.into()));
}

fn single(from: &str, to: &str, content: &str, client_message_id: &str) -> SendMessageRequest {
    SendMessageRequest {
        from_user_id: from.into(),
        to_user_id: to.into(),
        content: content.into(),
        message_type: "text".into(),
        client_message_id: client_message_id.into(),
    }
}

fn in_group(
    from: &str,
    group: &str,
    content: &str,
    client_message_id: &str,
) -> SendGroupMessageRequest {
    SendGroupMessageRequest {
        from_user_id: from.into(),
        group_id: group.into(),
        content: content.into(),
        message_type: "text".into(),
        client_message_id: client_message_id.into(),
    }
}

fn contents(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .map(|message| message.content.clone())
        .collect()
}

/// The code of a call that was refused.
fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}
