//! Device-mapper: read-only devices made of others (kernel: include/uapi/linux/dm-ioctl.h).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The control device.
pub const CONTROL: &str = "/dev/mapper/control";

/// Longest name, bytes.
const MAX_NAME_LEN: usize = 127;

const CREATE: u64 = 3;
const REMOVE: u64 = 4;
const SUSPEND: u64 = 6;
const TABLE_LOAD: u64 = 9;
const READ_ONLY: u32 = 1;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// Device-mapper is not there.
    #[error("cannot open {CONTROL}")]
    Open(#[source] io::Error),
    /// The name or the parameters are too long for the kernel, or hold a NUL byte.
    #[error("the name or parameters of mapped device {0:?} do not fit")]
    Invalid(String),
    /// The kernel refused a step.
    #[error("cannot {operation} mapped device {name}")]
    Request {
        /// Which step.
        operation: &'static str,
        /// The device's name.
        name: String,
        /// The kernel's answer; its log says more.
        #[source]
        source: io::Error,
    },
}

/// The one part that a mapped device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Kind, such as `verity` or `linear`.
    pub kind: &'a str,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// The kind's own parameters.
    pub parameters: &'a str,
}

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; MAX_NAME_LEN + 1],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct TargetSpec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
}

/// Room for a target's parameters, NUL included: device names, two digests and numbers.
const PARAMETERS_BYTES: usize = 1024;

/// A whole request: what the kernel finds behind the head when `data_start` and `data_size` say so.
#[repr(C)]
struct Request {
    head: Head,
    target: TargetSpec,
    parameters: [u8; PARAMETERS_BYTES],
}

/// Makes a read-only mapped device and returns its node. If a step fails, nothing is left behind.
///
/// # Errors
/// [`DmError`], by step.
pub fn create_read_only(name: &str, target: &Target<'_>) -> Result<PathBuf, DmError> {
    let control = open()?;
    send(&control, "create", CREATE, name, None)?;
    let made = send(&control, "load the table of", TABLE_LOAD, name, Some(target))
        .and_then(|_| send(&control, "start", SUSPEND, name, None));
    match made {
        // The kernel's huge encoding of a device number: 12 bits of major within 20 bits of minor.
        Ok(dev) => Ok(Path::new("/dev").join(format!("dm-{}", dev & 0xff | dev >> 12 & 0xf_ff00))),
        Err(error) => {
            let _ = send(&control, "remove", REMOVE, name, None);
            Err(error)
        }
    }
}

/// Removes a mapped device.
///
/// # Errors
/// [`DmError::Request`] while it is used or when there is none.
pub fn remove(name: &str) -> Result<(), DmError> {
    send(&open()?, "remove", REMOVE, name, None).map(drop)
}

fn open() -> Result<File, DmError> {
    OpenOptions::new().read(true).write(true).open(CONTROL).map_err(DmError::Open)
}

fn send(
    control: &File,
    operation: &'static str,
    command: u64,
    name: &str,
    target: Option<&Target<'_>>,
) -> Result<u64, DmError> {
    let mut request = request(name, target).ok_or_else(|| DmError::Invalid(name.to_owned()))?;
    let number = nix::request_code_readwrite!(0xfd, command, size_of::<Head>());
    // SAFETY: the descriptor is borrowed for the call. `request` is a `struct dm_ioctl` followed by what its `data_start` describes, and
    // `data_size` is the size of the whole, so the kernel reads and writes inside of it only. No crate in use wraps these ioctls.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), number as _, &raw mut request) };
    if result < 0 {
        let source = io::Error::last_os_error();
        return Err(DmError::Request { operation, name: name.to_owned(), source });
    }
    Ok(request.head.dev)
}

fn request(name: &str, target: Option<&Target<'_>>) -> Option<Request> {
    let mut head = Head {
        version: [4, 0, 0],
        data_size: u32::try_from(size_of::<Request>()).ok()?,
        data_start: u32::try_from(std::mem::offset_of!(Request, target)).ok()?,
        target_count: u32::from(target.is_some()),
        open_count: 0,
        flags: if target.is_some() { READ_ONLY } else { 0 },
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; MAX_NAME_LEN + 1],
        uuid: [0; 129],
        data: [0; 7],
    };
    fill(&mut head.name, name)?;
    let mut spec = TargetSpec { sector_start: 0, length: 0, status: 0, next: 0, kind: [0; 16] };
    let mut parameters = [0; PARAMETERS_BYTES];
    if let Some(target) = target {
        spec.length = target.sectors;
        fill(&mut spec.kind, target.kind)?;
        fill(&mut parameters, target.parameters)?;
    }
    Some(Request { head, target: spec, parameters })
}

/// Copies a text; none when it does not leave a NUL at the end or has one inside.
fn fill(field: &mut [u8], text: &str) -> Option<()> {
    if text.len() >= field.len() || text.contains('\0') {
        return None;
    }
    field.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!((size_of::<Head>(), size_of::<TargetSpec>()), (312, 40));
        assert_eq!(std::mem::offset_of!(Request, target), 312);
        assert_eq!(std::mem::offset_of!(Request, parameters), 352);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let target = |parameters| Target { kind: "linear", sectors: 8, parameters };
        assert!(request("root", Some(&target("/dev/vda 0"))).is_some());
        assert!(request(&"x".repeat(128), None).is_none());
        assert!(request("a\0b", None).is_none());
        assert!(request("root", Some(&target(&"x".repeat(PARAMETERS_BYTES)))).is_none());
    }
}
