//! Kills what the tests started and removes their directory once the test process is gone, also
//! when that was killed itself: a shell of its own process group that waits for the end of a pipe.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

/// Reads `kill PID`, `spare PID` and `remove DIR` until the pipe ends.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
pids=
dir=
while read -r verb what; do
    case $verb in
        kill) pids="$pids $what" ;;
        spare)
            left=
            for pid in $pids; do [ "$pid" = "$what" ] || left="$left $pid"; done
            pids=$left
            ;;
        remove) dir=$what ;;
    esac
done
for pid in $pids; do kill -9 "$pid"; done
# What was killed may write a last file.
for _ in 1 2 3; do rm -rf "$dir" && break; sleep 0.2; done
"#;

/// Has `pid` killed at the end of this process.
pub fn kill_at_end(pid: u32) {
    tell(&format!("kill {pid}"));
}

/// Takes back [`kill_at_end`]: the process was waited for, and its number may be another's now.
pub fn spare(pid: u32) {
    tell(&format!("spare {pid}"));
}

/// A new, empty directory that is removed at the end of this process.
pub fn directory(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path = root().join(format!("{}-{name}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&path).expect("a directory for the test");
    path
}

fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("ws-gateway-it-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory for the tests");
        tell(&format!("remove {}", path.display()));
        path
    })
}

fn tell(line: &str) {
    static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        #[expect(clippy::zombie_processes, reason = "it outlives this process")]
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell as watchdog");
        Mutex::new(shell.stdin.take().expect("its input"))
    });
    let mut pipe = pipe.lock().unwrap_or_else(|broken| broken.into_inner());
    writeln!(pipe, "{line}").expect("the watchdog reads");
}
