//! One gateway with the reference services inside it, as `cargo run` starts it.

use crate::chat;
use crate::support::wait::wait_until;
use crate::support::{Gateway, Settings};

/// One test for each way of chatting, each on a gateway of its own.
macro_rules! embedded {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            chat::$name(&Gateway::start(&chat::settings().set("limits.rate", 1000)));
        }
    )+};
}

embedded! {
    connected,
    single_chat,
    group_chat,
    large_group_chat,
    every_device,
    note_to_self,
    history,
    group_history,
    history_of_fifty,
    offline_messages,
    offline_pages,
    idempotence,
    presence,
    requests_and_answers,
}

/// The sample users of the shipped gateway.toml, with nothing but ports and database changed.
#[test]
fn the_shipped_configuration_lets_alice_bob_and_carol_chat() {
    let shipped = include_str!("../../gateway.toml");
    let settings = Settings::from_text(shipped)
        .set("listen.addr", "127.0.0.1:0")
        .set("admin.addr", "127.0.0.1:0");
    let gateway = Gateway::start(&settings);
    chat::single_chat(&gateway);
    chat::group_chat(&gateway);
    assert!(
        gateway.directory.join("gateway.db").exists(),
        "the database is where the file says"
    );
    assert_eq!(gateway.stop(), 0);
}

/// No file, no argument: what `cargo run` does, but for the ports.
#[test]
fn the_bare_binary_starts_with_the_sample_users() {
    let directory = crate::support::watchdog::directory("bare");
    let mut command = crate::support::gateway::binary();
    command
        .current_dir(&directory)
        .env("GATEWAY_LISTEN__ADDR", "127.0.0.1:0")
        .env("GATEWAY_ADMIN__ADDR", "127.0.0.1:0");
    let process = crate::support::process::Process::start("the gateway", &mut command);
    chat::single_chat(&Gateway::listening(process, directory));
}

#[test]
fn messages_outlive_a_restart() {
    let directory = crate::support::watchdog::directory("database");
    let database = directory.join("chat.db").display().to_string();
    let settings = chat::settings().set("embedded.database", database);
    let first = Gateway::start(&settings);
    let unread = first.connect("alice").send_message("bob", "kept");
    assert_eq!(first.stop(), 0);
    let second = Gateway::start(&settings);
    let mut bob = second.connect_cold("bob");
    assert_eq!(bob.next()["id"], unread.as_str());
}

/// A user who is back within the grace was never gone.
#[test]
fn a_flapping_user_stays_online() {
    let gateway = Gateway::start(&chat::settings().set("presence.offline_grace", "2s"));
    let mut alice = gateway.connect("alice");
    gateway.connect("bob").close();
    gateway.connect("bob").reset();
    gateway.connect("bob").close();
    alice.expect_presence("bob", "offline");
    let told = alice.frames_until_pong();
    let statuses: Vec<_> = told.iter().map(|frame| &frame["status"]).collect();
    assert_eq!(statuses, ["online"], "before it came to offline: {told:?}");
}

#[test]
fn an_embedded_gateway_is_ready_at_once() {
    let gateway = Gateway::start(&chat::settings());
    wait_until("it is ready", || gateway.is_ready());
    assert_eq!(gateway.get("/healthz").status, 200);
}
