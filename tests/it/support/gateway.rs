//! The built binary, as a gateway and as `ws-gateway services`.

use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::admin::Admin;
use super::broker::{Broker, free_port};
use super::cluster::remote;
use super::process::{Held, Process, Signal};
use super::raw::{Raw, Response};
use super::settings::{Settings, token_of};
use super::wait::wait_until_within;
use super::{Client, DEADLINE, asyncapi, sketch, stream, wait_until, watchdog};

/// Its process is named so.
const SKETCH: &str = "the sketch";

/// The binary that cargo built for these tests.
pub fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ws-gateway"))
}

/// Runs the binary to its end in an empty directory.
pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
    let mut command = binary();
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(watchdog::directory("run"));
    let mut process = Process::start(format!("ws-gateway {}", arguments.join(" ")), &mut command);
    let code = process.exit_code();
    Outcome {
        code,
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

/// How a process that ended by itself did so.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running gateway.
pub struct Gateway {
    process: Process,
    pub addr: SocketAddr,
    pub path: String,
    pub directory: PathBuf,
    pub admin: Admin,
    /// Whether it is the sketch, which has no readiness, no admin listener and no way out.
    pub is_sketch: bool,
    /// What a sketch has beside it where a gateway has its services inside.
    _services: Option<Services>,
}

impl Gateway {
    /// Starts one and waits until it listens.
    pub fn start(settings: &Settings) -> Self {
        if settings.are_for_sketch() {
            return Self::start_sketch(settings);
        }
        let (process, directory) = Self::launch(settings, &[]);
        Self::listening(process, directory)
    }

    fn start_sketch(settings: &Settings) -> Self {
        let mut services = None;
        let mut settings = settings.clone();
        if !settings.are_remote() {
            let broker = Broker::shared().vhost();
            let beside = services.insert(Services::start(&settings, &broker));
            settings = remote(&settings, &beside.url(), &broker);
        }
        let (process, directory) = Self::launch(&settings, &[]);
        Self {
            _services: services,
            ..Self::listening(process, directory)
        }
    }

    /// Starts one whose user is bound by the limits of the system, as root is not.
    pub fn start_unprivileged(settings: &Settings) -> Self {
        const NOBODY: u32 = 65_534;
        let directory = watchdog::directory("gateway");
        let mut command = binary();
        if rustix::process::getuid().is_root() {
            // The binary may lie where nobody else may go.
            let copy = directory.join("ws-gateway");
            std::fs::copy(command.get_program(), &copy).expect("a copy of the binary");
            command = Command::new(copy);
            command.uid(NOBODY).gid(NOBODY);
        }
        command.arg("--config").arg(settings.write(&directory));
        command.current_dir(&directory);
        Self::listening(Process::start("the gateway", &mut command), directory)
    }

    /// Starts one whose address is that of one which is gone: clients know the way.
    pub fn start_at(addr: SocketAddr, settings: &Settings) -> Self {
        Self::start(&settings.clone().set("listen.addr", addr.to_string()))
    }

    /// Starts the process and its directory, without a wait.
    pub fn launch(settings: &Settings, variables: &[(&str, &str)]) -> (Process, PathBuf) {
        let directory = watchdog::directory("gateway");
        let config = settings.write(&directory);
        let (name, mut command) = match settings.are_for_sketch() {
            true => (SKETCH, sketch::command(&config)),
            false => ("the gateway", binary()),
        };
        if name != SKETCH {
            command.arg("--config").arg(config);
        }
        command
            .envs(variables.iter().copied())
            .current_dir(&directory);
        (Process::start(name, &mut command), directory)
    }

    /// Waits until a launched gateway listens.
    pub fn listening(mut process: Process, directory: PathBuf) -> Self {
        let url = process.stdout_line("listening ws");
        let (rest, with_tls) = match url.strip_prefix("s://") {
            Some(rest) => (rest, true),
            None => (url.strip_prefix("://").expect("a scheme"), false),
        };
        let url = rest.to_owned();
        let slash = url
            .find('/')
            .expect("a path in the line that says where it listens");
        let addr = url[..slash].parse().expect("an address in that line");
        stream::speaks_tls(addr, with_tls);
        let is_sketch = process.name() == SKETCH;
        asyncapi::set_free(addr, is_sketch);
        let admin = match is_sketch {
            true => SocketAddr::from(([127, 0, 0, 1], 0)),
            false => {
                let admin = process.stdout_line("listening admin http://").parse();
                admin.expect("an address in that line")
            }
        };
        Self {
            process,
            addr,
            path: url[slash..].into(),
            directory,
            admin: Admin::at(admin),
            is_sketch,
            _services: None,
        }
    }

    /// Connects `user` with their usual token, and waits until what was unread is through (and
    /// held): from now on, pushes are live.
    pub fn connect(&self, user: &str) -> Client {
        let mut client = self.connect_cold(user);
        client.expect("offline_complete");
        client
    }

    /// Connects `user` with their usual token.
    pub fn connect_cold(&self, user: &str) -> Client {
        Client::connect(self, &token_of(user))
    }

    pub fn raw(&self) -> Raw {
        Raw::connect(self.addr)
    }

    /// A raw socket that is past the handshake and has read `connected`.
    pub fn raw_session(&self, user: &str) -> Raw {
        let mut raw = self.raw();
        raw.upgrade(&self.path, &token_of(user));
        raw
    }

    /// As [`Self::raw_session`], of a client with next to no receive buffer.
    pub fn reluctant(&self, user: &str) -> TcpStream {
        self.raw_session_buffering(user, 4_096).into_stream()
    }

    /// As [`Self::raw_session`], of a client with a receive buffer of so many bytes.
    pub fn raw_session_buffering(&self, user: &str, bytes: usize) -> Raw {
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).expect("a socket");
        sockopt::set_socket_recv_buffer_size(&socket, bytes).expect("an option");
        rustix::net::connect(&socket, &self.addr).expect("the gateway listens");
        let mut raw = Raw::over(TcpStream::from(socket));
        raw.upgrade(&self.path, &token_of(user));
        raw
    }

    pub fn get(&self, path: &str) -> Response {
        self.raw().get(path)
    }

    pub fn is_ready(&self) -> bool {
        self.get("/readyz").status == 200
    }

    pub fn wait_ready(&self) {
        wait_until("the gateway is ready", || self.shows_ready(true));
    }

    /// Whether it is `ready`, or not, as the case may be. One that does not say so is both.
    pub fn shows_ready(&self, ready: bool) -> bool {
        self.is_sketch || self.is_ready() == ready
    }

    /// What the gateway holds once no connection is left but `connections`: their threads apart,
    /// none is named after one, and nothing changes for longer than the offline grace.
    pub fn settled(&self, connections: usize) -> Held {
        let mut last = self.held();
        let mut same = 0;
        wait_until_within(Duration::from_secs(30), "the gateway settles", || {
            let of_connections = self
                .thread_names()
                .iter()
                .filter(|name| name.starts_with("r-") || name.starts_with("w-"))
                .count();
            let now = self.held();
            let still = of_connections == 2 * connections
                && (now.threads, now.descriptors) == (last.threads, last.descriptors);
            same = if still { same + 1 } else { 0 };
            last = now;
            same > 50
        });
        last
    }

    /// SIGTERM; every client of this gateway is closed with 1012, and the exit code is 0.
    pub fn stop_with_clients(mut self, clients: &mut [&mut Client]) {
        self.process.signal(Signal::TERM);
        for client in clients {
            client.expect_close(1012);
        }
        assert_eq!(self.process.exit_code(), 0);
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> i32 {
        self.process.signal(Signal::TERM);
        self.process.exit_code()
    }

    /// SIGTERM, and whether it takes its leave: of the sketch nothing is asked but its end.
    pub fn takes_its_leave(mut self) -> bool {
        self.process.signal(Signal::TERM);
        let status = self.process.end_within(DEADLINE);
        self.is_sketch || status.success()
    }
}

/// A running `ws-gateway services`.
pub struct Services {
    process: Process,
    pub addr: SocketAddr,
    directory: PathBuf,
    arguments: Vec<String>,
}

impl Services {
    /// Starts the services with a database file of their own, and waits until they listen, on a
    /// port that is theirs again after a restart.
    pub fn start(settings: &Settings, broker: &str) -> Self {
        Self::start_listening(&format!("127.0.0.1:{}", free_port()), settings, broker)
    }

    pub fn start_listening(listen: &str, settings: &Settings, broker: &str) -> Self {
        let directory = watchdog::directory("services");
        let database = directory.join("services.db").display().to_string();
        let config = settings.write(&directory).display().to_string();
        let arguments = [
            "--broker",
            broker,
            "--database",
            &database,
            "--config",
            &config,
        ];
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let (process, addr) = Self::run(listen, &directory, &arguments);
        Self {
            process,
            addr,
            directory,
            arguments,
        }
    }

    fn run(listen: &str, directory: &Path, arguments: &[String]) -> (Process, SocketAddr) {
        // Where a disk is to be full (RLIMIT_FSIZE), a write fails: else it would be killed for it.
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(binary().get_program())
            .args(["services", "--listen", listen])
            .args(arguments)
            .current_dir(directory);
        let mut process = Process::start("the services", &mut command);
        let addr = process.stdout_line("listening grpc http://").parse();
        (
            process,
            addr.expect("an address in the line that says where it listens"),
        )
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where their configuration file is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where their database is.
    pub fn database(&self) -> PathBuf {
        self.directory.join("services.db")
    }

    /// Kills them, and starts them again on the same port and database.
    pub fn restart(&mut self) {
        self.process.kill();
        self.start_again();
    }

    /// After a kill: the same port, database and configuration file.
    pub fn start_again(&mut self) {
        let listen = self.addr.to_string();
        self.process = Self::run(&listen, &self.directory, &self.arguments).0;
    }

    /// Has them read another configuration: SIGHUP.
    pub fn reload(&self, settings: &Settings) {
        settings.write(&self.directory);
        self.process.signal(Signal::HUP);
    }
}

macro_rules! is_a_process {
    ($name:ident) => {
        impl Deref for $name {
            type Target = Process;

            fn deref(&self) -> &Process {
                &self.process
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut Process {
                &mut self.process
            }
        }
    };
}

is_a_process!(Gateway);
is_a_process!(Services);
