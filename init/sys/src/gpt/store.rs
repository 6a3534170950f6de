//! Where a table lies: a disk, or a part of memory in tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Random access to a disk. Writes may reach the medium in any order until [`Store::sync`] returns.
pub trait Store {
    /// Fills the buffer from a place, bytes from the start.
    ///
    /// # Errors
    /// The medium's, and [`io::ErrorKind::UnexpectedEof`] behind its end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all bytes to a place.
    ///
    /// # Errors
    /// The medium's.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything that was written is on the medium.
    ///
    /// # Errors
    /// The medium's.
    fn sync(&mut self) -> io::Result<()>;
}

impl Store for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
