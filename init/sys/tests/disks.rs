//! Partition tables, partitions and verity trees against this kernel and Debian's tools, on loop devices.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use garboard_sys::block::{self, BlockDevice};
use garboard_sys::gpt::{Guid, Health, Table};
use garboard_sys::verity::{RootHash, Superblock, VerityError};

const MIB: u64 = 1 << 20;

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a file; taken away with the value.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Self {
        Self(output("losetup", &["--partscan", "--find", "--show", file.to_str().unwrap()]).into())
    }

    fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.0).unwrap()
    }

    fn partitions(&self) -> Vec<BlockDevice> {
        let mut found = block::list().unwrap();
        found.retain(|device| device.partition.as_ref().is_some_and(|part| part.disk == self.name()));
        found
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        output("losetup", &["--detach", self.0.to_str().unwrap()]);
    }
}

fn guid(byte: u8) -> Guid {
    Guid::from_random([byte; 16])
}

#[test]
fn kernel_sees_partitions_as_they_are_written_added_and_grown() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let device = Loop::over(&image);
    let disk = device.open();
    let mut writer = device.open();
    assert_eq!(block::size_bytes(&disk, &device.0).unwrap(), 64 * MIB);

    let mut table = Table::new(guid(1), 512, 64 * MIB).unwrap();
    table.append(guid(2), guid(3), "first", Some(4 * MIB)).unwrap();
    table.write_new(&mut writer).unwrap();
    let add = |table: &Table, label: &str| {
        let partition = table.by_label(label).unwrap();
        let (start, size) = (table.start_bytes(partition), table.size_bytes(partition));
        block::add_partition(&disk, &device.0, partition.number, start, size).unwrap();
    };
    // A kernel that does not know this kind of table finds nothing, which is no error.
    block::reread_partitions(&disk, &device.0).unwrap();
    let knows_gpt = !device.partitions().is_empty();
    add(&table, "first");
    let seen = device.partitions();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].size_bytes, 4 * MIB);
    assert_eq!(seen[0].partition.as_ref().unwrap().start_bytes, MIB);

    // While a partition is in use the table cannot be read again, but partitions can be added and grown.
    let in_use = open_partition(&seen[0]);
    if in_use.is_some() {
        assert!(block::reread_partitions(&disk, &device.0).is_err());
    }
    table.append(guid(4), guid(5), "garboard-data-new", None).unwrap();
    table.write(&mut writer).unwrap();
    for _ in 0..2 {
        add(&table, "garboard-data-new");
    }
    assert_eq!(device.partitions()[1].size_bytes, 58 * MIB);

    OpenOptions::new().write(true).open(&image).unwrap().set_len(128 * MIB).unwrap();
    output("losetup", &["--set-capacity", device.0.to_str().unwrap()]);
    let (mut table, health) = Table::read(&disk, 512, block::size_bytes(&disk, &device.0).unwrap()).unwrap();
    assert_eq!(health, Health { primary: true, backup: false });
    assert_eq!(table.grow_last(), Some(2));
    table.write(&mut writer).unwrap();
    let data = table.by_label("garboard-data-new").unwrap().clone();
    block::resize_partition(&disk, &device.0, 2, table.start_bytes(&data), table.size_bytes(&data)).unwrap();
    assert_eq!(device.partitions()[1].size_bytes, 122 * MIB);
    drop(in_use);

    if knows_gpt {
        block::reread_partitions(&disk, &device.0).unwrap();
    }
    let sizes: Vec<u64> = device.partitions().iter().map(|p| p.size_bytes / MIB).collect();
    assert_eq!(sizes, [4, 122]);
    // So do partitioning programs, where there is one.
    if let Ok(verified) = Command::new("/usr/sbin/sgdisk").arg("--verify").arg(&image).output() {
        let text = String::from_utf8_lossy(&verified.stdout);
        assert!(text.contains("No problems found"), "{text}");
    }
}

/// Holds a partition; none where nothing makes its node.
fn open_partition(partition: &BlockDevice) -> Option<File> {
    let exclusive = nix::fcntl::OFlag::O_EXCL.bits();
    OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(partition.path()).ok()
}

#[test]
fn trees_made_by_veritysetup_are_understood() {
    if Command::new("/usr/sbin/veritysetup").arg("--version").output().is_err() {
        eprintln!("veritysetup is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [data, hash] = ["data", "hash"].map(|name| directory.path().join(name));
    std::fs::write(&data, vec![0x5a; 3 << 20]).unwrap();
    let text = output("veritysetup", &["format", data.to_str().unwrap(), hash.to_str().unwrap()]);
    let root = text.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim();
    let root: RootHash = root.parse().unwrap();

    let file = File::open(&hash).unwrap();
    let read = |offset, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let superblock = Superblock::parse(&read(0, 512)).unwrap();
    assert_eq!(superblock.data_bytes(), 3 << 20);
    let (offset, len) = superblock.top_block();
    let mut top = read(offset, len);
    superblock.check_top_block(&top, root).unwrap();
    top[100] ^= 1;
    assert!(matches!(superblock.check_top_block(&top, root), Err(VerityError::OtherTree { .. })));
    let salt = text.lines().find_map(|line| line.strip_prefix("Salt:")).unwrap().trim();
    let parameters = superblock.target_parameters(&data, &hash, root);
    assert_eq!(
        parameters,
        format!("1 {} {} 4096 4096 768 1 sha256 {root} {salt} 1 panic_on_corruption", data.display(), hash.display())
    );
}
