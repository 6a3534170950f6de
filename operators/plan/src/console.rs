//! The status screen: what a person in front of the machine needs, in the order in which they need it.
//!
//! What works takes little room and what does not takes the rest: each service that does not serve has lines of its own,
//! with the last that it said, and those that serve share one paragraph. Nothing on the screen changes with time alone,
//! so a quiet machine has a quiet console.

use std::net::IpAddr;

use garboard_supervisor::status::{PublicState, ServiceStatus};

use crate::machine::{state, summary};

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Width of the labels on the left, with the space behind. With it a fingerprint just fits a screen of 80 columns.
const LABEL_COLUMNS: usize = 8;
/// Lines of a failing service's output that are shown.
const SHOWN_OUTPUT_LINES: usize = 3;
/// Lines that one text may take; the beginning of an error says most.
const MAX_TEXT_LINES: usize = 4;

/// Size of a screen, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line, at least 40.
    pub columns: usize,
    /// Lines, at least 12.
    pub rows: usize,
}

impl Default for Size {
    /// What every terminal has.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// What the screen shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The machine's name; none before it is declared.
    pub name: Option<String>,
    /// Version of the image.
    pub version: String,
    /// Phase of the machine, in a word.
    pub phase: String,
    /// Why it is not ready, in words.
    pub reason: Option<String>,
    /// Its addresses, the one that the cluster knows first.
    pub addresses: Vec<IpAddr>,
    /// The link with the default route.
    pub link: Option<String>,
    /// Where the Kubernetes API is reached.
    pub endpoint: Option<String>,
    /// Version of the API server, once it answers.
    pub kubernetes: Option<String>,
    /// Port of the machine API.
    pub machine_api_port: u16,
    /// SHA-256 of the machine's public key, as `sha256:HEX`.
    pub fingerprint: String,
    /// What is wrong, in words: refused manifests, failed network changes, an unusable disk.
    pub problems: Vec<String>,
    /// What it waits for, in words.
    pub waiting: Vec<String>,
    /// The services.
    pub services: Vec<ServiceStatus>,
}

/// The screen as lines with colours (ECMA-48 SGR), at most one fewer than the size has, so that nothing scrolls, and each
/// shorter than the size is wide, so that no terminal wraps.
pub fn render(view: &View, size: Size) -> String {
    let width = size.columns.max(40) - 1;
    let rows = size.rows.max(12) - 1;
    let head = head(view, width);
    let mut body = Vec::new();
    for problem in &view.problems {
        body.extend(paragraph("error", problem, RED, width));
    }
    for waiting in &view.waiting {
        body.extend(paragraph("waits", &format!("for {waiting}"), YELLOW, width));
    }
    body.extend(services(&view.services, width));
    let room = rows.saturating_sub(head.len());
    if body.len() > room {
        let hidden = body.len() - room.saturating_sub(1);
        body.truncate(room.saturating_sub(1));
        body.push(fit(&format!("... and {hidden} more lines: garboardctl services"), width));
    }
    let mut text = String::new();
    for line in head.iter().chain(&body) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn head(view: &View, width: usize) -> Vec<String> {
    let View { name, version, phase, reason, addresses, link, endpoint, kubernetes, machine_api_port, .. } = view;
    let name = name.as_deref().unwrap_or("machine without a name");
    let title = format!("Garboard {version} - {name} - {phase}");
    let mut lines = vec![format!("{BOLD}{}{PLAIN}", fit(&title, width))];
    if let Some(reason) = reason {
        lines.extend(paragraph("state", reason, "", width).into_iter().take(2));
    }
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let on = link.as_ref().map(|link| format!(" on {link}")).unwrap_or_default();
    match addresses.first() {
        None => lines.push(entry("address", "none yet", width)),
        Some(first) => {
            lines.push(entry("address", &format!("{}{on}", shown.join(", ")), width));
            let host = if first.is_ipv6() { format!("[{first}]") } else { first.to_string() };
            lines.push(entry("machine", &format!("{host}:{machine_api_port} (garboardctl)"), width));
        }
    }
    if let Some(endpoint) = endpoint {
        let version =
            kubernetes.as_ref().map_or_else(|| "no answer yet".to_owned(), |version| format!("Kubernetes {version}"));
        lines.push(entry("cluster", &format!("https://{endpoint} ({version})"), width));
    }
    lines.push(entry("key", &view.fingerprint, width));
    lines.push(String::new());
    lines
}

/// Failing services first, then those on their way, then the others in one paragraph.
fn services(services: &[ServiceStatus], width: usize) -> Vec<String> {
    if services.is_empty() {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let mut lacking: Vec<&ServiceStatus> =
        services.iter().filter(|status| !status.ready && !has_ended(status)).collect();
    lacking.sort_by_key(|status| (!is_failing(status), !status.crash_looping));
    for status in &lacking {
        lines.extend(service(status, width));
    }
    let names = |of: fn(&ServiceStatus) -> bool| -> Vec<&str> {
        services.iter().filter(|status| of(status)).map(|status| status.name.as_str()).collect()
    };
    let (ready, ended) = (names(|status| status.ready), names(has_ended));
    for (names, what, colour) in [(ready, "ready", GREEN), (ended, "ended", PLAIN)] {
        if !names.is_empty() {
            let text = format!("{} of {} services {what}: {}", names.len(), services.len(), names.join(", "));
            lines.extend(wrapped(&text, width, colour));
        }
    }
    lines
}

/// Whether it was stopped; what was meant to end, and did, is ready.
fn has_ended(status: &ServiceStatus) -> bool {
    status.state == PublicState::Finished && !status.ready
}

fn is_failing(status: &ServiceStatus) -> bool {
    status.crash_looping || matches!(status.state, PublicState::Failed { .. } | PublicState::BackOff { .. })
}

fn service(status: &ServiceStatus, width: usize) -> Vec<String> {
    let failing = is_failing(status);
    let summary = summary(status);
    let mut text = format!("{} - {}", status.name, state(&status.state).to_lowercase());
    if let PublicState::Failed { reason } | PublicState::BackOff { reason, .. } = &status.state {
        text.push_str(&format!(": {reason}"));
    } else if let Some(message) = summary.message {
        text.push_str(&format!(": {message}"));
    }
    if status.restarts > 0 {
        text.push_str(&format!(" (restarts: {})", status.restarts));
    }
    let mut lines = wrapped(&text, width, if failing { RED } else { YELLOW });
    let skipped = status.last_lines.len().saturating_sub(SHOWN_OUTPUT_LINES);
    for line in status.last_lines.iter().skip(skipped).filter(|_| failing) {
        lines.push(fit(&format!("  | {line}"), width));
    }
    lines
}

fn entry(label: &str, text: &str, width: usize) -> String {
    fit(&format!("{label:<LABEL_COLUMNS$}{text}"), width)
}

/// A text of several lines behind a label.
fn paragraph(label: &str, text: &str, colour: &str, width: usize) -> Vec<String> {
    let mut lines = wrapped(text, width - LABEL_COLUMNS, colour);
    for (position, line) in lines.iter_mut().enumerate() {
        let label = if position == 0 { label } else { "" };
        line.insert_str(0, &format!("{label:<LABEL_COLUMNS$}"));
    }
    lines
}

/// The text broken at spaces into lines of at most `width` characters; a longer word is broken anywhere.
fn wrapped(text: &str, width: usize, colour: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line: Vec<char> = Vec::new();
    for word in clean(text).split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(line.drain(..).collect());
        }
        while word.len() > width {
            lines.push(word.drain(..width).collect());
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.append(&mut word);
    }
    if !line.is_empty() {
        lines.push(line.into_iter().collect::<String>());
    }
    if lines.len() > MAX_TEXT_LINES {
        lines.truncate(MAX_TEXT_LINES);
        if let Some(last) = lines.last_mut() {
            *last = format!("{}>", last.chars().take(width - 1).collect::<String>());
        }
    }
    if colour.is_empty() {
        return lines;
    }
    lines.into_iter().map(|line| format!("{colour}{line}{PLAIN}")).collect()
}

/// The text cut to a number of characters, with a mark where it was cut.
fn fit(text: &str, width: usize) -> String {
    let text = clean(text);
    if text.chars().count() <= width {
        return text;
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}>")
}

/// The text with spaces for everything that would move the cursor: what a service says must not draw on the screen.
fn clean(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
