//! Programs of the host.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a program that is given `input`.
///
/// # Errors
/// When it is not installed, or fails; with what it said.
pub fn run(command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {command:?}: is it installed?"))?;
    let given = child.stdin.take().context("no pipe")?.write_all(input.as_bytes());
    given.with_context(|| format!("give {command:?} its input"))?;
    let output = child.wait_with_output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}
