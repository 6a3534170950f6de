//! The node agent and the cluster operators.

mod agent;
mod cluster;
mod manifests;
mod notify;
mod stop;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const USAGE: &str = "\
usage: garboard-operators agent|cluster MACHINE

  agent            keep this machine as it is declared
  cluster MACHINE  do what the cluster as a whole needs, while the machine of that name, which is this one, leads";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["agent"] => run(agent::run),
        ["cluster", machine] => run(async |stop| cluster::run(machine, stop).await),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

/// Runs a program of many tasks on one thread, until a signal.
fn run(program: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> anyhow::Result<()> {
    log();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async { program(stop::on_signal().context("listen for signals")?).await })
}

fn log() {
    // Levels by target as `RUST_LOG` gives them; the fuller syntax of an EnvFilter would cost a megabyte.
    let filter = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    // PID 1 puts the time before each line that it keeps.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_ansi(false);
    tracing_subscriber::registry().with(lines).with(filter.unwrap_or_else(levels)).init();
}

/// kube's own errors come back to whoever made the call, who knows whether they matter; its span names the one object of
/// each kind that there is.
fn levels() -> Targets {
    let quiet = [("kube_client", LevelFilter::OFF), ("kube_runtime", LevelFilter::ERROR)];
    Targets::new().with_default(LevelFilter::INFO).with_targets(quiet)
}
