//! Waiting for a machine, with progress.

use std::time::{Duration, Instant};

use garboard_machine_api::client::ClientError;

use crate::explain::in_short;

/// Pause between two looks: short against what is waited for, long against what a look costs the machine.
const PAUSE: Duration = Duration::from_secs(1);

/// How far something is.
pub enum Progress<T> {
    /// It is there.
    Done(T),
    /// Not there, and what is missing in words.
    Missing(String),
}

/// Looks until it is done, with a line on standard error whenever what is missing changes.
///
/// An error that time does not mend ends the wait; so does the limit, with what was missing last.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Progress<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut shown = String::new();
    loop {
        let missing = match look().await {
            Ok(Progress::Done(value)) => return Ok(value),
            Ok(Progress::Missing(missing)) => missing,
            Err(error) => match error.downcast_ref::<ClientError>() {
                Some(transient) if transient.is_transient() => in_short(transient),
                _ => return Err(error),
            },
        };
        if start.elapsed() >= limit {
            anyhow::bail!("{what}: not within {} seconds: {missing}", limit.as_secs());
        }
        if missing != shown {
            eprintln!("{:>4} s  {missing}", start.elapsed().as_secs());
            shown = missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
