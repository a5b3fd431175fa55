//! Clients in a process of their own, which can be stopped: this very binary, started again. A
//! test binary runs [`play`] where it finds itself asked.

use std::process::Command;
use std::thread;
use std::{env, net::SocketAddr};

use super::client::{Client, Event};
use super::process::Process;
use super::settings::token_of;
use super::{DEADLINE, Gateway};

const ASKED: &str = "IT_PUPPET";

/// Starts a process that connects `users`, answers pings and reads; returns when all are served.
pub fn start(gateway: &Gateway, users: &[String]) -> Process {
    let program = env::current_exe().expect("a running binary");
    let mut command = Command::new(program);
    // What libtest needs to run the one test that is a puppet; a drill takes no notice.
    command
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "faults::clients::puppet",
        ])
        .env(ASKED, format!("{} {}", gateway.addr, users.join(" ")));
    let mut process = Process::start("the puppet", &mut command);
    process.stdout_line("all are served");
    process
}

/// Does what [`start`] asked for, until this process is killed; false where nobody asked.
pub fn play() -> bool {
    let Ok(asked) = env::var(ASKED) else {
        return false;
    };
    let mut words = asked.split(' ');
    let addr: SocketAddr = words
        .next()
        .and_then(|addr| addr.parse().ok())
        .expect("an address");
    let clients: Vec<Client> = words
        .map(|user| {
            let mut client = Client::try_connect(addr, "/ws", &token_of(user)).expect("let in");
            client.expect("offline_complete");
            client
        })
        .collect();
    println!("\nall are served");
    let live = |mut client: Client| {
        thread::spawn(move || while !matches!(client.next_event(DEADLINE), Event::End(_)) {})
    };
    let threads: Vec<_> = clients.into_iter().map(live).collect();
    for thread in threads {
        thread.join().expect("a client that lives until its end");
    }
    true
}
