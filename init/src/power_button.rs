//! The power button: an input device that sends `KEY_POWER` (kernel: Documentation/input/event-codes.rst). ACPI machines and virtual
//! ones have one; those without send nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use garboard_control::ShutdownKind;
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use crate::pid1::{Background, Reporter};
use crate::watched::{self, Watched};

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Length of `struct input_event` on 64 bits: two longs of time, type, code, value.
const EVENT_LEN: usize = 24;

/// Time between two looks for new devices: the button's driver is a module that comes some time after the start.
const PERIOD: Duration = Duration::from_secs(5);

/// Watches every button until one is pressed, and then goes on watching.
pub async fn watch(reporter: Reporter) {
    let mut known = BTreeSet::new();
    loop {
        let present = buttons();
        for path in present.difference(&known) {
            match open(path) {
                Ok(device) => {
                    info!(device = %path.display(), "watching the power button");
                    tokio::spawn(listen(device, reporter.clone()));
                }
                Err(error) => warn!(device = %path.display(), %error, "a power button cannot be watched"),
            }
        }
        known = present;
        tokio::time::sleep(PERIOD).await;
    }
}

fn open(path: &Path) -> std::io::Result<AsyncFd<Watched<File>>> {
    watched::watch(OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?)
}

async fn listen(mut device: AsyncFd<Watched<File>>, reporter: Reporter) {
    let mut buffer = [0; 16 * EVENT_LEN];
    loop {
        let len = match device.get_mut().0.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                match device.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return,
                }
                continue;
            }
            // The device is gone.
            Err(_) => return,
        };
        if buffer.get(..len).unwrap_or_default().chunks_exact(EVENT_LEN).any(is_press) {
            let reason = "the power button was pressed".to_owned();
            // The loop is only gone when the machine ends anyway.
            let _ = reporter.send(Background::Shutdown(ShutdownKind::PowerOff, reason)).await;
        }
    }
}

fn is_press(event: &[u8]) -> bool {
    let kind = event.get(16..18).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = event.get(18..20).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let value = event.get(20..24).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    (kind, code, value) == (Some(EV_KEY), Some(KEY_POWER), Some(1))
}

/// Input devices that have the key.
fn buttons() -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/class/input") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter(|entry| {
            fs::read_to_string(entry.path().join("device/capabilities/key")).is_ok_and(|keys| has_key(&keys, KEY_POWER))
        })
        .map(|entry| Path::new("/dev/input").join(entry.file_name()))
        .collect()
}

/// Whether a bitmap as the kernel prints it, hexadecimal words of 64 bits with the lowest last, has a bit.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok()).is_some_and(|word| word >> (key % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_in_the_kernels_bitmap() {
        let cases = [
            ("an ACPI button", "10000000000000 0", true),
            ("a mouse", "ff0000 0 0 0 0", false),
            ("a keyboard", "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe", true),
            ("none", "0", false),
        ];
        for (name, bitmap, expected) in cases {
            assert_eq!(has_key(bitmap, KEY_POWER), expected, "{name}");
        }
    }

    #[test]
    fn only_a_press_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![0; 16];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        assert!(is_press(&event(1, 116, 1)));
        for (kind, code, value) in [(1, 116, 0), (1, 116, 2), (1, 30, 1), (0, 116, 1)] {
            assert!(!is_press(&event(kind, code, value)));
        }
    }
}
