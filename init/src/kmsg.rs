//! PID 1's own messages: tracing events become records of the kernel's log, where they stand in order with the kernel's own and survive
//! in `dmesg`, on the consoles and in `kernel.log`.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garboard_control::LogLine;
use garboard_sys::clock::monotonic;
use garboard_sys::kmsg::{self, Level as KernelLevel, Reader, Writer};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::logs::Logs;
use crate::watched::{Watched, watch};

/// Writes events of `info` and above to the kernel's log, or to standard error when there is none. Spans are not kept: PID 1 has one task
/// that logs, and every event names its object.
#[derive(Debug)]
pub struct KernelLog(Mutex<Option<Writer>>);

impl KernelLog {
    /// Opens the log.
    pub fn new() -> Self {
        Self(Mutex::new(Writer::open("garboard").ok()))
    }

    /// Makes this the place of all events of this process; a second call changes nothing.
    pub fn install() {
        // Fails only when one is installed already.
        let _ = tracing::subscriber::set_global_default(Self::new());
    }
}

impl Default for KernelLog {
    fn default() -> Self {
        Self::new()
    }
}

impl Subscriber for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are only heard when they warn.
        let limit = if metadata.target().starts_with("garboard") { Level::INFO } else { Level::WARN };
        *metadata.level() <= limit
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = line.finish();
        let level = match *event.metadata().level() {
            Level::ERROR => KernelLevel::Error,
            Level::WARN => KernelLevel::Warning,
            Level::INFO => KernelLevel::Info,
            Level::DEBUG | Level::TRACE => KernelLevel::Debug,
        };
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.log(level, &text),
            None => eprintln!("garboard: {text}"),
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as one line: the message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn finish(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(self.fields, " {}={}", field.name(), chain(value));
    }
}

/// Time after which a line that the disk did not take is offered again.
const COPY_PATIENCE: Duration = Duration::from_millis(200);

/// Lines of the kernel's log that a reader may lag behind; the kernel itself keeps them all.
const READER_LINES: usize = 64;

/// The last `count` lines of the kernel's log and, with `follow`, those that come, until the receiver is dropped. Nothing of it is kept
/// in this process: the kernel has it.
pub fn read(count: usize, follow: bool) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(READER_LINES);
    tokio::spawn(async move {
        // Its end is the answer to whatever fails: the stream closes.
        let _ = send_lines(count, follow, &sender).await;
    });
    receiver
}

async fn send_lines(count: usize, follow: bool, sender: &mpsc::Sender<LogLine>) -> Result<(), kmsg::KmsgError> {
    let skip = if count == usize::MAX { 0 } else { count_lines()?.saturating_sub(count) };
    let mut reader = Reader::open()?;
    let mut number = 0;
    while let Some(event) = reader.next_event()? {
        number += 1;
        if number > skip && sender.send(line(event)).await.is_err() {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    let reader = watch(reader).map_err(kmsg::KmsgError::Read)?;
    follow_lines(reader, sender).await
}

async fn follow_lines(
    mut reader: AsyncFd<Watched<Reader>>,
    sender: &mpsc::Sender<LogLine>,
) -> Result<(), kmsg::KmsgError> {
    loop {
        let event = reader.get_mut().0.next_event()?;
        match event {
            Some(event) => {
                if sender.send(line(event)).await.is_err() {
                    return Ok(());
                }
            }
            None => {
                let gone = tokio::select! {
                    ready = reader.readable() => match ready {
                        Ok(mut ready) => {
                            ready.clear_ready();
                            false
                        }
                        Err(_) => true,
                    },
                    () = sender.closed() => true,
                };
                if gone {
                    return Ok(());
                }
            }
        }
    }
}

fn count_lines() -> Result<usize, kmsg::KmsgError> {
    let mut reader = Reader::open()?;
    let mut count = 0;
    while reader.next_event()?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn line(event: kmsg::Event) -> LogLine {
    match event {
        kmsg::Event::Record(record) => LogLine { unix_usec: unix_usec(record.time), text: record.text },
        kmsg::Event::Lost => LogLine { unix_usec: unix_usec(monotonic()), text: "[lines were lost]".to_owned() },
    }
}

/// A time of the kernel's log in the calendar.
fn unix_usec(time: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = (now + time).saturating_sub(monotonic());
    i64::try_from(at.as_micros()).unwrap_or(i64::MAX)
}

/// Copies the kernel's log, from its first line on, to its file. It waits for a disk that is behind: the kernel keeps the lines meanwhile.
pub async fn copy(logs: Logs) {
    let mut lines = read(usize::MAX, true);
    while let Some(line) = lines.recv().await {
        while !logs.try_write_file("kernel", &line) {
            tokio::time::sleep(COPY_PATIENCE).await;
        }
    }
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
