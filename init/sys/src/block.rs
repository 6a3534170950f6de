//! Block devices: disks and their partitions as the kernel sees them (`/sys/class/block`).
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The kernel counts device sizes in sectors of 512 bytes, whatever the device's own are.
const SYSFS_SECTOR_BYTES: u64 = 512;

mod request {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_none!(blkrrpart_typed, 0x12, 95);
    nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), super::BlkpgArg);
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArg {
    op: libc::c_int,
    flags: libc::c_int,
    data_len: libc::c_int,
    data: *const BlkpgPartition,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [libc::c_char; 64],
    volume_name: [libc::c_char; 64],
}

const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The list could not be had.
    #[error("cannot list block devices in /sys/class/block")]
    List(#[source] io::Error),
    /// A device could not be asked or told something.
    #[error("cannot {operation} {device}")]
    Device {
        /// What was tried.
        operation: &'static str,
        /// The device.
        device: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A disk or a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name, such as `vda` or `nvme0n1p3`.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes of the smallest unit that can be addressed; a partition's is its disk's.
    pub sector_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the medium can be taken out.
    pub removable: bool,
    /// What a partition is a part of; none for a whole disk.
    pub partition: Option<PartOf>,
}

/// A partition's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartOf {
    /// The disk's name.
    pub disk: String,
    /// The partition's number, from 1.
    pub number: u32,
    /// Bytes from the disk's start.
    pub start_bytes: u64,
}

impl BlockDevice {
    /// Its node.
    pub fn path(&self) -> PathBuf {
        // The kernel writes slashes of names (cciss/c0d0) as exclamation marks in /sys.
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    /// Whether it can hold an installed system: a whole disk of some size that is neither memory nor made of other devices.
    pub fn is_disk(&self) -> bool {
        const OTHERS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "fd", "nbd", "drbd"];
        self.partition.is_none() && self.size_bytes > 0 && !OTHERS.iter().any(|prefix| self.name.starts_with(prefix))
    }
}

/// Everything that is there now, disks before their partitions, by name.
///
/// # Errors
/// [`BlockError::List`]; a device that goes away meanwhile is left out.
pub fn list() -> Result<Vec<BlockDevice>, BlockError> {
    let entries = fs::read_dir("/sys/class/block").map_err(BlockError::List)?;
    let mut devices: Vec<BlockDevice> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}

/// One device by its kernel name, if it is there.
pub fn find(name: &str) -> Option<BlockDevice> {
    read(&Path::new("/sys/class/block").join(name))
}

fn read(link: &Path) -> Option<BlockDevice> {
    let directory = link.canonicalize().ok()?;
    let name = directory.file_name()?.to_str()?.to_owned();
    let number_in = |directory: &Path, file: &str| -> Option<u64> {
        fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
    };
    let partition = match number_in(&directory, "partition") {
        Some(number) => Some(PartOf {
            disk: directory.parent()?.file_name()?.to_str()?.to_owned(),
            number: u32::try_from(number).ok()?,
            start_bytes: number_in(&directory, "start")?.checked_mul(SYSFS_SECTOR_BYTES)?,
        }),
        None => None,
    };
    let disk = if partition.is_some() { directory.parent()? } else { &directory };
    Some(BlockDevice {
        name,
        size_bytes: number_in(&directory, "size")?.checked_mul(SYSFS_SECTOR_BYTES)?,
        sector_bytes: u32::try_from(number_in(disk, "queue/logical_block_size").unwrap_or(SYSFS_SECTOR_BYTES)).ok()?,
        read_only: number_in(&directory, "ro").unwrap_or(0) != 0,
        removable: number_in(disk, "removable").unwrap_or(0) != 0,
        partition,
    })
}

/// Size of an open device, bytes.
///
/// # Errors
/// [`BlockError::Device`] for anything but a block device.
pub fn size_bytes(device: &File, path: &Path) -> Result<u64, BlockError> {
    let mut size = 0_u64;
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes one u64 to `size`; no crate in use wraps this ioctl.
    unsafe { request::blkgetsize64(device.as_raw_fd(), &raw mut size) }
        .map_err(|source| failed("tell the size of", path, source.into()))?;
    Ok(size)
}

/// Makes the kernel read a disk's partition table again.
///
/// # Errors
/// [`BlockError::Device`]: busy while a partition is in use; then [`add_partition`] and [`resize_partition`] serve.
pub fn reread_partitions(disk: &File, path: &Path) -> Result<(), BlockError> {
    // SAFETY: the descriptor is borrowed for the call, and this request has no argument; no crate in use wraps it.
    unsafe { request::blkrrpart_typed(disk.as_raw_fd()) }
        .map_err(|source| failed("read the partitions again of", path, source.into()))?;
    Ok(())
}

/// Tells the kernel of one new partition, while others of the disk are in use. One that it knows already with the same number is left.
///
/// # Errors
/// [`BlockError::Device`].
pub fn add_partition(
    disk: &File,
    path: &Path,
    number: u32,
    start_bytes: u64,
    size_bytes: u64,
) -> Result<(), BlockError> {
    match change_partition(disk, BLKPG_ADD_PARTITION, number, start_bytes, size_bytes) {
        Err(nix::errno::Errno::EBUSY) => Ok(()),
        result => result.map_err(|source| failed("add a partition to", path, source.into())),
    }
}

/// Tells the kernel of a partition's new size, while it is in use.
///
/// # Errors
/// [`BlockError::Device`].
pub fn resize_partition(
    disk: &File,
    path: &Path,
    number: u32,
    start_bytes: u64,
    size_bytes: u64,
) -> Result<(), BlockError> {
    change_partition(disk, BLKPG_RESIZE_PARTITION, number, start_bytes, size_bytes)
        .map_err(|source| failed("resize a partition of", path, source.into()))
}

fn change_partition(disk: &File, op: libc::c_int, number: u32, start: u64, length: u64) -> nix::Result<()> {
    let invalid = |_| nix::errno::Errno::EINVAL;
    let partition = BlkpgPartition {
        start: start.try_into().map_err(invalid)?,
        length: length.try_into().map_err(invalid)?,
        number: number.try_into().map_err(invalid)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let data_len = libc::c_int::try_from(size_of::<BlkpgPartition>()).map_err(invalid)?;
    let argument = BlkpgArg { op, flags: 0, data_len, data: &raw const partition };
    // SAFETY: the descriptor is borrowed for the call; `argument` and the partition that it points to are valid, of the kernel's layout and
    // live until it returns, and the kernel only reads them. No crate in use wraps this ioctl.
    unsafe { request::blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

fn failed(operation: &'static str, device: &Path, source: io::Error) -> BlockError {
    BlockError::Device { operation, device: device.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> BlockDevice {
        BlockDevice {
            name: name.to_owned(),
            size_bytes: 1 << 30,
            sector_bytes: 512,
            read_only: false,
            removable: false,
            partition: None,
        }
    }

    #[test]
    fn only_disks_can_hold_a_system() {
        for (name, expected) in
            [("vda", true), ("nvme0n1", true), ("sr0", true), ("loop0", false), ("dm-0", false), ("md127", false)]
        {
            assert_eq!(device(name).is_disk(), expected, "{name}");
        }
        assert!(!BlockDevice { size_bytes: 0, ..device("sda") }.is_disk(), "an empty card reader");
        let partition = Some(PartOf { disk: "sda".to_owned(), number: 1, start_bytes: 0 });
        assert!(!BlockDevice { partition, ..device("sda1") }.is_disk());
    }

    #[test]
    fn names_become_paths() {
        assert_eq!(device("cciss!c0d0").path(), Path::new("/dev/cciss/c0d0"));
    }

    #[test]
    fn this_kernels_devices_are_listed() {
        let devices = list().unwrap();
        for device in &devices {
            assert!(device.sector_bytes >= 512);
            assert_eq!(find(&device.name).as_ref().map(|d| &d.name), Some(&device.name));
        }
    }
}
