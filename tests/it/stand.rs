//! The support holds: brokers start, die and return; what is told to err errs.

use std::time::Duration;

use tonic::Code;
use ws_gateway::services::proto::ValidateTokenRequest;
use ws_gateway::services::proto::user_service_client::UserServiceClient;

use crate::support::amqp::{Amqp, Taken};
use crate::support::backend::Backend;
use crate::support::broker::Broker;

fn queue_with_one(amqp: &Amqp) {
    let durable = amiquip::QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    amqp.declare_queue("q", durable);
    amqp.publish("", "q", "kind", "body");
}

#[test]
fn virtual_hosts_of_the_shared_broker_are_strangers() {
    let broker = Broker::shared();
    let (one, other) = (Amqp::open(&broker.vhost()), Amqp::open(&broker.vhost()));
    queue_with_one(&one);
    other.declare_queue("q", amiquip::QueueDeclareOptions::default());
    assert_eq!(other.take("q"), None);
    let body = b"body".to_vec();
    assert_eq!(
        one.take("q"),
        Some(Taken {
            exchange: String::new(),
            routing_key: "q".into(),
            body
        })
    );
}

#[test]
fn a_private_broker_is_killed_stopped_wiped_and_comes_back() {
    let broker = Broker::private();
    let url = broker.vhost();
    queue_with_one(&Amqp::open(&url));

    broker.kill9();
    assert!(amiquip::Connection::insecure_open(&url).is_err());
    broker.restart();
    assert_eq!(
        Amqp::open(&url).ready("q"),
        1,
        "what was on disk is there again"
    );

    broker.stop_signal();
    broker.cont_signal();
    broker.wait_up();
    assert!(broker.rabbitmqctl(&["list_vhosts"]).contains("v0"));

    broker.kill9();
    broker.wipe();
    broker.restart();
    Amqp::open(&url).declare_queue("q", amiquip::QueueDeclareOptions::default());
}

#[test]
fn a_backend_answers_errs_and_waits_as_told() {
    let backend = Backend::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let validate = |token: &str| {
        let token = token.to_owned();
        runtime.block_on(async {
            let mut client = UserServiceClient::connect(backend.url())
                .await
                .expect("it listens");
            let answer = client.validate_token(ValidateTokenRequest { token }).await;
            answer
                .map(|answer| answer.into_inner().user_id)
                .map_err(|status| status.code())
        })
    };
    assert_eq!(validate("alice-token"), Ok("alice".into()));
    assert_eq!(validate("alice"), Err(Code::Unauthenticated));
    backend.fail("ValidateToken", Code::DataLoss);
    assert_eq!(validate("alice-token"), Err(Code::DataLoss));
    backend.slow("ValidateToken", Duration::from_millis(200));
    let start = std::time::Instant::now();
    assert_eq!(validate("alice-token"), Ok("alice".into()));
    assert!(start.elapsed() >= Duration::from_millis(200));
    backend.heal("ValidateToken");
    assert_eq!(backend.calls("ValidateToken"), 4);
}
