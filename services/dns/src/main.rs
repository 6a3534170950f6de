//! `garboard-dns [--config FILE]`: cluster DNS.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, bail};
use garboard_dns::daemon;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const CONFIG: &str = "/run/garboard/services/dns/config.json";
const USAGE: &str = "usage: garboard-dns [--config FILE]";

fn main() -> anyhow::Result<()> {
    let path = arguments(std::env::args().skip(1))?;
    // Levels by target as `RUST_LOG` gives them; the fuller syntax of an EnvFilter would cost a megabyte.
    let filter = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).without_time();
    let lines = lines.with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter.unwrap_or_else(levels)).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the executor")?;
    runtime.block_on(daemon::run(&path))?;
    Ok(())
}

/// What libraries say at each broken connection is said by this program, once.
fn levels() -> Targets {
    let quiet = [
        ("hickory_server", LevelFilter::ERROR),
        ("kube_client", LevelFilter::OFF),
        ("kube_runtime", LevelFilter::ERROR),
    ];
    Targets::new().with_default(LevelFilter::INFO).with_targets(quiet)
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<PathBuf> {
    let mut path = PathBuf::from(CONFIG);
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next()) {
            ("--config", Some(value)) => path = value.into(),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(path)
}
