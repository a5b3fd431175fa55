//! The table of how the cost grows, in the chapter on the figures, between two marks that stay.

use std::fmt::Write;

use crate::report::number;
use crate::results::{GATEWAY, Metric, Results};
use crate::scenarios::{CONNECTIONS, SIZES, by_connections, by_size};
use crate::servers::Kind;

const BEGIN: &str = "<!-- growth: cargo bench -- --record -->\n";
const END: &str = "<!-- growth ends -->\n";

/// What stands in each column, with its title.
const COLUMNS: [(Metric, &str); 4] = [
    (Metric::PerSecond, "deliveries/s, behind"),
    (Metric::CpuSaturated, "CPU, µs each"),
    (Metric::CpuPaced, "CPU when paced, µs each"),
    (Metric::P99, "p99 when paced, ms"),
];

/// `chapter` with the table of `results`; `None` where the growth was not measured whole, or the
/// marks are missing.
pub fn put(chapter: &str, results: &Results) -> Option<String> {
    let (before, rest) = chapter.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", growth(results)?))
}

/// Each cell: the gateway, and the better peer.
fn growth(results: &Results) -> Option<String> {
    let titles = COLUMNS.map(|(_, title)| title).join(" | ");
    let mut table = format!("| | {titles} |\n|{}\n", " --- |".repeat(COLUMNS.len() + 1));
    let by_connections = CONNECTIONS.map(by_connections);
    let by_size = SIZES.map(by_size);
    for name in by_connections.iter().chain(&by_size) {
        let (_, point) = name.split_once(": ")?;
        write!(table, "| {point} |").ok()?;
        for (metric, _) in COLUMNS {
            let ours = results.of(name, metric, GATEWAY)?;
            let theirs = results.of(name, metric, Kind::PeerTry.name())?;
            write!(table, " **{}** / {} |", number(ours), number(theirs)).ok()?;
        }
        table.push('\n');
    }
    Some(table)
}
