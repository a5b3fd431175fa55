//! The SQLite database: how it is opened, what its tables hold.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use uuid::Uuid;

use super::MessageIds;
use crate::reference::error::ReferenceError;

/// Says that a database is this program's own ("imgw").
const APPLICATION_ID: i64 = 0x696d_6777;
/// The version of [`TABLES`]. There is no other yet, so there is nothing to migrate from.
const SCHEMA_VERSION: i64 = 1;
/// For a predecessor that is about to end.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// More than there are different statements, so that each is prepared once.
const STATEMENTS: usize = 32;

/// `messages.seq` is the order of commits and the second half of a message's id. `body` is the
/// whole `im.v1.Message`; the columns beside it are what is searched for.
const TABLES: &str = "
    CREATE TABLE epoch (epoch INTEGER NOT NULL) STRICT;

    CREATE TABLE conversations (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,     -- 'single' or 'group'
        first TEXT NOT NULL,    -- the lesser of the two users, or the group
        second TEXT NOT NULL,   -- the greater of the two users, or empty
        UNIQUE (kind, first, second)
    ) STRICT;
    CREATE INDEX conversations_by_second ON conversations (kind, second, first);

    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY,
        conversation INTEGER NOT NULL REFERENCES conversations,
        from_user TEXT NOT NULL,
        client_message_id TEXT, -- NULL: the sender gave none
        body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX messages_by_conversation ON messages (conversation, seq);
    CREATE UNIQUE INDEX messages_by_client_message_id ON messages (from_user, client_message_id)
        WHERE client_message_id IS NOT NULL;

    CREATE TABLE unread (
        user TEXT NOT NULL,
        message INTEGER NOT NULL,
        PRIMARY KEY (user, message)
    ) STRICT, WITHOUT ROWID;

    -- AUTOINCREMENT: the publisher goes by seq, so a deleted row's number must not come again.
    CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        exchange TEXT NOT NULL,
        routing_key TEXT NOT NULL,
        kind TEXT NOT NULL,
        message INTEGER,        -- whose body is published, or
        body BLOB               -- what is published
    ) STRICT;
";

/// Not part of the version: what made a database before there was this index can go on with it.
const OUTBOX_INDEX: &str =
    "CREATE INDEX IF NOT EXISTS outbox_by_key ON outbox (exchange, routing_key, seq)";

/// Opens the database at `path`, or creates it. `:memory:` keeps nothing.
pub(super) fn open(path: &Path) -> Result<(Connection, MessageIds), ReferenceError> {
    let database = |error| ReferenceError::Database {
        path: path.into(),
        error,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(database)?;
    let fresh = is_fresh(&connection, path)?;
    prepare(&mut connection, fresh)
        .map(|epoch| (connection, MessageIds { epoch }))
        .map_err(database)
}

/// Whether the database is empty. Another program's database is refused before anything is
/// changed in it.
fn is_fresh(connection: &Connection, path: &Path) -> Result<bool, ReferenceError> {
    let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
    let read = || -> rusqlite::Result<(i64, i64, i64)> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Held from the first access until the end: two processes on one outbox would publish
        // everything twice.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let tables = number("SELECT count(*) FROM sqlite_schema")?;
        Ok((
            tables,
            number("PRAGMA application_id")?,
            number("PRAGMA user_version")?,
        ))
    };
    match read().map_err(|error| ReferenceError::Database {
        path: path.into(),
        error,
    })? {
        (0, 0, 0) => Ok(true),
        (_, APPLICATION_ID, SCHEMA_VERSION) => Ok(false),
        (_, APPLICATION_ID, found) => Err(ReferenceError::Schema {
            path: path.into(),
            found,
            known: SCHEMA_VERSION,
        }),
        _ => Err(ReferenceError::Foreign { path: path.into() }),
    }
}

/// Creates what is missing, and answers the database's epoch.
fn prepare(connection: &mut Connection, fresh: bool) -> rusqlite::Result<u32> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Answers "memory" for `:memory:`, which is as good.
    connection.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(()))?;
    // Immediate: a database that cannot be written is found out now.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if fresh {
        transaction.execute_batch(TABLES)?;
        // Random, so that another database never gives the same ids again: clients take a second
        // message of the same id for a repetition.
        let (epoch, ..) = Uuid::new_v4().as_fields();
        transaction.execute("INSERT INTO epoch (epoch) VALUES (?1)", [epoch])?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.execute(OUTBOX_INDEX, ())?;
    let epoch = transaction.query_row("SELECT epoch FROM epoch", (), |row| row.get(0))?;
    transaction.commit()?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refused(path: &Path) -> String {
        open(path).expect_err("refused").to_string()
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().to_owned(),
            folder.path().join("missing/gateway.db"),
        ] {
            let error = refused(&path);
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("existing folder"), "{error}");
        }
    }

    #[test]
    fn a_file_of_another_kind_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        let text = "no database at all. ".repeat(100);
        fs::write(&path, &text).unwrap();
        assert!(refused(&path).contains("another kind"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn another_programs_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE t (a)")
            .unwrap();
        assert!(refused(&path).contains("another program"));
    }

    #[test]
    fn another_schema_version_is_refused_with_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.db");
        open(&path)
            .unwrap()
            .0
            .pragma_update(None, "user_version", 7)
            .unwrap();
        let error = refused(&path);
        assert!(
            error.contains("version 7") && error.contains("version 1"),
            "{error}"
        );
    }

    #[test]
    fn a_database_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.db");
        let held = open(&path).unwrap();
        assert!(refused(&path).contains("another process uses it"));
        drop(held);
        open(&path).unwrap();
    }

    #[test]
    fn the_epoch_belongs_to_the_database() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("1.db"), folder.path().join("2.db"));
        let first = open(&one).unwrap().1;
        assert_eq!(open(&one).unwrap().1, first);
        assert_ne!(open(&two).unwrap().1, first);
    }
}
