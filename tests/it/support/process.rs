//! A child process: its output as it comes, its signals, its end, and what it holds of the system.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

pub use rustix::process::Signal;

use super::{DEADLINE, wait::wait_for, watchdog};

/// A running child. Dropped, it is killed; when the test fails, its output is shown.
pub struct Process {
    name: String,
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no input, in a process group of its own, with none of this process's
    /// `GATEWAY_` variables beyond those that `command` sets.
    pub fn start(name: impl Into<String>, command: &mut Command) -> Self {
        Self::spawn(name.into(), command, Stdio::null())
    }

    /// As [`start`](Self::start), with an input that ends when it is dropped.
    pub fn start_with_input(name: impl Into<String>, command: &mut Command) -> (Self, ChildStdin) {
        let mut process = Self::spawn(name.into(), command, Stdio::piped());
        let input = process.child.stdin.take().expect("piped");
        (process, input)
    }

    fn spawn(name: String, command: &mut Command, input: Stdio) -> Self {
        let set: Vec<_> = command.get_envs().map(|(key, _)| key.to_owned()).collect();
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("GATEWAY_") && !set.contains(&key) {
                command.env_remove(key);
            }
        }
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}: {command:?}"));
        watchdog::kill_at_end(child.id());
        let stdout = Lines::read(child.stdout.take().expect("piped"));
        let stderr = Lines::read(child.stderr.take().expect("piped"));
        Self {
            name,
            child,
            stdout,
            stderr,
            status: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rest of the first line of standard output that starts with `prefix`.
    pub fn stdout_line(&mut self, prefix: &str) -> String {
        let line = self
            .stdout
            .wait(|line| line.strip_prefix(prefix).map(str::to_owned));
        line.unwrap_or_else(|| {
            let status = self.child.try_wait().expect("a child to ask");
            panic!(
                "{} printed no `{prefix}…` line; its exit status: {status:?}",
                self.name
            )
        })
    }

    /// Waits for a line of standard error that contains `text`, and returns it.
    pub fn stderr_line(&self, text: &str) -> String {
        let line = self
            .stderr
            .wait(|line| line.contains(text).then(|| line.to_owned()));
        line.unwrap_or_else(|| panic!("{} logged no line with `{text}`", self.name))
    }

    /// What it wrote to standard output so far, or in all once it ended.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The lines that it wrote to standard output so far, behind the first `skip`.
    pub fn stdout_lines(&self, skip: usize) -> Vec<String> {
        self.stdout.state.lock().unwrap().0[skip..].to_vec()
    }

    /// What it wrote to standard error so far, or in all once it ended.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.system_id(), signal)
            .unwrap_or_else(|error| panic!("{} takes no {signal:?}: {error}", self.name));
    }

    /// Sets the soft limit of a resource, named as for prlimit(1), while it runs; returns the one
    /// before. As its own user, since root may be kept from it.
    pub fn limit(&self, resource: &str, soft: &str) -> String {
        let owner = fs::metadata(format!("/proc/{}", self.pid())).expect("/proc");
        let prlimit = |arguments: &[&str]| {
            let mut command = Command::new("prlimit");
            command.uid(owner.uid()).gid(owner.gid());
            command.args(["--pid", &self.pid().to_string()]);
            let output = command.args(arguments).output().expect("prlimit runs");
            assert!(output.status.success(), "{}: {output:?}", self.name);
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let before = prlimit(&[&format!("--{resource}"), "--output=SOFT", "--noheadings"]);
        prlimit(&[&format!("--{resource}={soft}:")]);
        before
    }

    fn system_id(&self) -> rustix::process::Pid {
        let pid = i32::try_from(self.pid()).ok();
        pid.and_then(rustix::process::Pid::from_raw)
            .expect("a process id")
    }

    /// The exit code, once it ended; fails when it still runs after [`DEADLINE`].
    pub fn exit_code(&mut self) -> i32 {
        self.exit_code_within(DEADLINE)
    }

    pub fn exit_code_within(&mut self, deadline: Duration) -> i32 {
        let status = self.end_within(deadline);
        status
            .code()
            .unwrap_or_else(|| panic!("{} died of signal {:?}", self.name, status.signal()))
    }

    /// How it ends, of itself or of a signal.
    pub fn end_within(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let (status, _) = wait_for(deadline, what, || {
            self.child.try_wait().expect("a child to wait for")
        });
        self.ended(status);
        status
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let status = self.child.wait().expect("a killed child ends");
            self.ended(status);
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.status.is_none() && self.child.try_wait().expect("a child to ask").is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Threads, open file descriptors, and resident memory in KiB.
    pub fn held(&self) -> Held {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("/proc")
            .count();
        Held {
            threads: self.in_status("Threads"),
            descriptors,
            resident_kib: self.in_status("VmRSS"),
        }
    }

    /// How much more memory was resident at any moment of `doing` than before it, in KiB.
    pub fn memory_peak<T>(&self, doing: impl FnOnce() -> T) -> (T, usize) {
        // proc(5): sets the peak to what is resident now.
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("/proc");
        let before = self.in_status("VmHWM");
        let done = doing();
        (done, self.in_status("VmHWM").saturating_sub(before))
    }

    /// A number of `/proc/PID/status`.
    fn in_status(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        digits
            .and_then(|digits| digits.parse().ok())
            .expect("a number in /proc")
    }

    /// The limit of descriptors with which none can be had above those that it opened itself, and how many
    /// can below it: what was open for a moment at the start has left gaps.
    pub fn descriptors_at_most(&self) -> (u64, usize) {
        let directory = format!("/proc/{}/fd", self.pid());
        let is_own = |number: &u64| {
            let inherited = fs::read_link(format!("/proc/self/fd/{number}")).ok();
            let target = fs::read_link(format!("{directory}/{number}")).ok();
            *number <= 2 || inherited.is_none() || inherited != target
        };
        let open = fs::read_dir(&directory).expect("/proc");
        let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let own: Vec<u64> = numbers.filter(is_own).collect();
        let limit = own.iter().max().map_or(0, |last| last + 1);
        (limit, limit as usize - own.len())
    }

    /// Its address space, in bytes.
    pub fn address_space(&self) -> u64 {
        self.in_status("VmSize") as u64 * 1024
    }

    /// The processor time that it used, user and system.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("/proc");
        let fields = stat.rsplit(") ").next().expect("fields after the name");
        let ticks = |field: usize| {
            let text = fields.split(' ').nth(field).expect("a field");
            text.parse::<u64>().expect("a number")
        };
        // utime and stime, fields 14 and 15 of proc(5), in the hundredths of a second that Linux
        // shows to programs.
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    /// The names of its threads, as Linux cuts them: 15 bytes.
    pub fn thread_names(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("/proc");
        tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .collect()
    }

    fn ended(&mut self, status: ExitStatus) {
        if self.status.replace(status).is_none() {
            watchdog::spare(self.child.id());
            self.stdout.wait_end();
            self.stderr.wait_end();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let tail = tail(&self.stderr.text());
            println!(
                "--- {} wrote to standard output:\n{}",
                self.name,
                self.stdout.text()
            );
            println!(
                "--- {} wrote to standard error (the end of it):\n{tail}",
                self.name
            );
        }
    }
}

/// What a process holds of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub threads: usize,
    pub descriptors: usize,
    pub resident_kib: usize,
}

fn tail(text: &str) -> String {
    const SHOWN: usize = 200;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// The lines that a pipe brought so far, read by a thread of their own.
#[derive(Default)]
struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let shared = Arc::clone(&lines);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned();
                shared.state.lock().unwrap().0.push(text);
                shared.changed.notify_all();
                line.clear();
            }
            shared.state.lock().unwrap().1 = true;
            shared.changed.notify_all();
        });
        lines
    }

    /// What `found` makes of the first line that it takes; `None` at the pipe's end or too late.
    fn wait(&self, mut found: impl FnMut(&str) -> Option<String>) -> Option<String> {
        let end = Instant::now() + DEADLINE;
        let mut seen = 0;
        let mut state = self.state.lock().unwrap();
        loop {
            for line in &state.0[seen..] {
                if let Some(line) = found(line) {
                    return Some(line);
                }
            }
            seen = state.0.len();
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits, not for long, until the writer's end is closed: a grandchild may hold it.
    fn wait_end(&self) {
        let state = self.state.lock().unwrap();
        let patience = Duration::from_secs(2);
        drop(
            self.changed
                .wait_timeout_while(state, patience, |state| !state.1)
                .unwrap(),
        );
    }

    fn text(&self) -> String {
        self.state.lock().unwrap().0.join("\n")
    }
}
