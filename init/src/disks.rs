//! STATE and DATA: made on the boot disk at first boot, grown when it has grown, mounted at each boot.
//!
//! A partition is created under a label that ends in `-new` and gets its real one only when its file system is complete and written. Only
//! a partition with the `-new` label is ever formatted, so whatever moment the power goes, the next boot goes on from there and nothing
//! that was ever used is formatted again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use garboard_sys::block::{self, BlockDevice, BlockError};
use garboard_sys::gpt::{GptError, Guid, Table};
use garboard_sys::mount::{self, Mount, MountError, MountFlags};
use garboard_sys::rng::{self, RngError};
use nix::unistd::User;

use crate::ext4;

/// `Linux filesystem data` of the Discoverable Partitions Specification: no other system mounts it by itself.
const LINUX_DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

/// What a partition lacks of its disk before it is worth growing, bytes.
const WORTH_GROWING: u64 = 16 << 20;

/// Who may write when a file system is full, besides processes that pods are not (CAP_SYS_RESOURCE).
const RESERVE_USER: &str = "etcd";

/// The most that is kept for that, bytes: etcd's default quota, and a snapshot of as much.
const MAX_RESERVE: u64 = 4 << 30;

/// One of the machine's own partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    /// Identity, keys, ledger, manifests.
    State,
    /// Everything else that is kept.
    Data,
}

impl Volume {
    /// The label of its partition and file system.
    pub fn label(self) -> &'static str {
        match self {
            Self::State => "garboard-state",
            Self::Data => "garboard-data",
        }
    }

    /// The label of its partition until it is complete.
    fn new_label(self) -> &'static str {
        match self {
            Self::State => "garboard-state-new",
            Self::Data => "garboard-data-new",
        }
    }

    /// Where it is mounted.
    pub const fn mount_point(self) -> &'static str {
        match self {
            Self::State => "/state",
            Self::Data => "/var",
        }
    }

    /// Its size; none: all that is left.
    fn size_bytes(self) -> Option<u64> {
        match self {
            Self::State => Some(256 << 20),
            Self::Data => None,
        }
    }

    fn flags(self) -> MountFlags {
        let common = MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOATIME);
        match self {
            Self::State => common.union(MountFlags::NOEXEC),
            // Containers' programs lie there.
            Self::Data => common,
        }
    }
}

/// A volume could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk holds the root that was booted.
    #[error("no disk holds the root partition {0}")]
    NoBootDisk(Guid),
    /// The machine was booted from a medium that cannot be written.
    #[error("the boot disk {0} cannot be written")]
    ReadOnly(PathBuf),
    /// Disks could not be listed or told about partitions.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A disk could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// The disk.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The partition table could not be read or written.
    #[error("partition table of {path}")]
    Gpt {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: GptError,
    },
    /// No identifier for a partition could be made.
    #[error(transparent)]
    Random(#[from] RngError),
    /// The kernel does not show a partition.
    #[error("{disk} has no device for partition {number}")]
    NoDevice {
        /// The disk.
        disk: PathBuf,
        /// The partition.
        number: u32,
    },
    /// A program could not be run, or failed.
    #[error("{program} for {device} failed: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// The device.
        device: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl DiskError {
    /// Whether there is no place for the volume, and never was: the boot disk is read-only or full. A machine whose volumes cannot be
    /// reached for a moment must never start over without them.
    fn is_without_room(&self) -> bool {
        match self {
            Self::ReadOnly(_) | Self::Gpt { source: GptError::Full, .. } => true,
            Self::NoBootDisk(_)
            | Self::Open { .. }
            | Self::Gpt { .. }
            | Self::Block(_)
            | Self::Random(_)
            | Self::NoDevice { .. }
            | Self::Program { .. }
            | Self::Mount(_) => false,
        }
    }
}

/// Where a volume came from.
#[derive(Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A partition.
    Disk(PathBuf),
    /// Memory: what is written is lost with the power.
    Memory,
}

/// Makes what is missing of a volume, and mounts it. `booted` is the disk that the first stage found the root on, if it has told; a CD has
/// no partitions that the kernel knows. Repeated, it changes nothing.
///
/// # Errors
/// [`DiskError`]; nothing is lost, and a repetition goes on from there.
pub fn provide(volume: Volume, root_uuid: Guid, booted: Option<&Path>) -> Result<Mounted, DiskError> {
    if mount::is_mounted(Path::new(volume.mount_point()))? {
        let source = source_of(volume.mount_point())?;
        return Ok(if source.starts_with("/dev") { Mounted::Disk(source) } else { Mounted::Memory });
    }
    let device = match boot_disk(root_uuid, booted).and_then(|disk| partition(volume, &disk)) {
        Ok(device) => device,
        Err(error) if error.is_without_room() => {
            let flags = volume.flags();
            let target = volume.mount_point();
            Mount { source: volume.label(), target, fs_type: "tmpfs", flags, data: "mode=0755,size=40%" }
                .apply_over()?;
            return Ok(Mounted::Memory);
        }
        Err(error) => return Err(error),
    };
    mount_volume(volume, &device)?;
    grow_file_system(&device)?;
    Ok(Mounted::Disk(device))
}

fn source_of(mount_point: &str) -> Result<PathBuf, DiskError> {
    let mounts = mount::mounts().map_err(MountError::from)?;
    let found = mounts.into_iter().rev().find(|mount| mount.mount_point == Path::new(mount_point));
    Ok(found.map(|mount| PathBuf::from(mount.source)).unwrap_or_default())
}

/// The disk that holds the root partition: the machine's other disks are none of our business.
fn boot_disk(root_uuid: Guid, booted: Option<&Path>) -> Result<BlockDevice, DiskError> {
    for disk in block::list()?.into_iter().filter(BlockDevice::is_disk) {
        if disk.read_only && booted == Some(&disk.path()) {
            return Err(DiskError::ReadOnly(disk.path()));
        }
        // A disk that cannot be read or has no table is not the one.
        let Ok(file) = File::open(disk.path()) else { continue };
        if let Ok((table, _)) = Table::read(&file, disk.sector_bytes, disk.size_bytes)
            && table.by_uuid(root_uuid).is_some()
        {
            return Ok(disk);
        }
    }
    Err(DiskError::NoBootDisk(root_uuid))
}

/// Makes a volume's partition complete and returns its device.
fn partition(volume: Volume, disk: &BlockDevice) -> Result<PathBuf, DiskError> {
    let path = disk.path();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|source| DiskError::Open { path: path.clone(), source })?;
    let gpt = |source| DiskError::Gpt { path: path.clone(), source };
    let (mut table, health) = Table::read(&file, disk.sector_bytes, disk.size_bytes).map_err(gpt)?;
    let before = table.clone();
    let (number, complete) = match (table.by_label(volume.label()), table.by_label(volume.new_label())) {
        (Some(partition), _) => (partition.number, true),
        (None, Some(partition)) => (partition.number, false),
        (None, None) => {
            let uuid = random_guid()?;
            (table.append(linux_data(), uuid, volume.new_label(), volume.size_bytes()).map_err(gpt)?, false)
        }
    };
    if volume.size_bytes().is_none() && is_last(&table, number) {
        table.grow_last();
    }
    // A table whose second copy is not at the disk's end (the disk has grown) or is broken is written whole again.
    if table != before || !health.primary || !health.backup {
        table.write(&mut file).map_err(gpt)?;
    }
    tell_kernel(&table, number, disk, &file)?;
    let device = device_of(disk, number)?;
    if !complete {
        make_file_system(volume, &device)?;
        let (mut table, _) = Table::read(&file, disk.sector_bytes, disk.size_bytes).map_err(gpt)?;
        table.rename(number, volume.label()).map_err(gpt)?;
        table.write(&mut file).map_err(gpt)?;
    }
    Ok(device)
}

fn is_last(table: &Table, number: u32) -> bool {
    table.partitions().iter().max_by_key(|partition| partition.last_lba).is_some_and(|last| last.number == number)
}

/// The kernel read the table before it was changed.
fn tell_kernel(table: &Table, number: u32, disk: &BlockDevice, file: &File) -> Result<(), DiskError> {
    let Some(partition) = table.partitions().iter().find(|partition| partition.number == number) else {
        return Ok(());
    };
    let (start, size) = (table.start_bytes(partition), table.size_bytes(partition));
    match device(disk, number)? {
        None => block::add_partition(file, &disk.path(), number, start, size)?,
        Some(known) if known.size_bytes != size => {
            block::resize_partition(file, &disk.path(), number, start, size)?;
        }
        Some(_) => {}
    }
    Ok(())
}

fn device(disk: &BlockDevice, number: u32) -> Result<Option<BlockDevice>, DiskError> {
    let found = block::list()?
        .into_iter()
        .find(|device| device.partition.as_ref().is_some_and(|part| part.disk == disk.name && part.number == number));
    Ok(found)
}

fn device_of(disk: &BlockDevice, number: u32) -> Result<PathBuf, DiskError> {
    let found = device(disk, number)?.ok_or_else(|| DiskError::NoDevice { disk: disk.path(), number })?;
    Ok(found.path())
}

fn linux_data() -> Guid {
    LINUX_DATA.parse().unwrap_or_default()
}

/// A random identifier (RFC 9562, version 4).
fn random_guid() -> Result<Guid, RngError> {
    let mut bytes = [0; 16];
    rng::fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Guid::from_bytes(bytes))
}

fn make_file_system(volume: Volume, device: &Path) -> Result<(), DiskError> {
    // Tables are zeroed by the kernel after the mount.
    let reserve = format!("{:.3}", reserve_percent(partition_bytes(device)?));
    run(
        "mkfs.ext4",
        device,
        &["-q", "-F", "-m", &reserve, "-E", "lazy_itable_init=1,lazy_journal_init=1", "-L", volume.label()],
    )?;
    // The label that says "complete" must not overtake what it speaks of.
    let sync = File::open(device).and_then(|file| file.sync_all());
    sync.map_err(|source| DiskError::Open { path: device.to_owned(), source })
}

/// The part of a file system that is kept for whoever [`options`] names: a twentieth, as long as that is not too much.
fn reserve_percent(size_bytes: u64) -> f64 {
    (MAX_RESERVE as f64 / size_bytes.max(1) as f64 * 100.0).min(5.0)
}

/// How the kernel treats the file system.
fn options() -> String {
    // Errors found later must not be written over: the file system is then read only, which everybody notices.
    let errors = "errors=remount-ro";
    // What pods fill does not stop the cluster's memory: the reserve, which is otherwise any root's, is for etcd.
    match User::from_name(RESERVE_USER) {
        Ok(Some(user)) => format!("{errors},resuid={},resgid={}", user.uid, user.gid),
        Ok(None) | Err(_) => errors.to_owned(),
    }
}

fn mount_volume(volume: Volume, device: &Path) -> Result<(), DiskError> {
    let source = device.to_string_lossy();
    let (target, data) = (volume.mount_point(), options());
    let mount = Mount { source: &source, target, fs_type: "ext4", flags: volume.flags(), data: &data };
    if let Err(error) = mount.apply_over() {
        eprintln!(
            "{error}: {}; checking the file system",
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
        );
        // 1: errors were corrected. Anything else needs a person.
        run("e2fsck", device, &["-p"])?;
        mount.apply_over()?;
    }
    if volume == Volume::State {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(target, mode).map_err(|source| DiskError::Open { path: target.into(), source })?;
    }
    Ok(())
}

fn partition_bytes(device: &Path) -> Result<u64, DiskError> {
    let file = File::open(device).map_err(|source| DiskError::Open { path: device.to_owned(), source })?;
    Ok(block::size_bytes(&file, device)?)
}

fn grow_file_system(device: &Path) -> Result<(), DiskError> {
    let partition = partition_bytes(device)?;
    let size = ext4::size_bytes(device).map_err(|source| DiskError::Open { path: device.to_owned(), source })?;
    match size {
        Some(size) if size + WORTH_GROWING <= partition => run("resize2fs", device, &[]),
        Some(_) | None => Ok(()),
    }
}

fn run(program: &'static str, device: &Path, arguments: &[&str]) -> Result<(), DiskError> {
    let failed = |reason: String| DiskError::Program { program, device: device.to_owned(), reason };
    let output = Command::new(program)
        .args(arguments)
        .arg(device)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let corrected = program == "e2fsck" && output.status.code() == Some(1);
    if output.status.success() || corrected {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} {}", output.status, text.trim().replace('\n', "; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_twentieth_up_to_a_limit() {
        for (gibibytes, percent) in [(1, 5.0), (80, 5.0), (160, 2.5), (8192, 0.048_828_125)] {
            assert_eq!(reserve_percent(gibibytes << 30), percent, "{gibibytes} GiB");
        }
    }
}
