//! GUID partition tables (UEFI specification, chapter 5): read from whichever copy is whole, changed in memory, and written so that a power
//! cut at any moment leaves the old table or the new one.

mod format;
mod guid;
mod store;

pub use format::GptError;
pub use guid::{Guid, InvalidGuid};
pub use store::Store;

use format::{ENTRY_BYTES, Header, crc32};

/// Partitions start at multiples of this, bytes: what every disk's physical sectors, erase blocks and stripes divide.
pub const ALIGNMENT_BYTES: u64 = 1 << 20;

/// Longest label, UTF-16 units.
pub const MAX_LABEL_LEN: usize = 36;

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1: its place in the table.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own identifier.
    pub uuid: Guid,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, inclusive.
    pub last_lba: u64,
    /// Flags: bit 60 read only, bit 63 no automount (Discoverable Partitions Specification).
    pub attributes: u64,
    /// Its name.
    pub label: String,
}

/// The state of the two copies of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the copy at the disk's start is whole. The kernel ignores the table when it is not.
    pub primary: bool,
    /// Whether there is a whole and equal copy in the disk's last sectors. It is not when the disk has grown.
    pub backup: bool,
}

/// A partition table in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The disk's identifier.
    pub disk_uuid: Guid,
    partitions: Vec<Partition>,
    sector_bytes: u64,
    disk_sectors: u64,
    first_usable: u64,
    entry_count: u32,
}

impl Table {
    /// Reads the table of a disk.
    ///
    /// # Errors
    /// [`GptError::NoTable`] when neither copy is whole, [`GptError::Read`], and [`GptError::Geometry`] for impossible sizes.
    pub fn read(disk: &impl Store, sector_bytes: u32, disk_bytes: u64) -> Result<(Self, Health), GptError> {
        let (sector, disk_sectors) = geometry(sector_bytes, disk_bytes)?;
        let primary = Header::read(disk, sector, 1, disk_sectors)?;
        let backup = Header::read(disk, sector, disk_sectors - 1, disk_sectors)?;
        let health = Health {
            primary: primary.is_some(),
            backup: backup.as_ref().is_some_and(|b| primary.as_ref().is_none_or(|p| p.same_table(b))),
        };
        let (header, entries) = primary.or(backup).ok_or(GptError::NoTable)?.into_parts();
        let partitions = format::partitions(&entries, header.entry_bytes)?;
        if partitions.iter().any(|p| p.first_lba > p.last_lba || p.last_lba >= disk_sectors) {
            return Err(GptError::Beyond);
        }
        let table = Self {
            disk_uuid: header.disk_uuid,
            partitions,
            sector_bytes: sector,
            disk_sectors,
            first_usable: header.first_usable,
            entry_count: header.entry_count,
        };
        Ok((table, health))
    }

    /// A table without partitions for a whole disk, to be written by [`Table::write_new`].
    ///
    /// # Errors
    /// [`GptError::Geometry`] for impossible sizes.
    pub fn new(disk_uuid: Guid, sector_bytes: u32, disk_bytes: u64) -> Result<Self, GptError> {
        let (sector_bytes, disk_sectors) = geometry(sector_bytes, disk_bytes)?;
        let mut table =
            Self { disk_uuid, partitions: Vec::new(), sector_bytes, disk_sectors, first_usable: 0, entry_count: 128 };
        table.first_usable = 2 + table.entry_sectors();
        Ok(table)
    }

    /// The partitions by number.
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// The partition with this identifier.
    pub fn by_uuid(&self, uuid: Guid) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.uuid == uuid)
    }

    /// The first partition with this label.
    pub fn by_label(&self, label: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.label == label)
    }

    /// Bytes from the disk's start to a partition's.
    pub fn start_bytes(&self, partition: &Partition) -> u64 {
        partition.first_lba * self.sector_bytes
    }

    /// A partition's size in bytes.
    pub fn size_bytes(&self, partition: &Partition) -> u64 {
        (partition.last_lba - partition.first_lba + 1) * self.sector_bytes
    }

    /// The last sector that a partition may use: behind it the second copy lies.
    fn last_usable(&self) -> u64 {
        self.disk_sectors - self.entry_sectors() - 2
    }

    fn entry_sectors(&self) -> u64 {
        (u64::from(self.entry_count) * ENTRY_BYTES).div_ceil(self.sector_bytes)
    }

    /// Adds a partition behind the last one, of `size_bytes` (rounded up to whole alignments) or, without, up to the disk's end. Returns
    /// its number.
    ///
    /// # Errors
    /// [`GptError::Full`] without an unused entry or enough room, [`GptError::Label`] for a label that is too long.
    pub fn append(&mut self, kind: Guid, uuid: Guid, label: &str, size_bytes: Option<u64>) -> Result<u32, GptError> {
        check_label(label)?;
        let number =
            (1..=self.entry_count).find(|n| self.partitions.iter().all(|p| p.number != *n)).ok_or(GptError::Full)?;
        let alignment = ALIGNMENT_BYTES / self.sector_bytes;
        let behind = self.partitions.iter().map(|p| p.last_lba + 1).max().unwrap_or(0).max(self.first_usable);
        let first_lba = behind.next_multiple_of(alignment);
        let last_lba = match size_bytes {
            Some(bytes) => first_lba + bytes.max(1).div_ceil(ALIGNMENT_BYTES).saturating_mul(alignment) - 1,
            None => self.aligned_end(),
        };
        if last_lba > self.last_usable() || last_lba < first_lba {
            return Err(GptError::Full);
        }
        let label = label.to_owned();
        self.partitions.push(Partition { number, kind, uuid, first_lba, last_lba, attributes: 0, label });
        self.partitions.sort_by_key(|p| p.number);
        Ok(number)
    }

    /// Gives a partition another label.
    ///
    /// # Errors
    /// [`GptError::NoPartition`] and [`GptError::Label`].
    pub fn rename(&mut self, number: u32, label: &str) -> Result<(), GptError> {
        check_label(label)?;
        self.partition_mut(number)?.label = label.to_owned();
        Ok(())
    }

    /// Gives a partition another identifier, as a slot gets with its new content.
    ///
    /// # Errors
    /// [`GptError::NoPartition`].
    pub fn set_uuid(&mut self, number: u32, uuid: Guid) -> Result<(), GptError> {
        self.partition_mut(number)?.uuid = uuid;
        Ok(())
    }

    /// Lets the partition that ends last reach to the disk's end, if it does not (to a whole alignment). Returns its number if it grew.
    pub fn grow_last(&mut self) -> Option<u32> {
        let end = self.aligned_end();
        let last = self.partitions.iter_mut().max_by_key(|p| p.last_lba)?;
        if last.last_lba >= end {
            return None;
        }
        last.last_lba = end;
        Some(last.number)
    }

    fn aligned_end(&self) -> u64 {
        let alignment = ALIGNMENT_BYTES / self.sector_bytes;
        ((self.last_usable() + 1) / alignment * alignment).saturating_sub(1)
    }

    fn partition_mut(&mut self, number: u32) -> Result<&mut Partition, GptError> {
        self.partitions.iter_mut().find(|p| p.number == number).ok_or(GptError::NoPartition(number))
    }

    /// Writes both copies, the second one into the disk's last sectors, and waits until they are on the medium. First the second copy,
    /// then the first one's entries, then its header: at each moment one of the copies that [`Table::read`] looks at is whole.
    ///
    /// A power cut between the last two steps leaves the first copy broken: [`Table::read`] says so, and writing again repairs it.
    ///
    /// # Errors
    /// [`GptError::Write`]; the disk then still has a whole table, old or new.
    pub fn write(&self, disk: &mut impl Store) -> Result<(), GptError> {
        let entries = self.entries();
        let last = self.disk_sectors - 1;
        let backup_entries = last - self.entry_sectors();
        let mut write = |lba: u64, bytes: &[u8]| disk.write_at(lba * self.sector_bytes, bytes).map_err(GptError::Write);
        write(backup_entries, &entries)?;
        write(last, &self.header(last, 1, backup_entries, &entries))?;
        disk.sync().map_err(GptError::Write)?;
        let mut write = |lba: u64, bytes: &[u8]| disk.write_at(lba * self.sector_bytes, bytes).map_err(GptError::Write);
        write(2, &entries)?;
        disk.sync().map_err(GptError::Write)?;
        disk.write_at(self.sector_bytes, &self.header(1, last, 2, &entries)).map_err(GptError::Write)?;
        disk.sync().map_err(GptError::Write)
    }

    /// Writes the table to a disk that has none: also the first sector, which tells old programs that the whole disk is taken. What the
    /// disk held is lost.
    ///
    /// # Errors
    /// [`GptError::Write`].
    pub fn write_new(&self, disk: &mut impl Store) -> Result<(), GptError> {
        let sectors = u32::try_from(self.disk_sectors - 1).unwrap_or(u32::MAX);
        disk.write_at(0, &format::protective_sector(self.sector_bytes, sectors)).map_err(GptError::Write)?;
        self.write(disk)
    }

    fn entries(&self) -> Vec<u8> {
        let len = usize::try_from(self.entry_sectors() * self.sector_bytes).unwrap_or_default();
        let mut bytes = vec![0; len];
        for partition in &self.partitions {
            let index = usize::try_from((u64::from(partition.number) - 1) * ENTRY_BYTES).unwrap_or(len);
            if let Some(entry) =
                bytes.get_mut(index..).and_then(|rest| rest.first_chunk_mut::<{ ENTRY_BYTES as usize }>())
            {
                format::write_entry(partition, entry);
            }
        }
        bytes
    }

    fn header(&self, own: u64, other: u64, entries_lba: u64, entries: &[u8]) -> Vec<u8> {
        let used = usize::try_from(u64::from(self.entry_count) * ENTRY_BYTES).unwrap_or_default();
        let header = Header {
            own_lba: own,
            other_lba: other,
            first_usable: self.first_usable,
            last_usable: self.last_usable(),
            disk_uuid: self.disk_uuid,
            entries_lba,
            entry_count: self.entry_count,
            entry_bytes: ENTRY_BYTES,
            entries_crc: crc32(entries.get(..used).unwrap_or(entries)),
        };
        header.to_sector(self.sector_bytes)
    }
}

/// Checked sector size and number of sectors; the smallest disk has room for both copies and something between.
fn geometry(sector_bytes: u32, disk_bytes: u64) -> Result<(u64, u64), GptError> {
    let sector = u64::from(sector_bytes);
    if !sector_bytes.is_power_of_two() || !(512..=65_536).contains(&sector_bytes) || disk_bytes / sector < 68 {
        return Err(GptError::Geometry);
    }
    Ok((sector, disk_bytes / sector))
}

fn check_label(label: &str) -> Result<(), GptError> {
    if label.encode_utf16().count() > MAX_LABEL_LEN || label.contains('\0') {
        return Err(GptError::Label(label.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
