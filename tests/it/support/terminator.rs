//! HAProxy as what stands before a server and speaks TLS for it: one port for each certificate.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;

use super::balancer::{Balancer, started};
use super::broker::free_port;
use super::certificates::Identity;
use super::process::Process;
use super::recipe::{approves, written};

pub struct Terminator {
    _balancer: Balancer,
    pub ports: Vec<u16>,
}

impl Terminator {
    /// In front of the server at `target`.
    pub fn start(identities: &[&Identity], target: SocketAddr) -> Self {
        let ports: Vec<u16> = identities.iter().map(|_| free_port()).collect();
        Self::start_at(&ports, identities, target)
    }

    /// At ports that were given away before.
    pub fn start_at(ports: &[u16], identities: &[&Identity], target: SocketAddr) -> Self {
        let mut text = String::from(
            "global\n    maxconn 1000\ndefaults\n    mode tcp\n    timeout connect 5s\n    \
             timeout client 60s\n    timeout server 60s\n",
        );
        for (port, identity) in ports.iter().zip(identities) {
            let both = [&identity.cert, &identity.key].map(|file| {
                let read = std::fs::read_to_string(file);
                read.expect("a certificate and its key")
            });
            let pem = written("server.pem", &both.concat());
            let pem = pem.display();
            write!(
                text,
                "listen port{port}\n    bind 127.0.0.1:{port} ssl crt {pem} alpn h2\n    \
                 server target {target}\n"
            )
            .expect("a string to write to");
        }
        let file = written("haproxy.cfg", &text);
        let haproxy = || {
            let mut command = Command::new("/usr/sbin/haproxy");
            command.arg("-f").arg(&file);
            command
        };
        approves(haproxy().arg("-c"));
        let last = *ports.last().expect("a port");
        let process = Process::start("HAProxy", haproxy().arg("-db"));
        Self {
            _balancer: started(process, SocketAddr::from(([127, 0, 0, 1], last)), None),
            ports: ports.to_vec(),
        }
    }
}
