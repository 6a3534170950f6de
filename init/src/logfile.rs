//! Logs on disk: one thread writes, fed by a bounded channel, so that a slow or full disk never holds anybody up. What does not fit is
//! dropped, counted and reported in the file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use garboard_control::{LogLine, Upkeep};

/// Lines on their way to the disk: half a second of the most talkative start of all services together.
const QUEUE_LINES: usize = 512;

/// Most files that are ever kept of a source: none beyond is looked for.
const MOST_FILES: u32 = 16;

/// The thread has little to do and is one of few things in PID 1 with a stack of its own.
const STACK_BYTES: usize = 64 * 1024;

/// How much is kept of each source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size at which a file is put aside, bytes.
    pub file_bytes: u64,
    /// Files that are kept, the present one included.
    pub files: u32,
}

impl From<&Upkeep> for Limits {
    fn from(upkeep: &Upkeep) -> Self {
        Self { file_bytes: upkeep.log_file_bytes, files: upkeep.log_files }
    }
}

/// The way to the files.
#[derive(Debug)]
pub struct FileLog {
    queue: SyncSender<(Box<str>, LogLine)>,
    dropped: Arc<AtomicU64>,
    limits: Arc<Mutex<Limits>>,
    thread: JoinHandle<()>,
}

impl FileLog {
    /// Starts writing below `directory`, which is made if it is missing, and keeps as much as `limits` say.
    ///
    /// # Errors
    /// When the directory cannot be made or no thread can be started.
    pub fn start(directory: &Path, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let limits = Arc::new(Mutex::new(limits));
        let mut writer = Writer {
            directory: directory.to_owned(),
            files: BTreeMap::new(),
            dropped: Arc::clone(&dropped),
            limits: Arc::clone(&limits),
            kept: None,
        };
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || writer.run(&lines))?;
        Ok(Self { queue, dropped, limits, thread })
    }

    /// Keeps as much as this from the next line on.
    pub fn limit(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Hands a line over, or drops it when the disk is behind.
    pub fn write(&self, source: &str, line: &LogLine) {
        if !self.try_write(source, line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands a line over; false: the disk is behind. For sources that can be asked again.
    pub fn try_write(&self, source: &str, line: &LogLine) -> bool {
        self.queue.try_send((source.into(), line.clone())).is_ok()
    }

    /// Ends writing; the handle finishes when everything handed over is on its way to the disk and all files are closed.
    pub fn finish(self) -> JoinHandle<()> {
        let Self { queue, dropped: _, limits: _, thread } = self;
        drop(queue);
        thread
    }
}

/// Waits for a thread that ends, but no longer than `limit`.
pub fn wait(thread: JoinHandle<()>, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Writer {
    directory: PathBuf,
    files: BTreeMap<Box<str>, Open>,
    dropped: Arc<AtomicU64>,
    limits: Arc<Mutex<Limits>>,
    /// Number of files that the folder was last cleared up for.
    kept: Option<u32>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl Writer {
    fn run(&mut self, lines: &Receiver<(Box<str>, LogLine)>) {
        while let Ok((source, line)) = lines.recv() {
            self.clear_up();
            let lost = self.dropped.swap(0, Ordering::Relaxed);
            let mut text = String::new();
            if lost > 0 {
                text =
                    format!("{} [{lost} lines were dropped: the disk was full or slow]\n", timestamp(line.unix_usec));
            }
            text.push_str(&format!("{} {}\n", timestamp(line.unix_usec), line.text));
            // Reported with the next line that the disk takes.
            if self.append(&source, text.as_bytes()).is_err() {
                self.files.remove(&source);
                self.dropped.fetch_add(lost + 1, Ordering::Relaxed);
            }
        }
    }

    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes files that are too many since fewer are kept. What cannot be removed is in nobody's way.
    fn clear_up(&mut self) {
        let files = self.limits().files;
        if self.kept.replace(files) == Some(files) {
            return;
        }
        let is_too_old = |path: &Path| {
            let number = path.extension().and_then(|end| end.to_str()).and_then(|end| end.parse::<u32>().ok());
            number.is_some_and(|number| (files..MOST_FILES).contains(&number))
                && path.file_stem().is_some_and(|stem| Path::new(stem).extension().is_some_and(|end| end == "log"))
        };
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| is_too_old(path)) {
            let _ = fs::remove_file(path);
        }
    }

    fn append(&mut self, source: &str, text: &[u8]) -> io::Result<()> {
        let path = self.directory.join(format!("{source}.log"));
        let Limits { file_bytes, files } = self.limits();
        if self.files.get(source).is_some_and(|open| open.bytes >= file_bytes) {
            self.files.remove(source);
            rotate(&path, files)?;
        }
        let open = match self.files.get_mut(source) {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().create(true).append(true).open(&path)?;
                let bytes = file.metadata()?.len();
                self.files.entry(source.into()).or_insert(Open { file, bytes })
            }
        };
        open.file.write_all(text)?;
        open.bytes += u64::try_from(text.len()).unwrap_or(0);
        Ok(())
    }
}

/// Puts NAME.log aside as NAME.log.1, that as NAME.log.2 and so on; the oldest goes when there are as many as are kept.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    let aside = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    for number in (1..files.saturating_sub(1)).rev() {
        match fs::rename(aside(number), aside(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(path, aside(1))
}

/// A time since 1970 in microseconds as RFC 3339, in UTC.
pub fn timestamp(unix_usec: i64) -> String {
    let seconds = unix_usec.div_euclid(1_000_000);
    let micros = unix_usec.rem_euclid(1_000_000);
    let (days, clock) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The Gregorian calendar repeats after 146097 days; counted from March, a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::from(&Upkeep::default())
    }

    fn line(text: &str) -> LogLine {
        LogLine { unix_usec: 1_709_210_096_000_007, text: text.to_owned() }
    }

    #[test]
    fn times_are_dates() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_709_210_096_000_007, "2024-02-29T12:34:56.000007Z"),
            (4_102_444_799_999_999, "2099-12-31T23:59:59.999999Z"),
        ];
        for (time, text) in cases {
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn lines_reach_the_file_of_their_source() {
        let directory = tempfile::tempdir().unwrap();
        let files = FileLog::start(&directory.path().join("logs"), limits()).unwrap();
        files.write("a", &line("one"));
        files.write("b", &line("two"));
        files.write("a", &line("three"));
        files.finish().join().unwrap();
        let text = fs::read_to_string(directory.path().join("logs/a.log")).unwrap();
        assert_eq!(text, "2024-02-29T12:34:56.000007Z one\n2024-02-29T12:34:56.000007Z three\n");
    }

    #[test]
    fn files_are_put_aside_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Arc::new(Mutex::new(Limits { file_bytes: 1, files: 4 }));
        let mut writer = Writer {
            directory: directory.path().to_owned(),
            files: BTreeMap::new(),
            dropped: Arc::default(),
            limits: Arc::clone(&limits),
            kept: None,
        };
        for number in 0..7 {
            writer.append("a", format!("{number}").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(["a.log", "a.log.1", "a.log.2", "a.log.3"].map(read), ["6", "5", "4", "3"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);

        // Fewer are kept from now on, and what is no log file is nobody's to remove.
        for other in ["notes.3", "a.log.old"] {
            fs::write(directory.path().join(other), "kept").unwrap();
        }
        *limits.lock().unwrap() = Limits { file_bytes: 1, files: 2 };
        writer.clear_up();
        writer.append("a", b"7").unwrap();
        assert_eq!(["a.log", "a.log.1", "notes.3", "a.log.old"].map(read), ["7", "6", "kept", "kept"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn limits_may_change_while_lines_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let files = FileLog::start(directory.path(), limits()).unwrap();
        files.limit(Limits { file_bytes: 1, files: 2 });
        for text in ["one", "two", "three"] {
            files.write("a", &line(text));
        }
        files.finish().join().unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("a.log").ends_with("three\n") && read("a.log.1").ends_with("two\n"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", directory.path().join("a.log")).unwrap();
        let files = FileLog::start(directory.path(), limits()).unwrap();
        files.write("a", &line("lost"));
        files.write("a", &line("lost too"));
        files.write("b", &line("kept"));
        files.finish().join().unwrap();
        let text = fs::read_to_string(directory.path().join("b.log")).unwrap();
        assert!(text.contains("2 lines were dropped") && text.ends_with("kept\n"), "{text}");
    }
}
