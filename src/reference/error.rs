//! Why the reference services do not start, or do not take a new configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fmt, io};

use rusqlite::ErrorCode;

/// What is wrong, and what the operator does about it.
#[derive(Debug)]
pub enum ReferenceError {
    /// The database cannot be opened or written: see that the path can be, or choose another.
    Database {
        path: PathBuf,
        error: rusqlite::Error,
    },
    /// The database was made by another version of this program: use that, or another path.
    Schema {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// The database belongs to another program: choose another path.
    Foreign { path: PathBuf },
    /// The address cannot be listened on: choose another, or stop who holds it.
    Listen { addr: SocketAddr, error: io::Error },
    /// No thread or runtime could be had: the machine is short of something. Try again later.
    Start(io::Error),
    /// The new tokens and groups are not in force, since the differences could not be stored.
    /// Reload again once the database can be written.
    Reload,
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database { path, error } => {
                write!(
                    f,
                    "database {}: {error}: {}",
                    path.display(),
                    database_cure(error)
                )
            }
            Self::Schema { path, found, known } => write!(
                f,
                "database {}: its schema is version {found}, this program knows version {known}: \
                 run the program that made it, or choose another path",
                path.display()
            ),
            Self::Foreign { path } => write!(
                f,
                "database {}: it belongs to another program: choose another path",
                path.display()
            ),
            Self::Listen { addr, error } => write!(
                f,
                "{addr}: cannot be listened on: {error}: choose another address, or stop the \
                 program that holds this one"
            ),
            Self::Start(error) => write!(
                f,
                "no thread could be started: {error}: raise the limit of threads or descriptors"
            ),
            Self::Reload => write!(
                f,
                "the new tokens and groups are not in force, since the database cannot be \
                 written (see the log): mend that and reload again"
            ),
        }
    }
}

impl std::error::Error for ReferenceError {}

fn database_cure(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process uses it: stop that one, or choose another path"
        }
        Some(ErrorCode::NotADatabase) => "it is a file of another kind: choose another path",
        Some(ErrorCode::DatabaseCorrupt) => "it is damaged: restore it, or choose another path",
        Some(ErrorCode::DiskFull) => "make room on the disk, or choose another path",
        _ => "it must be a file, in an existing folder, that this user may write",
    }
}
