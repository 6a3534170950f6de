//! Filling a disk.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::Outcome;
use crate::stop::Stop;

/// The first piece that is asked for, bytes; when there is no room for it, half of it is.
const PIECE: i64 = 1 << 30;
/// The last one: a block of every usual file system.
const BLOCK: i64 = 4096;

/// Makes a file as large as the disk lets it be, says so, and waits until stopped.
pub fn fill(path: &str) -> Outcome {
    let stop = Stop::block()?;
    let file = File::create(path).map_err(|error| format!("making {path}: {error}"))?;
    let (mut size, mut piece) = (0, PIECE);
    while piece >= BLOCK {
        match fallocate(&file, FallocateFlags::empty(), size, piece) {
            Ok(()) => size += piece,
            Err(Errno::ENOSPC) => piece /= 2,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(format!("filling {path}: {error}")),
        }
    }
    println!("full with {} MiB", size >> 20);
    stop.wait().map(drop)
}
