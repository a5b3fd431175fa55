//! The plot of how the cost grows, as SVG: small multiples, a row over the number of connections
//! and one over the size of a message. Readable on a light and on a dark page.

use std::fmt::Write;

use crate::machine::Machine;
use crate::report::number;
use crate::results::{GATEWAY, Metric, Results};
use crate::scenarios::{CONNECTIONS, SIZES, by_connections, by_size};
use crate::servers::Kind;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 550.0;
/// Of one of the small plots, without its labels.
const PANEL: (f64, f64) = (225.0, 160.0);
const LEFT: f64 = 70.0;
const TOP: f64 = 92.0;
/// From one small plot to the next.
const STEP: (f64, f64) = (310.0, 246.0);

/// Who is drawn, with the class of its colour.
const SERIES: [(&str, &str); 2] = [(GATEWAY, "a"), (Kind::PeerTry.name(), "b")];
/// What is drawn, with its title.
const COLUMNS: [(Metric, &str); 3] = [
    (Metric::PerSecond, "deliveries/s, saturated"),
    (Metric::CpuPaced, "CPU µs per delivery, paced"),
    (Metric::P99, "p99 latency ms, paced"),
];

/// Colours that stand out on white and on black alike: an image does not know its page.
const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #768390 } \
.title { font-size: 15px; font-weight: 600 } \
.head { font-weight: 600 } \
.grid { stroke: #768390; stroke-opacity: .3 } \
.a { stroke: #2f81f7; fill: #2f81f7 } .b { stroke: #db6d28; fill: #db6d28 } \
polyline { fill: none !important; stroke-width: 2 } \
text.a, text.b { stroke: none }";

/// A row: what grows, and under which names its figures stand.
struct Row {
    label: &'static str,
    values: Vec<f64>,
    names: Vec<String>,
}

/// The whole plot; empty small plots where the growth was not measured.
pub fn growth(results: &Results, machine: &Machine) -> String {
    let row = |label, values: &[usize], name: fn(usize) -> String| Row {
        label,
        values: values.iter().map(|&value| value as f64).collect(),
        names: values.iter().map(|&value| name(value)).collect(),
    };
    let rows = [
        row(
            "connections (200-byte messages)",
            &CONNECTIONS,
            by_connections,
        ),
        row("bytes per message (1,000 connections)", &SIZES, by_size),
    ];
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>How the cost grows</title><style>{STYLE}</style>"#
    );
    text(
        &mut svg,
        20.0,
        28.0,
        "title",
        "start",
        "How the cost of a group message grows",
    );
    text(
        &mut svg,
        20.0,
        48.0,
        "",
        "start",
        &escaped(&machine.to_string()),
    );
    for (place, (subject, class)) in SERIES.iter().enumerate() {
        let x = 700.0 + 110.0 * place as f64;
        let _ = write!(svg, r#"<circle class="{class}" cx="{x}" cy="24" r="4"/>"#);
        text(&mut svg, x + 10.0, 28.0, class, "start", subject);
    }
    for (down, row) in rows.iter().enumerate() {
        for (across, (metric, title)) in COLUMNS.iter().enumerate() {
            let corner = (LEFT + STEP.0 * across as f64, TOP + STEP.1 * down as f64);
            panel(&mut svg, results, corner, row, *metric, title);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(
    svg: &mut String,
    results: &Results,
    corner: (f64, f64),
    row: &Row,
    metric: Metric,
    title: &str,
) {
    let lines = SERIES.map(|(subject, class)| {
        let value = |name: &String| results.of(name, metric, subject);
        (class, row.names.iter().map(value).collect::<Vec<_>>())
    });
    let all = lines
        .iter()
        .flat_map(|(_, values)| values.iter().flatten().copied());
    let horizontal = Axis::over(row.values.iter().copied(), corner.0, PANEL.0);
    let vertical = Axis::over(all, corner.1 + PANEL.1, -PANEL.1);
    text(svg, corner.0, corner.1 - 10.0, "head", "start", title);
    let (bottom, right) = (corner.1 + PANEL.1, corner.0 + PANEL.0);
    for tick in vertical.decades() {
        let y = vertical.at(tick);
        let _ = write!(
            svg,
            r#"<path class="grid" d="M{:.1} {y:.1}H{right:.1}"/>"#,
            corner.0
        );
        text(svg, corner.0 - 6.0, y + 4.0, "", "end", &short(tick));
    }
    for &tick in &row.values {
        let x = horizontal.at(tick);
        let _ = write!(
            svg,
            r#"<path class="grid" d="M{x:.1} {:.1}V{bottom:.1}"/>"#,
            corner.1
        );
        text(svg, x, bottom + 16.0, "", "middle", &short(tick));
    }
    text(
        svg,
        (corner.0 + right) / 2.0,
        bottom + 34.0,
        "",
        "middle",
        row.label,
    );
    for (class, values) in &lines {
        line(svg, class, &horizontal, &vertical, &row.values, values);
    }
}

fn line(
    svg: &mut String,
    class: &str,
    horizontal: &Axis,
    vertical: &Axis,
    over: &[f64],
    values: &[Option<f64>],
) {
    let mut points = String::new();
    for (x, value) in over.iter().zip(values) {
        let Some(value) = value.filter(|value| *value > 0.0) else {
            continue;
        };
        let (x, y) = (horizontal.at(*x), vertical.at(value));
        let _ = write!(points, "{x:.1},{y:.1} ");
        let shown = number(value);
        let _ = write!(
            svg,
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"><title>{shown}</title></circle>"#
        );
    }
    let _ = write!(svg, r#"<polyline class="{class}" points="{points}"/>"#);
}

/// A logarithmic axis over whole decades.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    length: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, start: f64, length: f64) -> Self {
        let logs: Vec<f64> = values
            .filter(|value| *value > 0.0)
            .map(f64::log10)
            .collect();
        let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let from = if least.is_finite() {
            least.floor()
        } else {
            0.0
        };
        let to = if most.is_finite() { most.ceil() } else { 1.0 };
        Self {
            from,
            to: to.max(from + 1.0),
            start,
            length,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + self.length * (value.log10() - self.from) / (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.from as i32..=self.to as i32).map(|power| 10f64.powi(power))
    }
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
    let _ = write!(
        svg,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
    );
}

/// `5k` for 5,000.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
