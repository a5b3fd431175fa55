//! The outbox table: what is committed and not yet confirmed by the broker, in commit order.

use rusqlite::{Connection, Row, params};

use crate::reference::publisher::Publication;

/// Once an answer holds so much, it holds no further row.
const MAX_BYTES: usize = 4 << 20;

/// A row and its number.
pub type OutboxRow = (i64, Publication);

/// What is asked of the outbox.
#[derive(Debug, Default, Clone)]
pub struct OutboxQuery {
    /// The row up to which all is known.
    pub known: i64,
    /// The most rows beyond it; 0: they are not asked for.
    pub limit: u32,
    /// Exchange and routing key, and the row after which known rows of that key are wanted.
    pub keys: Vec<(String, String, i64)>,
    /// The most rows of each key.
    pub limit_per_key: u32,
}

/// Some rows of the outbox.
#[derive(Debug, Default, PartialEq)]
pub struct OutboxPage {
    /// For the first of the keys, or for all: rows, and whether there are more.
    pub of_keys: Vec<(Vec<OutboxRow>, bool)>,
    /// What lies beyond the known rows, and whether there is more of it.
    pub new: Vec<OutboxRow>,
    pub more: bool,
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

/// Answers `query`, as far as an answer may hold it: one row at least, if there is one.
pub fn page(connection: &Connection, query: &OutboxQuery) -> rusqlite::Result<OutboxPage> {
    let mut page = OutboxPage::default();
    let mut bytes = 0;
    let mut of_key = connection.prepare_cached(
        "SELECT o.seq, o.exchange, o.routing_key, o.kind, coalesce(o.body, m.body)
         FROM outbox o LEFT JOIN messages m ON m.seq = o.message
         WHERE o.exchange = ?1 AND o.routing_key = ?2 AND o.seq > ?3 AND o.seq <= ?4
         ORDER BY o.seq LIMIT ?5",
    )?;
    for (exchange, routing_key, after) in &query.keys {
        if bytes >= MAX_BYTES {
            break;
        }
        let wanted = query.limit_per_key;
        let given = params![exchange, routing_key, after, query.known, wanted + 1];
        let rows = of_key.query_map(given, row)?;
        page.of_keys.push(fill(rows, wanted, &mut bytes)?);
    }
    if query.limit > 0 {
        let mut new = connection.prepare_cached(
            "SELECT o.seq, o.exchange, o.routing_key, o.kind, coalesce(o.body, m.body)
             FROM outbox o LEFT JOIN messages m ON m.seq = o.message
             WHERE o.seq > ?1 ORDER BY o.seq LIMIT ?2",
        )?;
        let rows = new.query_map(params![query.known, query.limit + 1], row)?;
        (page.new, page.more) = fill(rows, query.limit, &mut bytes)?;
    }
    Ok(page)
}

/// Takes `limit` rows, or as many as bring `bytes` to the bound; and tells whether there are more.
fn fill(
    rows: impl Iterator<Item = rusqlite::Result<OutboxRow>>,
    limit: u32,
    bytes: &mut usize,
) -> rusqlite::Result<(Vec<OutboxRow>, bool)> {
    let mut filled = Vec::new();
    for row in rows {
        let row = row?;
        if filled.len() == limit as usize || *bytes >= MAX_BYTES {
            return Ok((filled, true));
        }
        *bytes += row.1.body.len();
        filled.push(row);
    }
    Ok((filled, false))
}

fn row(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    let publication = Publication {
        exchange: row.get(1)?,
        routing_key: row.get(2)?,
        kind: row.get(3)?,
        body: row.get(4)?,
    };
    Ok((row.get(0)?, publication))
}

/// Deletes these rows.
pub fn delete(connection: &Connection, rows: &[i64]) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
    rows.iter()
        .try_for_each(|row| delete.execute([row]).map(drop))
}
