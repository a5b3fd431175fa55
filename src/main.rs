//! `ws-gateway`: arguments, configuration, log, start, signals.

#![no_main]

mod first_run;
mod signals;

use std::ffi::c_int;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
#[cfg(feature = "conform")]
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};
use log::{error, info};
use signal_hook::consts::SIGPIPE;
use signal_hook::flag;
#[cfg(feature = "chat")]
use ws_gateway::chat;
#[cfg(feature = "check")]
use ws_gateway::check::{self, Report};
use ws_gateway::config::{self, Config};
#[cfg(feature = "conform")]
use ws_gateway::conform;
use ws_gateway::gateway::Gateway;
use ws_gateway::logging;
#[cfg(feature = "recipes")]
use ws_gateway::recipes::{RECIPES, Recipe};

use self::first_run::Banner;
use self::signals::MainLoop;

/// Wrong usage, or a configuration that cannot be used.
const EXIT_USAGE: c_int = 2;
/// Something else that keeps it from running.
const EXIT_FAILURE: c_int = 1;

const DEFAULT_CONFIG: &str = "gateway.toml";

/// A synchronous WebSocket gateway for instant messaging.
#[derive(Parser)]
#[command(name = "ws-gateway", version, propagate_version = true, about, after_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file [default: gateway.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "Without a command, the gateway runs. GATEWAY_TABLE__KEY in the environment \
overrides a key: GATEWAY_LISTEN__ADDR=127.0.0.1:9000. SIGTERM and SIGINT end it gracefully, a second \
one at once; SIGHUP has the log file opened again and the certificate read again, and by the reference services \
their tokens and groups.";

#[derive(Subcommand)]
enum Command {
    /// Chats in a terminal, or sends the lines of a pipe.
    #[cfg(feature = "chat")]
    Chat(chat::Arguments),
    /// Validates the configuration, prints it resolved, secrets hidden, and warns of what is risky.
    Check {
        /// Looks whether broker, services and the system's limits are as the gateway needs them.
        #[cfg(feature = "check")]
        #[arg(long)]
        connect: bool,
    },
    /// Tries a client: plays a gateway that follows a script of the protocol's hard parts.
    #[cfg(feature = "conform")]
    #[command(after_help = conform::HELP)]
    Conform(ConformArguments),
    /// Prints a deployment file.
    #[cfg(feature = "recipes")]
    Recipe(RecipeArguments),
    /// Runs the reference User, Message and Presence services, publishing to RabbitMQ.
    #[cfg(feature = "reference")]
    Services(ServicesArguments),
}

#[cfg(feature = "conform")]
#[derive(clap::Args)]
struct ConformArguments {
    /// Where clients come.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Names the rules.
    #[arg(long)]
    list: bool,
}

#[cfg(feature = "recipes")]
#[derive(clap::Args)]
struct RecipeArguments {
    /// Which one.
    #[arg(required_unless_present = "list", value_parser = RECIPES.map(|recipe| recipe.name))]
    name: Option<String>,
    /// Names them all.
    #[arg(long, conflicts_with = "name")]
    list: bool,
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

#[cfg(feature = "recipes")]
impl RecipeArguments {
    fn text(self) -> String {
        let named = |name| RECIPES.iter().find(|recipe| Some(recipe.name) == name);
        let line = |recipe: &Recipe| format!("{:18}{}\n", recipe.name, recipe.about);
        match named(self.name.as_deref()) {
            Some(recipe) => recipe.text.into(),
            None => RECIPES.iter().map(line).collect(),
        }
    }
}

/// The C entry point, instead of std's: std's would set up a stack overflow handler that costs
/// each thread two more memory mappings, and so half of the connections that the kernel's default
/// settings allow (see `capacity.rs`). What else std's does here is to ignore SIGPIPE.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const u8) -> c_int {
    // A write to a closed pipe or socket is to fail, not to kill the process. That SIGPIPE cannot
    // be caught does not happen.
    static CAUGHT: AtomicBool = AtomicBool::new(false);
    let _ = flag::register(SIGPIPE, &CAUGHT);
    // clap prints help, version and wrong usage itself, and ends with 0 or 2.
    match run(Arguments::parse()) {
        Ok(()) => 0,
        Err((exit_code, message)) => {
            eprintln!("ws-gateway: {message}");
            exit_code
        }
    }
}

/// An error is the exit code, if it is not 0, and why.
type Outcome = Result<(), (c_int, String)>;

fn usage(error: impl ToString) -> (c_int, String) {
    (EXIT_USAGE, error.to_string())
}

fn failure(error: impl ToString) -> (c_int, String) {
    (EXIT_FAILURE, error.to_string())
}

fn run(arguments: Arguments) -> Outcome {
    // The file that was asked for, or the default one if it is there.
    let default = || Some(PathBuf::from(DEFAULT_CONFIG)).filter(|file| file.exists());
    let file = arguments.config.or_else(default);
    let load = || load(file.as_deref()).map_err(usage);
    match arguments.command {
        None => run_gateway(load()?, file.as_deref()),
        #[cfg(feature = "chat")]
        Some(Command::Chat(arguments)) => {
            chat::run(arguments).map_err(|failure| (failure.exit_code, failure.reason))
        }
        Some(Command::Check {
            #[cfg(feature = "check")]
            connect,
        }) => {
            let config = load()?;
            check_certificate(&config, file.as_deref())?;
            #[cfg(feature = "check")]
            run_check(&config, connect)?;
            Ok(())
        }
        #[cfg(feature = "conform")]
        Some(Command::Conform(arguments)) => run_conform(&arguments),
        #[cfg(feature = "recipes")]
        Some(Command::Recipe(arguments)) => {
            print(&arguments.text());
            Ok(())
        }
        #[cfg(feature = "reference")]
        Some(Command::Services(arguments)) => run_services(load()?, arguments, file.as_deref()),
    }
}

fn load(file: Option<&Path>) -> Result<Config, String> {
    let config = config::load(file, None)?;
    #[cfg(feature = "tls")]
    ws_gateway::tls::check(&config).map_err(|(key, reason)| located(file, key, &reason))?;
    Ok(config)
}

/// Says where the key stands whose value cannot be used.
#[cfg(feature = "tls")]
fn located(file: Option<&Path>, key: &str, reason: &str) -> String {
    let variable = format!("GATEWAY_{}", key.to_uppercase().replace('.', "__"));
    let file = file.map(|file| file.display().to_string());
    let origin = match std::env::var_os(&variable) {
        Some(_) => variable,
        None => file.unwrap_or_else(|| "(defaults)".into()),
    };
    format!("{origin}: {reason}")
}

fn run_gateway(config: Config, file: Option<&Path>) -> Outcome {
    check_certificate(&config, file)?;
    start_logging(&config)?;
    let (main_loop, fatal) = MainLoop::new().map_err(failure)?;
    let (id, mode) = (&config.gateway.id, config.backend.mode);
    info!("Starting: gateway_id={id}, mode={mode:?}");
    let banner = Banner::new(&config);
    let gateway = Gateway::start(config, &fatal);
    let gateway = gateway.map_err(|error| failure(first_run::explain(&error)))?;
    announce(&format!("listening {}", gateway.url()));
    let admin = gateway.admin_url();
    admin.inspect(|url| announce(&format!("listening admin {url}")));
    print(&banner.text(&gateway));
    let outcome = main_loop.run(|| {
        logging::reopen();
        gateway.reload_files();
        match gateway.lets_in_at() {
            Some(addr) => reload(file, addr, |config| gateway.reload(config)),
            None => info!("No tokens to read again: only the embedded services have their own"),
        }
    });
    gateway.stop();
    outcome.map_err(failure)
}

/// Whether the gateway can show its clients the certificate.
#[cfg_attr(
    not(feature = "tls"),
    allow(unused_variables, clippy::unnecessary_wraps)
)]
fn check_certificate(config: &Config, file: Option<&Path>) -> Outcome {
    #[cfg(feature = "tls")]
    if !config.tls.cert.is_empty() {
        let read = ws_gateway::tls::read(&config.tls);
        read.map_err(|(key, reason)| usage(located(file, key, &reason)))?;
    }
    Ok(())
}

/// Prints it, warns of what is risky and, with `connect`, looks whether what is needed is there.
#[cfg(feature = "check")]
fn run_check(config: &Config, connect: bool) -> Outcome {
    print(&check::display(config));
    for warning in check::warnings(config) {
        eprintln!("warning: {warning}");
    }
    if !connect {
        return Ok(());
    }
    print("\n");
    let mut report = Report::new(io::stdout());
    check::connect(config, &mut report);
    let not_ready = || failure("the gateway would not be ready: mend what failed");
    report.is_ready().then_some(()).ok_or_else(not_ready)
}

/// Plays a gateway to the clients that come, and says which rules they keep.
#[cfg(feature = "conform")]
fn run_conform(arguments: &ConformArguments) -> Outcome {
    if arguments.list {
        print(&conform::list());
        return Ok(());
    }
    let listener = TcpListener::bind(arguments.listen)
        .map_err(|error| usage(format!("--listen {}: {error}", arguments.listen)))?;
    let is_kept = conform::run(listener, io::stdout()).map_err(usage)?;
    let broken = || failure("not every rule was kept: see above for the cure");
    is_kept.then_some(()).ok_or_else(broken)
}

#[cfg(feature = "reference")]
fn run_services(mut config: Config, arguments: ServicesArguments, file: Option<&Path>) -> Outcome {
    use std::time::{Duration, Instant};
    use ws_gateway::broker::Endpoint;
    use ws_gateway::broker::amqp::Opener;
    use ws_gateway::reference::{AmqpPublisher, Reference};

    /// How long a publication waits for its confirm.
    const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

    start_logging(&config)?;
    config::may_listen(&config, arguments.listen)
        .map_err(|reason| usage(format!("--listen: {reason}")))?;
    let (main_loop, fatal) = MainLoop::new().map_err(failure)?;
    let url = arguments.broker.as_ref().unwrap_or(&config.broker.url);
    let endpoint = Endpoint::parse(url).map_err(|error| usage(format!("--broker: {error}")))?;
    #[cfg(feature = "tls")]
    let wrap = ws_gateway::tls::to_broker(&endpoint, &config.broker.ca).map_err(usage)?;
    #[cfg(not(feature = "tls"))]
    let wrap = None;
    let opener = Opener::new(
        endpoint,
        "ws-gateway services".into(),
        config.broker.heartbeat,
        wrap,
    );
    let publisher = Box::new(AmqpPublisher::new(opener, CONFIRM_TIMEOUT));
    if let Some(database) = arguments.database {
        config.embedded.database = database;
    }
    let reference = Reference::start(arguments.listen, &config.embedded, publisher, &fatal);
    let mut reference = reference.map_err(failure)?;
    let addr = reference.addr();
    announce(&format!("listening grpc http://{addr}"));
    let outcome = main_loop.run(|| {
        logging::reopen();
        reload(file, addr, |config| reference.reload(&config.embedded));
    });
    reference.stop(Instant::now() + config.shutdown.drain);
    outcome.map_err(failure)
}

fn start_logging(config: &Config) -> Outcome {
    let started = logging::start(&config.log.level, &config.log.file);
    started.map_err(|error| usage(format!("log.file: {error}")))
}

fn print(text: &str) {
    // Whoever closed standard output does not want to know.
    let _ = write!(io::stdout(), "{text}");
}

/// One line on standard output for whoever waits for the port.
fn announce(line: &str) {
    print(&format!("{line}\n"));
    info!("Ready: {line}");
}

/// Reads tokens and groups again, which let users in at `addr`.
fn reload<E: Display>(
    file: Option<&Path>,
    addr: SocketAddr,
    apply: impl Fn(&Config) -> Result<(), E>,
) {
    match config::load(file, Some(addr)).map(|config| apply(&config)) {
        Ok(Ok(())) => info!("Configuration read again: tokens and groups are in force"),
        Ok(Err(error)) => error!("Configuration read again, and nothing changed: {error}"),
        Err(error) => error!("Configuration read again, and the old one stays: {error}"),
    }
}
