//! What is read of an ext4 file system's superblock (kernel: Documentation/filesystems/ext4/super.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const MAGIC: u16 = 0xef53;
const FEATURE_64BIT: u32 = 0x80;

/// The size of the file system on a device, bytes; none when there is no ext4 file system.
///
/// # Errors
/// When the device cannot be read.
pub fn size_bytes(device: &Path) -> io::Result<Option<u64>> {
    let mut superblock = [0; SUPERBLOCK_LEN];
    File::open(device)?.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET)?;
    Ok(parse(&superblock))
}

fn parse(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<u64> {
    let u32_at = |at: usize| superblock.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let magic = u16::from_le_bytes(superblock.get(0x38..0x3a)?.try_into().ok()?);
    if magic != MAGIC {
        return None;
    }
    let low = u64::from(u32_at(0x4)?);
    let high = if u32_at(0x60)? & FEATURE_64BIT != 0 { u64::from(u32_at(0x150)?) } else { 0 };
    let block_bytes = 1024_u64.checked_shl(u32_at(0x18)?)?;
    (high << 32 | low).checked_mul(block_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn nothing_is_no_file_system() {
        assert_eq!(parse(&[0; SUPERBLOCK_LEN]), None);
        assert_eq!(parse(&[0xff; SUPERBLOCK_LEN]), None);
    }

    #[test]
    fn mkfs_and_this_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path).arg("48m").status().unwrap();
        assert!(made.success());
        assert_eq!(size_bytes(&path).unwrap(), Some(48 << 20));
    }
}
