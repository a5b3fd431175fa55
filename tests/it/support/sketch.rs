//! The sketch that the gateway started from, `tests/naive/gateway.rs`, as a process: this very binary,
//! started again. A test binary runs [`play`] where it finds itself asked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{DEADLINE, naive};

const ASKED: &str = "IT_SKETCH";

/// Whether what this process starts as a gateway is the sketch, unless its settings say otherwise.
static DRILLED: AtomicBool = AtomicBool::new(false);

/// From now on the sketch is what is drilled.
pub fn drill() {
    DRILLED.store(true, Ordering::SeqCst);
}

pub fn is_drilled() -> bool {
    DRILLED.load(Ordering::SeqCst)
}

/// How long what is due may take: of the sketch much never comes, and a drill is to end.
pub fn patience() -> Duration {
    match is_drilled() {
        true => Duration::from_secs(3),
        false => DEADLINE,
    }
}

/// The command that runs it with a configuration file.
pub fn command(config: &Path) -> Command {
    let program = env::current_exe().expect("a running binary");
    let mut command = Command::new(program);
    // What libtest needs to run the one test that is the sketch; a drill takes no notice.
    command
        .args(["--ignored", "--exact", "--nocapture", "naive::sketch"])
        .env(ASKED, config);
    command
}

/// Runs it, until this process is killed; false where nobody asked.
pub fn play() -> bool {
    let Some(config) = env::var_os(ASKED).map(PathBuf::from) else {
        return false;
    };
    // libtest has begun a line.
    println!();
    naive::run(&config).unwrap_or_else(|error| panic!("the sketch does not run: {error}"));
    true
}
