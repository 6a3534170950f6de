//! The kernel's log: `/dev/kmsg` read, parsed and written (kernel: Documentation/ABI/testing/dev-kmsg).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// The device.
pub const DEVICE: &str = "/dev/kmsg";

/// Longest record that the kernel hands out, bytes (`CONSOLE_EXT_LOG_MAX`).
const MAX_RECORD_LEN: usize = 8192;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum KmsgError {
    /// The device could not be opened.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// A record could not be read.
    #[error("cannot read the kernel's log")]
    Read(#[source] io::Error),
    /// The level of what goes to the consoles could not be set.
    #[error("cannot set the console's log level")]
    ConsoleLevel(#[source] io::Error),
    /// The limit on messages of processes could not be taken away.
    #[error("cannot take away the limit on messages of processes")]
    Limit(#[source] io::Error),
}

/// How grave a message is (syslog(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The machine cannot go on.
    Emergency,
    /// Somebody must act now.
    Alert,
    /// Critical.
    Critical,
    /// An error.
    Error,
    /// Odd, but handled.
    Warning,
    /// Normal, but worth notice.
    Notice,
    /// A change of state.
    Info,
    /// Reasons.
    Debug,
}

impl Level {
    const ALL: [Self; 8] = [
        Self::Emergency,
        Self::Alert,
        Self::Critical,
        Self::Error,
        Self::Warning,
        Self::Notice,
        Self::Info,
        Self::Debug,
    ];

    /// The number in a message's priority, 0..=7; lower is graver.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How grave.
    pub level: Level,
    /// Who wrote it: 0 the kernel, others are processes' (syslog(3)).
    pub facility: u32,
    /// Its number; missing numbers were overwritten before they were read.
    pub sequence: u64,
    /// When, after the kernel's start.
    pub time: Duration,
    /// The text, with control characters as `\xNN`.
    pub text: String,
}

impl Record {
    /// Understands one record as read from the device; none for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let split = bytes.iter().position(|&b| b == b';')?;
        let (prefix, rest) = bytes.split_at(split);
        let mut fields = std::str::from_utf8(prefix).ok()?.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let time = Duration::from_micros(fields.next()?.parse().ok()?);
        // Lines after the first are the dictionary (SUBSYSTEM=, DEVICE=).
        let text = rest.get(1..)?.split(|&b| b == b'\n').next()?;
        Some(Self {
            level: *Level::ALL.get(usize::try_from(priority & 7).ok()?)?,
            facility: priority >> 3,
            sequence,
            time,
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

/// What a read gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message.
    Record(Record),
    /// Messages were overwritten before they were read; reading goes on with the oldest that is left.
    Lost,
}

/// Reads the log from its oldest message on, without waiting; the descriptor is readable when there is more.
#[derive(Debug)]
pub struct Reader {
    file: File,
    buffer: Box<[u8]>,
}

impl Reader {
    /// Opens the log.
    ///
    /// # Errors
    /// [`KmsgError::Open`].
    pub fn open() -> Result<Self, KmsgError> {
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(DEVICE).map_err(KmsgError::Open)?;
        Ok(Self { file, buffer: vec![0; MAX_RECORD_LEN].into_boxed_slice() })
    }

    /// The next message; none when there is none now.
    ///
    /// # Errors
    /// [`KmsgError::Read`].
    pub fn next_event(&mut self) -> Result<Option<Event>, KmsgError> {
        loop {
            match self.file.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => match Record::parse(self.buffer.get(..len).unwrap_or_default()) {
                    Some(record) => return Ok(Some(Event::Record(record))),
                    None => continue,
                },
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::EINTR) => continue,
                    Some(libc::EPIPE) => return Ok(Some(Event::Lost)),
                    _ => return Err(KmsgError::Read(error)),
                },
            }
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes to the kernel's log, for programs that run before there is any other.
#[derive(Debug)]
pub struct Writer {
    file: File,
    tag: &'static str,
}

impl Writer {
    /// Opens the log; `tag` stands before each message.
    ///
    /// # Errors
    /// [`KmsgError::Open`].
    pub fn open(tag: &'static str) -> Result<Self, KmsgError> {
        let file = OpenOptions::new().write(true).open(DEVICE).map_err(KmsgError::Open)?;
        Ok(Self { file, tag })
    }

    /// Writes a message, one record for each of its lines. What the kernel does not take is lost: there is nowhere to report it.
    pub fn log(&mut self, level: Level, message: &str) {
        for line in message.lines() {
            // One write is one record, and one of more than 1024 bytes is refused. Facility 3 is "system daemons".
            let mut record = format!("<{}>{}: {line}", 3 << 3 | u32::from(level.number()), self.tag);
            let end = (0..=record.len().min(1000)).rev().find(|&at| record.is_char_boundary(at)).unwrap_or(0);
            record.truncate(end);
            // Without its end a record can be continued, and is shown to nobody before the next one comes (kernel: vprintk_store).
            record.push('\n');
            let _ = self.file.write_all(record.as_bytes());
        }
    }
}

/// Lets only messages graver than `level` appear on the consoles.
///
/// # Errors
/// [`KmsgError::ConsoleLevel`].
pub fn set_console_level(level: Level) -> Result<(), KmsgError> {
    fs::write(Path::new("/proc/sys/kernel/printk"), level.number().to_string()).map_err(KmsgError::ConsoleLevel)
}

/// Takes away the limit that the kernel puts on messages of processes.
///
/// # Errors
/// [`KmsgError::Limit`], also when the kernel's command line has fixed the limit (`printk.devkmsg=`).
pub fn unlimit_processes() -> Result<(), KmsgError> {
    // Unlike other settings, this one is refused without the end of the line (kernel: devkmsg_sysctl_set_loglvl).
    fs::write(Path::new("/proc/sys/kernel/printk_devkmsg"), "on\n").map_err(KmsgError::Limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_of_the_documentation() {
        type Case = (&'static str, &'static [u8], (Level, u32, u64, u64, &'static str));
        let cases: [Case; 3] = [
            ("kernel", b"6,339,5140900,-;NET: Registered\n", (Level::Info, 0, 339, 5_140_900, "NET: Registered")),
            (
                "dictionary",
                b"4,340,5690716,c;text;more\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n",
                (Level::Warning, 0, 340, 5_690_716, "text;more"),
            ),
            ("process, later fields", b"30,1,0,-,caller=T1;x\n", (Level::Info, 3, 1, 0, "x")),
        ];
        for (name, bytes, (level, facility, sequence, micros, text)) in cases {
            let record = Record::parse(bytes).unwrap();
            assert_eq!(
                record,
                Record { level, facility, sequence, time: Duration::from_micros(micros), text: text.to_owned() },
                "{name}"
            );
        }
    }

    #[test]
    fn other_bytes_are_no_records() {
        for bytes in [&b""[..], b";", b"6,1;x", b"a,b,c;x", b"6,1,2"] {
            assert_eq!(Record::parse(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&bytes);
        }

        #[test]
        fn priorities_split(priority in 0_u32..192) {
            let record = Record::parse(format!("{priority},1,2,-;t\n").as_bytes()).unwrap();
            prop_assert_eq!(record.facility * 8 + u32::from(record.level.number()), priority);
        }
    }
}
