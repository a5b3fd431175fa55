//! What others write, made harmless: a terminal obeys escape sequences, and shows some text in an order
//! that is not its own.

/// Whether a terminal would act on it: a control character, C1 included, or one that turns the
/// direction of writing or begins a line.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// On one line: what a terminal would act on is written `\u{1b}`, a line's end `\n`.
pub(super) fn line(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => escaped.extend(c.escape_default()),
            c if is_obeyed(c) => escaped.extend(c.escape_unicode()),
            c => escaped.push(c),
        }
    }
    escaped
}

/// As [`line()`], but a line goes on indented below the one before, and no further than it does for all.
pub(super) fn paragraph(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(line).collect();
    lines.join("\n      ")
}

/// JSON that means the same, on one line: a control character can stand in its strings alone, white
/// space apart.
pub(super) fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if is_obeyed(c) => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A title, a cleared screen in C0 and in C1, a line written over, a direction.
    const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}2J\r\u{8}\u{7f}\u{202e}\u{2066}";

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        for escaped in [line(HOSTILE), paragraph(HOSTILE), json(HOSTILE)] {
            assert!(!escaped.chars().any(is_obeyed), "{escaped:?}");
        }
        assert_eq!(line("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
    }

    #[test]
    fn what_is_harmless_stays_as_it_is() {
        for text in ["Hello \"李雷\" \u{1f600} \\ e\u{301}", "", "שלום"] {
            assert_eq!(line(text), text);
            assert_eq!(json(text), text);
        }
    }

    #[test]
    fn json_means_the_same() {
        let text = "{\"content\":\"a\u{7f}\u{9b}2J\u{202e}\"\n,\t\"n\":1}";
        let escaped = json(text);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&escaped), read(text));
        assert_eq!(escaped.lines().count(), 1);
    }

    #[test]
    fn further_lines_are_indented() {
        assert_eq!(paragraph("a\r\nb\n\u{1b}c"), "a\n      b\n      \\u{1b}c");
    }
}
