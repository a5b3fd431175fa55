//! Processor time and memory: of a server, of the kernel, and of everybody else on the machine,
//! whose work would spoil the figures.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::process::Process;

/// The hundredths of a second that Linux shows to programs.
const TICK: Duration = Duration::from_millis(10);

/// What the processors do that is none of the benchmark's, from a moment on.
pub struct Others {
    since: Instant,
    all: Duration,
    own: Duration,
}

impl Others {
    pub fn watch() -> Self {
        Self {
            since: Instant::now(),
            all: busy(),
            own: own(),
        }
    }

    /// The share of the machine that others took, from 0 to 1. What ended meanwhile counts as
    /// theirs.
    pub fn share(&self) -> f64 {
        let cores = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        let all = busy().saturating_sub(self.all).as_secs_f64();
        let own = own().saturating_sub(self.own).as_secs_f64();
        ((all - own) / (self.since.elapsed().as_secs_f64() * cores)).clamp(0.0, 1.0)
    }
}

/// Time that all processors together were not idle.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").expect("/proc");
    let line = stat.lines().next().expect("a line for all processors");
    let fields: Vec<u32> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: proc(5).
    TICK * [0, 1, 2, 5, 6, 7]
        .iter()
        .map(|&field| fields[field])
        .sum::<u32>()
}

/// The processor time of this process and its children: servers, services, clients, the broker.
fn own() -> Duration {
    let me = std::process::id();
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (id, rest) = stat.split_once(' ')?;
        let fields: Vec<&str> = rest.rsplit(") ").next()?.split(' ').collect();
        let ours = id.parse() == Ok(me) || fields[1].parse() == Ok(me);
        let ticks = |field: usize| fields[field].parse::<u32>().unwrap_or(0);
        ours.then(|| TICK * (ticks(11) + ticks(12)))
    });
    processes.sum()
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(process: &Process) -> f64 {
    let rollup =
        fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid())).expect("/proc");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let digits = line.and_then(|line| line.split_whitespace().next());
    digits
        .and_then(|digits| digits.parse().ok())
        .expect("a number in /proc")
}

/// As [`resident_kib`], once it has not changed for a while.
pub fn settled_kib(process: &Process) -> f64 {
    const LOOK: Duration = Duration::from_millis(500);
    let mut last = f64::NAN;
    loop {
        let now = resident_kib(process);
        if (now - last).abs() < 64.0 {
            return now;
        }
        last = now;
        thread::sleep(LOOK);
    }
}

/// What the kernel has taken for its objects (sockets, epoll, threads), for the stacks of threads
/// and for page tables, in KiB: of the whole machine, and so of a connection's both ends. What
/// waits in sockets' buffers is not among it.
pub fn kernel_kib() -> f64 {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("/proc");
    let kib = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let number = rest.split_whitespace().next()?.parse::<f64>().ok()?;
        matches!(name, "Slab" | "KernelStack" | "PageTables").then_some(number)
    };
    meminfo.lines().filter_map(kib).sum()
}
