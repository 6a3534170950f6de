//! `garboard-balancer --listen ADDRESS --config FILE`: the local way to the cluster's API servers.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use garboard_balancer::daemon;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const USAGE: &str = "usage: garboard-balancer --listen ADDRESS --config FILE";

fn main() -> anyhow::Result<()> {
    let (listen, config) = arguments(std::env::args().skip(1))?;
    // Levels by target as `RUST_LOG` gives them; the fuller syntax of an EnvFilter would cost a megabyte.
    let filter = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).without_time();
    let lines = lines.with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the executor")?;
    runtime.block_on(daemon::run(listen, &config))?;
    Ok(())
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<(SocketAddr, PathBuf)> {
    let (mut listen, mut config) = (None, None);
    while let Some(flag) = arguments.next() {
        match (flag.as_str(), arguments.next()) {
            ("--listen", Some(value)) => listen = Some(value.parse().with_context(|| format!("--listen {value}"))?),
            ("--config", Some(value)) => config = Some(value.into()),
            _ => bail!("{USAGE}"),
        }
    }
    listen.zip(config).context(USAGE)
}
