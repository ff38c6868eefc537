//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write as _};

use serde_json::Value;

use crate::failure::{Failure, Result};

/// Prints one line to standard output.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// Prints a JSON document.
pub(crate) fn document(value: &Value) -> Result<()> {
    line(&serde_json::to_string_pretty(value).map_err(|error| Failure::new(format!("cannot print: {error}")))?)
}

/// Prints a JSON document on one line: for output that goes on.
pub(crate) fn json_line(value: &Value) -> Result<()> {
    line(&value.to_string())
}

/// Tells the person something beside the result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints rows under headings, columns as wide as they need to be. Texts from outside are made harmless first.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    line(&render(headings.iter().map(|heading| (*heading).to_owned()), &widths))?;
    rows.into_iter().try_for_each(|row| line(&render(row.into_iter(), &widths)))
}

fn render(cells: impl Iterator<Item = String>, widths: &[usize]) -> String {
    let mut text = String::new();
    for (cell, width) in cells.zip(widths) {
        let padding = width.saturating_sub(cell.chars().count());
        text.push_str(&cell);
        text.extend(std::iter::repeat_n(' ', padding + 2));
    }
    text.trim_end().to_owned()
}

/// Text without control characters: what a sandbox calls its files must not drive the person's terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The text of a field, `-` when it is absent. Dots lead into objects.
pub(crate) fn field(value: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(value, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => if *flag { "yes" } else { "no" }.to_owned(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        Some(other) => other.to_string(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A point in time as its distance from `now`: `12s ago`, `in 5m`; `-` when absent or not understood.
pub(crate) fn distance(value: &Value, path: &str, now: jiff::Timestamp) -> String {
    let Ok(at) = field(value, path).parse::<jiff::Timestamp>() else { return "-".to_owned() };
    let seconds = now.duration_since(at).as_secs();
    if seconds >= 0 { format!("{} ago", span(seconds.unsigned_abs())) } else { format!("in {}", span(seconds.unsigned_abs())) }
}

/// Seconds in the two largest units that say something.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest}s"),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// Bytes in the largest binary unit with one decimal.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut tenths = 0;
    let mut unit = 0;
    while value >= 1024 && unit + 1 < UNITS.len() {
        tenths = (value % 1024) * 10 / 1024;
        value /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn spans_and_sizes_are_short() {
        assert_eq!([span(5), span(65), span(3720), span(90_000)], ["5s", "1m5s", "1h2m", "1d1h"]);
        assert_eq!([bytes(5), bytes(1536), bytes(512 * 1024 * 1024)], ["5 B", "1.5 KiB", "512.0 MiB"]);
    }

    #[test]
    fn absent_fields_are_a_dash() {
        let value = json!({"a": {"b": 3}, "c": null, "d": ["x", 1], "e": ""});
        assert_eq!(
            [field(&value, "a.b"), field(&value, "a.x"), field(&value, "c"), field(&value, "d"), field(&value, "e")],
            ["3", "-", "-", "x 1", "-"]
        );
    }

    #[test]
    fn distances_say_past_and_future() {
        let now: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;
        assert_eq!(distance(&json!({"t": "1969-12-31T23:59:00Z"}), "t", now), "1m0s ago");
        assert_eq!(distance(&json!({"t": "1970-01-01T00:00:09Z"}), "t", now), "in 9s");
        assert_eq!(distance(&json!({"t": "soon"}), "t", now), "-");
    }
}
