//! File systems by their label: media that bring configuration.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::block::{self, BlockDevice, BlockError};
use crate::mount::{Mount, MountError, MountFlags};

/// Kinds that are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CDs (ECMA-119).
    Iso9660,
    /// FAT with 12, 16 or 32 bits.
    Vfat,
    /// ext2, ext3 or ext4.
    Ext4,
}

impl Kind {
    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iso9660 => "iso9660",
            Self::Vfat => "vfat",
            Self::Ext4 => "ext4",
        }
    }
}

/// A device with a file system of a wanted label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// The device's node.
    pub device: PathBuf,
    /// The file system's kind.
    pub kind: Kind,
    /// Its label as written there.
    pub label: String,
}

impl Labelled {
    /// Mounts it so that nothing on it can do anything: read only, without programs, devices and setuid. The journal of a file system that
    /// was not unmounted is not replayed: the medium stays as it is.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn mount(&self, target: &Path) -> Result<(), MountError> {
        let data = match self.kind {
            Kind::Ext4 => "noload",
            Kind::Iso9660 | Kind::Vfat => "",
        };
        Mount {
            source: &self.device.to_string_lossy(),
            target: &target.to_string_lossy(),
            fs_type: self.kind.name(),
            flags: MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC,
            data,
        }
        .apply_over()
    }
}

/// Looks at all disks and partitions for file systems with one of the labels, in any case of letters. A disk with partitions is looked at
/// itself too: hybrid images are both. Devices that cannot be read, such as empty drives, are passed over.
///
/// # Errors
/// [`BlockError::List`].
pub fn find_labelled(labels: &[&str]) -> Result<Vec<Labelled>, BlockError> {
    let devices = block::list()?;
    let candidates = devices.iter().filter(|device| device.is_disk() || device.partition.is_some());
    Ok(candidates
        .filter_map(|device: &BlockDevice| {
            let path = device.path();
            let (kind, label) = probe(&File::open(&path).ok()?).ok()??;
            let wanted = labels.iter().any(|wanted| wanted.eq_ignore_ascii_case(&label));
            wanted.then_some(Labelled { device: path, kind, label })
        })
        .collect())
}

/// The kind and label of the file system in a device or image; none when it is of no known kind.
///
/// # Errors
/// The medium's.
pub fn probe(device: &File) -> io::Result<Option<(Kind, String)>> {
    let read = |offset, len| read_up_to(device, offset, len);
    // A volume descriptor, 16 sectors of 2048 bytes in: type 1, "CD001", version 1.
    let descriptor = read(16 * 2048, 72)?;
    if descriptor.get(..7) == Some(b"\x01CD001\x01") {
        return Ok(Some((Kind::Iso9660, padded(descriptor.get(40..72)))));
    }
    let superblock = read(1024, 136)?;
    if superblock.get(56..58) == Some(&[0x53, 0xef]) {
        return Ok(Some((Kind::Ext4, padded(superblock.get(120..136)))));
    }
    let boot = read(0, 512)?;
    match Fat::parse(&boot) {
        Some(fat) => {
            let in_directory = fat_volume_label(&read(fat.root_offset, fat.root_len)?);
            Ok(Some((Kind::Vfat, in_directory.unwrap_or(fat.label))))
        }
        None => Ok(None),
    }
}

fn read_up_to(device: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match device.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A label as it stands in a field of fixed length: filled up with blanks or zeros.
fn padded(field: Option<&[u8]>) -> String {
    let field = field.unwrap_or_default();
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).trim_end().to_owned()
}

/// What a FAT boot sector says (Microsoft's FAT specification, 3.1 to 3.3).
struct Fat {
    label: String,
    root_offset: u64,
    root_len: usize,
}

/// Most bytes of a root directory that are searched for the label, which formatting programs put first.
const MAX_ROOT_BYTES: u64 = 64 << 10;

impl Fat {
    fn parse(boot: &[u8]) -> Option<Self> {
        let number = |at: usize, len: usize| -> Option<u64> {
            Some(boot.get(at..at + len)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
        };
        let sector = number(11, 2)?;
        let cluster = number(13, 1)?;
        let plausible = boot.get(510..512)? == [0x55, 0xaa]
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && cluster.is_power_of_two()
            && (1..=2).contains(&number(16, 1)?);
        if !plausible {
            return None;
        }
        let reserved = number(14, 2)?;
        let tables = number(16, 1)?;
        let root_entries = number(17, 2)?;
        if boot.get(82..87)? == b"FAT32" {
            let data = reserved + tables * number(36, 4)?;
            let root_cluster = number(44, 4)?.checked_sub(2)?;
            let offset = (data + root_cluster.checked_mul(cluster)?).checked_mul(sector)?;
            let len = usize::try_from((cluster * sector).min(MAX_ROOT_BYTES)).ok()?;
            return Some(Self { label: padded(boot.get(71..82)), root_offset: offset, root_len: len });
        }
        if boot.get(54..57)? != b"FAT" {
            return None;
        }
        let root_offset = (reserved + tables * number(22, 2)?) * sector;
        let root_len = usize::try_from((root_entries * 32).min(MAX_ROOT_BYTES)).ok()?;
        Some(Self { label: padded(boot.get(43..54)), root_offset, root_len })
    }
}

/// The label in a root directory: the entry with only the attribute "volume". Programs that format often write it nowhere else.
fn fat_volume_label(directory: &[u8]) -> Option<String> {
    const DELETED: u8 = 0xe5;
    const ATTRIBUTES: u8 = 0x3f;
    const VOLUME: u8 = 0x08;
    directory
        .chunks_exact(32)
        .take_while(|entry| entry[0] != 0)
        .find(|entry| entry[0] != DELETED && entry[11] & ATTRIBUTES & !0x20 == VOLUME)
        .map(|entry| padded(entry.get(..11)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn image(parts: &[(usize, &[u8])]) -> File {
        let mut bytes = vec![0; 40 << 10];
        for (offset, part) in parts {
            bytes[*offset..offset + part.len()].copy_from_slice(part);
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn fat16(label: &[u8; 11]) -> Vec<u8> {
        let mut boot = vec![0; 512];
        boot[11..13].copy_from_slice(&512_u16.to_le_bytes());
        boot[13] = 4;
        boot[14] = 1;
        boot[16] = 2;
        boot[17..19].copy_from_slice(&512_u16.to_le_bytes());
        boot[22] = 8;
        boot[43..54].copy_from_slice(label);
        boot[54..59].copy_from_slice(b"FAT16");
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        boot
    }

    #[test]
    fn labels_are_found_where_each_kind_has_them() {
        let mut iso = vec![b' '; 72];
        iso[..7].copy_from_slice(b"\x01CD001\x01");
        iso[40..46].copy_from_slice(b"cidata");
        let mut ext4 = vec![0; 136];
        ext4[56..58].copy_from_slice(&[0x53, 0xef]);
        ext4[120..128].copy_from_slice(b"GARBOARD");
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(b"GARBOARD   ");
        entry[11] = 0x08;
        let root = 17 * 512;
        let boot = fat16(b"NO NAME    ");
        type Case = (&'static str, File, Option<(Kind, &'static str)>);
        let cases: [Case; 5] = [
            ("iso9660", image(&[(32 << 10, &iso)]), Some((Kind::Iso9660, "cidata"))),
            ("ext4", image(&[(1024, &ext4)]), Some((Kind::Ext4, "GARBOARD"))),
            ("fat, boot sector", image(&[(0, &fat16(b"CIDATA     "))]), Some((Kind::Vfat, "CIDATA"))),
            ("fat, directory", image(&[(0, &boot), (root, &entry)]), Some((Kind::Vfat, "GARBOARD"))),
            ("nothing", image(&[]), None),
        ];
        for (name, file, expected) in cases {
            let found = probe(&file).unwrap();
            assert_eq!(found.as_ref().map(|(kind, label)| (*kind, label.as_str())), expected, "{name}");
        }
    }

    #[test]
    fn short_devices_have_no_file_system() {
        assert_eq!(probe(&tempfile::tempfile().unwrap()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_boot_sector_is_read_or_refused(noise in proptest::collection::vec(any::<u8>(), 0..90)) {
            let mut boot = fat16(b"x          ");
            boot[..noise.len()].copy_from_slice(&noise);
            boot[82..87].copy_from_slice(b"FAT32");
            let _ = probe(&image(&[(0, &boot)]));
        }

        #[test]
        fn any_directory_is_searched(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = fat_volume_label(&bytes);
        }
    }
}
