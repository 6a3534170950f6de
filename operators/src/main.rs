//! The node agent, the cluster operators, and the definitions of the resources that both serve.

mod agent;
mod cluster;
mod manifests;
mod notify;
mod stop;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// What is logged by default. kube's own errors come back to whoever made the call, who knows whether they matter; its
/// span names the one object of each kind that there is.
const FILTER: &str = "info,kube_client=off,kube_runtime=warn";

/// Garboard's operators.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Keep this machine as it is declared.
    Agent,
    /// Do what the cluster as a whole needs.
    Cluster,
    /// Print the custom resource definitions as YAML.
    Crds,
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("GARBOARD_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    // PID 1 puts the time before each line that it keeps.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_ansi(false)
        .init();
    if let Command::Crds = Command::parse() {
        print!("{}", garboard_api::crds::yaml().context("write the definitions as YAML")?);
        return Ok(());
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let stop = stop::on_signal().context("listen for signals")?;
        match Command::parse() {
            Command::Agent => agent::run(stop).await,
            Command::Cluster => cluster::run(stop).await,
            Command::Crds => Ok(()),
        }
    })
}
