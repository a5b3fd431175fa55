//! How many connections this process can hold, by what the system grants it.
//!
//! A connection takes one descriptor and two threads; a thread takes two memory mappings, its
//! stack and the guard page below it. (std adds two more for its stack overflow handler, which
//! `main.rs` leaves out.) Past `vm.max_map_count` a thread that starts would abort the process, so
//! the limit is computed beforehand.

use std::fs;
use std::path::Path;

use log::warn;
use rustix::process::{self, getrlimit, setrlimit};

use crate::client::refuser;
use crate::config::Config;

/// Descriptors of everything that is no connection, each part at its most. The services have more,
/// by the number of their addresses.
const SPARE_DESCRIPTORS: usize =
    REFUSED + ACCEPTING + PROCESS + RUNTIMES + BROKER + EMBEDDED + ADMIN + ETCD + ROOM;
/// Connections that wait for their refusal.
const REFUSED: usize = refuser::CAPACITY;
/// The listener, its spare one, a connection that is being admitted, and one with a thread that
/// has not been started.
const ACCEPTING: usize = 4;
/// Standard input, output and error, the log, the signals' two, and a file that is being read.
const PROCESS: usize = 7;
/// tokio's, of the calls, of etcd and of the reference services.
const RUNTIMES: usize = 3 * 4;
/// A connection that is being closed and one that is being opened, each with its socket, its poll
/// and what wakes it; and a look-up of the broker's name.
const BROKER: usize = 2 * 8 + 2;
/// The reference services: their listener, the gateway's connections to them, and the database
/// with its log, its index, a temporary file and its directory.
const EMBEDDED: usize = 1 + 2 * SERVICES + 5;
/// User, Message and Presence Service.
const SERVICES: usize = 3;
/// The admin listener, its connections, and one that is told that there are too many.
const ADMIN: usize = 1 + 16 + 1;
/// A connection that ends, one that is being opened, and a look-up of its name.
const ETCD: usize = 3;
/// What libraries open for a moment.
const ROOM: usize = 32;
/// A connection that ends, one that is being opened, and a look-up of its name.
const PER_SERVICE_ADDRESS: usize = 4;
/// Mappings of the program, its libraries and its heap.
const SPARE_MAPPINGS: usize = 2_000;
/// Threads that serve no connection, and other processes'.
const SPARE_THREADS: usize = 500;

const THREADS_PER_CONNECTION: usize = 2;
const MAPPINGS_PER_CONNECTION: usize = 2 * THREADS_PER_CONNECTION;

/// What connections use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Descriptors,
    Threads,
    Mappings,
}

/// What one of the system's settings grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// As the system calls it.
    pub setting: &'static str,
    pub resource: Resource,
    /// `usize::MAX`: there is no such setting, or it says that there is no limit.
    pub granted: usize,
    /// So many connections fit.
    pub connections: usize,
}

impl Resource {
    /// How many of these a gateway with so many connections needs, for services at so many addresses.
    pub fn needed(self, connections: usize, service_addresses: usize) -> usize {
        self.spare(service_addresses) + self.per_connection() * connections
    }

    fn per_connection(self) -> usize {
        match self {
            Self::Descriptors => 1,
            Self::Threads => THREADS_PER_CONNECTION,
            Self::Mappings => MAPPINGS_PER_CONNECTION,
        }
    }

    fn spare(self, service_addresses: usize) -> usize {
        match self {
            Self::Descriptors => SPARE_DESCRIPTORS + service_addresses * PER_SERVICE_ADDRESS,
            Self::Threads => SPARE_THREADS,
            Self::Mappings => SPARE_MAPPINGS,
        }
    }
}

/// Lowers `limits.max_connections` to what the system grants, and says so.
pub fn lower(config: &mut Config) {
    let least = bounds(config).into_iter().min_by_key(|b| b.connections);
    let least = least.expect("there are six");
    let (wanted, connections) = (config.limits.max_connections, least.connections.max(1));
    if wanted > connections {
        config.limits.max_connections = connections;
        let bound = least.setting;
        warn!("limits.max_connections lowered: from={wanted}, to={connections}, because={bound}");
    }
}

/// Raises the soft limit on descriptors to the hard one, and looks at every setting that counts.
pub fn bounds(config: &Config) -> [Bound; 6] {
    let addresses = service_addresses(config);
    let threads = Resource::Threads;
    let settings = [
        ("RLIMIT_NOFILE", Resource::Descriptors, descriptors()),
        (
            "vm.max_map_count",
            Resource::Mappings,
            sysctl("vm/max_map_count"),
        ),
        ("kernel.pid_max", threads, sysctl("kernel/pid_max")),
        ("kernel.threads-max", threads, sysctl("kernel/threads-max")),
        ("the cgroup's pids.max", threads, cgroup_threads()),
        ("RLIMIT_NPROC", threads, limit(process::Resource::Nproc)),
    ];
    settings.map(|(setting, resource, granted)| Bound {
        setting,
        resource,
        granted,
        connections: granted.saturating_sub(resource.spare(addresses)) / resource.per_connection(),
    })
}

pub fn service_addresses(config: &Config) -> usize {
    let services = &config.services;
    let addresses = [&services.user, &services.message, &services.presence];
    addresses.iter().map(|addresses| addresses.len()).sum()
}

fn descriptors() -> usize {
    let mut granted = getrlimit(process::Resource::Nofile);
    granted.current = granted.maximum;
    // Refused only where the hard limit changed this very moment; the soft one holds then.
    let _ = setrlimit(process::Resource::Nofile, granted);
    limit(process::Resource::Nofile)
}

fn limit(resource: process::Resource) -> usize {
    let limit = getrlimit(resource).current;
    limit.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX))
}

/// A kernel setting; one that is not there, or says "max", is as good as any number.
fn setting(file: impl AsRef<Path>) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(usize::MAX)
}

fn sysctl(name: &str) -> usize {
    setting(format!("/proc/sys/{name}"))
}

fn cgroup_threads() -> usize {
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    least_pids_max(&memberships, Path::new("/sys/fs/cgroup"))
}

/// The least `pids.max` of a process's own cgroup and those above it (cgroups(7), version 2), below
/// `root`. systemd's `TasksMax` is there.
fn least_pids_max(memberships: &str, root: &Path) -> usize {
    let own = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::/"));
    let own = root.join(own.unwrap_or_default());
    let cgroups = own.ancestors().filter(|cgroup| cgroup.starts_with(root));
    let granted = cgroups.map(|cgroup| setting(cgroup.join("pids.max")));
    granted.min().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_bound_counts() {
        let bounds = bounds(&Config::default());
        let least = bounds.iter().map(|bound| bound.connections).min().unwrap();
        for wanted in [1, least.max(1), usize::MAX] {
            let mut config = Config::default();
            config.limits.max_connections = wanted;
            lower(&mut config);
            assert_eq!(config.limits.max_connections, wanted.min(least.max(1)));
        }
    }

    #[test]
    fn what_is_needed_for_connections_is_enough_for_them_and_no_more() {
        let addresses = service_addresses(&Config::default());
        for resource in [Resource::Descriptors, Resource::Threads, Resource::Mappings] {
            let needed = resource.needed(10_000, addresses);
            let fit =
                |granted: usize| (granted - resource.spare(addresses)) / resource.per_connection();
            assert_eq!(
                (fit(needed), fit(needed - 1)),
                (10_000, 9_999),
                "{resource:?}"
            );
        }
    }

    #[test]
    fn the_narrowest_cgroup_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("system.slice/ws-gateway.service");
        fs::create_dir_all(&service).unwrap();
        fs::write(service.join("pids.max"), "max\n").unwrap();
        let found = |memberships| least_pids_max(memberships, root.path());
        let own = "0::/system.slice/ws-gateway.service\n";
        assert_eq!(found(own), usize::MAX);
        fs::write(service.join("pids.max"), "4915\n").unwrap();
        assert_eq!(found(own), 4_915);
        fs::write(root.path().join("system.slice/pids.max"), "100\n").unwrap();
        assert_eq!(found(own), 100);
        fs::write(root.path().join("pids.max"), "70\n").unwrap();
        for memberships in [own, "0::/\n", "", "0::/../..\n"] {
            assert_eq!(found(memberships), 70, "{memberships:?}");
        }
    }
}
