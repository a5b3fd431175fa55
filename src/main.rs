//! `ws-gateway`: arguments, configuration, log, start, signals.

#![no_main]

use std::ffi::c_int;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use clap::{Parser, Subcommand};
use crossbeam::channel::{Receiver, select, unbounded};
use log::{error, info};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use ws_gateway::config::{self, Config, ConfigError};
use ws_gateway::gateway::{Gateway, StartError};
use ws_gateway::logging;

/// Wrong usage, or a configuration that cannot be used.
const EXIT_USAGE: c_int = 2;
/// Something else that keeps it from running.
const EXIT_FAILURE: c_int = 1;
const EXIT_OK: c_int = 0;

const DEFAULT_CONFIG: &str = "gateway.toml";

/// A synchronous WebSocket gateway for instant messaging.
#[derive(Parser)]
#[command(name = "ws-gateway", version, about, after_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file [default: gateway.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "Without a command, the gateway runs. GATEWAY_TABLE__KEY in the environment \
overrides a key: GATEWAY_LISTEN__ADDR=127.0.0.1:9000. SIGTERM and SIGINT end it gracefully, a second \
one at once; SIGHUP makes the reference services read their tokens and groups again.";

#[derive(Subcommand)]
enum Command {
    /// Validates the configuration and prints it resolved, secrets hidden.
    Check,
    /// Runs the reference User, Message and Presence services, publishing to RabbitMQ.
    #[cfg(feature = "reference")]
    Services(ServicesArguments),
}

#[cfg(feature = "reference")]
#[derive(clap::Args)]
struct ServicesArguments {
    /// Where the gRPC services listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// The broker [default: broker.url of the configuration].
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// The SQLite file [default: embedded.database of the configuration].
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

/// The C entry point, instead of std's: std's would set up a stack overflow handler that costs
/// each thread two more memory mappings, and so half of the connections that the kernel's default
/// settings allow (see `capacity.rs`). What else std's does here is to ignore SIGPIPE.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const u8) -> c_int {
    // A write to a closed pipe or socket is to fail, not to kill the process. That SIGPIPE cannot
    // be caught does not happen.
    let _ = flag::register(SIGPIPE, Arc::new(AtomicBool::new(false)));
    // clap prints help, version and wrong usage itself, and ends with 0 or 2.
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => EXIT_OK,
        Err(failure) => {
            eprintln!("ws-gateway: {}", failure.message);
            failure.exit_code
        }
    }
}

/// Why the process ends with something else than 0.
struct Failure {
    exit_code: c_int,
    message: String,
}

impl Failure {
    fn new(error: impl ToString) -> Self {
        Self {
            exit_code: EXIT_FAILURE,
            message: error.to_string(),
        }
    }

    fn usage(error: impl ToString) -> Self {
        Self {
            exit_code: EXIT_USAGE,
            message: error.to_string(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let file = config_file(arguments.config);
    let config = config::load(file.as_deref(), None)?;
    match arguments.command {
        None => {
            start_log(&config)?;
            run_gateway(config, file.as_deref())
        }
        Some(Command::Check) => {
            // Whoever closed standard output does not want to know.
            let _ = write!(io::stdout(), "{}", config::display(&config));
            Ok(())
        }
        #[cfg(feature = "reference")]
        Some(Command::Services(arguments)) => {
            start_log(&config)?;
            run_services(config, &arguments, file.as_deref())
        }
    }
}

/// The file that was asked for, or the default one if it is there.
fn config_file(asked: Option<PathBuf>) -> Option<PathBuf> {
    asked.or_else(|| Some(PathBuf::from(DEFAULT_CONFIG)).filter(|file| file.exists()))
}

fn start_log(config: &Config) -> Result<(), Failure> {
    logging::start(&config.log).map_err(|error| {
        Failure::usage(format!("log.file: {}: {error}", config.log.file.display()))
    })
}

fn run_gateway(config: Config, file: Option<&Path>) -> Result<(), Failure> {
    let signals = SignalThread::start()?;
    let (fatal, died) = unbounded();
    info!(
        "Starting: gateway_id={}, mode={:?}",
        config.gateway.id, config.backend.mode
    );
    let gateway = Gateway::start(config, fatal).map_err(|error| match error {
        StartError::Configuration(_) => Failure::usage(error),
        _ => Failure::new(error),
    })?;
    announce(&format!("listening {}", gateway.url()));
    let outcome = signals.until_told(&died, || match gateway.lets_in_at() {
        Some(addr) => reload(file, addr, |config| gateway.reload(config)),
        None => info!("Nothing to read again: only the embedded services have tokens and groups"),
    });
    gateway.stop();
    outcome
}

#[cfg(feature = "reference")]
fn run_services(
    config: Config,
    arguments: &ServicesArguments,
    file: Option<&Path>,
) -> Result<(), Failure> {
    use std::time::{Duration, Instant};
    use ws_gateway::broker::Endpoint;
    use ws_gateway::broker::publisher::AmqpPublisher;
    use ws_gateway::reference::Reference;

    /// How long a publication waits for its confirm.
    const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

    config::may_listen(&config, arguments.listen)
        .map_err(|reason| Failure::usage(format!("--listen: {reason}")))?;
    if arguments
        .database
        .as_ref()
        .is_some_and(|path| path.as_os_str().is_empty())
    {
        return Err(Failure::usage("--database: must not be empty"));
    }
    let signals = SignalThread::start()?;
    let url = arguments.broker.as_ref().unwrap_or(&config.broker.url);
    let endpoint =
        Endpoint::parse(url).map_err(|error| Failure::usage(format!("--broker: {error}")))?;
    let publisher = AmqpPublisher::new(endpoint, config.broker.heartbeat, CONFIRM_TIMEOUT);
    let mut embedded = config.embedded.clone();
    if let Some(database) = &arguments.database {
        embedded.database.clone_from(database);
    }
    let (fatal, died) = unbounded();
    let reference = Reference::start(arguments.listen, &embedded, Box::new(publisher), &fatal);
    let mut reference = reference.map_err(Failure::new)?;
    announce(&format!("listening grpc http://{}", reference.addr()));
    let addr = reference.addr();
    let outcome = signals.until_told(&died, || {
        reload(file, addr, |config| {
            reference
                .reload(&config.embedded)
                .map_err(|error| error.to_string())
        });
    });
    reference.stop(Instant::now() + config.shutdown.drain);
    outcome
}

/// One line on standard output for whoever waits for the port.
fn announce(line: &str) {
    // Whoever closed standard output does not want to know.
    let _ = writeln!(io::stdout(), "{line}");
    info!("Ready: {line}");
}

/// Signals as messages, from a thread that ends when this is dropped. SIGTERM or SIGINT while the
/// process ends has it end at once.
struct SignalThread {
    received: Receiver<c_int>,
    ending: Arc<AtomicBool>,
    handle: Handle,
    /// Taken out when this is dropped.
    thread: Option<JoinHandle<()>>,
}

impl SignalThread {
    fn start() -> Result<Self, Failure> {
        let ending = Arc::new(AtomicBool::new(false));
        let listen = || {
            for signal in [SIGTERM, SIGINT] {
                // In this order, so that the first one arms what the second one meets.
                flag::register_conditional_shutdown(signal, EXIT_FAILURE, Arc::clone(&ending))?;
                flag::register(signal, Arc::clone(&ending))?;
            }
            Signals::new([SIGTERM, SIGINT, SIGHUP])
        };
        let mut signals =
            listen().map_err(|error| Failure::new(format!("cannot listen to signals: {error}")))?;
        let handle = signals.handle();
        let (sender, received) = unbounded();
        let thread = thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                // An error says that nobody listens any more.
                let _ = signals.forever().try_for_each(|signal| sender.send(signal));
            });
        let thread =
            thread.map_err(|error| Failure::new(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            received,
            ending,
            handle,
            thread: Some(thread),
        })
    }

    /// Serves SIGHUP until SIGTERM or SIGINT, or until something is fatal.
    fn until_told(&self, died: &Receiver<String>, on_hangup: impl Fn()) -> Result<(), Failure> {
        loop {
            select! {
                recv(self.received) -> signal => match signal {
                    Ok(SIGHUP) => on_hangup(),
                    Ok(signal) => {
                        let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                        info!("Told to end: signal={name}");
                        return Ok(());
                    }
                    Err(_) => return Err(Failure::new("the signal thread has ended")),
                },
                recv(died) -> reason => {
                    self.ending.store(true, Ordering::SeqCst);
                    let reason = reason.unwrap_or_else(|_| "no thread is left".into());
                    error!("Ends, since it cannot go on: reason={reason}");
                    return Err(Failure::new(reason));
                }
            }
        }
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Reads tokens and groups again, which let users in at `addr`.
fn reload(file: Option<&Path>, addr: SocketAddr, apply: impl Fn(&Config) -> Result<(), String>) {
    match config::load(file, Some(addr)) {
        Ok(config) => match apply(&config) {
            Ok(()) => info!("Configuration read again: tokens and groups are in force"),
            Err(error) => error!("Configuration read again, and nothing changed: {error}"),
        },
        Err(error) => error!("Configuration read again, and the old one stays: {error}"),
    }
}
