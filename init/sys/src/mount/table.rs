//! The table of mounts of the calling thread, `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::mount::MountFlags;

/// The table could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MountTableError {
    /// The file could not be read.
    #[error("cannot read /proc/thread-self/mountinfo")]
    Read(#[source] io::Error),
    /// A line is not what proc_pid_mountinfo(5) says.
    #[error("line {line} of the table of mounts cannot be understood: {text:?}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// Its text.
        text: String,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The mount's number.
    pub id: u32,
    /// The number of the mount that it is mounted on.
    pub parent: u32,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// The directory of the file system that is seen.
    pub root: PathBuf,
    /// Where it is seen.
    pub mount_point: PathBuf,
    /// Options of this mount, comma separated.
    pub options: String,
    /// The file system type.
    pub fs_type: String,
    /// The device or name that was mounted.
    pub source: OsString,
    /// Options of the file system, comma separated.
    pub super_options: String,
}

impl MountInfo {
    /// Whether writes through this mount are refused, by the mount or by the file system.
    pub fn read_only(&self) -> bool {
        [&self.options, &self.super_options].iter().any(|options| options.split(',').any(|o| o == "ro"))
    }

    /// The options of this mount as flags.
    pub fn flags(&self) -> MountFlags {
        self.options.split(',').fold(MountFlags::empty(), |flags, option| {
            flags
                | match option {
                    "ro" => MountFlags::RDONLY,
                    "nosuid" => MountFlags::NOSUID,
                    "nodev" => MountFlags::NODEV,
                    "noexec" => MountFlags::NOEXEC,
                    "noatime" => MountFlags::NOATIME,
                    "nodiratime" => MountFlags::NODIRATIME,
                    "relatime" => MountFlags::RELATIME,
                    _ => MountFlags::empty(),
                }
        })
    }
}

/// The mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// When `/proc` is not mounted or the table is not understood.
pub fn mounts() -> Result<Vec<MountInfo>, MountTableError> {
    parse(&fs::read("/proc/thread-self/mountinfo").map_err(MountTableError::Read)?)
}

/// Parses the text of a mountinfo file.
///
/// # Errors
/// [`MountTableError::Line`] for the first line that is not understood.
pub fn parse(text: &[u8]) -> Result<Vec<MountInfo>, MountTableError> {
    text.split(|&b| b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            parse_line(line).ok_or_else(|| MountTableError::Line {
                line: index + 1,
                text: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?);
    // Optional fields (shared:N, master:N, ...) end with a lone dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = text(fields.next()?);
    Some(MountInfo {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        options,
        fs_type,
        source,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(unescape(field).as_encoded_bytes()).into_owned()
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = *tail
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = &tail[3..];
        } else {
            out.push(first);
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_the_manual_are_understood() {
        let table = parse(
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
              37 35 0:5 / /dev rw,nosuid - devtmpfs udev ro,size=1k\n",
        )
        .unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].mount_point, PathBuf::from("/mnt 2"));
        assert_eq!(table[0].device, (98, 0));
        assert_eq!(table[0].fs_type, "ext3");
        assert_eq!(table[0].source, "/dev/root");
        assert!(!table[0].read_only());
        assert_eq!(table[0].flags(), MountFlags::NOATIME);
        assert!(table[1].read_only());
        assert_eq!(table[1].flags(), MountFlags::NOSUID);
    }

    #[test]
    fn broken_lines_are_named() {
        for line in ["36", "a b 1:2 / / rw - x y z", "36 35 98 / / rw - a b c", "36 35 9:8 / / rw a b c"] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(matches!(error, MountTableError::Line { line: 1, .. }), "{line}");
        }
    }

    #[test]
    fn own_table_has_a_root() {
        assert!(mounts().unwrap().iter().any(|m| m.mount_point == std::path::Path::new("/")));
    }

    fn escape(path: &str) -> String {
        path.chars()
            .map(|c| match c {
                ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                c => c.to_string(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }

        #[test]
        fn any_path_survives(path in "/[ -~]{0,30}") {
            let line = format!("1 2 3:4 / {} rw - t s rw", escape(&path));
            prop_assert_eq!(&parse(line.as_bytes()).unwrap()[0].mount_point, &PathBuf::from(path));
        }
    }
}
