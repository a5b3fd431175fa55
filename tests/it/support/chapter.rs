//! The chapter on the client protocol, `src/docs/protocol.md`: its code, its tables, its session.

/// As it is written.
pub const TEXT: &str = include_str!("../../../src/docs/protocol.md");

/// The code block that begins with `start`, as it stands.
pub fn code(start: &str) -> &'static str {
    let found = blocks().find(|(_, text)| text.starts_with(start));
    found
        .unwrap_or_else(|| panic!("no block begins with {start}"))
        .1
}

/// The lines of all blocks of plain text under a heading: what happens in a session.
pub fn lines(heading: &str) -> Vec<&'static str> {
    let section = section(heading);
    let within = |text: &str| section.as_bytes().as_ptr_range().contains(&text.as_ptr());
    let texts = blocks().filter(|(kind, text)| *kind == "text" && within(text));
    texts.flat_map(|(_, text)| text.lines()).collect()
}

/// The rows of the table under a heading whose first column is named `first`, cell by cell.
pub fn table(heading: &str, first: &str) -> Vec<Vec<&'static str>> {
    let head = format!("| {first} |");
    let lines = section(heading).lines();
    let rows = lines.skip_while(|line| !line.starts_with(&head)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.trim_matches('|').split('|').map(str::trim).collect();
    let rows: Vec<Vec<_>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "{heading}: no table of {first}");
    rows
}

/// What stands in a cell as code.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn section(heading: &str) -> &'static str {
    let start = format!("\n## {heading}\n");
    let (_, rest) = TEXT.split_once(&start).expect("a heading");
    rest.split("\n## ").next().expect("a section")
}

/// Each block's language and text.
fn blocks() -> impl Iterator<Item = (&'static str, &'static str)> {
    let fenced = TEXT.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').expect("a language, and lines"))
}
