//! `garboard-dns [--config FILE]`: cluster DNS.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use garboard_dns::daemon;
use tracing_subscriber::EnvFilter;

const CONFIG: &str = "/run/garboard/services/dns/config.json";
const USAGE: &str = "usage: garboard-dns [--config FILE]";

fn main() -> anyhow::Result<()> {
    let path = arguments(std::env::args().skip(1))?;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,hickory_server=error,kube_client=error"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    logs.with_ansi(io::stderr().is_terminal()).without_time().init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the executor")?;
    runtime.block_on(daemon::run(&path))?;
    Ok(())
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
