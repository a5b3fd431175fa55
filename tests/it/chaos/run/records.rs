//! What is read from the services' database, and what `--write` writes.

use std::fs;
use std::path::Path;

use prost::Message as _;
use rusqlite::{Connection, OpenFlags};
use ws_gateway::services::proto::Message;

use crate::chaos::history::{Records, Stored};

/// Of each device a file with what it saw, of each process one with what it said.
pub(super) fn write(folder: &Path, records: &Records) {
    let put = |name: &str, lines: Vec<String>| {
        fs::write(folder.join(name), lines.join("\n")).expect("a file in --write");
    };
    fs::create_dir_all(folder).expect("the folder of --write");
    for history in &records.histories {
        let events = history
            .events
            .iter()
            .map(|(at, event)| format!("{at:?} {event:?}"));
        put(&history.device.replace('/', "-"), events.collect());
    }
    for (number, said) in records.said.iter().enumerate() {
        put(&format!("process-{number}.log"), vec![said.clone()]);
    }
    put(
        "decrees",
        records
            .decrees
            .iter()
            .map(|decree| format!("{decree:?}"))
            .collect(),
    );
    put(
        "faults",
        records
            .faults
            .iter()
            .map(|fault| format!("{fault:?}"))
            .collect(),
    );
    put(
        "stored",
        records
            .stored
            .messages
            .iter()
            .map(|message| {
                let Message {
                    id,
                    from_user_id,
                    to_user_id,
                    group_id,
                    client_message_id,
                    ..
                } = message;
                format!("{id} {from_user_id} -> {to_user_id}{group_id} {client_message_id}")
            })
            .collect(),
    );
}

/// What the services have left on the disk.
pub(super) fn read(database: &Path) -> Stored {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let connection = connection.expect("the services' database");
    let mut messages = connection
        .prepare("SELECT body FROM messages ORDER BY seq")
        .expect("SQL");
    let decode = |body: Vec<u8>| Message::decode(body.as_slice()).expect("a message");
    let messages = messages
        .query_map((), |row| row.get(0).map(decode))
        .expect("messages");
    let messages = messages.collect::<Result<_, _>>().expect("messages");
    let unread = "SELECT user, body FROM unread JOIN messages ON seq = message";
    let mut unread = connection.prepare(unread).expect("SQL");
    let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, decode(row.get(1)?).id));
    let unread = unread.query_map((), pair).expect("what is unread");
    let unread = unread.collect::<Result<_, _>>().expect("what is unread");
    Stored { messages, unread }
}
