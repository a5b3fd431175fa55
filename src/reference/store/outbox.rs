//! The outbox table: what is committed and not yet confirmed by the broker, in commit order.

use rusqlite::{Connection, params};

use crate::broker::Publication;

/// Some rows of the outbox.
#[derive(Debug, Default, PartialEq)]
pub struct OutboxPage {
    pub publications: Vec<Publication>,
    /// The number of the last row; `None`: there is none.
    pub last: Option<i64>,
}

/// Adds a publication that has a body of its own.
pub fn insert(connection: &Connection, publication: &Publication) -> rusqlite::Result<()> {
    let Publication {
        exchange,
        routing_key,
        kind,
        body,
    } = publication;
    connection
        .prepare_cached(
            "INSERT INTO outbox (exchange, routing_key, kind, body) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![exchange, routing_key, kind, body])?;
    Ok(())
}

/// Adds the message `seq`, whose body is stored once however often it is published.
pub fn insert_message(
    connection: &Connection,
    exchange: &str,
    routing_key: &str,
    kind: &str,
    seq: i64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO outbox (exchange, routing_key, kind, message) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![exchange, routing_key, kind, seq])?;
    Ok(())
}

/// The first `limit` rows after row `after`.
pub fn page(connection: &Connection, after: i64, limit: u32) -> rusqlite::Result<OutboxPage> {
    let mut statement = connection.prepare_cached(
        "SELECT o.seq, o.exchange, o.routing_key, o.kind, coalesce(o.body, m.body)
         FROM outbox o LEFT JOIN messages m ON m.seq = o.message
         WHERE o.seq > ?1 ORDER BY o.seq LIMIT ?2",
    )?;
    let mut rows = statement.query(params![after, limit])?;
    let mut page = OutboxPage::default();
    while let Some(row) = rows.next()? {
        page.last = Some(row.get(0)?);
        page.publications.push(Publication {
            exchange: row.get(1)?,
            routing_key: row.get(2)?,
            kind: row.get(3)?,
            body: row.get(4)?,
        });
    }
    Ok(page)
}

/// Deletes the rows up to and with `last`.
pub fn delete(connection: &Connection, last: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM outbox WHERE seq <= ?1")?
        .execute([last])?;
    Ok(())
}
