//! A service's own view of the file systems.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::IsolateError;
use crate::mount::{self, Mount, MountError, MountFlags};

/// Devices without power over the machine.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that C libraries and shells expect below `/dev`.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// What a service sees. Everything that is not named is seen and read only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountView {
    /// What it may write: existing files and directories, with what is mounted below.
    pub read_write: Vec<PathBuf>,
    /// What it sees empty; paths that do not exist are passed over.
    pub inaccessible: Vec<PathBuf>,
    /// Whether `/tmp` is its own, empty and writable.
    pub private_tmp: bool,
    /// Whether `/dev` holds only null, zero, full, random, urandom and tty.
    pub private_devices: bool,
}

impl MountView {
    /// Gives the calling process a mount namespace that shows this view. Later mounts of the machine do not appear in
    /// it, nor the other way round.
    pub(super) fn enter(&self) -> Result<(), IsolateError> {
        let Self { read_write, inaccessible, private_tmp, private_devices } = self;
        mount::private_namespace()?;
        if *private_devices {
            replace_devices()?;
        }
        if *private_tmp {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            Mount { source: "tmpfs", target: "/tmp", fs_type: "tmpfs", flags, data: "mode=1777" }.apply_over()?;
        }
        for path in inaccessible {
            hide(path)?;
        }
        for path in read_write {
            fs::symlink_metadata(path).map_err(|source| IsolateError::Missing { path: path.clone(), source })?;
            mount::bind(path, path, true)?;
        }
        let mut writable: Vec<&Path> = read_write.iter().map(PathBuf::as_path).collect();
        if *private_tmp {
            writable.push(Path::new("/tmp"));
        }
        make_read_only(&writable)
    }
}

fn make_read_only(writable: &[&Path]) -> Result<(), IsolateError> {
    let mut points: Vec<PathBuf> =
        mount::mounts().map_err(MountError::from)?.into_iter().map(|m| m.mount_point).collect();
    points.sort();
    points.dedup();
    for point in points.iter().filter(|point| !writable.iter().any(|path| point.starts_with(path))) {
        match mount::remount_bind_read_only(point) {
            Ok(()) => {}
            // Hidden under a later mount: it cannot be reached by any path.
            Err(MountError::Change { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EACCES)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn hide(path: &Path) -> Result<(), IsolateError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(IsolateError::ViewEntry { path: path.to_owned(), source }),
        Ok(found) if found.is_dir() => {
            let target = path.to_string_lossy();
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
            let empty = Mount { source: "tmpfs", target: &target, fs_type: "tmpfs", flags, data: "mode=000,size=4k" };
            Ok(empty.apply_over()?)
        }
        // An end of file for whoever reads it.
        Ok(_) => Ok(mount::bind(Path::new("/dev/null"), path, false)?),
    }
}

fn replace_devices() -> Result<(), IsolateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| IsolateError::ViewEntry { path, source }
    };
    let mut kept: Vec<(PathBuf, OwnedFd)> = Vec::with_capacity(DEVICES.len());
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        // O_PATH: held by what it is, not opened, which for tty would fail without a terminal. The standard library takes the flag away on
        // musl, where it counts as an access mode.
        let held = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| failed(&path)(source.into()))?;
        kept.push((path, held));
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    Mount { source: "tmpfs", target: "/dev", fs_type: "tmpfs", flags, data: "mode=755,size=64k" }.apply_over()?;
    for (path, held) in &kept {
        File::create(path).map_err(failed(path))?;
        mount::bind(&PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())), path, false)?;
    }
    for (target, link) in DEVICE_LINKS {
        std::os::unix::fs::symlink(target, link).map_err(failed(Path::new(link)))?;
    }
    Ok(())
}
