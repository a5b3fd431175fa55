//! Catch-up and the fall back to the inbox, seen from outside: bursts that no queue holds, Message
//! Services that do not get on, and revocations that are published while a user connects.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Status};
use ws_gateway::services::proto::{GetOfflineMessagesResponse, Message, ValidateTokenResponse};

use crate::support::amqp::Amqp;
use crate::support::backend::{Backend, Pages, identity, inbox};
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::settings::token_of;
use crate::support::{Client, Event, Gateway, Settings, wait_until};

/// A gateway whose services do what they are told, and its broker.
struct Scene {
    backend: Backend,
    broker: String,
    gateway: Gateway,
}

impl Scene {
    fn new(settings: &Settings) -> Self {
        let backend = Backend::start();
        let broker = Broker::shared().vhost();
        let settings = remote(settings, &backend.url(), &broker).set("log.level", "info");
        let gateway = Gateway::start(&settings);
        gateway.wait_ready();
        Self {
            backend,
            broker,
            gateway,
        }
    }

    fn connect(&self, user: &str) -> Client {
        Client::try_connect(self.gateway.addr, &self.gateway.path, &token_of(user)).expect("let in")
    }

    fn publish(&self, message: &Message) {
        let (exchange, key) = if message.group_id.is_empty() {
            ("im.direct", format!("user.{}", message.to_user_id))
        } else {
            ("im.topic", format!("group.{}", message.group_id))
        };
        Amqp::open(&self.broker).publish(exchange, &key, "", message.encode_to_vec());
    }
}

fn message(id: &str, content: &str) -> Message {
    Message {
        id: id.into(),
        from_user_id: "alice".into(),
        to_user_id: "bob".into(),
        content: content.into(),
        ..Message::default()
    }
}

/// Services may publish what clients may not.
#[test]
fn bursts_that_no_queue_holds_close_nobody_who_reads() {
    const MEMBERS: usize = 10;
    let scene = Scene::new(&Settings::new());
    let users: Vec<String> = (0..MEMBERS).map(|number| format!("user{number}")).collect();
    let burst: Vec<Message> = (0..60)
        .map(|number| Message {
            group_id: "team".into(),
            to_user_id: String::new(),
            ..message(&format!("m{number}"), &"x".repeat(300_000))
        })
        .collect();
    scene.backend.answer(|answers| {
        answers.members.insert("team".into(), users.clone());
    });
    let mut clients: Vec<Client> = users.iter().map(|user| scene.connect(user)).collect();
    for client in &mut clients {
        client.expect("offline_complete");
    }
    // Unread before it is published, as at any Message Service.
    let unread = burst.clone();
    scene
        .backend
        .answer(|answers| answers.pages = Some(inbox(unread)));
    let amqp = Amqp::open(&scene.broker);
    for message in &burst {
        amqp.publish("im.topic", "group.team", "", message.encode_to_vec());
    }
    for client in &mut clients {
        let mut came = BTreeSet::new();
        while came.len() < burst.len() {
            let frame = client.expect("group_message");
            came.insert(frame["id"].as_str().expect("an id").to_owned());
        }
    }
    assert!(!scene.gateway.stderr().contains("Connection closed"));
}

/// What the first client of a scene is sent within 15 s, with these pages; and how often the service
/// was asked in that time. A live push comes in the middle.
fn not_getting_on(mut pages: Pages) -> (Vec<Value>, usize) {
    let scene = Scene::new(&Settings::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    scene.backend.answer(|answers| {
        answers.pages = Some(Box::new(move |request| {
            counter.fetch_add(1, Ordering::SeqCst);
            pages(request)
        }));
    });
    let mut bob = scene.connect("bob");
    wait_until("it was asked", || asked.load(Ordering::SeqCst) > 0);
    scene.publish(&message("live", "hi"));
    let mut frames = Vec::new();
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        if let Event::Frame(frame) = bob.next_event(Duration::from_millis(50)) {
            frames.push(frame);
        }
    }
    let lines = scene.gateway.stderr().lines().count();
    assert!(lines < 100, "{lines} log lines");
    (frames, asked.load(Ordering::SeqCst))
}

fn page(ids: &[&str], has_more: bool) -> Result<GetOfflineMessagesResponse, Status> {
    Ok(GetOfflineMessagesResponse {
        messages: ids.iter().map(|id| message(id, "")).collect(),
        has_more,
    })
}

#[test]
fn a_message_service_that_does_not_get_on_is_not_asked_in_a_loop_and_pushes_go_past() {
    let mut turns = 0;
    let cases: Vec<(&str, Pages)> = vec![
        (
            "two pages in turns",
            Box::new(move |_| {
                turns += 1;
                page(&[["m1", "m2"][turns % 2]], true)
            }),
        ),
        (
            "INVALID_ARGUMENT for every after_id",
            Box::new(|request| match request.after_id.as_str() {
                "" => page(&["m1", "m2"], true),
                _ => Err(Status::invalid_argument("no such message")),
            }),
        ),
        (
            "a second page over 16 MiB, whatever its limit",
            Box::new(|request| match request.after_id.as_str() {
                "" => page(&["m1"], true),
                _ => Ok(GetOfflineMessagesResponse {
                    messages: vec![message("m2", &"x".repeat(17 << 20))],
                    has_more: false,
                }),
            }),
        ),
        ("an empty page and more", Box::new(|_| page(&[], true))),
        (
            "an error of its own",
            Box::new(|_| Err(Status::new(Code::DataLoss, "no"))),
        ),
    ];
    std::thread::scope(|scope| {
        for (name, pages) in cases {
            scope.spawn(move || {
                let (frames, asked) = not_getting_on(pages);
                assert!(asked < 40, "{name}: asked {asked} times");
                let live = frames.iter().filter(|frame| frame["id"] == "live").count();
                assert_eq!(live, 1, "{name}: {frames:?}");
                assert!(frames.len() < 10, "{name}: {frames:?}");
            });
        }
    });
}

#[test]
fn a_page_over_16_mib_is_asked_for_with_a_smaller_limit() {
    let scene = Scene::new(&Settings::new());
    let unread: Vec<Message> = (0..60)
        .map(|number| message(&format!("m{number}"), &"x".repeat(500_000)))
        .collect();
    scene
        .backend
        .answer(|answers| answers.pages = Some(inbox(unread)));
    let mut bob = scene.connect("bob");
    for number in 0..60 {
        let frame = bob.expect("message");
        assert_eq!(frame["id"], format!("m{number}"));
    }
    let complete = bob.expect("offline_complete");
    assert_eq!(complete["count"], 60);
}

/// From now on bob's token is refused.
fn revoke_bobs(backend: &Backend) {
    backend.answer(|answers| {
        answers.tokens = Some(Box::new(|token| match token {
            "bob-token" => Err(Status::unauthenticated("revoked")),
            token => identity(token),
        }));
    });
}

/// It is not registered yet: the answer to the upgrade's question was yes, the next one is no.
#[test]
fn a_revocation_between_a_users_validation_and_registration_ends_the_session() {
    let scene = Scene::new(&Settings::new());
    let first = scene.gateway.raw_session("carol");
    let mut asked = 0;
    scene.backend.answer(|answers| {
        answers.tokens = Some(Box::new(move |token| {
            asked += usize::from(token == "bob-token");
            match asked {
                2.. if token == "bob-token" => Err(Status::unauthenticated("revoked")),
                _ => identity(token),
            }
        }));
    });
    let mut bob = scene.gateway.raw_session("bob");
    assert_eq!(bob.close_code(), Some(4005));
    drop(first);
}

/// And whose route is bound already, since another device of theirs is here.
#[test]
fn a_revocation_during_a_broker_outage_ends_the_session_once_the_route_is_bound() {
    let broker = Broker::private();
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &broker.vhost());
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let [mut bob, mut carol] = ["bob", "carol"].map(|user| gateway.raw_session(user));
    broker.kill9();
    wait_until("it is noticed", || !gateway.is_ready());
    let mut late = gateway.raw_session("bob");
    // Nobody hears of it: it is published, if ever, to a broker that has forgotten all queues.
    revoke_bobs(&backend);
    broker.restart();
    assert_eq!(bob.close_code(), Some(4005));
    assert_eq!(late.close_code(), Some(4005));
    gateway.wait_ready();
    carol.text(r#"{"type":"ping"}"#);
    carol.json_that(|frame| frame["type"] == "pong");
}

/// It asks for more than it reads, so that something waits for it all the time.
#[test]
fn a_client_that_keeps_its_socket_full_does_not_outlive_its_revocation() {
    let broker = Broker::private();
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &broker.vhost());
    let gateway = Gateway::start(&settings.set("log.level", "info"));
    gateway.wait_ready();
    let mut bob = gateway.raw_session_buffering("bob", 64 << 10);
    backend.answer(|answers| {
        let large = message("m", &"x".repeat(8 << 20));
        answers.history.messages = vec![large];
    });
    let asks = r#"{"type":"get_history","request_id":"h","data":{"user_id":"alice"}}"#;
    (0..4).for_each(|_| bob.text(asks));
    wait_until("its answers wait for it", || {
        let connections = gateway.admin.json("/connections");
        connections[0]["queue_frames"] != 0
    });
    broker.kill9();
    wait_until("it is noticed", || !gateway.is_ready());
    revoke_bobs(&backend);
    broker.restart();
    gateway.stderr_line("Session revoked: user=bob");
}

/// The smallest number is as much in the past as any.
#[test]
fn a_token_that_expired_at_any_time_lets_nobody_in() {
    let scene = Scene::new(&Settings::new());
    for expires_at in [i64::MIN, i64::MIN + 1, -1, 1] {
        scene.backend.answer(|answers| {
            answers.token = Some(ValidateTokenResponse {
                user_id: "bob".into(),
                expires_at,
            });
        });
        let mut raw = scene.gateway.raw();
        let answer = raw.try_upgrade(&scene.gateway.path, &token_of("bob"));
        assert_eq!(answer.status, 401, "{expires_at}: {answer:?}");
    }
}
