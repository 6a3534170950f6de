//! The hardware watchdog (kernel: Documentation/watchdog/watchdog-api.rst): it restarts a machine whose PID 1 hangs.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod request {
    nix::ioctl_read!(wdioc_getsupport, b'W', 0, super::WatchdogInfo);
    nix::ioctl_read!(wdioc_keepalive, b'W', 5, libc::c_int);
    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);
}

/// `struct watchdog_info`.
#[repr(C)]
struct WatchdogInfo {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

/// What failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the watchdog {path}")]
pub struct WatchdogError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A running watchdog. Dropping it does not stop it: the machine restarts unless it is opened and patted again in time.
#[derive(Debug)]
pub struct Watchdog {
    file: File,
    path: PathBuf,
}

impl Watchdog {
    /// Opens a device such as `/dev/watchdog0`, which starts it.
    ///
    /// # Errors
    /// When it is not there or somebody has it open.
    pub fn open(path: &Path) -> Result<Self, WatchdogError> {
        match OpenOptions::new().write(true).open(path) {
            Ok(file) => Ok(Self { file, path: path.to_owned() }),
            Err(source) => Err(WatchdogError { operation: "open", path: path.to_owned(), source }),
        }
    }

    /// The driver's name for the device.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn identity(&self) -> Result<String, WatchdogError> {
        let mut info = WatchdogInfo { options: 0, firmware_version: 0, identity: [0; 32] };
        // SAFETY: the descriptor is open for as long as `self` lives, and `info` is a valid `struct watchdog_info` that the kernel fills; no
        // crate in use wraps this ioctl.
        unsafe { request::wdioc_getsupport(self.file.as_raw_fd(), &raw mut info) }
            .map_err(|source| self.failed("ask", source))?;
        let text = CStr::from_bytes_until_nul(&info.identity).map(CStr::to_string_lossy);
        Ok(text.map_or_else(|_| String::from_utf8_lossy(&info.identity).into_owned(), std::borrow::Cow::into_owned))
    }

    /// Sets the time without a pat after which the machine restarts, whole seconds; returns what the hardware made of it.
    ///
    /// # Errors
    /// When the hardware cannot.
    pub fn set_timeout(&self, timeout: Duration) -> Result<Duration, WatchdogError> {
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open for as long as `self` lives, and `seconds` is a valid int that the kernel reads and writes; no crate
        // in use wraps this ioctl.
        unsafe { request::wdioc_settimeout(self.file.as_raw_fd(), &raw mut seconds) }
            .map_err(|source| self.failed("set the timeout of", source))?;
        Ok(Duration::from_secs(u64::from(seconds.max(0).cast_unsigned())))
    }

    /// Tells that all is well.
    ///
    /// # Errors
    /// When the driver does not take it.
    pub fn pat(&self) -> Result<(), WatchdogError> {
        let mut unused: libc::c_int = 0;
        // SAFETY: the descriptor is open for as long as `self` lives; the kernel ignores the argument, which points to a valid int all the
        // same. No crate in use wraps this ioctl.
        unsafe { request::wdioc_keepalive(self.file.as_raw_fd(), &raw mut unused) }
            .map_err(|source| self.failed("pat", source))?;
        Ok(())
    }

    /// Whether it can be stopped: its driver may be told never to allow that (`nowayout`), and then its end is the machine's.
    pub fn can_stop(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default();
        let forbidden = Path::new("/sys/class/watchdog").join(name).join("nowayout");
        fs::read_to_string(forbidden).is_ok_and(|text| text.trim() == "0")
    }

    /// Has it stop when it is dropped, if the driver allows that.
    ///
    /// # Errors
    /// When the driver does not take the word; the watchdog then runs on, and wants to be patted.
    pub fn stop(&mut self) -> Result<(), WatchdogError> {
        // The letter V before closing is the promise that the end is on purpose.
        let said = self.file.write_all(b"V");
        said.map_err(|source| WatchdogError { operation: "stop", path: self.path.clone(), source })
    }

    fn failed(&self, operation: &'static str, source: nix::errno::Errno) -> WatchdogError {
        WatchdogError { operation, path: self.path.clone(), source: source.into() }
    }
}
