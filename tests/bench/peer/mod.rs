//! The peer: an asynchronous gateway, written as people write it: tokio, tokio-tungstenite, lapin
//! and tonic, a task for each half of a connection ([`connection`]), and a bounded channel between
//! them and those who send ([`registry`]); with a certificate, TLS by tokio-rustls ([`tls`]).
//!
//! To a client it is the gateway: same handshake, same frames byte for byte, the same calls to the
//! same services, the same queues and bindings. A channel that is full is waited for, so that
//! nothing is dropped; how, `--send` says.
//!
//! It leaves out what a benchmark cannot see: histories, token refresh and expiry, all limits but
//! the message size, origins, health checks, the timeout of a stuck write, the broker's return after
//! it was lost (the peer ends), a second try of a failed service call, `session_revoked`, catch-up
//! for a group's new members, and telling apart a message that is unread and live at once (it is
//! pushed twice, as the protocol allows). Each of them would cost it something.

mod broker;
mod catch_up;
mod connection;
mod deliver;
mod dispatch;
mod handshake;
mod presence;
mod protocol;
mod registry;
mod routes;
mod services;
mod tls;

use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{Accept, TlsAcceptor};

use broker::Broker;
use connection::Gateway;
use handshake::HANDSHAKE_WITHIN;
use presence::Presence;
use registry::{Registry, Sending};
use routes::Routes;
use services::Services;

/// What ends the peer, whichever task it happens to.
type Failure = Box<dyn Error + Send + Sync>;

const BACKLOG: u32 = 4_096;
/// After a failed accept, such as one without a descriptor left.
const REST: Duration = Duration::from_millis(50);

#[derive(Parser)]
struct Options {
    /// How a delivery gets into a connection's channel.
    #[arg(long)]
    send: Sending,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    services: String,
    #[arg(long)]
    broker: String,
    #[arg(long)]
    id: String,
    /// A PEM file; with it, TLS.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

/// Runs until SIGTERM. Prints where it listens once its queues are consumed.
pub fn run(arguments: &[String]) {
    let program = "peer".to_owned();
    let options = Options::parse_from([&program].into_iter().chain(arguments));
    raise_descriptor_limit();
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    if let Err(failure) = runtime.block_on(serve(options)) {
        eprintln!("The peer ends: {failure}");
        std::process::exit(1);
    }
    // What is still connected is cut.
    std::process::exit(0);
}

async fn serve(options: Options) -> Result<(), Failure> {
    let mut terminated = signal(SignalKind::terminate())?;
    let tls = options.cert.zip(options.key);
    let tls = tls.map(|(cert, key)| tls::acceptor(&cert, &key));
    let tls = tls.transpose()?;
    let services = Services::new(&options.services)?;
    let registry = Arc::new(Registry::new(options.send));
    let broker = Broker::connect(&options.broker, &options.id).await?;
    // Its users who did not come back are offline.
    let presence = Presence::new(&options.id, services.clone(), Arc::clone(&registry));
    presence.end_lease().await;

    let (failed, mut failures) = mpsc::channel(1);
    broker.consume(&registry, &services, &failed).await?;
    let gateway = Arc::new(Gateway {
        id: options.id,
        routes: Routes::start(&broker, Arc::clone(&registry), failed).await?,
        attendance: presence.start(),
        services,
        registry,
    });
    let listener = listen(options.listen)?;
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    println!("listening {scheme}://{}/ws", listener.local_addr()?);
    io::stdout().flush()?;

    tokio::select! {
        () = accept(&listener, tls.as_ref(), &gateway) => Ok(()),
        Some(failure) = failures.recv() => Err(failure),
        _ = terminated.recv() => {
            presence.end_lease().await;
            Ok(broker.delete_queues(false).await?)
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: &TcpListener, tls: Option<&TlsAcceptor>, gateway: &Arc<Gateway>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let _ = socket.set_nodelay(true);
                let gateway = Arc::clone(gateway);
                match tls {
                    None => tokio::spawn(connection::serve(socket, gateway)),
                    Some(tls) => tokio::spawn(serve_tls(tls.accept(socket), gateway)),
                };
            }
            Err(error) => {
                eprintln!("Not accepted: {error}");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Serves whoever shakes hands in time.
async fn serve_tls(handshake: Accept<TcpStream>, gateway: Arc<Gateway>) {
    if let Ok(Ok(socket)) = timeout(HANDSHAKE_WITHIN, handshake).await {
        connection::serve(socket, gateway).await;
    }
}

/// As the gateway does it.
pub fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it is not allowed, accepting will tell.
    let _ = setrlimit(Resource::Nofile, raised);
}
