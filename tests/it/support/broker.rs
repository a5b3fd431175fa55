//! A RabbitMQ of the tests' own: free ports, its own folders, many virtual hosts made beforehand.
//!
//! A test takes a virtual host for itself, so that exchanges, queues and users of tests that run
//! side by side never meet. A test that kills or stops the broker takes a [`Broker::private`] one.
//!
//! It is the system's own RabbitMQ, or that of another root folder, which [`ROOT`] names.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use std::{env, fs};

use serde_json::json;

use super::process::{Process, Signal};
use super::wait::wait_for;
use super::watchdog;

/// It starts in 6 s when nothing else runs.
const START: Duration = Duration::from_secs(90);
/// Virtual hosts of one broker: one for each test that asks.
const VHOSTS: usize = 216;
/// Those of a broker that one test has for itself.
const PRIVATE_VHOSTS: usize = 3;
/// The package's own scripts; those in /usr/sbin change user and folder first.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// Names the root folder of another Debian, whose RabbitMQ runs there by chroot(8). It sees `/proc`,
/// `/dev` and the folder for temporary files at the same places: `tests/run rabbitmq4` does so.
const ROOT: &str = "IT_RABBITMQ_ROOT";
/// Set: a broker keeps exchanges, queues and bindings in Khepri from its start until it is wiped, as
/// RabbitMQ does from 4.2 on by itself. 3.x cannot.
const KHEPRI: &str = "IT_RABBITMQ_KHEPRI";

pub struct Broker {
    server: Mutex<Process>,
    directory: PathBuf,
    node: String,
    pub addr: SocketAddr,
    /// Where it speaks TLS, if it does.
    tls: Option<SocketAddr>,
    next_vhost: AtomicUsize,
}

impl Broker {
    /// The broker that all tests share; started by the first that asks.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Broker>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Arc::new(Self::start(VHOSTS, None))))
    }

    /// A broker to be killed, stopped or filled up.
    pub fn private() -> Arc<Self> {
        Arc::new(Self::start(PRIVATE_VHOSTS, None))
    }

    /// As [`Self::private`]; its virtual hosts are reached with TLS, at localhost, where it shows the
    /// certificate in one file and has the key in the other.
    pub fn private_with_tls(certificate: [&Path; 2]) -> Arc<Self> {
        Arc::new(Self::start(PRIVATE_VHOSTS, Some(certificate)))
    }

    fn start(vhosts: usize, certificate: Option<[&Path; 2]>) -> Self {
        let directory = watchdog::directory("rabbitmq");
        let port = free_port();
        let tls = certificate.map(|files| (free_port(), files));
        write_configuration(&directory, port, tls, vhosts);
        let node = format!("it-{}-{port}@localhost", std::process::id());
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let server = Mutex::new(launch(&directory, &node));
        let broker = Self {
            server,
            directory,
            node,
            addr,
            tls: tls.map(|(port, _)| SocketAddr::from(([127, 0, 0, 1], port))),
            next_vhost: AtomicUsize::new(0),
        };
        broker.wait_up();
        if env::var_os(KHEPRI).is_some() {
            broker.rabbitmqctl(&["enable_feature_flag", "--opt-in", "khepri_db"]);
        }
        broker
    }

    /// The URL of a virtual host that nobody else has.
    pub fn vhost(&self) -> String {
        let number = self.next_vhost.fetch_add(1, Ordering::Relaxed);
        assert!(
            number < VHOSTS,
            "more tests than virtual hosts: raise VHOSTS"
        );
        let vhost = vhost(number);
        match self.tls {
            Some(addr) => format!("amqps://guest:guest@localhost:{}/{vhost}", addr.port()),
            None => format!("amqp://guest:guest@{}/{vhost}", self.addr),
        }
    }

    /// `kill -9`.
    pub fn kill9(&self) {
        self.server().kill();
    }

    /// Starts it again after a kill, with what it had on disk. Returns once it answers.
    pub fn restart(&self) {
        self.restart_without_waiting();
        self.wait_up();
    }

    pub fn restart_without_waiting(&self) {
        let mut server = self.server();
        server.kill();
        *server = launch(&self.directory, &self.node);
    }

    /// Deletes all that it had on disk; it must be killed.
    pub fn wipe(&self) {
        fs::remove_dir_all(self.directory.join("mnesia")).expect("a folder to remove");
    }

    /// SIGSTOP: its sockets stay open, and nothing answers.
    pub fn stop_signal(&self) {
        self.server().signal(Signal::STOP);
    }

    pub fn cont_signal(&self) {
        self.server().signal(Signal::CONT);
    }

    /// The processor time that it used so far.
    pub fn processor_time(&self) -> Duration {
        self.server().processor_time()
    }

    /// Waits until its port answers the AMQP handshake. Returns how long that took.
    pub fn wait_up(&self) -> Duration {
        let what = format!(
            "RabbitMQ answers at {}; its files: {}",
            self.addr,
            self.directory.display()
        );
        let look = || {
            let mut server = self.server();
            assert!(
                server.is_running(),
                "RabbitMQ ended: {}{}",
                server.stdout(),
                server.stderr()
            );
            answers(self.addr).then_some(())
        };
        wait_for(START, what, look).1
    }

    /// Runs `rabbitmqctl` once the broker is fully up (its port answers a little earlier), and
    /// returns what it printed.
    pub fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        self.ctl(&["await_startup", "--timeout", "60"]);
        self.ctl(arguments)
    }

    /// As [`Self::rabbitmqctl`], where it may fail: `None` then.
    pub fn try_rabbitmqctl(&self, arguments: &[&str]) -> Option<String> {
        let output = self.run_ctl(arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(said)
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.run_ctl(arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {said}{complaint}"
        );
        said
    }

    fn run_ctl(&self, arguments: &[&str]) -> Output {
        let mut command = program(&format!("{SCRIPTS}/rabbitmqctl"));
        environment(&mut command, &self.directory, &self.node);
        let output = command
            .args(["-q", "-n", &self.node])
            .args(arguments)
            .output();
        output.expect("rabbitmqctl runs")
    }

    /// Raises the memory alarm, which blocks every publishing connection, or ends it.
    pub fn memory_alarm(&self, on: bool) {
        let watermark = if on { "0.000001" } else { "0.6" };
        self.rabbitmqctl(&["set_vm_memory_high_watermark", watermark]);
    }

    fn server(&self) -> MutexGuard<'_, Process> {
        self.server
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.server().kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A port that nobody listens on, below the range from which the system takes the client side of
/// connections: a server that is started again on it finds it free.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    (0..COUNT)
        .map(|_| FIRST + (start as u16 + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

fn vhost(number: usize) -> String {
    format!("v{number}")
}

fn write_configuration(directory: &Path, port: u16, tls: Option<(u16, [&Path; 2])>, vhosts: usize) {
    let names = (0..vhosts).map(vhost).collect::<Vec<_>>();
    let permission = |vhost: &String| json!({"user": "guest", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"});
    let definitions = json!({
        "users": [{"name": "guest", "password": "guest", "tags": ["administrator"]}],
        "vhosts": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "permissions": names.iter().map(permission).collect::<Vec<_>>(),
    });
    let conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         load_definitions = {}\n\
         disk_free_limit.absolute = 1MB\n\
         vm_memory_high_watermark.relative = 0.6\n\
         log.console = false\n\
         log.file.level = warning\n",
        directory.join("definitions.json").display()
    );
    let tls = tls.map(|(port, [certificate, key])| {
        let (certificate, key) = (certificate.display(), key.display());
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.certfile = {certificate}\n\
             ssl_options.keyfile = {key}\n\
             ssl_options.verify = verify_none\n\
             ssl_options.fail_if_no_peer_cert = false\n"
        )
    });
    let conf = conf + &tls.unwrap_or_default();
    let files = [
        ("definitions.json", definitions.to_string()),
        ("rabbitmq.conf", conf),
        ("enabled_plugins", "[].\n".into()),
    ];
    for (name, text) in files {
        fs::write(directory.join(name), text).expect("a file for the broker");
    }
}

fn launch(directory: &Path, node: &str) -> Process {
    let mut command = program(&format!("{SCRIPTS}/rabbitmq-server"));
    environment(&mut command, directory, node);
    // Between nodes; also what rabbitmqctl talks to. A restart may take another one.
    command.env("RABBITMQ_DIST_PORT", free_port().to_string());
    Process::start("RabbitMQ", &mut command)
}

/// A program of RabbitMQ's, in its root. chroot(8) becomes what it starts: one process to signal.
fn program(path: &str) -> Command {
    let root = env::var_os(ROOT).map_or("/".into(), PathBuf::from);
    assert!(
        root.join(path.trim_start_matches('/')).exists(),
        "{path} is missing in {}: `tests/run` installs the Debian package rabbitmq-server, and \
         `tests/run rabbitmq4` brings a root with a newer one",
        root.display()
    );
    if root == Path::new("/") {
        return Command::new(path);
    }
    let mut command = Command::new("chroot");
    command.arg(root).arg(path);
    command
}

/// Everything that RabbitMQ would otherwise share with others on this machine.
fn environment(command: &mut Command, directory: &Path, node: &str) {
    command
        .current_dir(directory)
        .env("HOME", directory)
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", directory.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", directory.join("none"))
        .env(
            "RABBITMQ_ENABLED_PLUGINS_FILE",
            directory.join("enabled_plugins"),
        )
        .env("RABBITMQ_MNESIA_BASE", directory.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", directory.join("log"))
        .env("RABBITMQ_PID_FILE", directory.join("pid"))
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1")
        // The script becomes the server, instead of waiting for it: one process to signal.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        .env("ERL_EPMD_PORT", name_server().to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        // Those that `free_port` leaves: else one tool or another is where a broker is to listen.
        .env("RABBITMQ_CTL_DIST_PORT_MIN", "32000")
        .env("RABBITMQ_CTL_DIST_PORT_MAX", "32767");
}

/// Erlang's name server, which a node would otherwise start and leave behind.
fn name_server() -> u16 {
    static EPMD: OnceLock<(u16, Mutex<Process>)> = OnceLock::new();
    let (port, _) = EPMD.get_or_init(|| {
        let port = free_port();
        let mut command = program("/usr/bin/epmd");
        command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        let process = Process::start("epmd", &mut command);
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        wait_for(START, "epmd listens", || TcpStream::connect(addr).ok());
        (port, Mutex::new(process))
    });
    *port
}

fn answers(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else {
        return false;
    };
    let mut frame_type = [0];
    let asked = stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .and_then(|()| stream.write_all(b"AMQP\0\0\x09\x01"))
        .and_then(|()| stream.read_exact(&mut frame_type));
    // 1 is a method frame: connection.start. Anything else is a refusal.
    asked.is_ok() && frame_type == [1]
}
