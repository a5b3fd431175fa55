//! Services that are down, slow, or talk nonsense: each request has its answer in time, everybody
//! else goes on, and nobody is let in whom the User Service did not let in.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;
use ws_gateway::services::proto::{Message, ValidateTokenResponse};

use crate::scenarios::flow::Load;
use crate::scenarios::services;
use crate::support::amqp::Amqp;
use crate::support::backend::{Backend, Garbage};
use crate::support::broker::{Broker, free_port};
use crate::support::client::error_message;
use crate::support::cluster::remote;
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings, wait_until};

const TIMEOUT: Duration = Duration::from_millis(500);
/// What an answer may take beyond the deadline of its call.
const GRACE: Duration = Duration::from_millis(200);
/// Two cores that are busy with other tests may hold up an answer: one of so many is in time.
const TRIES: usize = 4;
const SLOW: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Nobody listens.
    Down,
    /// Its calls take 10 s.
    Slow,
    /// It accepts connections and says nothing.
    Silent,
    /// It speaks no gRPC.
    Garbage,
    Error(Code, &'static str),
}

const FAULTS: [Fault; 7] = [
    Fault::Down,
    Fault::Slow,
    Fault::Silent,
    Fault::Garbage,
    Fault::Error(Code::Unavailable, "SERVICE_UNAVAILABLE"),
    Fault::Error(Code::Internal, "INTERNAL"),
    Fault::Error(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
];

impl Fault {
    /// The error codes that a request may be answered with.
    fn codes(self) -> &'static [&'static str] {
        match self {
            Self::Down => &["SERVICE_UNAVAILABLE"],
            Self::Slow => &["DEADLINE_EXCEEDED"],
            Self::Silent => &["DEADLINE_EXCEEDED", "SERVICE_UNAVAILABLE"],
            Self::Garbage => &["SERVICE_UNAVAILABLE", "INTERNAL"],
            Self::Error(_, "SERVICE_UNAVAILABLE") => &["SERVICE_UNAVAILABLE"],
            Self::Error(_, "DEADLINE_EXCEEDED") => &["DEADLINE_EXCEEDED"],
            Self::Error(..) => &["INTERNAL"],
        }
    }
}

/// A service that can be put out of order.
struct Faulty {
    addr: SocketAddr,
    calls: &'static [&'static str],
    state: State,
}

enum State {
    Well(Backend),
    Silent { _listener: TcpListener },
    Garbage { _server: Garbage },
    Gone,
}

impl Faulty {
    fn start(calls: &'static [&'static str]) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let state = State::Well(backend_at(addr));
        Self { addr, calls, state }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn fails(&mut self, fault: Fault) {
        if let (Fault::Slow | Fault::Error(..), State::Well(backend)) = (fault, &self.state) {
            for call in self.calls {
                match fault {
                    Fault::Error(code, _) => backend.fail(call, code),
                    _ => backend.slow(call, SLOW),
                }
            }
            return;
        }
        self.state = State::Gone;
        wait_until("its port is free", || TcpListener::bind(self.addr).is_ok());
        match fault {
            Fault::Silent => {
                let listener = TcpListener::bind(self.addr).expect("a free port");
                self.state = State::Silent {
                    _listener: listener,
                };
            }
            Fault::Garbage => {
                let server = Garbage::start_at(self.addr);
                self.state = State::Garbage { _server: server };
            }
            _ => {}
        }
    }

    fn heals(&mut self) {
        self.state = State::Gone;
        wait_until("its port is free", || TcpListener::bind(self.addr).is_ok());
        self.state = State::Well(backend_at(self.addr));
    }
}

fn backend_at(addr: SocketAddr) -> Backend {
    let backend = Backend::start_at(addr);
    backend.answer(|answers| {
        for fault in FAULTS {
            let group = format!("{fault:?}");
            answers.members.insert(group, vec!["bob".into()]);
        }
    });
    backend
}

/// A gateway on three services, and two users.
struct Stand {
    gateway: Gateway,
    amqp: Amqp,
    alice: Client,
    bob: Client,
    user: Faulty,
    message: Faulty,
    presence: Faulty,
    published: usize,
}

impl Stand {
    fn start() -> Self {
        let user = Faulty::start(&["ValidateToken", "GetGroupMembers"]);
        let message = Faulty::start(&[
            "SendMessage",
            "SendGroupMessage",
            "GetHistory",
            "GetGroupHistory",
            "GetOfflineMessages",
            "AckMessages",
        ]);
        let presence = Faulty::start(&["UserOnline", "UserOffline", "RenewLease"]);
        let broker = Broker::shared().vhost();
        let settings = remote(&Settings::new(), &user.url(), &broker)
            .set("services.message", message.url())
            .set("services.presence", presence.url())
            .set("services.timeout", "500ms")
            .set("presence.lease", "3s")
            .set("limits.rate", 1000);
        let gateway = Gateway::start(&settings);
        gateway.wait_ready();
        let (alice, bob) = (gateway.connect("alice"), gateway.connect("bob"));
        let amqp = Amqp::open(&broker);
        Self {
            gateway,
            amqp,
            alice,
            bob,
            user,
            message,
            presence,
            published: 0,
        }
    }

    /// Publishes a message and returns its id.
    fn publish(&mut self, exchange: &str, key: &str, group: &str) -> String {
        self.published += 1;
        let id = format!("p{}", self.published);
        let message = Message {
            id: id.clone(),
            from_user_id: "carol".into(),
            to_user_id: if group.is_empty() { "bob" } else { "" }.into(),
            group_id: group.into(),
            content: "published".into(),
            ..Message::default()
        };
        self.amqp
            .publish(exchange, key, "message", message.encode_to_vec());
        id
    }

    /// A push comes for bob, at once, while a request of alice waits for its answer.
    fn pushes_go_on(&mut self) {
        let id = self.publish("im.direct", "user.bob", "");
        self.bob.expect_message(&id);
    }
}

/// Asks until an answer comes in time: each must be right, and one of [`TRIES`] in time, as must be
/// what another user asked meanwhile: `ask` answers how long that took.
fn in_time(what: &str, mut ask: impl FnMut() -> Duration) {
    let mut tries = Vec::new();
    for _ in 0..TRIES {
        let start = Instant::now();
        let others = ask();
        let own = start.elapsed();
        tries.push((own, others));
        if own <= TIMEOUT + GRACE && others < TIMEOUT {
            return;
        }
    }
    panic!("{what}: (the answer, another user's) took {tries:?}");
}

fn expect_code(answer: &Value, fault: Fault) {
    let code = answer["code"]
        .as_str()
        .unwrap_or_else(|| panic!("{fault:?}: {answer}"));
    assert!(fault.codes().contains(&code), "{fault:?}: {answer}");
    error_message(answer, code);
}

#[test]
fn while_the_user_service_fails_nobody_is_let_in_and_everyone_else_goes_on() {
    let mut stand = Stand::start();
    for fault in FAULTS {
        stand.user.fails(fault);
        for token in [token_of("carol"), "nobody".into()] {
            in_time(&format!("{fault:?}, a connect"), || {
                let answer = stand.gateway.raw().try_upgrade(&stand.gateway.path, &token);
                assert_eq!(answer.status, 503, "{fault:?}: {answer:?}");
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
                Duration::ZERO
            });
        }
        in_time(&format!("{fault:?}, refresh_token"), || {
            let alice = &mut stand.alice;
            let id = alice.send_request("refresh_token", json!({"token": "alice-token"}));
            let start = Instant::now();
            stand.bob.send_message("alice", "meanwhile");
            let others = start.elapsed();
            expect_code(&alice.answer(&id), fault);
            others
        });
        stand.pushes_go_on();
        // The group consumer does not know whom it is for; the others run on.
        let group = format!("{fault:?}");
        let for_group = stand.publish("im.topic", &format!("group.{group}"), &group);
        stand.pushes_go_on();
        let held = stand.bob.take_held();
        assert!(
            held.iter().all(|frame| frame["id"] != for_group),
            "{held:?}"
        );
        stand.user.heals();
        stand.bob.expect_message(&for_group);
        wait_until("carol is let in again", || {
            let answer = stand
                .gateway
                .raw()
                .try_upgrade(&stand.gateway.path, "carol-token");
            answer.status == 101
        });
    }
}

#[test]
fn while_the_message_service_fails_requests_err_in_time_and_everyone_else_goes_on() {
    let mut stand = Stand::start();
    for fault in FAULTS {
        stand.message.fails(fault);
        for (request, data) in [
            ("send_message", json!({"to_user_id": "bob", "content": "x"})),
            (
                "send_group_message",
                json!({"group_id": "team", "content": "x"}),
            ),
            ("get_history", json!({"user_id": "bob"})),
            ("get_group_history", json!({"group_id": "team"})),
            ("ack", json!({"message_ids": ["m1"]})),
        ] {
            in_time(&format!("{fault:?}, {request}"), || {
                let id = stand.alice.send_request(request, data.clone());
                let start = Instant::now();
                let answer = stand
                    .bob
                    .request("refresh_token", json!({"token": "bob-token"}));
                assert_eq!(answer["type"], "token_refreshed", "{answer}");
                let others = start.elapsed();
                expect_code(&stand.alice.answer(&id), fault);
                others
            });
        }
        stand.pushes_go_on();
        // Newcomers are let in, and caught up with when it is back.
        let mut carol = stand.gateway.connect_cold("carol");
        stand.message.heals();
        carol.expect("offline_complete");
        stand
            .alice
            .request("get_history", json!({"user_id": "bob"}));
        wait_until("messages are accepted again", || {
            let message = json!({"to_user_id": "bob", "content": "x"});
            stand.alice.request("send_message", message)["type"] == "message_sent"
        });
        carol.close();
    }
}

#[test]
fn while_the_presence_service_fails_nobody_notices() {
    let mut stand = Stand::start();
    for fault in FAULTS {
        stand.presence.fails(fault);
        let start = Instant::now();
        let mut carol = stand.gateway.connect("carol");
        carol.send_message("bob", "hello");
        stand.alice.send_message("bob", "hello");
        stand.pushes_go_on();
        println!("{fault:?}: carol was served after {:?}", start.elapsed());
        let check = || stand.gateway.get("/readyz").json()["checks"]["presence_service"].clone();
        wait_until("the check of the presence service fails", || {
            check()["ok"] == false
        });
        assert_eq!(stand.gateway.get("/readyz").status, 200);
        stand.presence.heals();
        wait_until("the check of the presence service is well", || {
            check()["ok"] == true
        });
        carol.close();
    }
    assert_eq!(stand.gateway.stop(), 0);
}

#[test]
fn only_a_valid_answer_lets_somebody_in() {
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost())
        .set("services.timeout", "500ms");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let status = || {
        let answer = gateway.raw().try_upgrade(&gateway.path, "alice-token");
        answer.status
    };
    assert_eq!(status(), 101);
    for code in (1..=16).map(Code::from) {
        backend.fail("ValidateToken", code);
        let expected = match code {
            Code::Unauthenticated
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::NotFound => 401,
            _ => 503,
        };
        assert_eq!(status(), expected, "{code:?}");
    }
    backend.heal("ValidateToken");
    for (user_id, expires_at, expected) in [
        (String::new(), 0, 503),
        ("x".repeat(300), 0, 503),
        ("al\nice".into(), 0, 503),
        ("alice".into(), 1, 401),
        ("alice".into(), -1, 401),
    ] {
        let token = ValidateTokenResponse {
            user_id: user_id.clone(),
            expires_at,
        };
        backend.answer(|answers| answers.token = Some(token));
        assert_eq!(status(), expected, "{user_id:?}, {expires_at}");
    }
    backend.answer(|answers| answers.token = None);
    assert_eq!(status(), 101);
}

#[test]
fn services_that_are_killed_lose_nothing() {
    let load = Load {
        users: 10,
        messages: 2_000,
        rate: 200,
    };
    services::killed(load).assert_sound();
}

#[test]
fn after_a_restart_of_the_presence_service_all_are_online_again_in_time() {
    services::presence_restarted(50, Duration::from_secs(24)).assert_sound();
}
