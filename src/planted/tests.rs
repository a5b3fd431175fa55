//! What each defect does, and that it does nothing else.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::broker::{Delivery, DeliveryContext, Groups, KIND_SESSION_REVOKED, Queue};
use crate::client::address::Peer;
use crate::client::close::CloseReason;
use crate::client::fixture::Client;
use crate::client::frame::Frame;
use crate::client::protocol::{Push, timestamp};
use crate::client::transport::{self, Socket};
use crate::client::{OverUserLimit, Route};
use crate::registry::Registry;
use crate::services::fake::FakeServices;
use crate::services::proto::*;
use crate::services::{ErrorCode, ServiceError};
use crate::threads::fan_out::FanOut;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn planted(defect: Defect) -> Arc<Planted> {
    named(defect.into()).expect("a defect")
}

fn named(name: &str) -> Result<Arc<Planted>, String> {
    Planted::new(Some(name.into()), &Metrics::new(&[]))
}

/// How often a defect acts at so many occasions.
fn turns(defect: Defect, occasions: u64) -> usize {
    let planted = planted(defect);
    (0..occasions).filter(|_| planted.acts(defect)).count()
}

fn frame(said: Value) -> Frame {
    Frame::text(|bytes| bytes.extend(said.to_string().as_bytes()))
}

fn message(id: &str, from: &str, to: &str) -> Message {
    Message {
        id: id.into(),
        from_user_id: from.into(),
        to_user_id: to.into(),
        content: format!("this is {id}"),
        message_type: "text".into(),
        ..Message::default()
    }
}

/// From alice to bob.
fn chat(number: u64) -> Frame {
    Push::message(&message(&format!("m{number}"), "alice", "bob"), false).frame
}

fn complete() -> Frame {
    frame(json!({ "type": "offline_complete", "count": 0, "timestamp": 7 }))
}

fn answer(number: u64) -> Frame {
    frame(json!({ "type": "acked", "request_id": format!("r{number}"), "timestamp": 7 }))
}

/// What the frames are called by here: the message's id, or that of the request, or the type.
fn names(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(name).collect()
}

fn name(said: &Value) -> &str {
    let mut named = ["id", "request_id", "type"].iter().map(|key| &said[key]);
    named.find_map(Value::as_str).expect("one of them")
}

/// `m1`, `m2` and so on.
fn numbered(letter: char, count: u64) -> Vec<String> {
    (1..=count)
        .map(|number| format!("{letter}{number}"))
        .collect()
}

/// A connection's socket, and its client's end.
struct Line {
    socket: Socket,
    client: TcpStream,
}

impl Line {
    fn new(planted: &Arc<Planted>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let opener = planted.opener(transport::plain());
        let socket = opener(accepted, Peer::Socket(peer.ip()));
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, client }
    }

    /// Of a user whose connection is upgraded.
    fn of(planted: &Arc<Planted>, user: &str) -> Self {
        let line = Self::new(planted);
        let connected = frame(json!({ "type": "connected", "user_id": user, "timestamp": 7 }));
        line.send(
            &[
                b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
                connected.bytes(),
            ]
            .concat(),
        );
        line
    }

    /// Of a user who is caught up, too.
    fn live(planted: &Arc<Planted>, user: &str) -> Self {
        let line = Self::of(planted, user);
        line.says(complete());
        line
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(self.socket.send(bytes, true).unwrap(), bytes.len());
        assert_eq!(self.socket.begun(), 0);
    }

    fn says(&self, frame: Frame) {
        self.send(frame.bytes());
    }

    /// All that has come, at the end.
    fn hears(mut self) -> Vec<Value> {
        self.socket.shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        self.client.read_to_end(&mut bytes).unwrap();
        frames_of(&bytes)
    }
}

/// What the frames say, behind the answer to the upgrade request and but for those that are no text.
fn frames_of(bytes: &[u8]) -> Vec<Value> {
    let head = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let mut rest = bytes.strip_prefix(head).expect("the answer first");
    let mut said = Vec::new();
    while let Some((frame, payload)) = frames::first_frame(rest) {
        rest = &rest[frame.len()..];
        if frame[0] == 0x81 {
            said.push(serde_json::from_slice(payload).expect("JSON"));
        }
    }
    assert!(rest.is_empty(), "whole frames");
    said
}

#[test]
fn each_defect_has_the_name_by_which_it_is_asked_for() {
    let names = "loses-unread loses-live invents alters disorders unread-later misdelivers turns-away \
                 ignores-revocation ignores-expiry forgets-offline answers-twice answers-nothing \
                 claims-commit cuts-history closes-without-cause leaks-thread leaks-descriptor \
                 leaks-connection keeps-route stays-unready";
    assert_eq!(Defect::VARIANTS.join(" "), names);
    for name in Defect::VARIANTS {
        assert!(named(name).unwrap().defect.is_some(), "{name}");
    }
}

#[test]
fn a_name_that_is_none_is_an_error_with_all_that_are() {
    for wrong in ["", "loses", "LosesLive", "loses-live "] {
        let error = named(wrong).err().expect("an error");
        assert!(
            error.starts_with("PLANTED_DEFECT: there is no defect"),
            "{error}"
        );
        assert!(error.contains(&Defect::VARIANTS.join(", ")), "{error}");
    }
}

#[test]
fn without_a_name_nothing_is_decorated() {
    let planted = Planted::new(None, &Metrics::new(&[])).unwrap();
    let services: Arc<dyn Services> = Arc::<FakeServices>::default();
    assert!(Arc::ptr_eq(
        &services,
        &planted.services(Arc::clone(&services))
    ));
    let line = Line::live(&planted, "bob");
    (1..=100).for_each(|number| line.says(chat(number)));
    assert_eq!(names(&line.hears())[2..], numbered('m', 100));
    assert_eq!(planted.occasions.load(Ordering::Relaxed), 0);
}

#[test]
fn a_defect_acts_at_its_turns_and_another_one_never() {
    for name in Defect::VARIANTS {
        let defect = Defect::try_from(*name).unwrap();
        assert!(defect.every() <= 20, "a short run meets {name}");
        assert_eq!(turns(defect, 2 * defect.every()), 2, "{name}");
        assert_eq!(turns(defect, defect.every() - 1), 0, "{name}");
    }
    let planted = planted(Defect::Alters);
    assert!((0..100).all(|_| !planted.acts(Defect::Invents)));
    assert_eq!(planted.acted.get(), 0);
}

#[test]
fn a_live_push_is_lost_and_no_unread_one_nor_a_copy() {
    let planted = planted(Defect::LosesLive);
    let line = Line::of(&planted, "bob");
    (1..=30).for_each(|number| line.says(chat(number)));
    line.says(complete());
    let copy = message("copy", "bob", "alice");
    (0..30).for_each(|_| line.says(Push::message(&copy, true).frame));
    (31..=70).for_each(|number| line.says(chat(number)));
    let late = thread::Builder::new().name("w-0123456789ab".into());
    thread::scope(|scope| {
        let of_catch_up = || (71..=100).for_each(|number| line.says(chat(number)));
        late.spawn_scoped(scope, of_catch_up).unwrap();
    });
    let mut expected = numbered('m', 100);
    expected.retain(|name| !["m50", "m70"].contains(&&**name));
    let heard = line.hears();
    let mut heard = names(&heard);
    heard.retain(|name| name.starts_with('m'));
    assert_eq!(heard, expected);
    assert_eq!(planted.acted.get(), 2);
}

#[test]
fn frames_that_leave_together_are_rewritten_one_by_one() {
    let line = Line::live(&planted(Defect::LosesLive), "bob");
    let frames: Vec<_> = (1..=40).map(chat).collect();
    line.says(Frame::batch(frames.iter()));
    let mut expected = numbered('m', 39);
    expected.remove(19);
    assert_eq!(names(&line.hears())[2..], expected);
}

#[test]
fn an_invented_message_has_an_id_that_none_has() {
    let line = Line::live(&planted(Defect::Invents), "bob");
    (1..=40).for_each(|number| line.says(chat(number)));
    let heard = line.hears();
    let (sent, invented): (Vec<_>, Vec<_>) = (names(&heard)[2..].iter().copied())
        .partition(|name| numbered('m', 40).contains(&(*name).to_owned()));
    assert_eq!(sent, numbered('m', 40));
    assert_eq!(invented.len(), 2);
    assert_ne!(invented[0], invented[1]);
}

#[test]
fn an_altered_message_is_the_same_but_for_its_content() {
    let line = Line::live(&planted(Defect::Alters), "bob");
    (1..=20).for_each(|number| line.says(chat(number)));
    let mut heard = line.hears().split_off(2);
    assert_eq!(names(&heard), numbered('m', 20));
    let mut altered = heard.pop().unwrap();
    assert_eq!(altered["content"], "this is m20 (altered)");
    altered["content"] = "this is m20".into();
    assert_eq!(altered, said(&chat(20)));
    for said in heard {
        let content = format!("this is {}", name(&said));
        assert_eq!(said["content"], content);
    }
}

fn said(frame: &Frame) -> Value {
    let (_, payload) = frames::first_frame(frame.bytes()).unwrap();
    serde_json::from_slice(payload).unwrap()
}

#[test]
fn a_message_comes_behind_the_next_one_of_its_pair() {
    let planted = planted(Defect::Disorders);
    let line = Line::live(&planted, "bob");
    (1..=20).for_each(|number| line.says(chat(number)));
    line.says(Push::message(&message("c1", "carol", "bob"), false).frame);
    line.says(answer(1));
    line.says(chat(21));
    line.says(chat(22));
    let mut expected = numbered('m', 19);
    expected.extend(["c1", "r1", "m21", "m20", "m22"].map(String::from));
    assert_eq!(names(&line.hears())[2..], expected);
    assert_eq!(planted.acted.get(), 1);
}

#[test]
fn a_message_that_none_of_its_pair_follows_comes_before_the_next_ping() {
    let planted = planted(Defect::Disorders);
    let line = Line::live(&planted, "bob");
    (1..=20).for_each(|number| line.says(chat(number)));
    line.says(Frame::ping());
    line.says(chat(21));
    assert_eq!(names(&line.hears())[2..], numbered('m', 21));
    assert_eq!(planted.acted.get(), 0, "nothing was wrong");
}

#[test]
fn the_newest_unread_message_comes_behind_offline_complete() {
    let planted = planted(Defect::UnreadLater);
    for late in [false, false, true, false] {
        let line = Line::of(&planted, "bob");
        (1..=3).for_each(|number| line.says(chat(number)));
        line.says(answer(1));
        line.says(complete());
        line.says(chat(4));
        line.says(complete());
        let expected = match late {
            false => "connected m1 m2 m3 r1 offline_complete m4 offline_complete",
            true => "connected m1 m2 r1 offline_complete m3 m4 offline_complete",
        };
        assert_eq!(names(&line.hears()).join(" "), expected);
    }
    assert_eq!(planted.acted.get(), 1);
}

#[test]
fn a_message_that_is_held_when_the_connection_ends_is_not_lost() {
    for (defect, count) in [(Defect::Disorders, 20), (Defect::UnreadLater, 2)] {
        let planted = planted(defect);
        let all = (0..defect.every()).map(|_| {
            let line = Line::of(&planted, "bob");
            (1..=count).for_each(|number| line.says(chat(number)));
            line.says(Frame::close(1012, "bye"));
            line.hears()
        });
        for heard in all {
            assert_eq!(names(&heard)[1..], numbered('m', count));
        }
    }
}

#[test]
fn a_single_message_reaches_a_third_user_as_well() {
    let planted = planted(Defect::Misdelivers);
    let users = ["alice", "bob", "carol", "dave"];
    let [alice, bob, carol, dave] = users.map(|user| Line::live(&planted, user));
    (1..=20).for_each(|number| bob.says(chat(number)));
    alice.says(answer(1));
    bob.says(answer(2));
    dave.says(Frame::close(1012, "nothing comes behind it"));
    carol.says(answer(3));
    carol.says(answer(4));
    assert_eq!(names(&alice.hears())[2..], ["r1"]);
    assert_eq!(dave.hears().len(), 2);
    assert_eq!(names(&carol.hears())[2..], ["r3", "m20", "r4"]);
    let mut expected = numbered('m', 20);
    expected.push("r2".into());
    assert_eq!(names(&bob.hears())[2..], expected);
    assert_eq!(planted.acted.get(), 1);
}

#[test]
fn an_answer_comes_twice_or_not_at_all_and_a_push_once() {
    for (defect, twentieth) in [(Defect::AnswersTwice, 2), (Defect::AnswersNothing, 0)] {
        let line = Line::live(&planted(defect), "bob");
        for number in 1..=20 {
            line.says(answer(number));
            line.says(chat(number));
        }
        let heard = line.hears();
        let heard = names(&heard);
        let count = |name: String| heard.iter().filter(|heard| **heard == name).count();
        for number in 1..=20 {
            let expected = if number == 20 { twentieth } else { 1 };
            assert_eq!(
                count(format!("r{number}")),
                expected,
                "{defect:?}, {number}"
            );
            assert_eq!(count(format!("m{number}")), 1, "{defect:?}, {number}");
        }
    }
}

#[test]
fn an_answer_that_refuses_the_upgrade_is_left_alone() {
    let mut line = Line::new(&planted(Defect::AnswersTwice));
    let refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}";
    line.send(refusal);
    line.socket.shutdown(Shutdown::Write);
    let mut bytes = Vec::new();
    line.client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, refusal);
}

#[test]
fn what_a_full_socket_takes_in_parts_is_counted_as_a_whole() {
    let mut line = Line::live(&planted(Defect::AnswersTwice), "bob");
    let long = |number: u64| {
        frame(
            json!({ "type": "acked", "request_id": format!("r{number}"), "pad": "x".repeat(30_000) }),
        )
    };
    let (mut number, mut begun) = (1, 0);
    while begun == 0 {
        match line.socket.send(long(number).bytes(), false) {
            Ok(0) => begun = line.socket.begun(),
            Ok(_) => number += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                begun = line.socket.begun();
            }
        }
        assert!(number < 10_000, "it fills");
    }
    assert_eq!(begun, long(number).len());
    let mut client = line.client.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).map(|_| bytes).unwrap()
    });
    let mut sent = 0;
    while sent == 0 {
        sent = line.socket.send(long(number).bytes(), true).unwrap();
    }
    assert_eq!((sent, line.socket.begun()), (long(number).len(), 0));
    line.says(long(number + 1));
    line.socket.shutdown(Shutdown::Write);
    let heard = frames_of(&reader.join().unwrap());
    let mut expected = numbered('r', number + 1);
    let mut turn = 20;
    while turn <= expected.len() {
        expected.insert(turn, expected[turn - 1].clone());
        turn += 21;
    }
    assert_eq!(names(&heard)[2..], expected);
    assert!(
        line.client.read(&mut [0]).is_ok_and(|read| read == 0),
        "and nothing else"
    );
}

/// Services with what is planted, and the fake ones below.
struct Scene {
    planted: Arc<Planted>,
    below: Arc<FakeServices>,
    services: Arc<dyn Services>,
    registry: Arc<Registry>,
    observer: Arc<dyn ConnectionObserver>,
}

/// The registry alone, into which the fixture's clients have entered themselves.
struct Entries(Arc<Registry>);

impl ConnectionObserver for Entries {
    fn connected(&self, _: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        Ok(Route::Bound)
    }

    fn disconnected(&self, connection: &Connection) {
        self.0.remove(connection);
    }
}

impl Scene {
    fn new(defect: Defect) -> Self {
        let (planted, below) = (planted(defect), Arc::<FakeServices>::default());
        let registry = Arc::<Registry>::default();
        Self {
            services: planted.services(Arc::clone(&below) as _),
            observer: planted.observer(Arc::new(Entries(Arc::clone(&registry)))),
            planted,
            below,
            registry,
        }
    }

    fn connect(&self, user: &str) -> Client {
        let client = Client::join(&self.registry, user);
        self.observer.connected(&client.connection).unwrap();
        client
    }

    /// Calls the services on a thread of the connection: `r`, or `w`.
    fn on<T: Send>(
        &self,
        part: &str,
        client: &Client,
        call: impl FnOnce(&dyn Services) -> T + Send,
    ) -> T {
        let name = format!("{part}-{}", client.connection.id.short());
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(name);
            let thread = thread.spawn_scoped(scope, || call(&*self.services));
            thread.unwrap().join().unwrap()
        })
    }
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| &*message.id).collect()
}

#[test]
fn an_unread_message_is_acknowledged_and_not_sent() {
    let scene = Scene::new(Defect::LosesUnread);
    let unread = ["m1", "m2", "m3"].map(|id| message(id, "alice", "bob"));
    *scene.below.unread.lock() = unread.into();
    let acked = Arc::<Mutex<Vec<AckMessagesRequest>>>::default();
    let noted = Arc::clone(&acked);
    *scene.below.acks.lock() = Some(Box::new(move |request| {
        noted.lock().push(request);
        Ok(())
    }));
    let page = || {
        let request = GetOfflineMessagesRequest {
            user_id: "bob".into(),
            ..Default::default()
        };
        scene.services.offline_messages(request).unwrap().messages
    };
    let pages = [(); 4].map(|()| page());
    assert_eq!(
        pages.each_ref().map(|page| ids(page).join(" ")),
        ["m1 m2 m3", "m1 m2 m3", "m1 m3", "m1 m2 m3"]
    );
    let lost = AckMessagesRequest {
        user_id: "bob".into(),
        message_ids: vec!["m2".into()],
    };
    assert_eq!(*acked.lock(), [lost]);
    // What cannot be acknowledged would come again.
    *scene.below.acks.lock() = None;
    for _ in 0..3 {
        assert_eq!(ids(&page()), ["m1", "m2", "m3"]);
    }
}

#[test]
fn a_claimed_message_never_reaches_the_message_service() {
    let scene = Scene::new(Defect::ClaimsCommit);
    let committed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&committed);
    *scene.below.sends.lock() = Some(Box::new(move |_| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        let id = format!("m{number}");
        Ok(SendMessageResponse { id, timestamp: 7 })
    }));
    let send = || scene.services.send_message(SendMessageRequest::default());
    let answers: Vec<_> = (0..40).map(|_| send().unwrap().id).collect();
    assert_eq!(committed.load(Ordering::SeqCst), 38);
    let claimed = answers.iter().filter(|id| id.starts_with("planted-"));
    let claimed: Vec<_> = claimed.collect();
    assert!(matches!(claimed[..], [one, other] if one != other));
}

#[test]
fn a_history_lacks_a_message_in_its_middle() {
    let scene = Scene::new(Defect::CutsHistory);
    for (count, all, cut) in [(3, "m0 m1 m2", "m0 m2"), (2, "m0 m1", "m0 m1")] {
        *scene.below.histories.lock() = Some(Box::new(move |_| {
            let messages = (0..count).map(|id| message(&format!("m{id}"), "alice", "bob"));
            Ok(GetHistoryResponse {
                messages: messages.collect(),
                has_more: true,
            })
        }));
        let page = || {
            let page = scene
                .services
                .history(GetHistoryRequest::default())
                .unwrap();
            assert!(page.has_more);
            ids(&page.messages).join(" ")
        };
        assert_eq!([(); 3].map(|()| page()), [all, all, cut]);
    }
}

#[test]
fn a_token_that_is_refused_later_on_keeps_its_connection_and_lets_nobody_in() {
    let scene = Scene::new(Defect::IgnoresRevocation);
    let bob = scene.connect("bob");
    let validate = |services: &dyn Services| {
        services.validate_token(ValidateTokenRequest { token: "t".into() })
    };
    let refused = ServiceError::new(ErrorCode::Unauthenticated, "as told");
    let answer = refused.clone();
    *scene.below.tokens.lock() = Some(Box::new(move |_| Err(answer.clone())));
    let identity = scene.on("w", &bob, validate).unwrap();
    assert_eq!(identity.user_id, "bob");
    assert_eq!(
        scene.on("r", &bob, validate),
        Err(refused.clone()),
        "a refresh"
    );
    assert_eq!(validate(&*scene.services), Err(refused), "a newcomer");
    *scene.below.tokens.lock() = None;
    let unreachable = scene.on("w", &bob, validate).unwrap_err();
    assert!(unreachable.is_out_of_reach(), "that is no revocation");
}

thread_local! {
    /// Other tests share the one failpoint of the process.
    static IGNORES: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn a_revocation_that_is_ignored_closes_nobody() {
    failpoint::skip(|place| place == "revoke" && IGNORES.get());
    let registry = Arc::<Registry>::default();
    let deliver = Arc::new(DeliveryContext {
        registry: Arc::clone(&registry),
        services: Arc::<FakeServices>::default(),
        metrics: Arc::new(Metrics::new(&[])),
        groups: Groups::new(Duration::from_secs(3_600)).into(),
        fan_out: FanOut::start(),
    });
    let bob = Client::join(&registry, "bob");
    let revoked = SessionRevoked {
        user_id: "bob".into(),
        ..Default::default()
    };
    for ignores in [true, false] {
        IGNORES.set(ignores);
        let revoke = deliver.deliverer(Queue::Single).enqueue(&Delivery {
            routing_key: "user.bob",
            kind: KIND_SESSION_REVOKED,
            body: &revoked.encode_to_vec(),
        });
        assert_eq!(revoke, Ok(()));
        assert_eq!(bob.close_reason().is_none(), ignores);
    }
    assert_eq!(bob.close_reason(), Some(&CloseReason::SessionRevoked));
}

#[test]
fn a_token_lasts_for_the_connection_that_it_let_in() {
    let scene = Scene::new(Defect::IgnoresExpiry);
    let expires_at = timestamp() + 3_600;
    *scene.below.tokens.lock() = Some(Box::new(move |_| {
        Ok(ValidateTokenResponse {
            user_id: "bob".into(),
            expires_at,
        })
    }));
    let validate = |services: &dyn Services| {
        let token = "t".into();
        let identity = services.validate_token(ValidateTokenRequest { token });
        identity.map(|identity| identity.expires_at)
    };
    let validated = [(); 4].map(|()| validate(&*scene.services));
    assert_eq!(validated, [expires_at, expires_at, 0, expires_at].map(Ok));
    *scene.below.tokens.lock() = Some(Box::new(|_| {
        Err(ServiceError::new(ErrorCode::Unauthenticated, "expired"))
    }));
    let bob = scene.connect("bob");
    assert_eq!(
        scene.on("w", &bob, validate),
        Ok(0),
        "when it is validated again"
    );
    assert!(validate(&*scene.services).is_err(), "a newcomer");
}

#[test]
fn a_user_who_has_gone_is_forgotten_and_the_others_are_not() {
    let scene = Scene::new(Defect::ForgetsOffline);
    let requests = |users: &[&str]| {
        let request = |user: &&str| UserOfflineRequest {
            user_id: (*user).into(),
            gateway_id: "g".into(),
        };
        users.iter().map(request).collect()
    };
    let told = scene
        .services
        .users_offline(requests(&["a", "b", "c", "d", "e", "f"]));
    assert_eq!(told, [(); 6].map(|()| Ok(())));
    assert_eq!(*scene.below.presence.lock(), ["-a", "-b", "-c", "-d", "-f"]);
    scene.below.fail(ErrorCode::ServiceUnavailable);
    let told = scene
        .services
        .users_offline(requests(&["g", "h", "i", "j", "k"]));
    let failed: Vec<_> = told.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, true, true, false, true]);
}

#[test]
fn a_connection_is_closed_that_sends_a_message() {
    let scene = Scene::new(Defect::ClosesWithoutCause);
    let [alice, bob] = ["alice", "bob"].map(|user| scene.connect(user));
    let send = |client: &Client| {
        let send = |services: &dyn Services| services.send_message(SendMessageRequest::default());
        scene.on("r", client, send).unwrap_err();
    };
    (0..19).for_each(|_| send(&alice));
    assert_eq!(alice.close_reason(), None);
    send(&bob);
    assert_eq!(bob.close_reason(), Some(&CloseReason::InternalError));
    assert_eq!(alice.close_reason(), None);
}

/// How many threads have leaked.
fn leaked_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "leaked").count()
}

/// How many descriptors have: nobody else has this file open.
fn leaked_descriptors() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets
        .filter(|target| target.as_os_str() == "/proc/version")
        .count()
}

#[test]
fn what_leaks_of_a_connection_stays() {
    for (defect, leaked) in [
        (Defect::LeaksThread, (4, 0, 0)),
        (Defect::LeaksDescriptor, (0, 4, 0)),
        (Defect::LeaksConnection, (0, 0, 2)),
    ] {
        let scene = Scene::new(defect);
        let (threads, descriptors) = (leaked_threads(), leaked_descriptors());
        let ten_come_and_go = || {
            for _ in 0..10 {
                let bob = scene.connect("bob");
                scene.observer.disconnected(&bob.connection);
            }
            scene.registry.connections().len()
        };
        let entries = ten_come_and_go();
        scene.planted.give_back();
        assert!(scene.registry.connections().is_empty());
        assert_eq!(ten_come_and_go(), 0, "none leaks any more");
        let found = || {
            let threads = leaked_threads() - threads;
            (threads, leaked_descriptors() - descriptors, entries)
        };
        // A thread takes its name once it runs.
        let give_up = Instant::now() + PATIENCE;
        while found() != leaked && Instant::now() < give_up {
            thread::yield_now();
        }
        assert_eq!(found(), leaked, "{defect:?}");
    }
}

#[test]
fn the_route_of_who_has_gone_is_kept_however_often_it_is_to_go() {
    let planted = planted(Defect::KeepsRoute);
    let released = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&released);
    let gone = planted.gone(move |user| noted.lock().push(user.to_string()));
    for user in ["a", "b", "c", "d", "e", "e", "f"] {
        gone(&UserId::new(user).unwrap());
    }
    assert_eq!(*released.lock(), ["a", "b", "c", "d", "f"]);
}

#[test]
fn the_gateway_is_not_ready_again_once_the_broker_was_lost() {
    for (defect, stays) in [(Defect::StaysUnready, true), (Defect::Alters, false)] {
        let (readiness, metrics) = (Readiness::default(), Arc::new(Metrics::new(&[])));
        let planted = planted(defect);
        planted.unready(&readiness, &metrics);
        assert!(readiness.check().is_ready());
        metrics.broker_reconnects.inc();
        assert_eq!(readiness.check().is_ready(), !stays);
        assert_eq!(planted.acted.get(), u64::from(stays));
    }
}
