//! The verified root.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use garboard_sys::mount::{Mount, MountFlags};
use garboard_sys::verity::{RootHash, SUPERBLOCK_BYTES, Superblock};
use garboard_sys::{block, dm};

use super::FirstStageError;
use super::devices::Found;

/// The mapped device's name.
const NAME: &str = "garboard-root";

/// Makes the device through which every block of the root is verified when it is read.
///
/// # Errors
/// [`FirstStageError::Verity`] and [`FirstStageError::RootTooSmall`] for a root that does not belong to the hash,
/// [`FirstStageError::Read`] and [`FirstStageError::Mapper`].
pub fn verified_device(root: RootHash, found: &Found) -> Result<PathBuf, FirstStageError> {
    let read = |device: &Path| {
        let device = device.to_owned();
        move |source| FirstStageError::Read { device, source }
    };
    let wrong = |source| FirstStageError::Verity { device: found.hash.clone(), source };
    let hashes = File::open(&found.hash).map_err(read(&found.hash))?;
    let mut superblock = [0; SUPERBLOCK_BYTES];
    hashes.read_exact_at(&mut superblock, 0).map_err(read(&found.hash))?;
    let superblock = Superblock::parse(&superblock).map_err(wrong)?;
    let (offset, len) = superblock.top_block();
    let mut top = vec![0; len];
    hashes.read_exact_at(&mut top, offset).map_err(read(&found.hash))?;
    superblock.check_top_block(&top, root).map_err(wrong)?;
    let data = File::open(&found.data).map_err(read(&found.data))?;
    if block::size_bytes(&data, &found.data)? < superblock.data_bytes() {
        return Err(FirstStageError::RootTooSmall { device: found.data.clone() });
    }
    let parameters = superblock.target_parameters(&found.data, &found.hash, root);
    let target = dm::Target { kind: "verity", sectors: superblock.data_bytes() / 512, parameters: &parameters };
    Ok(dm::create_read_only(NAME, &target)?)
}

/// Mounts the verified device.
///
/// # Errors
/// [`FirstStageError::Mount`].
pub fn mount(device: &Path, target: &str) -> Result<(), FirstStageError> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    Ok(Mount { source: &device.to_string_lossy(), target, fs_type: "erofs", flags, data: "" }.apply_over()?)
}
