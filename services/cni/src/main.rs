//! `garboard-cni`: the CNI plugin when a runtime calls it (`CNI_COMMAND` is set), otherwise `garboard-cni daemon`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use garboard_cni::daemon::{self, Paths};
use garboard_cni::plugin::{self, Environment};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const USAGE: &str = "usage: garboard-cni daemon [--config FILE] [--socket FILE] [--state DIR] [--networks DIR]";

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var_os("CNI_COMMAND").is_some() {
        let (output, status) = plugin::run(&Environment::of_process(), io::stdin());
        io::stdout().write_all(output.as_bytes())?;
        return Ok(ExitCode::from(status));
    }
    let paths = arguments(std::env::args().skip(1))?;
    // Levels by target as `RUST_LOG` gives them; the fuller syntax of an EnvFilter would cost a megabyte.
    let filter = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).without_time();
    tracing_subscriber::registry().with(lines.with_ansi(io::stderr().is_terminal())).with(filter).init();
    daemon::run(&paths)?;
    Ok(ExitCode::SUCCESS)
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Paths> {
    if arguments.next().as_deref() != Some("daemon") {
        bail!("{USAGE}");
    }
    let mut paths = Paths::default();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value; {USAGE}"))?;
        match flag.as_str() {
            "--config" => paths.config = value.into(),
            "--socket" => paths.socket = value.into(),
            "--state" => paths.state = value.into(),
            "--networks" => paths.networks = value.into(),
            _ => bail!("unknown option {flag}; {USAGE}"),
        }
    }
    Ok(paths)
}
