//! nginx and HAProxy in front of two gateways, as the recipes configure them.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::broker::free_port;
use super::process::Process;
use super::recipe::{approves, replaced, written};
use super::settings::token_of;
use super::{Client, wait_until, watchdog};

/// For the 75 s of the recipes.
pub const TIMEOUT: Duration = Duration::from_secs(4);

/// What stands between.
pub struct Balancer {
    pub process: Process,
    pub addr: SocketAddr,
    /// Where it logs; `None`: to its standard output.
    log: Option<PathBuf>,
}

pub type Start = fn([SocketAddr; 2]) -> Balancer;

pub fn nginx(gateways: [SocketAddr; 2]) -> Balancer {
    let directory = watchdog::directory("nginx");
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let folder = format!("{}/", directory.display());
    let [one, other] = gateways.map(|addr| format!("server {addr} "));
    let text = replaced(
        "nginx",
        &[
            ("server 127.0.0.1:8080 ", &one),
            ("server 127.0.0.1:8081 ", &other),
            ("listen 80;", &format!("listen {addr};")),
            (" 75s;", &format!(" {}s;", TIMEOUT.as_secs())),
            ("/var/log/nginx/", &folder),
            ("/run/", &folder),
        ],
    );
    let log = Some(directory.join("gateway.log"));
    started(nginx_with(&directory, &text), addr, log)
}

/// nginx with this configuration, which it approves of, in one process, to be killed as such.
pub fn nginx_with(directory: &Path, text: &str) -> Process {
    let file = written("nginx.conf", text);
    let nginx = || {
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-e").arg(directory.join("start.log"));
        command.arg("-p").arg(directory).arg("-c").arg(&file);
        command
    };
    approves(nginx().arg("-t"));
    let mut alone = nginx();
    alone.args(["-g", "daemon off; master_process off;"]);
    Process::start("nginx", &mut alone)
}

pub fn haproxy(gateways: [SocketAddr; 2]) -> Balancer {
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let [one, other] = gateways.map(|addr| addr.to_string());
    let text = replaced(
        "haproxy",
        &[
            ("server g1 127.0.0.1:8080", &format!("server g1 {one}")),
            ("server g2 127.0.0.1:8081", &format!("server g2 {other}")),
            // As many descriptors as anybody has.
            ("maxconn 20000", "maxconn 2500"),
            ("bind :80\n", &format!("bind {addr}\n")),
            (" 75s\n", &format!(" {}s\n", TIMEOUT.as_secs())),
        ],
    );
    let file = written("haproxy.cfg", &text);
    let haproxy = || {
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-f").arg(&file);
        command
    };
    let said = approves(haproxy().arg("-c"));
    assert!(!said.contains("WARNING"), "{said}");
    started(Process::start("HAProxy", haproxy().arg("-db")), addr, None)
}

pub fn started(mut process: Process, addr: SocketAddr, log: Option<PathBuf>) -> Balancer {
    wait_until("the balancer listens", || {
        assert!(process.is_running(), "it ended: {}", process.stderr());
        TcpStream::connect(addr).is_ok()
    });
    Balancer { process, addr, log }
}

impl Balancer {
    pub fn connect(&self, user: &str) -> Client {
        let token = token_of(user);
        let client = Client::try_connect(self.addr, "/ws", &token);
        client.unwrap_or_else(|refused| panic!("refused with {refused:?}"))
    }

    pub fn logged(&self) -> String {
        let file = self.log.as_ref();
        file.map_or_else(
            || self.process.stdout(),
            |file| fs::read_to_string(file).unwrap_or_default(),
        )
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if std::thread::panicking() && self.log.is_some() {
            println!("--- the balancer logged:\n{}", self.logged());
        }
    }
}
