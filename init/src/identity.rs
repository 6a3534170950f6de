//! What a machine keeps across boots on STATE: its id, a seed for its random numbers, the last time it knew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use garboard_sys::durable::{self, NewFile};
use garboard_sys::{clock, rng};

/// Length of a seed, bytes.
const SEED_LEN: usize = 512;

/// Time that is added to the last one known: a machine that was off for a moment only is then not set back.
const TICK: Duration = Duration::from_secs(1);

/// The machine's id (machine-id(5)): the one in `state`, or a new one. It is also written to `runtime`, where `/etc/machine-id` points.
///
/// # Errors
/// When one of the files cannot be written.
pub fn machine_id(state: &Path, runtime: &Path) -> io::Result<String> {
    let kept = state.join("machine-id");
    let id = match fs::read_to_string(&kept) {
        Ok(text) if is_machine_id(text.trim()) => text.trim().to_owned(),
        Ok(_) | Err(_) => {
            let id = new_machine_id()?;
            durable::replace(&NewFile::new(&kept, format!("{id}\n").as_bytes(), 0o444))?;
            id
        }
    };
    fs::create_dir_all(runtime)?;
    fs::write(runtime.join("machine-id"), format!("{id}\n"))?;
    Ok(id)
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|b| b != b'0')
}

fn new_machine_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    rng::fill(&mut bytes).map_err(io::Error::other)?;
    // Shaped as a version 4 UUID, for those who read it as one.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Feeds the kernel's random numbers from the seed of the last run, and replaces it first: a seed that counts is used once.
///
/// # Errors
/// When the seed cannot be replaced; then it does not count.
pub fn stir_random(state: &Path) -> io::Result<()> {
    let path = state.join("random-seed");
    let Ok(old) = fs::read(&path) else { return save_random(state) };
    let old = old.get(..SEED_LEN).unwrap_or(&old);
    rng::seed(old, false).map_err(io::Error::other)?;
    durable::replace(&NewFile::new(&path, &draw_seed()?, 0o600))?;
    rng::seed(old, old.len() == SEED_LEN).map_err(io::Error::other)
}

/// Saves a seed for the next run, if there is enough randomness for one that counts.
///
/// # Errors
/// When it cannot be written.
pub fn save_random(state: &Path) -> io::Result<()> {
    if !rng::is_ready() {
        return Ok(());
    }
    Ok(durable::replace(&NewFile::new(&state.join("random-seed"), &draw_seed()?, 0o600))?)
}

/// Never waits, unlike getrandom(2): it is also called when there is little randomness yet.
fn draw_seed() -> io::Result<[u8; SEED_LEN]> {
    let mut seed = [0; SEED_LEN];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Sets the clock forward to the latest time that is known to have passed, if it is behind: the image was built, and the machine ran.
/// Certificates made or checked with a clock in the past would not be valid.
///
/// # Errors
/// When the clock cannot be set.
pub fn set_clock_floor(state: &Path, image: &Path) -> io::Result<Option<SystemTime>> {
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).unwrap_or(UNIX_EPOCH);
    let floor = modified(image).max(modified(&state.join("clock")) + TICK);
    if SystemTime::now() >= floor {
        return Ok(None);
    }
    clock::step_to(floor).map_err(io::Error::other)?;
    Ok(Some(floor))
}

/// Notes that this time has been reached.
///
/// # Errors
/// When it cannot be written.
pub fn save_clock(state: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(state.join("clock"))?;
    file.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = directory.path().join("run");
        let id = machine_id(directory.path(), &runtime).unwrap();
        assert!(is_machine_id(&id));
        assert_eq!(machine_id(directory.path(), &runtime).unwrap(), id);
        assert_eq!(fs::read_to_string(runtime.join("machine-id")).unwrap(), format!("{id}\n"));
    }

    #[test]
    fn a_broken_id_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        for broken in ["", "uninitialized", "00000000000000000000000000000000", "ABCDEF"] {
            fs::write(directory.path().join("machine-id"), broken).unwrap();
            assert!(is_machine_id(&machine_id(directory.path(), directory.path()).unwrap()), "{broken}");
        }
    }

    #[test]
    fn a_seed_is_used_once() {
        let directory = tempfile::tempdir().unwrap();
        save_random(directory.path()).unwrap();
        let first = fs::read(directory.path().join("random-seed")).unwrap();
        stir_random(directory.path()).unwrap();
        let second = fs::read(directory.path().join("random-seed")).unwrap();
        assert_eq!((first.len(), second.len()), (SEED_LEN, SEED_LEN));
        assert_ne!(first, second);
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        save_clock(directory.path()).unwrap();
        let past = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(directory.path().join("clock")).and_then(|file| file.set_modified(past)).unwrap();
        assert_eq!(set_clock_floor(directory.path(), Path::new("/usr/lib/os-release")).unwrap(), None);
    }
}
