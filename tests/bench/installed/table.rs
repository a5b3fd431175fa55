//! The one table: a row for each figure, the servers as columns, and the gateway's figure held
//! against the best of the others.

use super::{FAN_OUT, MEMORY, PACED, SMALL_GROUP, Who};
use crate::report::number;
use crate::results::{GATEWAY, Metric, Results};

/// Which figure of a row is the best.
#[derive(Clone, Copy)]
enum Best {
    Most,
    Least,
    /// None: it only explains the others.
    Neither,
}

struct Row {
    part: &'static str,
    metric: Metric,
    /// In units of its own: how many of them are one of the metric's.
    units: f64,
    name: &'static str,
    best: Best,
}

const fn row(part: &'static str, metric: Metric, name: &'static str, best: Best) -> Row {
    Row {
        part,
        metric,
        units: 1.0,
        name,
        best,
    }
}

/// As [`row`], of a metric in milliseconds.
const fn micros(part: &'static str, metric: Metric, name: &'static str) -> Row {
    Row {
        units: 1_000.0,
        ..row(part, metric, name, Best::Least)
    }
}

const ROWS: [Row; 19] = [
    row(FAN_OUT, Metric::PerSecond, "deliveries/s", Best::Most),
    row(
        FAN_OUT,
        Metric::CpuSaturated,
        "CPU, us/delivery",
        Best::Least,
    ),
    row(
        FAN_OUT,
        Metric::ClientLoad,
        "client's load, % of a core",
        Best::Neither,
    ),
    row(FAN_OUT, Metric::Lost, "lost", Best::Neither),
    row(
        FAN_OUT,
        Metric::Others,
        "others' load, % of the machine",
        Best::Neither,
    ),
    row(PACED, Metric::CpuPaced, "CPU, us/delivery", Best::Least),
    row(
        PACED,
        Metric::CpuBroker,
        "the broker's, us/delivery",
        Best::Neither,
    ),
    row(PACED, Metric::P50, "p50, ms", Best::Least),
    row(PACED, Metric::P99, "p99, ms", Best::Least),
    row(PACED, Metric::Lost, "lost", Best::Neither),
    row(
        PACED,
        Metric::Others,
        "others' load, % of the machine",
        Best::Neither,
    ),
    row(
        SMALL_GROUP,
        Metric::CpuPaced,
        "CPU, us/delivery",
        Best::Least,
    ),
    row(
        SMALL_GROUP,
        Metric::CpuBroker,
        "the broker's, us/delivery",
        Best::Neither,
    ),
    micros(SMALL_GROUP, Metric::P50, "p50, us"),
    micros(SMALL_GROUP, Metric::P99, "p99, us"),
    row(SMALL_GROUP, Metric::Lost, "lost", Best::Neither),
    row(
        SMALL_GROUP,
        Metric::Others,
        "others' load, % of the machine",
        Best::Neither,
    ),
    row(
        MEMORY,
        Metric::MemoryPerConnection,
        "resident, KiB",
        Best::Least,
    ),
    row(
        MEMORY,
        Metric::MemoryKernel,
        "the kernel's, KiB, both ends",
        Best::Least,
    ),
];

/// Prints what was measured.
pub fn print(results: &Results) {
    print!("\n{:<34}", "");
    Who::ALL.iter().for_each(|who| print!("{:>16}", who.name()));
    println!("   gateway : the best other");
    let mut last = "";
    for row in &ROWS {
        let of = |name: &str| results.of(row.part, row.metric, name);
        let values = Who::ALL.map(|who| of(who.name()));
        if values.iter().all(Option::is_none) {
            continue;
        }
        if row.part != last {
            let part = super::ALL.iter().find(|part| part.name == row.part);
            println!("{}", part.map_or(row.part, |part| part.about));
            last = row.part;
        }
        print!("  {:<32}", row.name);
        for value in values {
            let text = value.map_or_else(|| "-".into(), |value| number(value * row.units));
            print!("{text:>16}");
        }
        println!("{}", ratio(row, of));
    }
}

/// The gateway's figure, as a multiple of the best one of the others.
fn ratio(row: &Row, of: impl Fn(&str) -> Option<f64>) -> String {
    let others = Who::ALL
        .map(Who::name)
        .into_iter()
        .filter(|name| *name != GATEWAY);
    let figures = others.filter_map(|name| Some((name, of(name)?)));
    let by_figure = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
    let best = match row.best {
        Best::Most => figures.max_by(by_figure),
        Best::Least => figures.min_by(by_figure),
        Best::Neither => None,
    };
    best.zip(of(GATEWAY))
        .map_or_else(String::new, |((name, best), ours)| {
            format!("   {} : {name}", number(ours / best))
        })
}
