//! The kernel's random numbers (random(4), getrandom(2)).
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use rustix::rand::{GetRandomFlags, getrandom};

mod request {
    nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [libc::c_int; 2]);
}

/// Most bytes that one seed may have.
pub const MAX_SEED_LEN: usize = 512;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// No random numbers.
    #[error("cannot get random bytes")]
    Get(#[source] io::Error),
    /// The seed was not taken.
    #[error("cannot seed the random number generator")]
    Seed(#[source] io::Error),
    /// The seed is longer than [`MAX_SEED_LEN`].
    #[error("a seed of {0} bytes is too long")]
    SeedTooLong(usize),
}

/// `struct rand_pool_info` with room for [`MAX_SEED_LEN`] bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    len: libc::c_int,
    bytes: [u8; MAX_SEED_LEN],
}

/// Fills a buffer with bytes fit for keys; waits, early after power-on, until the kernel has gathered enough.
///
/// # Errors
/// [`RngError::Get`].
pub fn fill(mut buffer: &mut [u8]) -> Result<(), RngError> {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(count) => buffer = &mut buffer[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(RngError::Get(source.into())),
        }
    }
    Ok(())
}

/// Whether [`fill`] would not wait.
pub fn is_ready() -> bool {
    getrandom(&mut [0; 1][..], GetRandomFlags::NONBLOCK).is_ok()
}

/// Stirs bytes in, such as those saved at the last shutdown. `credit`: they are secret and were never used before, so the kernel may count
/// them as entropy and stop waiting for more.
///
/// # Errors
/// [`RngError::Seed`] without `CAP_SYS_ADMIN`, and [`RngError::SeedTooLong`].
pub fn seed(seed: &[u8], credit: bool) -> Result<(), RngError> {
    let too_long = || RngError::SeedTooLong(seed.len());
    let len = libc::c_int::try_from(seed.len()).map_err(|_| too_long())?;
    let mut info = PoolInfo { entropy_bits: if credit { len * 8 } else { 0 }, len, bytes: [0; MAX_SEED_LEN] };
    info.bytes.get_mut(..seed.len()).ok_or_else(too_long)?.copy_from_slice(seed);
    let device = OpenOptions::new().write(true).open("/dev/urandom").map_err(RngError::Seed)?;
    // SAFETY: the descriptor is open until the end of this function; the argument is a valid `struct rand_pool_info` whose `len` bytes lie
    // inside it, and the kernel only reads it. No crate in use wraps this ioctl.
    unsafe { request::rnd_add_entropy(device.as_raw_fd(), (&raw const info).cast()) }
        .map_err(|source| RngError::Seed(source.into()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_all_sizes_are_filled() {
        for len in [0, 1, 257, 4096] {
            let mut buffer = vec![0; len];
            fill(&mut buffer).unwrap();
            assert!(len < 64 || buffer.iter().any(|&b| b != 0));
        }
    }

    #[test]
    fn too_long_seeds_are_refused() {
        assert!(matches!(seed(&[0; MAX_SEED_LEN + 1], false), Err(RngError::SeedTooLong(_))));
    }
}
