//! Writing answers: tables for people, JSON and YAML for programs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables
    Text,
    /// Tables with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Writes text to standard output. A reader that has gone is an error like any other; the caller's caller ignores it.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes an answer: as `text` makes it for people, or its fields for programs.
pub fn show<T: Serialize>(format: Format, answer: &T, text: impl FnOnce(bool) -> String) -> anyhow::Result<()> {
    match format {
        Format::Text => print(&printable(&text(false))),
        Format::Wide => print(&printable(&text(true))),
        Format::Json => print(&(serde_json::to_string_pretty(answer)? + "\n")),
        Format::Yaml => print(&serde_yaml_ng::to_string(answer)?),
    }
}

/// A text that does nothing to a terminal but show: what programs on a machine write must not steer the screen of the
/// person who reads it.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// Whether standard output is a screen.
pub fn is_screen() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns, aligned as kubectl does it; the last one runs free.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line.get(column).map_or(0, |cell| cell.chars().count())).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    text
}

/// A duration in at most two units, as kubectl writes ages.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => format!("{minutes}m{:02}s", seconds % 60),
        () if hours < 3 => format!("{minutes}m"),
        () if days < 2 => format!("{hours}h{:02}m", minutes % 60),
        () if days < 8 => format!("{days}d{}h", hours % 24),
        () => format!("{days}d"),
    }
}

/// A size in binary units with three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 10.0 && bytes > 0);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A time as RFC 3339 in UTC; nothing for 0, which means that it is not known.
pub fn time(unix_ms: i64) -> Option<String> {
    let known = Some(unix_ms).filter(|time| *time != 0)?;
    jiff::Timestamp::from_millisecond(known).ok().map(|time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_sizes_and_times_read_well() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (125, "2m05s"),
            (3599, "59m"),
            (11_000, "3h03m"),
            (86_400 * 3, "3d0h"),
            (86_400 * 30, "30d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        for (bytes, text) in [(0, "0 KiB"), (1536, "1.5 KiB"), (250_000_000, "238 MiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(time(0), None);
        assert_eq!(time(1_700_000_000_000).as_deref(), Some("2023-11-14T22:13:20Z"));
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let text = table(["NAME", "STATE"], [["a".to_owned(), String::new()], ["longer".to_owned(), "x".to_owned()]]);
        assert_eq!(text, "NAME     STATE\na\nlonger   x\n");
    }

    #[test]
    fn control_sequences_do_not_reach_the_screen() {
        assert_eq!(printable("a\x1b[2Jb\tc\r\n"), "a\u{fffd}[2Jb\tc\u{fffd}\n");
    }
}
