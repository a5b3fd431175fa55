//! The log: simplelog, to standard error or a file, at the configured level.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::panic;
use std::thread;

use log::{LevelFilter, error};
use simplelog::{
    CombinedLogger, ConfigBuilder, LevelPadding, SharedLogger, ThreadLogMode, WriteLogger,
};

use crate::config::Log;

/// The gateway's own targets. tungstenite would log message text, amiquip secrets.
const OWN: &str = "ws_gateway";
const SECRETIVE: &str = "amiquip";

/// Starts logging. An error means that the file cannot be opened.
pub fn start(config: &Log) -> io::Result<()> {
    let own = logger(config, config.level, |builder| {
        builder.add_filter_allow_str(OWN)
    })?;
    let others = logger(config, config.level.min(LevelFilter::Warn), |builder| {
        builder
            .add_filter_ignore_str(OWN)
            .add_filter_ignore_str(SECRETIVE)
    })?;
    // A second start, in tests, keeps the first one's loggers.
    let _ = CombinedLogger::init(vec![own, others]);
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        error!(target: OWN, "Panic: thread={name}, {info}");
    }));
    Ok(())
}

fn logger(
    config: &Log,
    level: LevelFilter,
    filter: impl FnOnce(&mut ConfigBuilder) -> &mut ConfigBuilder,
) -> io::Result<Box<dyn SharedLogger>> {
    let mut builder = ConfigBuilder::new();
    builder
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Error)
        .set_thread_mode(ThreadLogMode::Names)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_level_padding(LevelPadding::Right);
    filter(&mut builder);
    Ok(WriteLogger::new(level, builder.build(), output(config)?))
}

fn output(config: &Log) -> io::Result<Box<dyn Write + Send>> {
    if config.file.as_os_str().is_empty() {
        return Ok(Box::new(io::stderr()));
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&config.file)?;
    Ok(Box::new(file))
}
