//! Waiting for a condition, with a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition is left alone between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A look at a condition: what is wanted, or what was seen instead.
pub type Look<T> = std::result::Result<T, String>;

/// Looks until the condition holds and gives its value.
///
/// # Errors
/// When `limit` has passed: names `what` and the last thing seen.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Look<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match look() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if start.elapsed() >= limit {
            bail!("{what}: not within {} s; last seen: {seen}", limit.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Looks for all of `span` and fails as soon as the condition does not hold.
///
/// # Errors
/// What was seen instead, and after how long.
pub fn throughout(what: &str, span: Duration, mut look: impl FnMut() -> Look<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(seen) = look() {
            bail!("{what}: broken after {} s: {seen}", start.elapsed().as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
