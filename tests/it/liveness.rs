//! Who is idle, and who only seems to be.

use std::thread;
use std::time::{Duration, Instant};

use ws_gateway::services::proto::Message;

use crate::chat;
use crate::support::backend::{Backend, inbox};
use crate::support::broker::Broker;
use crate::support::cluster::remote;
use crate::support::process::Signal;
use crate::support::raw::{CLOSE, FIN, PING, PONG, Raw};
use crate::support::{Gateway, Settings, wait_until};

/// Answers pings for so long; false if the connection is ended.
fn answers_pings(raw: &mut Raw, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let Some(frames) = raw.read_up_to(1 << 16) else {
            return false;
        };
        for frame in frames {
            match frame.opcode {
                PING => raw.frame(FIN | PONG, &frame.payload),
                CLOSE => return false,
                _ => {}
            }
        }
    }
    true
}

/// As by `docker pause` or a snapshot: of all those whose answers wait in its sockets, and of those
/// who were sent nothing, none is idle. Who answers nothing is, afterwards.
#[test]
fn a_gateway_that_stood_still_blames_nobody() {
    let idle = Duration::from_secs(2);
    let settings = chat::settings()
        .set("session.ping_interval", "500ms")
        .set("session.idle_timeout", "2s")
        .set("services.timeout", "1s")
        .set("limits.max_connections_per_user", 100);
    let gateway = Gateway::start(&settings);
    let mut silent = gateway.raw_session("carol");
    let clients: Vec<_> = (0..20).map(|_| gateway.raw_session("alice")).collect();
    let clients: Vec<_> = clients
        .into_iter()
        .map(|mut raw| thread::spawn(move || answers_pings(&mut raw, 6 * Duration::from_secs(2))))
        .collect();
    for _ in 0..2 {
        // Each has been sent a ping.
        thread::sleep(Duration::from_millis(600));
        gateway.signal(Signal::STOP);
        // The pause.
        thread::sleep(idle * 3 / 2);
        gateway.signal(Signal::CONT);
    }
    for client in clients {
        assert!(client.join().expect("a client"), "somebody is blamed");
    }
    assert_eq!(silent.close_code(), Some(4002));
    assert_eq!(gateway.stop(), 0);
}

/// Its pages take longer than the idle timeout each, and a ping comes behind what it has yet to read.
#[test]
fn a_slow_client_in_the_middle_of_catch_up_is_not_idle() {
    let (backend, broker) = (Backend::start(), Broker::shared().vhost());
    let unread: Vec<Message> = (0..100)
        .map(|number| Message {
            id: format!("m{number}"),
            from_user_id: "alice".into(),
            to_user_id: "bob".into(),
            content: "x".repeat(60_000),
            ..Message::default()
        })
        .collect();
    backend.answer(|answers| answers.pages = Some(inbox(unread)));
    let settings = remote(&Settings::new(), &backend.url(), &broker)
        .set("session.ping_interval", "200ms")
        .set("session.idle_timeout", "1s")
        .set("services.timeout", "500ms")
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let mut bob = gateway.raw_session("bob");
    let start = Instant::now();
    let mut came = 0;
    while came < 100 {
        let frames = bob.read_up_to(60_000).expect("not ended");
        for frame in frames {
            match frame.opcode {
                PING => bob.frame(FIN | PONG, &frame.payload),
                CLOSE => panic!("closed after {:?}: {frame:?}", start.elapsed()),
                _ => came += usize::from(frame.payload.len() > 60_000),
            }
        }
        // The pace of the client: some 600 KB/s.
        thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(5), "it was not slow");
    wait_until("it has all", || {
        answers_pings(&mut bob, Duration::from_secs(2))
    });
}
