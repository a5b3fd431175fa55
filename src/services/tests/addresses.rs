//! The addresses of a service are exchanged while it is called, with real servers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::config;
use crate::services::grpc::Grpc;
use crate::services::proto::user_service_server::{UserService, UserServiceServer};
use crate::services::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A User Service to which every token is that of its own address.
struct Server {
    url: String,
    state: Arc<State>,
    runtime: Runtime,
    served: JoinHandle<()>,
    leave: oneshot::Sender<()>,
}

struct State {
    url: String,
    /// Calls, but no pings.
    calls: AtomicUsize,
    clients: Mutex<HashSet<SocketAddr>>,
    is_down: AtomicBool,
    /// Lets the token `held` through.
    gate: Semaphore,
}

impl Server {
    fn start() -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let within = runtime.enter();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let incoming = incoming.with_nodelay(Some(true));
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let state = Arc::new(State {
            url: url.clone(),
            calls: AtomicUsize::new(0),
            clients: Mutex::default(),
            is_down: AtomicBool::new(false),
            gate: Semaphore::new(0),
        });
        let (leave, told_to_leave) = oneshot::channel::<()>();
        let server = tonic::transport::Server::builder()
            .add_service(UserServiceServer::from_arc(Arc::clone(&state)))
            .serve_with_incoming_shutdown(incoming, async { drop(told_to_leave.await) });
        let served = tokio::spawn(async { server.await.unwrap() });
        drop(within);
        Self {
            url,
            state,
            runtime,
            served,
            leave,
        }
    }

    /// Ends once the calls under way are answered.
    fn stop_gracefully(self) {
        drop(self.leave);
        self.runtime.block_on(self.served).unwrap();
        self.runtime.shutdown_background();
    }

    fn calls(&self) -> usize {
        self.state.calls.load(SeqCst)
    }

    fn connections(&self) -> usize {
        self.state.clients.lock().len()
    }
}

#[tonic::async_trait]
impl UserService for State {
    async fn validate_token(
        &self,
        request: Request<ValidateTokenRequest>,
    ) -> std::result::Result<Response<ValidateTokenResponse>, Status> {
        self.clients.lock().extend(request.remote_addr());
        let token = request.into_inner().token;
        self.calls.fetch_add(usize::from(!token.is_empty()), SeqCst);
        if self.is_down.load(SeqCst) {
            return Err(Status::unavailable("as told"));
        }
        if token == "held" {
            self.gate.acquire().await.unwrap().forget();
        }
        Ok(Response::new(ValidateTokenResponse {
            user_id: self.url.clone(),
            expires_at: 0,
        }))
    }

    async fn get_group_members(
        &self,
        _: Request<GetGroupMembersRequest>,
    ) -> std::result::Result<Response<GetGroupMembersResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

fn urls(servers: &[&Server]) -> Vec<String> {
    servers.iter().map(|server| server.url.clone()).collect()
}

/// The User Service is at these servers; the others are nowhere.
fn at(servers: &[&Server]) -> (Grpc, Arc<Upstream>) {
    let config = config::Services {
        user: urls(servers),
        timeout: DEADLINE,
        ..config::Services::default()
    };
    let services = Grpc::start(&config, None).unwrap();
    let [user, ..] = services.upstreams();
    (services, user)
}

/// Where the call was answered.
fn ask(services: &Grpc, token: &str) -> Result<String> {
    let token = token.to_owned();
    let answer = services.validate_token(ValidateTokenRequest { token })?;
    Ok(answer.user_id)
}

/// Each call may be processed only once: none is saved by being repeated.
#[test]
fn addresses_are_exchanged_under_load_and_no_call_fails() {
    let mut server = Server::start();
    let (_services, user) = at(&[&server]);
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let (over, end) = (AtomicBool::new(false), Instant::now() + 3 * DEADLINE);
    let answers = [(); 4].map(|()| AtomicUsize::new(0));
    thread::scope(|scope| {
        for answered in &answers {
            let (over, user, runtime) = (&over, &user, &runtime);
            scope.spawn(move || {
                let token = "x".into();
                let request = ValidateTokenRequest { token };
                let mut request = unary::Request::new("/im.v1.UserService/ValidateToken", &request);
                request.idempotent = false;
                while !over.load(SeqCst) && Instant::now() < end {
                    let deadline = Instant::now() + DEADLINE;
                    let answer = runtime.block_on(user.ask(&request, deadline.into()));
                    answer.unwrap_or_else(|failure| panic!("{failure:?}"));
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        let counts = || answers.each_ref().map(|answered| answered.load(SeqCst));
        for _ in 0..20 {
            wait_until("it is called", || server.calls() > 20);
            let next = Server::start();
            user.set_addresses(&urls(&[&next])).unwrap();
            // Whoever was on the way to the old one has its answer. A request that meets a socket which
            // is just closed breaks the pipe, and nobody could say what became of it.
            let before = counts();
            wait_until("all have gone on", || {
                counts()
                    .iter()
                    .zip(before)
                    .all(|(now, before)| *now > before)
            });
            std::mem::replace(&mut server, next).stop_gracefully();
        }
        over.store(true, SeqCst);
    });
}

#[test]
fn a_call_under_way_ends_at_the_address_that_it_has() {
    let (first, second) = (Server::start(), Server::start());
    let (services, user) = at(&[&first]);
    thread::scope(|scope| {
        let held = scope.spawn(|| ask(&services, "held"));
        wait_until("it is there", || first.calls() == 1);
        user.set_addresses(&urls(&[&second])).unwrap();
        assert_eq!(ask(&services, "x").unwrap(), second.url);
        first.state.gate.add_permits(1);
        assert_eq!(held.join().unwrap().unwrap(), first.url);
    });
}

#[test]
fn an_address_in_both_sets_keeps_its_connection_and_its_health() {
    let [bad, good, other] = [(); 3].map(|()| Server::start());
    bad.state.is_down.store(true, SeqCst);
    let (services, user) = at(&[&bad, &good]);
    for servers in [
        [&bad, &good],
        [&good, &bad],
        [&other, &bad],
        [&good, &other],
    ] {
        user.set_addresses(&urls(&servers)).unwrap();
        for _ in 0..10 {
            ask(&services, "x").unwrap();
        }
    }
    assert_eq!(bad.calls(), 1, "it rests");
    assert_eq!((bad.connections(), other.connections()), (1, 1));
    assert_eq!(good.connections(), 2, "it was away in between");
    // Whoever comes back is as good as any newcomer.
    user.set_addresses(&urls(&[&bad, &other])).unwrap();
    for _ in 0..10 {
        ask(&services, "x").unwrap();
    }
    assert_eq!(bad.calls(), 2);
    bad.state.is_down.store(false, SeqCst);
    wait_until("it answers again", || {
        ask(&services, "x").unwrap();
        bad.calls() > 2
    });
}

#[test]
fn without_an_address_a_call_fails_at_once_and_says_so() {
    let server = Server::start();
    let (services, user) = at(&[&server]);
    user.set_addresses(&[]).unwrap();
    let start = Instant::now();
    let error = ask(&services, "x").unwrap_err();
    assert!(start.elapsed() < DEADLINE / 2);
    assert_eq!(error.code, ErrorCode::ServiceUnavailable);
    assert!(error.is_out_of_reach());
    assert_eq!(
        error.to_string(),
        "SERVICE_UNAVAILABLE: The User Service is not available (no address of it is known)"
    );
    user.set_addresses(&urls(&[&server])).unwrap();
    ask(&services, "x").unwrap();
    let error = user.set_addresses(&["no address".into()]).unwrap_err();
    assert_eq!(error, "User Service at [\"no address\"]: invalid URI");
    assert_eq!(ask(&services, "x").unwrap(), server.url, "as before");
    // Nobody calls any more.
    drop(services);
    user.set_addresses(&urls(&[&server])).unwrap();
}
