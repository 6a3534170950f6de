//! The bytes of a table's copies.

use std::io;

use super::{Guid, Partition, Store};

/// Bytes of an entry that we write; larger ones are read.
pub(super) const ENTRY_BYTES: u64 = 128;

/// Bytes of a header that are covered by its checksum.
const HEADER_BYTES: usize = 92;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;

/// Most bytes of entries that are read: a bound for damaged headers.
const MAX_ENTRIES_BYTES: u64 = 1 << 18;

/// What is wrong with a table or a change to it.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// The disk could not be read.
    #[error("cannot read the partition table")]
    Read(#[source] io::Error),
    /// The disk could not be written.
    #[error("cannot write the partition table")]
    Write(#[source] io::Error),
    /// Neither copy is whole.
    #[error("there is no whole GUID partition table")]
    NoTable,
    /// The sector or disk size is impossible.
    #[error("a disk of this size, or with sectors of this size, has no GUID partition table")]
    Geometry,
    /// A partition lies outside of the disk.
    #[error("the partition table names sectors that the disk does not have")]
    Beyond,
    /// An entry is smaller than the specification allows.
    #[error("the partition table's entries have an impossible size")]
    EntrySize,
    /// There is no room, on the disk or in the table.
    #[error("there is no room for another partition")]
    Full,
    /// No such partition.
    #[error("there is no partition {0}")]
    NoPartition(u32),
    /// The label is too long.
    #[error("the label {0:?} has more than 36 characters")]
    Label(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub own_lba: u64,
    pub other_lba: u64,
    pub first_usable: u64,
    pub last_usable: u64,
    pub disk_uuid: Guid,
    pub entries_lba: u64,
    pub entry_count: u32,
    pub entry_bytes: u64,
    pub entries_crc: u32,
}

/// A whole copy: its header and the entries that its checksum covers.
pub(super) struct Copy {
    header: Header,
    entries: Vec<u8>,
}

impl Copy {
    pub fn into_parts(self) -> (Header, Vec<u8>) {
        (self.header, self.entries)
    }

    /// Whether both describe the same partitions at the same place of the same disk.
    pub fn same_table(&self, other: &Self) -> bool {
        self.header.disk_uuid == other.header.disk_uuid
            && self.header.other_lba == other.header.own_lba
            && self.entries == other.entries
    }
}

impl Header {
    /// Reads the copy whose header lies at `lba`; none when it is not whole.
    pub fn read(disk: &impl Store, sector: u64, lba: u64, disk_sectors: u64) -> Result<Option<Copy>, GptError> {
        let mut bytes = vec![0; usize::try_from(sector).map_err(|_| GptError::Geometry)?];
        disk.read_at(lba * sector, &mut bytes).map_err(GptError::Read)?;
        let Some(header) = Self::parse(&bytes).filter(|h| h.own_lba == lba) else { return Ok(None) };
        let len = u64::from(header.entry_count) * header.entry_bytes;
        let sectors = len.div_ceil(sector);
        let inside = header.entries_lba.checked_add(sectors).is_some_and(|end| end <= disk_sectors);
        if len > MAX_ENTRIES_BYTES || !inside {
            return Ok(None);
        }
        let mut entries = vec![0; usize::try_from(len).map_err(|_| GptError::Geometry)?];
        disk.read_at(header.entries_lba * sector, &mut entries).map_err(GptError::Read)?;
        Ok((crc32(&entries) == header.entries_crc).then_some(Copy { header, entries }))
    }

    fn parse(sector: &[u8]) -> Option<Self> {
        let mut rest = Fields(sector);
        if rest.take()? != *SIGNATURE || u32::from_le_bytes(rest.take()?) != REVISION {
            return None;
        }
        let len = usize::try_from(u32::from_le_bytes(rest.take()?)).ok()?;
        let crc = u32::from_le_bytes(rest.take()?);
        let _reserved: [u8; 4] = rest.take()?;
        let mut covered = sector.get(..len).filter(|_| len >= HEADER_BYTES)?.to_vec();
        covered.get_mut(16..20)?.fill(0);
        if crc32(&covered) != crc {
            return None;
        }
        Some(Self {
            own_lba: u64::from_le_bytes(rest.take()?),
            other_lba: u64::from_le_bytes(rest.take()?),
            first_usable: u64::from_le_bytes(rest.take()?),
            last_usable: u64::from_le_bytes(rest.take()?),
            disk_uuid: Guid::from_disk(rest.take()?),
            entries_lba: u64::from_le_bytes(rest.take()?),
            entry_count: u32::from_le_bytes(rest.take()?),
            entry_bytes: u64::from(u32::from_le_bytes(rest.take()?)),
            entries_crc: u32::from_le_bytes(rest.take()?),
        })
    }

    pub fn to_sector(&self, sector_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(sector_bytes).unwrap_or(HEADER_BYTES));
        bytes.extend(SIGNATURE);
        bytes.extend(REVISION.to_le_bytes());
        bytes.extend((HEADER_BYTES as u32).to_le_bytes());
        bytes.extend([0; 8]);
        for lba in [self.own_lba, self.other_lba, self.first_usable, self.last_usable] {
            bytes.extend(lba.to_le_bytes());
        }
        bytes.extend(self.disk_uuid.to_disk());
        bytes.extend(self.entries_lba.to_le_bytes());
        bytes.extend(self.entry_count.to_le_bytes());
        bytes.extend((self.entry_bytes as u32).to_le_bytes());
        bytes.extend(self.entries_crc.to_le_bytes());
        let crc = crc32(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(usize::try_from(sector_bytes).unwrap_or(HEADER_BYTES), 0);
        bytes
    }
}

/// The disk's first sector: an old table with one partition of kind 0xee over everything.
pub(super) fn protective_sector(sector_bytes: u64, sectors: u32) -> Vec<u8> {
    // Behind 446 bytes of code: not bootable, first head and cylinder, kind, last head and cylinder, first sector, length.
    let mut bytes = vec![0; 446];
    bytes.extend([0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(sectors.to_le_bytes());
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xaa]);
    bytes.resize(usize::try_from(sector_bytes).unwrap_or(512), 0);
    bytes
}

/// Understands the entries of a whole copy.
pub(super) fn partitions(entries: &[u8], entry_bytes: u64) -> Result<Vec<Partition>, GptError> {
    let entry_bytes =
        usize::try_from(entry_bytes).ok().filter(|&b| b as u64 >= ENTRY_BYTES).ok_or(GptError::EntrySize)?;
    Ok(entries.chunks_exact(entry_bytes).zip(1..).filter_map(|(entry, number)| read_entry(entry, number)).collect())
}

fn read_entry(entry: &[u8], number: u32) -> Option<Partition> {
    let mut rest = Fields(entry);
    let kind = Guid::from_disk(rest.take()?);
    if kind.is_nil() {
        return None;
    }
    let uuid = Guid::from_disk(rest.take()?);
    let first_lba = u64::from_le_bytes(rest.take()?);
    let last_lba = u64::from_le_bytes(rest.take()?);
    let attributes = u64::from_le_bytes(rest.take()?);
    let label: [u8; 72] = rest.take()?;
    let units: Vec<u16> = label
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    let label = String::from_utf16_lossy(&units);
    Some(Partition { number, kind, uuid, first_lba, last_lba, attributes, label })
}

pub(super) fn write_entry(partition: &Partition, entry: &mut [u8; ENTRY_BYTES as usize]) {
    let Partition { number: _, kind, uuid, first_lba, last_lba, attributes, label } = partition;
    let mut bytes = Vec::with_capacity(entry.len());
    bytes.extend(kind.to_disk());
    bytes.extend(uuid.to_disk());
    bytes.extend(first_lba.to_le_bytes());
    bytes.extend(last_lba.to_le_bytes());
    bytes.extend(attributes.to_le_bytes());
    bytes.extend(label.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(entry.len(), 0);
    entry.copy_from_slice(&bytes);
}

/// Takes fields of known size from the front of a structure.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

/// CRC-32 as GPT uses it (ISO 3309, reflected, polynomial 0x04c11db7).
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
