//! Tells PID 1 how the machine is watched over and how much it keeps of logs.

use std::time::Duration;

use garboard_api::machine::{MachineLogs, MachineWatchdog};
use garboard_control::{Client, Upkeep};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::{Backoff, after};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::problems::Problems;

/// First and longest wait after PID 1 did not answer.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What problems are about.
const PART: &str = "watchdog and logs";

/// What is declared, in the form of PID 1.
pub fn upkeep(watchdog: &MachineWatchdog, logs: &MachineLogs) -> Upkeep {
    Upkeep {
        watchdog_seconds: watchdog.timeout_seconds(),
        log_file_bytes: u64::from(logs.max_size_mebibytes()) << 20,
        log_files: logs.max_files(),
    }
}

/// Tells PID 1 whenever something else is declared, until `stop`. Before anything is declared it keeps what it was told last, which it does
/// over a restart of the agent too.
pub async fn run(
    control: Client,
    mut declared: watch::Receiver<Option<Upkeep>>,
    problems: Problems,
    stop: CancellationToken,
) {
    let tell = async {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let upkeep = *declared.borrow_and_update();
            let mut retry = None;
            if let Some(upkeep) = upkeep {
                match control.configure(&upkeep).await {
                    Ok(said) => {
                        backoff.reset();
                        said.iter().for_each(|problem| warn!(problem, "not as declared"));
                        problems.set(PART, (!said.is_empty()).then(|| said.join("; ")));
                    }
                    Err(error) => {
                        retry = Some(backoff.wait());
                        let error = chain(&error);
                        warn!(error, "PID 1 was not told");
                        problems.set(PART, Some(error));
                    }
                }
            }
            // Cancel-safe: each arm only waits.
            tokio::select! {
                () = after(retry) => {}
                changed = declared.changed() => if changed.is_err() { return std::future::pending().await },
            }
        }
    };
    stop.run_until_cancelled(tell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_declared_is_what_pid_1_does_by_itself() {
        assert_eq!(upkeep(&MachineWatchdog::default(), &MachineLogs::default()), Upkeep::default());
    }

    #[test]
    fn every_value_of_the_schema_is_in_the_bounds_of_pid_1() {
        for seconds in [30, 600] {
            for (size, files) in [(1, 2), (256, 16)] {
                let watchdog = MachineWatchdog { enabled: None, timeout_seconds: Some(seconds) };
                let logs = MachineLogs { max_size_mebibytes: Some(size), max_files: Some(files) };
                assert_eq!(upkeep(&watchdog, &logs).problem(), None);
            }
        }
        let off = MachineWatchdog { enabled: Some(false), timeout_seconds: Some(30) };
        assert_eq!(upkeep(&off, &MachineLogs::default()).watchdog_seconds, None);
    }
}
