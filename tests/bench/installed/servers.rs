//! Servers as Debian has them, each a private process with a folder of its own. Changed is only what
//! would make a comparison unfair to them: limits at which one drops messages or connections, and
//! Nagle's algorithm, which waits for more to send.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::said;
use crate::protocol::Protocol;
use crate::support::balancer::nginx_with;
use crate::support::broker::free_port;
use crate::support::process::Process;
use crate::support::{wait_until, watchdog};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Nats,
    Mosquitto,
    Nchan,
}

/// A server that answers.
pub struct Server {
    pub process: Process,
    /// Where WebSocket is spoken.
    pub addr: SocketAddr,
    /// Where publishers connect.
    pub publishers: SocketAddr,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Nats, Kind::Mosquitto, Kind::Nchan];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
            Self::Nchan => "nginx + nchan",
        }
    }

    /// The Debian package.
    pub const fn package(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
            Self::Nchan => "libnginx-mod-nchan",
        }
    }

    /// Whether the package is installed.
    pub fn is_there(self) -> bool {
        let file = match self {
            Self::Nats => NATS,
            Self::Mosquitto => MOSQUITTO,
            Self::Nchan => NCHAN,
        };
        Path::new(file).exists()
    }

    /// Upstream's version of the package that is installed.
    pub fn version(self) -> String {
        let version = said(
            "dpkg-query",
            &["--show", "--showformat=${Version}", self.package()],
        );
        // [EPOCH:]UPSTREAM[-REVISION], where UPSTREAM may end with +dfsg.
        let upstream = version.split_once(':').map_or(&*version, |(_, rest)| rest);
        upstream
            .split(['-', '+'])
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Nats => Protocol::Nats,
            Self::Mosquitto => Protocol::Mqtt,
            Self::Nchan => Protocol::Nchan,
        }
    }

    pub fn start(self) -> Server {
        let directory = watchdog::directory(self.package());
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let [addr, publishers] = [here(free_port()), here(free_port())];
        let server = match self {
            Self::Nats => nats(&directory, addr, publishers),
            Self::Mosquitto => mosquitto(&directory, addr, publishers),
            Self::Nchan => nchan(&directory, addr),
        };
        server.answering(self)
    }
}

const NATS: &str = "/usr/sbin/nats-server";
const MOSQUITTO: &str = "/usr/sbin/mosquitto";
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// As shipped a client may have 64 MB waiting before it is cut as slow, more than any burst here. Its
/// socket may take longer than 10 s to take them.
fn nats(directory: &Path, addr: SocketAddr, publishers: SocketAddr) -> Server {
    let text = format!(
        "host: {}\n\
         port: {}\n\
         write_deadline: \"60s\"\n\
         websocket {{\n  host: {}\n  port: {}\n  no_tls: true\n}}\n",
        publishers.ip(),
        publishers.port(),
        addr.ip(),
        addr.port()
    );
    let mut command = Command::new(NATS);
    command.arg("-c").arg(put(directory, "nats.conf", &text));
    Server {
        process: Process::start("nats-server", command.current_dir(directory)),
        addr,
        publishers,
    }
}

/// Without limits of queues, which are 1,000 messages for each client as shipped. Root stays root, so
/// that its memory can be read. Without the domain it would take WebSocket from all interfaces.
fn mosquitto(directory: &Path, addr: SocketAddr, publishers: SocketAddr) -> Server {
    let text = format!(
        "user root\n\
         allow_anonymous true\n\
         persistence false\n\
         log_dest stderr\n\
         log_type error\n\
         max_queued_messages 0\n\
         max_queued_bytes 0\n\
         set_tcp_nodelay true\n\
         listener {} {}\n\
         listener {} {}\n\
         socket_domain ipv4\n\
         protocol websockets\n",
        publishers.port(),
        publishers.ip(),
        addr.port(),
        addr.ip()
    );
    let mut command = Command::new(MOSQUITTO);
    let file = put(directory, "mosquitto.conf", &text);
    command.arg("-c").arg(file);
    Server {
        process: Process::start("mosquitto", command.current_dir(directory)),
        addr,
        publishers,
    }
}

/// One process: among several, each message would go through shared memory as well. A channel keeps
/// 5,000 messages instead of 10, for whoever is behind.
fn nchan(directory: &Path, addr: SocketAddr) -> Server {
    let folder = directory.display();
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {folder}/{name};\n"))
        .concat();
    let text = format!(
        "load_module {NCHAN};\n\
         worker_processes 1;\n\
         worker_rlimit_nofile 20000;\n\
         error_log {folder}/error.log warn;\n\
         pid {folder}/nginx.pid;\n\
         events {{ worker_connections 19000; }}\n\
         http {{\n{paths}  \
           access_log off;\n  \
           keepalive_requests 1000000;\n  \
           keepalive_timeout 1h;\n  \
           server {{\n    \
             listen {addr} backlog=4096;\n    \
             location = /publish {{\n      \
               nchan_publisher http;\n      \
               nchan_channel_id all;\n      \
               nchan_message_buffer_length 5000;\n    \
             }}\n    \
             location = /subscribe {{\n      \
               nchan_subscriber websocket;\n      \
               nchan_channel_id all;\n      \
               nchan_subscriber_first_message newest;\n    \
             }}\n  \
           }}\n\
         }}\n"
    );
    Server {
        process: nginx_with(directory, &text),
        addr,
        publishers: addr,
    }
}

impl Server {
    fn answering(mut self, kind: Kind) -> Self {
        for addr in [self.addr, self.publishers] {
            wait_until(format!("{} answers", kind.name()), || {
                let is_running = self.process.is_running();
                let said = || self.process.stdout() + &self.process.stderr();
                assert!(is_running, "{} ended: {}", kind.name(), said());
                TcpStream::connect(addr).is_ok()
            });
        }
        self
    }
}

fn put(directory: &Path, name: &str, text: &str) -> PathBuf {
    let file = directory.join(name);
    fs::write(&file, text).expect("a file for the server");
    file
}
