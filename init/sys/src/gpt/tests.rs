use std::io;

use proptest::prelude::*;

use super::*;

const SECTOR: u64 = 512;

/// A disk in memory that remembers each sector written since the last sync.
#[derive(Clone)]
struct Disk {
    bytes: Vec<u8>,
    /// Groups of sector writes; between groups everything was synced.
    log: Vec<Vec<(u64, Vec<u8>)>>,
}

impl Disk {
    fn new(mib: usize) -> Self {
        Self { bytes: vec![0; mib << 20], log: vec![Vec::new()] }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Store for Disk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let end = start + buffer.len();
        buffer.copy_from_slice(self.bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            self.log.last_mut().unwrap().push((offset + index as u64 * SECTOR, sector.to_vec()));
        }
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.log.push(Vec::new());
        Ok(())
    }
}

fn empty_table(disk: &Disk) -> Table {
    Table::new(Guid::from_bytes([7; 16]), SECTOR as u32, disk.len()).unwrap()
}

fn guid(byte: u8) -> Guid {
    Guid::from_random([byte; 16])
}

/// A disk with three partitions, as an image brings it.
fn image(mib: usize) -> (Disk, Table) {
    let mut disk = Disk::new(mib);
    let mut table = empty_table(&disk);
    for (byte, label) in [(1, "garboard-esp"), (2, "root-0.1.0"), (3, "verity-0.1.0")] {
        table.append(guid(byte), guid(byte + 100), label, Some(2 << 20)).unwrap();
    }
    table.write(&mut disk).unwrap();
    disk.log = vec![Vec::new()];
    (disk, table)
}

fn read(disk: &Disk) -> Result<(Table, Health), GptError> {
    Table::read(disk, SECTOR as u32, disk.len())
}

const WHOLE: Health = Health { primary: true, backup: true };

#[test]
fn what_was_written_is_read() {
    let (disk, table) = image(16);
    assert_eq!(read(&disk).unwrap(), (table.clone(), WHOLE));
    assert_eq!(table.by_label("root-0.1.0").unwrap().number, 2);
    assert_eq!(table.by_uuid(guid(103)).unwrap().number, 3);
    assert_eq!(table.start_bytes(&table.partitions()[1]), 3 << 20);
    assert_eq!(table.size_bytes(&table.partitions()[1]), 2 << 20);
}

#[test]
fn partitions_are_appended_renamed_and_grown_to_the_end() {
    let (mut disk, mut table) = image(16);
    let state = table.append(guid(4), guid(104), "garboard-state-new", Some((1 << 20) + 1)).unwrap();
    let data = table.append(guid(5), guid(105), "garboard-data-new", None).unwrap();
    assert_eq!((state, data), (4, 5));
    table.rename(state, "garboard-state").unwrap();
    assert_eq!(table.size_bytes(table.by_label("garboard-state").unwrap()), 2 << 20);
    assert_eq!(table.grow_last(), None, "the last one reaches to the end");
    assert!(matches!(table.append(guid(6), guid(106), "more", None), Err(GptError::Full)));
    assert!(matches!(table.append(guid(6), guid(106), &"x".repeat(37), None), Err(GptError::Label(_))));
    assert!(matches!(table.rename(9, "x"), Err(GptError::NoPartition(9))));
    table.write(&mut disk).unwrap();

    // The disk grows: the copy at its end is missing, and the last partition can be larger.
    disk.bytes.resize(32 << 20, 0);
    let (mut table, health) = read(&disk).unwrap();
    assert_eq!(health, Health { primary: true, backup: false });
    assert_eq!(table.grow_last(), Some(5));
    table.write(&mut disk).unwrap();
    let (table, health) = read(&disk).unwrap();
    assert_eq!(health, WHOLE);
    let last = table.by_label("garboard-data-new").unwrap();
    assert_eq!(table.start_bytes(last) + table.size_bytes(last), 31 << 20);
}

#[test]
fn one_damaged_copy_is_noticed_and_repaired() {
    for (name, sector, health) in [
        ("primary header", 1, Health { primary: false, backup: true }),
        ("primary entries", 2, Health { primary: false, backup: true }),
        ("backup header", 16 * 2048 - 1, Health { primary: true, backup: false }),
        ("backup entries", 16 * 2048 - 33, Health { primary: true, backup: false }),
    ] {
        let (mut disk, table) = image(16);
        disk.bytes[sector * SECTOR as usize + 20] ^= 1;
        let (found, seen) = read(&disk).unwrap();
        assert_eq!((&found, seen), (&table, health), "{name}");
        found.write(&mut disk).unwrap();
        assert_eq!(read(&disk).unwrap(), (table, WHOLE), "{name}");
    }
}

#[test]
fn disks_without_a_table_are_told() {
    assert!(matches!(read(&Disk::new(1)), Err(GptError::NoTable)));
    let disk = Disk { bytes: vec![0; 512], log: Vec::new() };
    assert!(matches!(read(&disk), Err(GptError::Geometry)));
    assert!(matches!(Table::read(&Disk::new(1), 513, 1 << 20), Err(GptError::Geometry)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The power is cut after some whole steps and, in the step under way, with any of its sectors written or not.
    #[test]
    fn power_cut_leaves_the_old_or_the_new_table(cut in 0_usize..4, kept in any::<u64>(), grown in any::<bool>()) {
        let (mut before, old) = image(16);
        if grown {
            before.bytes.resize(32 << 20, 0);
        }
        let (mut table, _) = read(&before).unwrap();
        table.rename(2, "root-0.2.0").unwrap();
        table.append(guid(9), guid(109), "new", None).unwrap();
        let mut written = before.clone();
        table.write(&mut written).unwrap();

        let mut disk = before.clone();
        for (step, group) in written.log.iter().enumerate() {
            for (index, (offset, bytes)) in group.iter().enumerate() {
                if step < cut || (step == cut && kept >> (index % 64) & 1 == 1) {
                    disk.write_at(*offset, bytes).unwrap();
                }
            }
        }
        let (found, health) = read(&disk).unwrap();
        let is_old = found.partitions == old.partitions;
        prop_assert!(is_old || found == table);
        prop_assert!(health.primary || health.backup);
        table.write(&mut disk).unwrap();
        prop_assert_eq!(read(&disk).unwrap(), (table, WHOLE));
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        header in proptest::collection::vec(any::<u8>(), 92),
        at in 0_usize..92,
        valid_checksum in any::<bool>(),
    ) {
        let (mut disk, _) = image(2 + 8);
        let mut sector = disk.bytes[512..512 + 92].to_vec();
        sector[at..].copy_from_slice(&header[at..]);
        if valid_checksum {
            sector[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
            sector[12..16].copy_from_slice(&92_u32.to_le_bytes());
            sector[16..20].fill(0);
            let crc = crc32(&sector);
            sector[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        disk.bytes[512..512 + 92].copy_from_slice(&sector);
        let _ = read(&disk);
    }
}
