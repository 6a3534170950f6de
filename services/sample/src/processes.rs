//! A look at processes, and an end for them: of this container, or of the whole machine in a pod that shares them.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;

/// Prints a line per process: number, proportional set size in KiB, program. Those that end meanwhile are left out.
pub fn list() -> Outcome {
    let entries = fs::read_dir("/proc").map_err(|error| format!("reading /proc: {error}"))?;
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    for number in numbers {
        let (Ok(rollup), Ok(command)) =
            (fs::read_to_string(format!("/proc/{number}/smaps_rollup")), fs::read(format!("/proc/{number}/cmdline")))
        else {
            continue;
        };
        let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
        if let (Some(kib), false) = (proportional(&rollup), program.is_empty()) {
            println!("{number} {kib} {}", String::from_utf8_lossy(program));
        }
    }
    Ok(())
}

/// The `Pss:` of a `smaps_rollup`, KiB.
fn proportional(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Sends a signal.
pub fn signal(number: i32, signal: Signal) -> Outcome {
    if number <= 1 {
        return Err(format!("{number} is no process to end: 2 or above"));
    }
    kill(Pid::from_raw(number), signal).map_err(|error| format!("sending {signal} to {number}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_size_is_found() {
        let rollup = "5581e5400000-7ffd8b3f8000 ---p 00000000 00:00 0  [rollup]\nRss:  900 kB\nPss:   415 kB\nPss_Dirty: 96 kB\n";
        assert_eq!(proportional(rollup), Some(415));
        assert_eq!(proportional("Rss: 900 kB\n"), None);
    }

    #[test]
    fn the_first_process_is_spared() {
        assert!([1, -1, 0].into_iter().all(|number| signal(number, Signal::SIGKILL).is_err()));
    }
}
