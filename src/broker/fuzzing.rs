//! Properties of deliveries, for [`fuzzing`](crate::fuzzing).

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{
    Delivery, DeliveryContext, Groups, KIND_GROUP_MEMBERS_CHANGED, KIND_MESSAGE,
    KIND_SESSION_REVOKED, Queue,
};
use crate::client::close::CloseReason;
use crate::client::fuzzing::connection;
use crate::config::Limits;
use crate::fuzzing::Input;
use crate::ids::is_id;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::services::fake::FakeServices;
use crate::threads::fan_out::FanOut;

const KINDS: [&str; 5] = [
    "",
    KIND_MESSAGE,
    KIND_SESSION_REVOKED,
    KIND_GROUP_MEMBERS_CHANGED,
    "dance",
];
const KEYS: [&str; 4] = ["user.alice", "group.team", "presence.alice", "user."];

thread_local! {
    /// Its helper threads are too many for each delivery to have its own.
    static DELIVER: Arc<DeliveryContext> = {
        let services = FakeServices::default();
        services.set("team", &["alice", "bob"]);
        Arc::new(DeliveryContext {
            registry: Arc::new(Registry::default()),
            services: Arc::new(services),
            metrics: Arc::new(Metrics::new(&[])),
            groups: Groups::new(Duration::from_secs(3_600)).into(),
            fan_out: FanOut::start(),
        })
    };
}

/// Whatever is published under whatever name: it is a dead letter, of which nobody gets anything; or
/// who gets something gets one JSON object in a text frame.
pub fn delivery(input: &[u8]) {
    DELIVER.with(|deliver| deliver_one(deliver, input));
}

fn deliver_one(deliver: &Arc<DeliveryContext>, input: &[u8]) {
    let mut input = Input(input);
    let queue = Queue::ALL[usize::from(input.byte()) % Queue::ALL.len()];
    let kind = KINDS[usize::from(input.byte()) % KINDS.len()];
    let key = match usize::from(input.byte()) {
        known @ ..200 => KEYS[known % KEYS.len()].to_owned(),
        length => String::from_utf8_lossy(input.take(length - 200)).into_owned(),
    };
    let body = input.rest();

    let clients = ["alice", "bob"].map(connection);
    for (connection, _) in &clients {
        let admitted = deliver.registry.admit(connection, &Limits::default());
        assert!(admitted.is_ok(), "it is the only one");
    }
    let mut deliverer = deliver.deliverer(queue);
    let taken = deliverer.enqueue(&Delivery {
        routing_key: &key,
        kind,
        body,
    });
    deliverer.flush();
    drop(deliverer);

    if let Err(reason) = &taken {
        assert!(!reason.contains("panicked"), "{reason}");
    }
    for (connection, client) in &clients {
        deliver.registry.remove(connection);
        let texts = client.texts();
        assert!(
            texts.len() <= usize::from(taken.is_ok()),
            "{taken:?}: {texts:?}"
        );
        for text in texts {
            let json: Value = serde_json::from_str(&text).expect("JSON");
            let kind = json["type"].as_str();
            let known = ["message", "group_message", "presence"];
            assert!(kind.is_some_and(|kind| known.contains(&kind)), "{text}");
            let from = if kind == Some("presence") {
                "user_id"
            } else {
                "from_user_id"
            };
            assert!(json[from].as_str().is_some_and(is_id), "{text}");
            assert!(json["id"] != "", "{text}");
        }
        let closing = connection.outbox.closing();
        let may_close = queue == Queue::Single && kind == KIND_SESSION_REVOKED && taken.is_ok();
        assert!(
            closing.is_none() || may_close && closing == Some(&CloseReason::SessionRevoked),
            "{closing:?}"
        );
    }
}
