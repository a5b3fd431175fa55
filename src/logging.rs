//! The log: simplelog, to standard error or a file, at the configured level. A line says what happened
//! and then `key=value`, the user and the connection among them; no token, no password and no message
//! is in any, at any level.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use log::{LevelFilter, error, info};
use parking_lot::{Mutex, RwLock};
use simplelog::{CombinedLogger, ConfigBuilder, LevelPadding, ThreadLogMode, WriteLogger};
use time::format_description::FormatItem;
use time::macros::format_description;

use crate::config::Log;

/// The gateway's own targets. tungstenite would log message text, amiquip secrets.
const OWN: &str = "ws_gateway";
const SECRETIVE: &str = "amiquip";

/// RFC 3339 in UTC, each as wide as the other.
const TIME: &[FormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The file that is written to, if it is one.
static FILE: OnceLock<LogFile> = OnceLock::new();

/// Starts logging. An error means that the file cannot be opened, and names the key.
pub fn start(config: &Log) -> Result<(), String> {
    let file = match config.file.as_path() {
        path if path.as_os_str().is_empty() => None,
        path => Some(LogFile::open(path)?),
    };
    let output = || -> Box<dyn Write + Send> {
        match &file {
            Some(file) => Box::new(file.clone()),
            None => Box::new(io::stderr()),
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
    let own = format.clone().add_filter_allow_str(OWN).build();
    let others = format.add_filter_ignore_str(OWN);
    let others = others.add_filter_ignore_str(SECRETIVE).build();
    let warnings = config.level.min(LevelFilter::Warn);
    // A second start, in tests, keeps the first one's loggers.
    let _ = CombinedLogger::init(vec![
        WriteLogger::new(config.level, own, output()),
        WriteLogger::new(warnings, others, output()),
    ]);
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
    file.map_err(|error| format!("log.file: {}: {error}", path.display()))
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

/// Lets a few lines of a kind through each second.
pub struct LineLimit(Mutex<Second>);

struct Second {
    began: Option<Instant>,
    written: usize,
    left_out: usize,
}

/// How many lines of one kind are written in a second.
const LINES_PER_SECOND: usize = 5;

impl LineLimit {
    pub const fn new() -> Self {
        Self(Mutex::new(Second {
            began: None,
            written: 0,
            left_out: 0,
        }))
    }

    /// What to write behind the line; `None`: leave the line out.
    pub fn pass(&self) -> Option<LeftOut> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<LeftOut> {
        let mut second = self.0.lock();
        let is_over = |began: Instant| now.duration_since(began) >= Duration::from_secs(1);
        if second.began.is_none_or(is_over) {
            (second.began, second.written) = (Some(now), 0);
        }
        if second.written == LINES_PER_SECOND {
            second.left_out += 1;
            return None;
        }
        second.written += 1;
        Some(LeftOut(std::mem::take(&mut second.left_out)))
    }
}

impl Default for LineLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// How many lines were left out before this one: `, left_out=7`, or nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut(usize);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, ", left_out={count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_a_second_pass_and_the_rest_is_counted() {
        let limit = LineLimit::new();
        let start = Instant::now();
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(limit.pass_at(start), Some(LeftOut(0)));
        }
        for _ in 0..7 {
            assert_eq!(limit.pass_at(start + Duration::from_millis(999)), None);
        }
        let next = limit.pass_at(start + Duration::from_secs(1));
        assert_eq!(
            next.map(|it| it.to_string()).as_deref(),
            Some(", left_out=7")
        );
        assert_eq!(
            limit.pass_at(start + Duration::from_secs(1)),
            Some(LeftOut(0))
        );
    }

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
