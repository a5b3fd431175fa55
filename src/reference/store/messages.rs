//! Messages, conversations and what is unread, as SQL.

use prost::Message as _;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{MessageIds, outbox};
use crate::broker::{DIRECT_EXCHANGE, KIND_MESSAGE, TOPIC_EXCHANGE};
use crate::services::proto::Message;

/// The largest gRPC answer, in bytes: what the gateway takes.
pub const MAX_ANSWER_BYTES: usize = 16 << 20;
/// What an answer needs beside its messages, and a message beside its body. Generous.
const ANSWER_OVERHEAD: usize = 64;
const ENTRY_OVERHEAD: usize = 8;
/// The largest stored message, so that a page can always hold one.
const MAX_BODY_BYTES: usize = MAX_ANSWER_BYTES - ANSWER_OVERHEAD - ENTRY_OVERHEAD;
/// The id and the timestamp, which a message gets when it is stored.
const STAMP_BYTES: usize = 64;

/// Whether a message that has neither id nor timestamp yet can be stored, and read back.
pub fn fits(message: &Message) -> bool {
    message.encoded_len() + STAMP_BYTES <= MAX_BODY_BYTES
}

/// The two users of a single chat, in any order, or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversation {
    Single(String, String),
    Group(String),
}

impl Conversation {
    fn of(message: &Message) -> Self {
        if message.group_id.is_empty() {
            Self::Single(message.from_user_id.clone(), message.to_user_id.clone())
        } else {
            Self::Group(message.group_id.clone())
        }
    }

    /// The columns `kind`, `first` and `second`.
    fn columns(&self) -> (&str, &str, &str) {
        match self {
            Self::Single(a, b) => ("single", a.min(b), a.max(b)),
            Self::Group(group) => ("group", group, ""),
        }
    }
}

/// Part of a list of messages, oldest first.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    pub messages: Vec<Message>,
    /// There are more: older ones in a history, newer ones in what is unread.
    pub has_more: bool,
}

/// Stores `message` as the next one, unread for each of `recipients`, together with what is to be
/// published. Returns it with its id.
pub fn insert<'a>(
    connection: &Connection,
    ids: MessageIds,
    mut message: Message,
    recipients: impl IntoIterator<Item = &'a str>,
) -> rusqlite::Result<Message> {
    let seq: i64 = connection
        .prepare_cached("SELECT coalesce(max(seq), 0) + 1 FROM messages")?
        .query_row((), |row| row.get(0))?;
    message.id = ids.text(seq);
    let client_message_id =
        Some(&message.client_message_id).filter(|client_message_id| !client_message_id.is_empty());
    connection
        .prepare_cached(
            "INSERT INTO messages (seq, conversation, from_user, client_message_id, body)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            seq,
            conversation_id(connection, &Conversation::of(&message))?,
            message.from_user_id,
            client_message_id,
            message.encode_to_vec(),
        ])?;

    let mut unread =
        connection.prepare_cached("INSERT INTO unread (user, message) VALUES (?1, ?2)")?;
    for user in recipients {
        unread.execute(params![user, seq])?;
    }
    publish(connection, seq, &message)?;
    Ok(message)
}

/// Puts message `seq` into the outbox, under each key that it is published with.
fn publish(connection: &Connection, seq: i64, message: &Message) -> rusqlite::Result<()> {
    let add = |exchange, key: String| {
        outbox::insert_message(connection, exchange, &key, KIND_MESSAGE, seq)
    };
    if !message.group_id.is_empty() {
        return add(TOPIC_EXCHANGE, format!("group.{}", message.group_id));
    }
    add(DIRECT_EXCHANGE, format!("user.{}", message.to_user_id))?;
    if message.from_user_id == message.to_user_id {
        return Ok(());
    }
    add(DIRECT_EXCHANGE, format!("user.{}", message.from_user_id))
}

fn conversation_id(connection: &Connection, of: &Conversation) -> rusqlite::Result<i64> {
    let columns = of.columns();
    let known = connection
        .prepare_cached(
            "SELECT id FROM conversations WHERE kind = ?1 AND first = ?2 AND second = ?3",
        )?
        .query_row(columns, |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    connection
        .prepare_cached("INSERT INTO conversations (kind, first, second) VALUES (?1, ?2, ?3)")?
        .insert(columns)
}

/// The message that the sender sent under this id of their own before.
pub fn sent_before(
    connection: &Connection,
    from_user: &str,
    client_message_id: &str,
) -> rusqlite::Result<Option<Message>> {
    if client_message_id.is_empty() {
        return Ok(None);
    }
    connection
        .prepare_cached(
            "SELECT body FROM messages WHERE from_user = ?1 AND client_message_id = ?2",
        )?
        .query_row([from_user, client_message_id], decode)
        .optional()
}

/// Whether a message has this number.
pub fn exists(connection: &Connection, seq: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM messages WHERE seq = ?1")?
        .exists([seq])
}

/// The newest `limit` messages of a conversation before message `before`.
pub fn history(
    connection: &Connection,
    of: &Conversation,
    before: i64,
    limit: u32,
) -> rusqlite::Result<Page> {
    let (kind, first, second) = of.columns();
    let mut statement = connection.prepare_cached(
        "SELECT body FROM messages
         WHERE seq < ?4 AND conversation =
             (SELECT id FROM conversations WHERE kind = ?1 AND first = ?2 AND second = ?3)
         ORDER BY seq DESC LIMIT ?5",
    )?;
    let rows = statement.query_map(params![kind, first, second, before, limit + 1], decode)?;
    let mut page = fill(rows, limit)?;
    page.messages.reverse();
    Ok(page)
}

/// The oldest `limit` messages after message `after` that the user has not acknowledged.
pub fn unread(
    connection: &Connection,
    user: &str,
    after: i64,
    limit: u32,
) -> rusqlite::Result<Page> {
    let mut statement = connection.prepare_cached(
        "SELECT m.body FROM unread u JOIN messages m ON m.seq = u.message
         WHERE u.user = ?1 AND u.message > ?2 ORDER BY u.message LIMIT ?3",
    )?;
    let rows = statement.query_map(params![user, after, limit + 1], decode)?;
    fill(rows, limit)
}

/// Takes `limit` messages, or as many as fit into one answer: one at least.
fn fill(
    rows: impl Iterator<Item = rusqlite::Result<Message>>,
    limit: u32,
) -> rusqlite::Result<Page> {
    let mut page = Page::default();
    let mut bytes = ANSWER_OVERHEAD;
    for message in rows {
        let message = message?;
        bytes += message.encoded_len() + ENTRY_OVERHEAD;
        let full = page.messages.len() == limit as usize || bytes > MAX_ANSWER_BYTES;
        if full && !page.messages.is_empty() {
            page.has_more = true;
            break;
        }
        page.messages.push(message);
    }
    Ok(page)
}

/// Marks messages as received by the user. What is not unread is passed over.
pub fn acknowledge(connection: &Connection, user: &str, seqs: &[i64]) -> rusqlite::Result<()> {
    let mut statement =
        connection.prepare_cached("DELETE FROM unread WHERE user = ?1 AND message = ?2")?;
    for seq in seqs {
        statement.execute(params![user, seq])?;
    }
    Ok(())
}

/// The users that the user has a single chat with; the user too, who wrote to themselves.
pub fn partners(connection: &Connection, user: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached(
            "SELECT second FROM conversations WHERE kind = 'single' AND first = ?1
             UNION ALL
             SELECT first FROM conversations WHERE kind = 'single' AND second = ?1",
        )?
        .query_map([user], |row| row.get(0))?
        .collect()
}

fn decode(row: &Row<'_>) -> rusqlite::Result<Message> {
    let body = row.get_ref(0)?.as_blob()?;
    Message::decode(body)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, error.into()))
}
