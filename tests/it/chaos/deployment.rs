//! The processes of a run, and what is done to them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::history::{Clock, Moment, Span};
use super::office::Office;
use super::people::{People, lock};
use super::series::{BrokerFault, Fault, GatewayFault, ServicesFault, What};
use crate::support::broker::{Broker, free_port};
use crate::support::cluster::remote;
use crate::support::process::Signal;
use crate::support::wait::wait_until_within;
use crate::support::{DEADLINE, Gateway, Services, Settings};

/// `groups.cache_ttl`.
pub const CACHE_TTL: Duration = Duration::from_secs(2);
/// `services.timeout`.
pub const ANSWER: Duration = Duration::from_secs(3);
/// `session.idle_timeout`.
pub const IDLE: Duration = Duration::from_secs(5);
/// `presence.lease`.
pub const LEASE: Duration = Duration::from_secs(6);
/// `shutdown.drain`.
const DRAIN: Duration = Duration::from_secs(4);
/// Of a slow process, how long it works and how long it is stopped.
const SLICES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(150)];
/// How many more descriptors a gateway gets that has none: not enough for a connection that comes, and
/// for a connection to the broker that comes back.
const DESCRIPTORS: u64 = 2;

pub struct Deployment {
    pub broker: Arc<Broker>,
    /// Its virtual host.
    vhost: String,
    /// What the services and the gateways have in common: no token and no group.
    pub settings: Settings,
    services: Mutex<Post>,
    /// Held by whoever does something to the broker, which takes its time to come back.
    broker_fault: Mutex<()>,
    gateways: Vec<Mutex<Gateway>>,
    of_gateways: Settings,
    /// What the processes have said that are no more.
    said: Mutex<Vec<String>>,
    defect: Option<String>,
}

struct Post {
    services: Services,
    is_well: bool,
}

/// The services, while nothing is done to them.
pub struct Well<'a>(MutexGuard<'a, Post>);

impl Well<'_> {
    /// Puts another configuration in force; returns when it is.
    pub fn reload(&self, settings: &Settings) {
        const SAID: &str = "Tokens and groups read again";
        let services = &self.0.services;
        let count = || services.stderr().matches(SAID).count();
        let before = count();
        services.reload(settings);
        wait_until_within(
            DEADLINE,
            "the services read their configuration again",
            || count() > before,
        );
    }
}

/// The configuration of all processes.
fn settings() -> Settings {
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    Settings::new()
        .set(
            "session.ping_interval",
            seconds(super::device::PING_INTERVAL),
        )
        .set("session.idle_timeout", seconds(IDLE))
        .set("session.write_timeout", "3s")
        .set("session.send_queue", 64)
        .set("services.timeout", seconds(ANSWER))
        .set("broker.heartbeat", "2s")
        .set("groups.cache_ttl", seconds(CACHE_TTL))
        .set("presence.lease", seconds(LEASE))
        .set("shutdown.drain", seconds(DRAIN))
        .set("shutdown.reconnect_spread", "1s")
        .set("limits.max_connections_per_user", 100)
        .set("limits.rate", 1_000)
        .set("limits.burst", 1_000)
        .set("log.level", "info")
}

impl Deployment {
    /// `defect`: what is planted in the gateways.
    pub fn start(office: &Office, gateways: usize, defect: Option<&str>) -> Self {
        let broker = Broker::private();
        let url = broker.vhost();
        let settings = settings();
        let mut of_services = settings.clone();
        office.write_into(&mut of_services);
        let services = Services::start(&of_services, &url);
        let of_gateways = remote(&settings, &services.url(), &url);
        let mut deployment = Self {
            broker,
            vhost: url.rsplit('/').next().expect("a virtual host").to_owned(),
            settings,
            services: Mutex::new(Post {
                services,
                is_well: true,
            }),
            broker_fault: Mutex::default(),
            gateways: Vec::new(),
            of_gateways,
            said: Mutex::default(),
            defect: defect.map(str::to_owned),
        };
        for number in 0..gateways {
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let gateway = deployment.launch(number, addr);
            deployment.gateways.push(Mutex::new(gateway));
        }
        for gateway in &deployment.gateways {
            lock(gateway).wait_ready();
        }
        deployment
    }

    fn launch(&self, number: usize, addr: SocketAddr) -> Gateway {
        let id = format!("g{number}");
        let settings = self.of_gateways.clone().set("gateway.id", id);
        let settings = settings.set("listen.addr", addr.to_string());
        let variable = self
            .defect
            .as_deref()
            .map(|defect| ("PLANTED_DEFECT", defect));
        let (process, directory) = Gateway::launch(&settings, variable.as_slice());
        Gateway::listening(process, directory)
    }

    pub fn entrances(&self) -> Vec<(SocketAddr, String)> {
        let gateways = self.gateways.iter().map(|gateway| lock(gateway));
        gateways
            .map(|gateway| (gateway.addr, gateway.path.clone()))
            .collect()
    }

    pub fn gateway(&self, number: usize) -> MutexGuard<'_, Gateway> {
        lock(&self.gateways[number])
    }

    pub fn services_if_well(&self) -> Option<Well<'_>> {
        let post = lock(&self.services);
        post.is_well.then_some(Well(post))
    }

    /// Everything that any process has said.
    pub fn said(&self) -> Vec<String> {
        let mut said = lock(&self.said).clone();
        said.push(lock(&self.services).services.stderr());
        said.extend(self.gateways.iter().map(|gateway| lock(gateway).stderr()));
        said
    }

    /// Lets a fault happen, from its time to its end. Answers when what suffered from it did.
    pub fn suffer(&self, fault: &Fault, people: &People) -> Span {
        let clock = people.clock;
        clock.sleep_until(fault.at);
        let _one_at_a_time =
            matches!(fault.what, What::Broker(_)).then(|| lock(&self.broker_fault));
        let from = clock.now();
        let end = from + fault.lasts;
        match fault.what {
            What::Broker(what) => self.broker_suffers(what, clock, end),
            What::Services(what) => self.services_suffer(what, clock, end),
            What::Gateway(number, what) => self.gateway_suffers(number, what, clock, end),
            What::Clients(what, share) => {
                people.afflict(what, share, end);
                clock.sleep_until(end);
            }
        }
        Span::new(from, clock.now())
    }

    fn broker_suffers(&self, fault: BrokerFault, clock: Clock, end: Moment) {
        match fault {
            BrokerFault::Killed => {
                self.broker.kill9();
                clock.sleep_until(end);
                self.broker.restart();
            }
            BrokerFault::Wiped => {
                self.broker.kill9();
                self.broker.wipe();
                clock.sleep_until(end);
                self.broker.restart();
            }
            BrokerFault::Stalled => {
                self.broker.stop_signal();
                clock.sleep_until(end);
                self.broker.cont_signal();
            }
            BrokerFault::Alarm => {
                self.broker.memory_alarm(true);
                clock.sleep_until(end);
                self.broker.memory_alarm(false);
            }
            BrokerFault::ConnectionsClosed => {
                let why = "by the operator";
                self.broker
                    .rabbitmqctl(&["close_all_connections", "--global", why]);
            }
            BrokerFault::QueuesDeleted => {
                let list = [
                    "list_queues",
                    "-p",
                    &self.vhost,
                    "name",
                    "--no-table-headers",
                ];
                let queues = self.broker.rabbitmqctl(&list);
                let is_ours = |queue: &&str| queue.starts_with("queue.gateway.");
                for queue in queues.lines().filter(is_ours) {
                    self.broker
                        .try_rabbitmqctl(&["delete_queue", "-p", &self.vhost, queue]);
                }
            }
        }
    }

    fn services_suffer(&self, fault: ServicesFault, clock: Clock, end: Moment) {
        let post = || lock(&self.services);
        post().is_well = false;
        match fault {
            ServicesFault::Killed => {
                let mut down = post();
                let said = down.services.stderr();
                down.services.kill();
                drop(down);
                lock(&self.said).push(said);
                clock.sleep_until(end);
                post().services.start_again();
            }
            ServicesFault::Stalled => {
                post().services.signal(Signal::STOP);
                clock.sleep_until(end);
                post().services.signal(Signal::CONT);
            }
            ServicesFault::Slow => {
                let [works, stopped] = SLICES;
                while clock.now() < end {
                    post().services.signal(Signal::STOP);
                    thread::sleep(stopped);
                    post().services.signal(Signal::CONT);
                    thread::sleep(works);
                }
            }
            ServicesFault::DiskFull => {
                let usual = post().services.limit("fsize", "0");
                clock.sleep_until(end);
                post().services.limit("fsize", &usual);
            }
        }
        post().is_well = true;
    }

    fn gateway_suffers(&self, number: usize, fault: GatewayFault, clock: Clock, end: Moment) {
        match fault {
            GatewayFault::Killed => {
                let mut gateway = self.gateway(number);
                assert!(gateway.is_running(), "g{number} has ended by itself");
                gateway.kill();
                clock.sleep_until(end);
                self.start_again(number, &mut gateway);
            }
            GatewayFault::Stopped => {
                let mut gateway = self.gateway(number);
                assert!(gateway.is_running(), "g{number} has ended by itself");
                gateway.signal(Signal::TERM);
                let status = gateway.end_within(DRAIN + DEADLINE);
                assert!(
                    status.success(),
                    "g{number} was stopped, and ends with {status}"
                );
                clock.sleep_until(end);
                self.start_again(number, &mut gateway);
            }
            GatewayFault::Frozen => {
                let gateway = self.gateway(number);
                gateway.signal(Signal::STOP);
                clock.sleep_until(end);
                gateway.signal(Signal::CONT);
            }
            GatewayFault::OutOfDescriptors => {
                let gateway = self.gateway(number);
                let few = gateway.descriptors_at_most().0 + DESCRIPTORS;
                let usual = gateway.limit("nofile", &few.to_string());
                clock.sleep_until(end);
                gateway.limit("nofile", &usual);
            }
        }
    }

    fn start_again(&self, number: usize, gateway: &mut Gateway) {
        lock(&self.said).push(gateway.stderr());
        let addr = gateway.addr;
        *gateway = self.launch(number, addr);
    }

    /// The routing keys of users that are bound.
    pub fn routes(&self) -> Vec<String> {
        let list = [
            "list_bindings",
            "-p",
            &self.vhost,
            "routing_key",
            "--no-table-headers",
        ];
        let bound = self.broker.rabbitmqctl(&list);
        bound
            .lines()
            .filter(|key| key.starts_with("user."))
            .map(str::to_owned)
            .collect()
    }

    /// Stops everything but the broker as an operator would. Answers what the Message Service has, and
    /// who does not end well.
    pub fn stop(&self) -> (std::path::PathBuf, Vec<String>) {
        let mut complaints = Vec::new();
        let mut ends = |name: String, process: &mut crate::support::process::Process| {
            process.signal(Signal::TERM);
            let status = process.end_within(DRAIN + DEADLINE);
            if !status.success() {
                complaints.push(format!("{name} is stopped, and ends with {status}"));
            }
        };
        for number in 0..self.gateways.len() {
            ends(format!("g{number}"), &mut self.gateway(number));
        }
        let mut post = lock(&self.services);
        ends("the services".into(), &mut post.services);
        (post.services.database(), complaints)
    }
}

/// Whether a gateway says that it is ready; not, where it says nothing for half a second.
pub fn is_ready(addr: SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b"200"))
    };
    ask().unwrap_or(false)
}
