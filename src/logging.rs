//! The log: simplelog, to standard error or a file, at the configured [`Levels`]. A line says what happened
//! and then `key=value`, the user and the connection among them; no token, no password and no message
//! is in any, at any level.

mod levels;
mod line_limit;

use std::fs::{File, OpenOptions};
use std::io::{self, LineWriter, Write};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use log::{LevelFilter, error, info};
use parking_lot::RwLock;
use simplelog::{
    CombinedLogger, ConfigBuilder, LevelPadding, SharedLogger, ThreadLogMode, WriteLogger,
};
use time::format_description::FormatItem;
use time::macros::format_description;

pub use levels::Levels;
pub use line_limit::LineLimit;

/// The gateway's own targets. tungstenite would log message text, amiquip secrets.
const OWN: &str = "ws_gateway";
/// rustls tells of every client that speaks no TLS, which is told in a line of the gateway's own.
const IGNORED: [&str; 2] = ["amiquip", "rustls"];

/// RFC 3339 in UTC, each as wide as the other.
const TIME: &[FormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The file that is written to, if it is one.
static FILE: OnceLock<LogFile> = OnceLock::new();

/// Starts logging to `file`, or to standard error where that is empty. An error says why the file
/// cannot be opened.
pub fn start(levels: &Levels, file: &Path) -> Result<(), String> {
    let to_file = !file.as_os_str().is_empty();
    let file = to_file.then(|| LogFile::open(file)).transpose()?;
    // Each line leaves whole, with one call.
    let output = || -> Box<dyn Write + Send> {
        match &file {
            Some(file) => Box::new(LineWriter::new(file.clone())),
            None => Box::new(LineWriter::new(io::stderr())),
        }
    };
    let mut format = ConfigBuilder::new();
    format
        .set_time_format_custom(TIME)
        .set_thread_level(LevelFilter::Error)
        .set_thread_mode(ThreadLogMode::Names)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_level_padding(LevelPadding::Right);
    let mut own = format.clone();
    own.add_filter_allow_str(OWN);
    let mut loggers: Vec<Box<dyn SharedLogger>> = Vec::new();
    for (group, level) in &levels.groups {
        let target = format!("{OWN}::{group}");
        own.add_filter_ignore(target.clone());
        let group = format.clone().add_filter_allow(target).build();
        loggers.push(WriteLogger::new(*level, group, output()));
    }
    format.add_filter_ignore_str(OWN);
    for target in IGNORED {
        format.add_filter_ignore_str(target);
    }
    let others = format.build();
    let warnings = levels.default.min(LevelFilter::Warn);
    loggers.push(WriteLogger::new(levels.default, own.build(), output()));
    loggers.push(WriteLogger::new(warnings, others, output()));
    // A second start, in tests, keeps the first one's loggers.
    let _ = CombinedLogger::init(loggers);
    if let Some(file) = file {
        let _ = FILE.set(file);
    }
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        error!(target: OWN, "Panic: thread={name}, {info}");
    }));
    Ok(())
}

/// Opens the log file again, since it may have been moved away to start a new one. One that cannot be
/// opened leaves the old one in use.
pub fn reopen() {
    let Some(file) = FILE.get() else {
        return;
    };
    match file.reopen() {
        Ok(()) => info!("Log file opened again: file={}", file.path.display()),
        Err(error) => error!("Log file not opened again, the old one stays: error={error}"),
    }
}

/// A file that can be opened again while it is written to.
#[derive(Clone)]
struct LogFile {
    path: PathBuf,
    file: Arc<RwLock<File>>,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            path: path.into(),
            file: Arc::new(RwLock::new(append(path)?)),
        })
    }

    fn reopen(&self) -> Result<(), String> {
        let file = append(&self.path)?;
        *self.file.write() = file;
        Ok(())
    }
}

fn append(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| format!("{}: {error}", path.display()))
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.file.read()).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.file.read()).flush()
    }
}

/// As `log::info!` and its like, but a few lines of this kind are written each second: for what anybody
/// can cause, who needs no token to do it ten thousand times.
macro_rules! log_limited {
    ($level:ident, $($line:tt)+) => {{
        static LINES: $crate::logging::LineLimit = $crate::logging::LineLimit::new();
        if let Some(left_out) = LINES.pass() {
            log::$level!("{}{left_out}", format_args!($($line)+));
        }
    }};
}
pub(crate) use log_limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_started_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut file = LogFile::open(&path).expect("a file");
        file.write_all(b"one\n").expect("written");
        std::fs::rename(&path, &old).expect("moved");
        file.write_all(b"two\n").expect("written");
        file.reopen().expect("opened again");
        file.write_all(b"three\n").expect("written");
        assert_eq!(std::fs::read_to_string(old).expect("it"), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(path).expect("it"), "three\n");
    }
}
