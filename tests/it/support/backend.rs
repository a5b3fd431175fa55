//! A backend that does what a test tells it: answers, delays and errors for each call, and servers
//! that speak no gRPC at all. In this process, on a runtime of its own.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use ws_gateway::services::proto::message_service_server::{MessageService, MessageServiceServer};
use ws_gateway::services::proto::presence_service_server::{
    PresenceService, PresenceServiceServer,
};
use ws_gateway::services::proto::user_service_server::{UserService, UserServiceServer};
use ws_gateway::services::proto::*;

use super::wait::DEADLINE;

/// The three services. By default the token `<user>-token` lets `<user>` in, a message is accepted
/// and goes nowhere, and there is no group, no history and nothing unread.
pub struct Backend {
    pub addr: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
    leave: Arc<Notify>,
    served: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    rules: Mutex<HashMap<&'static str, Rule>>,
    /// For `GetGroupMembers` of one group alone.
    group_rules: Mutex<HashMap<String, Rule>>,
    answers: Mutex<Answers>,
    calls: Mutex<HashMap<&'static str, Calls>>,
}

/// How often a call came.
#[derive(Clone, Copy, Default)]
struct Calls {
    total: u64,
    under_way: u64,
    /// The most that were under way at a time.
    peak: u64,
}

/// A call that is under way, also when its caller gives up.
struct UnderWay<'a>(&'a State, &'static str);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut calls = self.0.calls.lock().unwrap();
        calls.entry(self.1).or_default().under_way -= 1;
    }
}

/// What a call does before it is answered, named as in the contract (`"SendMessage"`).
#[derive(Clone, Default)]
struct Rule {
    delay: Duration,
    error: Option<Status>,
}

/// What `GetOfflineMessages` answers.
pub type Pages =
    Box<dyn FnMut(GetOfflineMessagesRequest) -> Result<GetOfflineMessagesResponse, Status> + Send>;

/// What `ValidateToken` answers.
pub type Tokens = Box<dyn FnMut(&str) -> Result<ValidateTokenResponse, Status> + Send>;

/// The token `<user>-token` is `<user>`'s, for ever.
pub fn identity(token: &str) -> Result<ValidateTokenResponse, Status> {
    let user = token
        .strip_suffix("-token")
        .ok_or(Status::unauthenticated("no such token"))?;
    Ok(ValidateTokenResponse {
        user_id: user.into(),
        expires_at: 0,
    })
}

/// A service to which `inbox` is unread, for whoever asks.
pub fn inbox(inbox: Vec<Message>) -> Pages {
    Box::new(move |request| {
        let position = inbox.iter().position(|m| m.id == request.after_id);
        let rest = &inbox[position.map_or(0, |position| position + 1)..];
        let page = rest.len().min(request.limit as usize);
        Ok(GetOfflineMessagesResponse {
            messages: rest[..page].to_vec(),
            has_more: page < rest.len(),
        })
    })
}

impl Rule {
    async fn follow(self) -> Result<(), Status> {
        tokio::time::sleep(self.delay).await;
        self.error.map_or(Ok(()), Err)
    }
}

/// What is answered, where it is not the default.
#[derive(Default)]
pub struct Answers {
    pub token: Option<ValidateTokenResponse>,
    pub members: HashMap<String, Vec<String>>,
    pub sent: Option<SendMessageResponse>,
    pub history: GetHistoryResponse,
    pub offline: GetOfflineMessagesResponse,
    /// In place of `offline`.
    pub pages: Option<Pages>,
    /// In place of `token`.
    pub tokens: Option<Tokens>,
    pub lease_unknown: bool,
}

impl Backend {
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts one at an address that was given away before.
    pub fn start_at(addr: SocketAddr) -> Self {
        let state = Arc::new(State::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fake-backend")
            .enable_all()
            .build()
            .expect("a runtime");
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::bind(addr)
                .expect("an address to listen at")
                .with_nodelay(Some(true))
        };
        let addr = incoming.local_addr().expect("a bound address");
        let leave = Arc::new(Notify::new());
        let server = tonic::transport::Server::builder()
            .add_service(UserServiceServer::new(Fake(Arc::clone(&state))))
            .add_service(MessageServiceServer::new(Fake(Arc::clone(&state))))
            .add_service(PresenceServiceServer::new(Fake(Arc::clone(&state))))
            .serve_with_incoming_shutdown(incoming, {
                let leave = Arc::clone(&leave);
                async move { leave.notified().await }
            });
        let served = Some(runtime.spawn(async {
            server.await.expect("it serves");
        }));
        Self {
            addr,
            state,
            runtime: Some(runtime),
            leave,
            served,
        }
    }

    /// Stops as a server does that is to be restarted: GOAWAY, and the calls under way are answered.
    pub fn stop_gracefully(mut self) {
        self.leave.notify_one();
        let served = self.served.take().expect("stopped once");
        let runtime = self.runtime.as_ref().expect("dropped later");
        runtime
            .block_on(async { tokio::time::timeout(DEADLINE, served).await })
            .expect("it ends in time")
            .expect("no panic");
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From now on this call fails with `code`.
    pub fn fail(&self, call: &'static str, code: Code) {
        self.fail_with(call, Status::new(code, format!("{call} was told to fail")));
    }

    /// From now on this call fails with `status`.
    pub fn fail_with(&self, call: &'static str, status: Status) {
        let error = Some(status);
        let delay = Duration::ZERO;
        self.rule(call, Rule { delay, error });
    }

    /// From now on this call takes so long before it is answered.
    pub fn slow(&self, call: &'static str, delay: Duration) {
        self.rule(call, Rule { delay, error: None });
    }

    /// Ends [`fail`](Self::fail) and [`slow`](Self::slow).
    pub fn heal(&self, call: &'static str) {
        self.rule(call, Rule::default());
    }

    /// From now on `GetGroupMembers` fails with `code` for this group.
    pub fn fail_group(&self, group: &str, code: Code) {
        let rule = Rule {
            error: Some(Status::new(code, "it was told to fail")),
            ..Rule::default()
        };
        self.group_rule(group, rule);
    }

    /// From now on `GetGroupMembers` takes so long for this group.
    pub fn slow_group(&self, group: &str, delay: Duration) {
        self.group_rule(group, Rule { delay, error: None });
    }

    /// Ends [`fail_group`](Self::fail_group) and [`slow_group`](Self::slow_group).
    pub fn heal_group(&self, group: &str) {
        self.group_rule(group, Rule::default());
    }

    fn group_rule(&self, group: &str, rule: Rule) {
        let mut rules = self.state.group_rules.lock().unwrap();
        rules.insert(group.into(), rule);
    }

    /// Changes what is answered.
    pub fn answer(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.state.answers.lock().unwrap());
    }

    /// How often this call came.
    pub fn calls(&self, call: &'static str) -> u64 {
        self.counted(call).total
    }

    /// How many of this call were under way at a time, at most.
    pub fn peak(&self, call: &'static str) -> u64 {
        self.counted(call).peak
    }

    fn counted(&self, call: &'static str) -> Calls {
        let calls = self.state.calls.lock().unwrap();
        calls.get(call).copied().unwrap_or_default()
    }

    fn rule(&self, call: &'static str, rule: Rule) {
        self.state.rules.lock().unwrap().insert(call, rule);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Open calls are dropped with their connections.
        self.runtime
            .take()
            .expect("dropped once")
            .shutdown_background();
    }
}

struct Fake(Arc<State>);

impl Fake {
    /// Counts the call and does what its rule says.
    async fn came(&self, call: &'static str) -> Result<(), Status> {
        let _under_way = self.count(call);
        let rule = self.0.rules.lock().unwrap().get(call).cloned();
        rule.unwrap_or_default().follow().await
    }

    fn count(&self, call: &'static str) -> UnderWay<'_> {
        let mut calls = self.0.calls.lock().unwrap();
        let counted = calls.entry(call).or_default();
        counted.total += 1;
        counted.under_way += 1;
        counted.peak = counted.peak.max(counted.under_way);
        UnderWay(&self.0, call)
    }

    /// Counts the call, does what its rule says, and answers.
    async fn answer<T>(
        &self,
        call: &'static str,
        answer: impl FnOnce(&mut Answers) -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        self.came(call).await?;
        answer(&mut self.0.answers.lock().unwrap()).map(Response::new)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl UserService for Fake {
    async fn validate_token(
        &self,
        request: Request<ValidateTokenRequest>,
    ) -> Answer<ValidateTokenResponse> {
        let token = request.into_inner().token;
        self.answer("ValidateToken", |answers| {
            if let Some(tokens) = &mut answers.tokens {
                return tokens(&token);
            }
            let usual = identity(&token)?;
            Ok(answers.token.clone().unwrap_or(usual))
        })
        .await
    }

    async fn get_group_members(
        &self,
        request: Request<GetGroupMembersRequest>,
    ) -> Answer<GetGroupMembersResponse> {
        let group = request.into_inner().group_id;
        let rule = self.0.group_rules.lock().unwrap().get(&group).cloned();
        rule.unwrap_or_default().follow().await?;
        self.answer("GetGroupMembers", |answers| {
            let members = answers.members.get(&group).cloned();
            let user_ids = members.ok_or(Status::not_found("no such group"))?;
            Ok(GetGroupMembersResponse { user_ids })
        })
        .await
    }
}

#[tonic::async_trait]
impl MessageService for Fake {
    async fn send_message(&self, _: Request<SendMessageRequest>) -> Answer<SendMessageResponse> {
        self.answer("SendMessage", |answers| Ok(sent(answers)))
            .await
    }

    async fn send_group_message(
        &self,
        _: Request<SendGroupMessageRequest>,
    ) -> Answer<SendMessageResponse> {
        self.answer("SendGroupMessage", |answers| Ok(sent(answers)))
            .await
    }

    async fn get_history(&self, _: Request<GetHistoryRequest>) -> Answer<GetHistoryResponse> {
        self.answer("GetHistory", |answers| Ok(answers.history.clone()))
            .await
    }

    async fn get_group_history(
        &self,
        _: Request<GetGroupHistoryRequest>,
    ) -> Answer<GetHistoryResponse> {
        self.answer("GetGroupHistory", |answers| Ok(answers.history.clone()))
            .await
    }

    async fn get_offline_messages(
        &self,
        request: Request<GetOfflineMessagesRequest>,
    ) -> Answer<GetOfflineMessagesResponse> {
        let request = request.into_inner();
        self.answer("GetOfflineMessages", |answers| match &mut answers.pages {
            Some(pages) => pages(request),
            None => Ok(answers.offline.clone()),
        })
        .await
    }

    async fn ack_messages(&self, _: Request<AckMessagesRequest>) -> Answer<AckMessagesResponse> {
        self.answer("AckMessages", |_| Ok(AckMessagesResponse {}))
            .await
    }
}

#[tonic::async_trait]
impl PresenceService for Fake {
    async fn user_online(&self, _: Request<UserOnlineRequest>) -> Answer<UserOnlineResponse> {
        self.answer("UserOnline", |_| Ok(UserOnlineResponse {}))
            .await
    }

    async fn user_offline(&self, _: Request<UserOfflineRequest>) -> Answer<UserOfflineResponse> {
        self.answer("UserOffline", |_| Ok(UserOfflineResponse {}))
            .await
    }

    async fn renew_lease(&self, _: Request<RenewLeaseRequest>) -> Answer<RenewLeaseResponse> {
        self.answer("RenewLease", |answers| {
            Ok(RenewLeaseResponse {
                known: !answers.lease_unknown,
            })
        })
        .await
    }
}

fn sent(answers: &Answers) -> SendMessageResponse {
    let usual = SendMessageResponse {
        id: "m1".into(),
        timestamp: 1_700_000_000,
    };
    answers.sent.clone().unwrap_or(usual)
}

/// A server that answers whatever comes with something that is no gRPC. It ends with this process.
pub fn garbage_server() -> String {
    let garbage = Garbage::start_at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let url = format!("http://{}", garbage.addr);
    std::mem::forget(garbage);
    url
}

/// A server that answers whatever comes with something that is no gRPC.
pub struct Garbage {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Garbage {
    pub fn start_at(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).expect("a port");
        let addr = listener.local_addr().expect("a bound address");
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.load(SeqCst) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                thread::spawn(move || {
                    let mut bytes = [0; 1024];
                    while matches!(stream.read(&mut bytes), Ok(1..)) {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                        let _ = stream.write_all(answer);
                    }
                });
            }
        });
        let thread = Some(thread);
        Self { addr, over, thread }
    }
}

impl Drop for Garbage {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A server that takes connections and never answers, as long as the listener lives.
pub fn silent_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("a bound address"));
    (listener, url)
}
