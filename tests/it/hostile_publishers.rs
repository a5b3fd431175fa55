//! Whatever a publisher puts into a publication's key, properties and headers: it is delivered or a
//! dead letter, once, and the connection to the broker, and so everybody else, does not notice.

use prost::Message as _;
use serde_json::json;
use ws_gateway::services::proto::{GroupMembersChanged, Message, SessionRevoked};

use crate::chat;
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::raw_amqp::*;
use crate::support::{Client, Cluster, wait_until};

const DEAD: &str = "queue.dead-letter";
const SINGLE: &str = "queue.gateway.g0.single";
const GROUP: &str = "queue.gateway.g0.group";
const PRESENCE: &str = "queue.gateway.g0.presence";
/// Not UTF-8 anywhere.
const BINARY: [u8; 16] = [0xFF; 16];

struct Scene {
    cluster: Cluster,
    amqp: Amqp,
    raw: RawAmqp,
    bob: Client,
    published: usize,
}

fn scene() -> Scene {
    let cluster = Cluster::on(Broker::shared(), &chat::settings(), 1);
    Scene {
        amqp: cluster.amqp(),
        raw: RawAmqp::open(&cluster.url),
        bob: cluster.connect(0, "bob"),
        cluster,
        published: 0,
    }
}

fn message(id: &str, group: &str) -> Vec<u8> {
    let message = Message {
        id: id.into(),
        from_user_id: "carol".into(),
        to_user_id: if group.is_empty() { "bob" } else { "" }.into(),
        group_id: group.into(),
        content: "from the outside".into(),
        ..Message::default()
    };
    message.encode_to_vec()
}

impl Scene {
    /// A publication with a valid body, which is delivered.
    fn arrives(&mut self, exchange: &[u8], key: &[u8], properties: &Properties) {
        let id = self.next_id();
        let group = key.strip_prefix(b"group.").unwrap_or_default();
        let body = message(&id, str::from_utf8(group).expect("a group"));
        self.raw.publish(exchange, key, properties, &body);
        self.bob.expect_message(&id);
        self.goes_on(None);
    }

    /// A publication with a valid body, which is a dead letter, as it was published.
    fn is_dead(&mut self, exchange: &[u8], key: &[u8], properties: &Properties) {
        let body = message(&self.next_id(), "team");
        self.raw.publish(exchange, key, properties, &body);
        self.goes_on(Some((key.to_vec(), body)));
    }

    /// What is published next arrives, the queues are empty, and these are all the dead letters.
    fn goes_on(&mut self, dead: Option<(Vec<u8>, Vec<u8>)>) {
        for (exchange, key, group) in [
            ("im.direct", "user.bob", ""),
            ("im.topic", "group.team", "team"),
        ] {
            let id = self.next_id();
            self.amqp.publish(exchange, key, "", message(&id, group));
            self.bob.expect_message(&id);
        }
        let expected = u32::from(dead.is_some());
        wait_until("the dead letter", || self.amqp.ready(DEAD) == expected);
        assert_eq!(self.raw.take(DEAD), dead);
        assert!(self.cluster.gateways[0].is_ready());
    }

    fn next_id(&mut self) -> String {
        self.published += 1;
        format!("m{}", self.published)
    }

    /// The broker connection of the beginning is the one of the end.
    fn never_reconnected(self) {
        let told = self.cluster.gateways[0].stderr();
        assert_eq!(told.matches("Broker up").count(), 1, "{told}");
        assert!(!told.contains("panicked"), "{told}");
    }
}

/// Tables or arrays in one another, `depth` deep.
fn nested(depth: usize, array: bool) -> Vec<u8> {
    let mut inner = long(b"");
    for _ in 0..depth {
        inner = match array {
            true => long([&b"A"[..], &inner].concat()),
            false => long([&b"\x01kF"[..], &inner].concat()),
        };
    }
    match array {
        true => long([&b"\x01kA"[..], &inner].concat()),
        false => inner,
    }
}

fn with(flag: u16, value: Vec<u8>) -> Properties {
    vec![(flag, value)]
}

#[test]
fn a_routing_key_that_is_not_utf8_is_a_dead_letter_once() {
    let mut scene = scene();
    let longest = [&b"group."[..], &[0x80; 249]].concat();
    for key in [
        &b"group.caf\xe9"[..],
        b"group.team\xff",
        b"group.\xffteam",
        b"group.\xc3",
        b"group.\xed\xa0\x80",
        b"group.\xc0\x80",
        &longest,
        // UTF-8, and no group's.
        b"group.team\0",
        b"group.team\x7f",
        b"group.",
        b"group",
    ] {
        scene.is_dead(b"im.topic", key, &vec![]);
    }
    scene.never_reconnected();
}

#[test]
fn the_exchange_of_an_operator_may_bring_any_key() {
    let mut scene = scene();
    let longest = "\u{e9}".repeat(127);
    for name in ["elsewhere", "caf\u{e9}", &longest] {
        scene.raw.declare_exchange(name.as_bytes(), "fanout");
        scene.raw.bind(SINGLE, name.as_bytes(), b"");
        scene.arrives(name.as_bytes(), b"user.bob", &vec![]);
        for key in [
            &b"user.caf\xe9"[..],
            b"user.bob\xff",
            b"\xffuser.bob",
            &BINARY,
            &[0x80; 255],
            b"user.bob\n",
            b"",
        ] {
            scene.is_dead(name.as_bytes(), key, &vec![]);
        }
    }
    scene.never_reconnected();
}

#[test]
fn a_presence_key_that_is_not_utf8_is_ignored() {
    let mut scene = scene();
    scene.raw.publish(b"im.topic", b"presence.\xff", &[], b"?");
    scene.goes_on(None);
    let amqp = scene.cluster.amqp();
    wait_until("its queue is empty", || amqp.ready(PRESENCE) == 0);
    let told = scene.cluster.gateways[0].stderr_line("Presence event ignored");
    assert!(told.contains("not a user's routing key"), "{told}");
    scene.never_reconnected();
}

#[test]
fn no_property_but_the_type_matters() {
    let mut scene = scene();
    let strings = [
        CONTENT_TYPE,
        CONTENT_ENCODING,
        CORRELATION_ID,
        REPLY_TO,
        MESSAGE_ID,
        APP_ID,
        CLUSTER_ID,
    ];
    for flag in strings {
        for value in [&BINARY[..], b"caf\xe9", &[0xC3; 255], b"", b"\0"] {
            scene.arrives(b"im.direct", b"user.bob", &with(flag, short(value)));
        }
    }
    let mut all: Properties = strings.map(|flag| (flag, short(BINARY))).into();
    all.extend([
        (HEADERS, long(b"")),
        (PRIORITY, vec![255]),
        (EXPIRATION, short("86400000")),
        (TIMESTAMP, vec![0xFF; 8]),
        (USER_ID, short("guest")),
    ]);
    scene.arrives(b"im.direct", b"user.bob", &all);
    all.push((TYPE, short("message")));
    scene.arrives(b"im.topic", b"group.team", &all);
    scene.never_reconnected();
}

#[test]
fn a_type_that_nobody_knows_is_a_dead_letter_once() {
    let mut scene = scene();
    for kind in [
        &b"\xff"[..],
        b"message\xff",
        b"\xffmessage",
        b"messag\xe9",
        b"session_revoked\xc3",
        &[0x80; 255],
        b"message\0",
        b"\0",
        b"MESSAGE",
        b" ",
    ] {
        for (exchange, key) in [("im.direct", "user.bob"), ("im.topic", "group.team")] {
            let properties = vec![(TYPE, short(kind)), (CORRELATION_ID, short(BINARY))];
            scene.is_dead(exchange.as_bytes(), key.as_bytes(), &properties);
        }
    }
    scene.never_reconnected();
}

#[test]
fn headers_may_hold_anything() {
    let mut scene = scene();
    let entry = |kind: u8, value: Vec<u8>| long([short("k"), vec![kind], value].concat());
    let binary_key = long([short(BINARY), vec![b't', 1]].concat());
    let many: Vec<u8> = (0..4_000)
        .flat_map(|n| [short(format!("key{n}")), b"I\0\0\0\x01".into()].concat())
        .collect();
    for headers in [
        nested(10, false),
        nested(3_375, false),
        nested(9_000, false),
        nested(3_375, true),
        nested(12_000, true),
        entry(b'S', long(BINARY)),
        entry(b'x', long(BINARY)),
        entry(b'd', vec![0x40; 8]),
        entry(b'T', vec![0xFF; 8]),
        entry(b'V', vec![]),
        entry(b'S', long([b'x'; 100_000])),
        binary_key,
        long(many),
    ] {
        scene.arrives(b"im.direct", b"user.bob", &with(HEADERS, headers.clone()));
        let unknown = vec![(HEADERS, headers), (TYPE, short("unheard of"))];
        scene.is_dead(b"im.topic", b"group.team", &unknown);
    }
    scene.never_reconnected();
}

/// The type counts whatever else is there.
#[test]
fn a_session_is_revoked_whatever_the_other_properties_are() {
    let mut scene = scene();
    for other in [
        (CORRELATION_ID, short(BINARY)),
        (MESSAGE_ID, short(BINARY)),
        (CONTENT_TYPE, short(b"caf\xe9")),
        (HEADERS, nested(3_375, false)),
        (APP_ID, short(BINARY)),
    ] {
        let mut carol = scene.cluster.connect(0, "carol");
        let revoked = SessionRevoked {
            user_id: "carol".into(),
            reason: "by the test".into(),
        };
        let properties = vec![(TYPE, short("session_revoked")), other];
        let body = revoked.encode_to_vec();
        scene
            .raw
            .publish(b"im.direct", b"user.carol", &properties, &body);
        carol.expect_close(4005);
        scene.goes_on(None);
    }
    scene.never_reconnected();
}

#[test]
fn a_groups_members_change_whatever_the_other_properties_are() {
    let mut scene = scene();
    let changed = GroupMembersChanged {
        group_id: "team".into(),
    };
    let properties = vec![
        (TYPE, short("group_members_changed")),
        (CORRELATION_ID, short(BINARY)),
    ];
    let body = changed.encode_to_vec();
    scene
        .raw
        .publish(b"im.topic", b"group.team", &properties, &body);
    // Not a dead letter, as it would be for a chat message.
    scene.goes_on(None);
    assert_eq!(scene.amqp.ready(GROUP), 0);
    scene.never_reconnected();
}

/// Between and around large bodies, which come in several frames.
#[test]
fn large_bodies_pass_whole_among_hostile_publications() {
    let mut scene = scene();
    for size in [1, 4_000, 60_000, 131_064, 131_065, 300_000] {
        let id = scene.next_id();
        let message = Message {
            content: "x".repeat(size),
            ..Message::decode(&*message(&id, "")).expect("a message")
        };
        let body = message.encode_to_vec();
        let properties = with(CORRELATION_ID, short(BINARY));
        scene
            .raw
            .publish(b"im.direct", b"user.bob", &properties, &body);
        let arrived = scene.bob.expect_message(&id);
        assert_eq!(arrived["content"], json!(message.content));
        scene.is_dead(b"im.topic", b"group.caf\xe9", &properties);
    }
    scene.never_reconnected();
}
