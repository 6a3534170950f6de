//! The last lines of each service, kept in memory within bounds, and those who follow them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garboard_control::LogLine;
use garboard_supervisor::spec::ServiceName;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::logfile::{FileLog, Limits};

/// Most text that is kept of one service, bytes: PID 1 has 4 MiB for everything, and the files hold the rest.
const RING_BYTES: usize = 12 * 1024;

/// Longest line, bytes; longer ones are cut into several.
const MAX_LINE_LEN: usize = 4096;

/// Lines that a follower may lag behind before it loses some.
const FOLLOWER_LINES: usize = 256;

/// All logs. Cheap to clone; no lock is held while waiting.
#[derive(Clone, Debug, Default)]
pub struct Logs(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    rings: BTreeMap<ServiceName, Ring>,
    files: Option<FileLog>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    followers: Vec<mpsc::Sender<LogLine>>,
}

impl Ring {
    fn push(&mut self, line: &LogLine) {
        self.followers.retain(|follower| match follower.try_send(line.clone()) {
            // Whoever reads too slowly loses lines; whoever has gone is forgotten.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        self.bytes += cost(line);
        self.lines.push_back(line.clone());
        while self.bytes > RING_BYTES
            && let Some(old) = self.lines.pop_front()
        {
            self.bytes -= cost(&old);
        }
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.capacity() + size_of::<LogLine>()
}

impl Logs {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a line of a service.
    pub fn push(&self, service: &ServiceName, text: String) {
        let line = LogLine { unix_usec: now(), text };
        self.with(|inner| {
            if let Some(files) = &inner.files {
                files.write(service.as_str(), &line);
            }
            match inner.rings.get_mut(service) {
                Some(ring) => ring.push(&line),
                None => inner.rings.entry(service.clone()).or_default().push(&line),
            }
        });
    }

    /// The last `count` lines of a service, oldest first.
    pub fn tail(&self, service: &ServiceName, count: usize) -> Vec<LogLine> {
        self.with(|inner| {
            let Some(ring) = inner.rings.get(service) else { return Vec::new() };
            let skip = ring.lines.len().saturating_sub(count);
            ring.lines.iter().skip(skip).cloned().collect()
        })
    }

    /// The last `count` lines of a service and, with `follow`, those that come, until the receiver is dropped.
    pub fn read(&self, service: &ServiceName, count: usize, follow: bool) -> mpsc::Receiver<LogLine> {
        let tail = self.tail(service, count);
        let (sender, receiver) = mpsc::channel(tail.len() + FOLLOWER_LINES);
        for line in tail {
            // There is room for all of them.
            let _ = sender.try_send(line);
        }
        if follow {
            self.with(|inner| inner.rings.entry(service.clone()).or_default().followers.push(sender));
        }
        receiver
    }

    /// Forgets services that are no longer declared.
    pub fn retain(&self, keep: impl Fn(&ServiceName) -> bool) {
        self.with(|inner| inner.rings.retain(|name, _| keep(name)));
    }

    /// From now on lines go to files too, first those that are in memory.
    pub fn set_files(&self, files: FileLog) {
        self.with(|inner| {
            for (name, ring) in &inner.rings {
                for line in &ring.lines {
                    files.write(name.as_str(), line);
                }
            }
            inner.files = Some(files);
        });
    }

    /// Has files keep as much as this.
    pub fn limit_files(&self, limits: Limits) {
        self.with(|inner| {
            if let Some(files) = &inner.files {
                files.limit(limits);
            }
        });
    }

    /// Ends the writing to files; the thread that is returned ends when all of them are closed.
    pub fn take_files(&self) -> Option<JoinHandle<()>> {
        self.with(|inner| inner.files.take()).map(FileLog::finish)
    }

    /// Writes a line of another source than a service to its file; false: it was not taken now.
    pub fn try_write_file(&self, name: &'static str, line: &LogLine) -> bool {
        self.with(|inner| inner.files.as_ref().is_some_and(|files| files.try_write(name, line)))
    }

    /// Reads a service's output to its end.
    pub async fn collect(self, service: ServiceName, output: impl AsyncRead + Unpin) {
        let mut lines = Lines::default();
        let mut output = output;
        // Small: there is one of it for each service.
        let mut buffer = [0; 1024];
        loop {
            match output.read(&mut buffer).await {
                Ok(0) => break,
                Ok(len) => lines.feed(buffer.get(..len).unwrap_or_default(), |text| self.push(&service, text)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        lines.finish(|text| self.push(&service, text));
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], mut emit: impl FnMut(String)) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.append(line, &mut emit);
            emit(text(&std::mem::take(&mut self.partial)));
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.append(bytes, &mut emit);
    }

    fn append(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(String)) {
        while self.partial.len() + bytes.len() > MAX_LINE_LEN {
            let (now, later) = bytes.split_at(MAX_LINE_LEN - self.partial.len());
            self.partial.extend_from_slice(now);
            emit(text(&std::mem::take(&mut self.partial)));
            bytes = later;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn finish(self, emit: impl FnOnce(String)) {
        if !self.partial.is_empty() {
            emit(text(&self.partial));
        }
    }
}

/// A line as text: what is no UTF-8 is replaced, and control characters cannot reach a terminal.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes));
    let mut text: String = text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
    text.shrink_to_fit();
    text
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> ServiceName {
        ServiceName::try_from("a").unwrap()
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn old_lines_make_room() {
        let logs = Logs::default();
        for number in 0..10_000 {
            logs.push(&name(), format!("line {number}"));
        }
        let all = logs.tail(&name(), usize::MAX);
        assert!(all.iter().map(cost).sum::<usize>() <= RING_BYTES);
        assert_eq!(texts(&all).last(), Some(&"line 9999"));
        assert_eq!(texts(&logs.tail(&name(), 2)), ["line 9998", "line 9999"]);
    }

    #[tokio::test]
    async fn followers_get_what_was_and_what_comes() {
        let logs = Logs::default();
        for text in ["1", "2", "3"] {
            logs.push(&name(), text.to_owned());
        }
        let mut lines = logs.read(&name(), 2, true);
        logs.push(&name(), "4".to_owned());
        for expected in ["2", "3", "4"] {
            assert_eq!(lines.recv().await.unwrap().text, expected);
        }
        let mut ended = logs.read(&name(), 1, false);
        assert_eq!(ended.recv().await.unwrap().text, "4");
        assert!(ended.recv().await.is_none());
    }

    #[test]
    fn a_slow_follower_holds_nobody_up() {
        let logs = Logs::default();
        let _lines = logs.read(&name(), 0, true);
        for number in 0..2 * FOLLOWER_LINES {
            logs.push(&name(), number.to_string());
        }
        assert_eq!(texts(&logs.tail(&name(), 1)), ["511"]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(text in "[a-c\n]{0,60}", cuts in proptest::collection::vec(0..60usize, 0..6)) {
            let mut whole = Vec::new();
            let mut lines = Lines::default();
            lines.feed(text.as_bytes(), |line| whole.push(line));
            lines.finish(|line| whole.push(line));
            let mut pieces = Vec::new();
            let mut lines = Lines::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                lines.feed(&text.as_bytes()[pair[0]..pair[1]], |line| pieces.push(line));
            }
            lines.finish(|line| pieces.push(line));
            prop_assert_eq!(&whole, &pieces);
            prop_assert_eq!(whole, text.lines().collect::<Vec<_>>());
        }

        #[test]
        fn no_line_is_too_long_and_none_is_lost(len in 0..3 * MAX_LINE_LEN) {
            let mut total = 0;
            let mut lines = Lines::default();
            lines.feed(&vec![b'x'; len], |line| { assert!(line.len() <= MAX_LINE_LEN); total += line.len(); });
            lines.finish(|line| total += line.len());
            prop_assert_eq!(total, len);
        }
    }
}
