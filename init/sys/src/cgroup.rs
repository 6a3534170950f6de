//! Control groups, version 2 (kernel: Documentation/admin-guide/cgroup-v2.rst).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::process::Pid;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// What failed with a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is not in a version 2 hierarchy.
    #[error("{0} is not a cgroup2 file system")]
    NotCgroup2(PathBuf),
    /// The group could not be made.
    #[error("cannot create cgroup {path}")]
    Create {
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The group could not be removed.
    #[error("cannot remove cgroup {path}")]
    Remove {
        /// The group.
        path: PathBuf,
        /// The kernel's answer: EBUSY while a process or a child group is in it.
        #[source]
        source: io::Error,
    },
    /// An attribute could not be read.
    #[error("cannot read {attribute} of cgroup {path}")]
    Read {
        /// The group.
        path: PathBuf,
        /// The file's name, such as `memory.current`.
        attribute: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An attribute could not be written.
    #[error("cannot set {attribute} of cgroup {path} to {value:?}")]
    Write {
        /// The group.
        path: PathBuf,
        /// The file's name, such as `memory.max`.
        attribute: String,
        /// What was to be written.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An attribute holds something else than the kernel's documentation says.
    #[error("{attribute} of cgroup {path} cannot be understood: {text:?}")]
    Parse {
        /// The group.
        path: PathBuf,
        /// The file's name.
        attribute: String,
        /// What it holds.
        text: String,
    },
}

impl CgroupError {
    /// Whether the group (or the attribute) is not there.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Remove { source, .. } => {
                // A group removed while its file is open answers ENODEV.
                matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
            }
            Self::NotCgroup2(_) | Self::Create { .. } | Self::Parse { .. } => false,
        }
    }
}

/// One group, by its directory. Holding it keeps nothing alive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The root of a mounted hierarchy, usually `/sys/fs/cgroup`.
    ///
    /// # Errors
    /// [`CgroupError::NotCgroup2`].
    pub fn root(path: &Path) -> Result<Self, CgroupError> {
        match statfs(path) {
            Ok(info) if info.f_type.cast_unsigned() == CGROUP2_MAGIC => Ok(Self { path: path.to_owned() }),
            Ok(_) | Err(_) => Err(CgroupError::NotCgroup2(path.to_owned())),
        }
    }

    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A group below this one, by name or relative path, whether it exists or not.
    pub fn child(&self, name: impl AsRef<Path>) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Whether the group is there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the group, and its parents; one that is there is left as it is.
    ///
    /// # Errors
    /// [`CgroupError::Create`].
    pub fn create(&self) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.path).map_err(|source| CgroupError::Create { path: self.path.clone(), source })
    }

    /// Removes the group and, first, all groups below it; one that is not there is no error.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] while a process is in one of them.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for child in self.children() {
            child.remove()?;
        }
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(CgroupError::Remove { path: self.path.clone(), source }),
        }
    }

    /// The groups directly below this one.
    pub fn children(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| Self { path: entry.path() })
            .collect()
    }

    /// Reads an attribute, without surrounding blanks.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn read(&self, attribute: &str) -> Result<String, CgroupError> {
        fs::read_to_string(self.path.join(attribute))
            .map(|text| text.trim().to_owned())
            .map_err(|source| CgroupError::Read { path: self.path.clone(), attribute: attribute.to_owned(), source })
    }

    /// Writes an attribute such as `memory.max`.
    ///
    /// # Errors
    /// [`CgroupError::Write`], which names the attribute and value.
    pub fn write(&self, attribute: &str, value: &str) -> Result<(), CgroupError> {
        // Opened without creating or truncating: a controller that is off shows as ENOENT, not EPERM.
        OpenOptions::new()
            .write(true)
            .open(self.path.join(attribute))
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|source| CgroupError::Write {
                path: self.path.clone(),
                attribute: attribute.to_owned(),
                value: value.to_owned(),
                source,
            })
    }

    /// The controllers that can be turned on for groups below this one.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn controllers(&self) -> Result<Vec<String>, CgroupError> {
        Ok(self.read("cgroup.controllers")?.split_whitespace().map(str::to_owned).collect())
    }

    /// Turns controllers on for the groups below this one. Each is written by itself, so that the error names the one refused.
    ///
    /// # Errors
    /// [`CgroupError::Write`]; a group other than the root that has processes is refused (EBUSY).
    pub fn enable(&self, controllers: &[&str]) -> Result<(), CgroupError> {
        controllers.iter().try_for_each(|name| self.write("cgroup.subtree_control", &format!("+{name}")))
    }

    /// Moves a process, with all its threads, into the group.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn add(&self, pid: Pid) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    /// Moves the calling process into the group, as a launcher does before it becomes a service.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.write("cgroup.procs", "0")
    }

    /// Numbers of the processes directly in the group.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
    }

    /// Kills every process in the group and below, forks under way included. A group that is not there is no error.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(error) if error.is_missing() => Ok(()),
            result => result,
        }
    }

    /// Whether a process is in the group or below it; a group that is not there has none.
    ///
    /// # Errors
    /// [`CgroupError::Read`] and [`CgroupError::Parse`].
    pub fn populated(&self) -> Result<bool, CgroupError> {
        match self.keyed("cgroup.events", "populated") {
            Ok(value) => Ok(value != 0),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens `cgroup.events` for an event loop: it becomes priority-readable (`POLLPRI`, `Interest::PRIORITY`) on each change after it was
    /// last read from its start.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn events(&self) -> Result<File, CgroupError> {
        File::open(self.path.join("cgroup.events")).map_err(|source| CgroupError::Read {
            path: self.path.clone(),
            attribute: "cgroup.events".to_owned(),
            source,
        })
    }

    /// Memory in use now, bytes.
    ///
    /// # Errors
    /// [`CgroupError::Read`] and [`CgroupError::Parse`].
    pub fn memory_bytes(&self) -> Result<u64, CgroupError> {
        let text = self.read("memory.current")?;
        text.parse().map_err(|_| self.not_understood("memory.current", text))
    }

    /// Processor time used so far, microseconds.
    ///
    /// # Errors
    /// [`CgroupError::Read`] and [`CgroupError::Parse`].
    pub fn cpu_usec(&self) -> Result<u64, CgroupError> {
        self.keyed("cpu.stat", "usage_usec")
    }

    /// How often a process of the group or below was killed because memory ran out.
    ///
    /// # Errors
    /// [`CgroupError::Read`] and [`CgroupError::Parse`].
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.keyed("memory.events", "oom_kill")
    }

    /// A value of an attribute with one `key value` pair a line.
    ///
    /// # Errors
    /// [`CgroupError::Read`], and [`CgroupError::Parse`] when the key is not there or its value is no number.
    pub fn keyed(&self, attribute: &str, key: &str) -> Result<u64, CgroupError> {
        let text = self.read(attribute)?;
        match keyed_value(&text, key) {
            Some(value) => Ok(value),
            None => Err(self.not_understood(attribute, text)),
        }
    }

    fn not_understood(&self, attribute: &str, text: String) -> CgroupError {
        CgroupError::Parse { path: self.path.clone(), attribute: attribute.to_owned(), text }
    }
}

fn keyed_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_values_are_found_by_whole_key() {
        let text = "populated 1\nfrozen 0\nusage_usec_total 9\nusage_usec 77";
        let cases =
            [("populated", Some(1)), ("frozen", Some(0)), ("usage_usec", Some(77)), ("usage", None), ("", None)];
        for (key, expected) in cases {
            assert_eq!(keyed_value(text, key), expected, "{key}");
        }
    }

    #[test]
    fn other_file_systems_are_refused() {
        assert!(matches!(Cgroup::root(Path::new("/proc")), Err(CgroupError::NotCgroup2(_))));
    }
}
