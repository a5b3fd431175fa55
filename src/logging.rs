//! The log: simplelog, to standard error or a file, at the configured level.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::panic;
use std::thread;

use log::{LevelFilter, error};
use simplelog::{CombinedLogger, ConfigBuilder, LevelPadding, ThreadLogMode, WriteLogger};

use crate::config::Log;

/// The gateway's own targets. tungstenite would log message text, amiquip secrets.
const OWN: &str = "ws_gateway";
const SECRETIVE: &str = "amiquip";

/// Starts logging. An error means that the file cannot be opened, and names the key.
pub fn start(config: &Log) -> Result<(), String> {
    let mut format = ConfigBuilder::new();
    format
        .set_time_format_rfc3339()
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
        WriteLogger::new(config.level, own, output(config)?),
        WriteLogger::new(warnings, others, output(config)?),
    ]);
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        error!(target: OWN, "Panic: thread={name}, {info}");
    }));
    Ok(())
}

fn output(config: &Log) -> Result<Box<dyn Write + Send>, String> {
    let path = &config.file;
    if path.as_os_str().is_empty() {
        return Ok(Box::new(io::stderr()));
    }
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|error| format!("log.file: {}: {error}", path.display()))?;
    Ok(Box::new(file))
}
