//! What the cluster operators need for many machines, and how fast they are: the real program with a real API server and etcd, on this
//! host. Only the machines are simulated.

mod fleet;
mod requests;
mod server;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use tokio::time::{sleep, timeout};

use self::fleet::Fleet;
use self::requests::Requests;
use self::server::{Server, Usage};
use crate::report::{Reference, Report};

/// How many machines there are: first what is compared with, then what is measured.
const MACHINES: [u16; 2] = [100, 1000];
/// Of so many machines one changes in a second of churn.
const CHURN: f64 = 50.0;
/// Of so many machines one is removed at the end.
const REMOVED: u16 = 10;
/// Longest time for anything that is waited for.
const LIMIT: Duration = Duration::from_secs(900);
/// How long the operators are left alone before their rest is measured, and how long that is measured.
const SETTLE: Duration = Duration::from_secs(15);
const REST: Duration = Duration::from_secs(60);
/// How long machines change before the pools do.
const ALONE: Duration = Duration::from_secs(30);

/// A figure's name, its unit and its value.
type Measured = (&'static str, &'static str, f64);

/// Measures the operators with few machines and with many.
///
/// # Errors
/// When a program is missing, the operators do not do what they should, or this host cannot make network namespaces.
pub fn measure(report: &mut Report) -> Result<()> {
    // The API server has one port, which another may have on this host: this thread and its children leave the host's network.
    let measured = thread::scope(|scope| scope.spawn(measure_apart).join());
    let measured = measured.map_err(|_| anyhow!("the measurement has panicked"))??;
    let [few, _] = MACHINES;
    for (name, unit, [beside, value]) in measured {
        let beside = Reference::beside(format!("{few} machines"), &[beside]);
        report.add(format!("operators: {name}"), unit, &[value], beside);
    }
    Ok(())
}

fn measure_apart() -> Result<Vec<(&'static str, &'static str, [f64; 2])>> {
    unshare(CloneFlags::CLONE_NEWNET).context("leave the host's network: measuring the operators needs root")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let [few, many] = MACHINES;
    let reference = runtime.block_on(run(few)).with_context(|| format!("{few} machines"))?;
    let measured = runtime.block_on(run(many)).with_context(|| format!("{many} machines"))?;
    Ok(measured
        .into_iter()
        .zip(reference)
        .map(|((name, unit, value), (_, _, beside))| (name, unit, [beside, value]))
        .collect())
}

async fn run(machines: u16) -> Result<Vec<Measured>> {
    let mut server = Server::start().await?;
    let fleet = Fleet::create(&server.administrator()?, machines.into()).await?;
    // Cancel-safe: whatever ends first ends all of it.
    tokio::select! {
        ended = fleet.run() => match ended {
            Err(error) => Err(error),
            Ok(()) => bail!("the machines are no longer simulated"),
        },
        measured = phases(&mut server, &fleet, machines) => measured,
    }
}

async fn phases(server: &mut Server, fleet: &Fleet, machines: u16) -> Result<Vec<Measured>> {
    server.start_operators()?;
    let settled = fleet.until_settled(LIMIT).await.context("start")?;
    let start = Span::until_now(server, None)?;

    let rest = {
        sleep(SETTLE).await;
        let before = Span::until_now(server, None)?;
        until_over(fleet.heartbeats(), REST).await?;
        Span::until_now(server, Some(&before))?
    };

    let before = Span::until_now(server, None)?;
    let per_second = f64::from(machines) / CHURN;
    let alone = async {
        sleep(ALONE).await;
        Ok(())
    };
    fleet.churn(per_second, alone).await?;
    let churn = Span::until_now(server, Some(&before))?;

    let before = Span::until_now(server, None)?;
    fleet.change_templates(1).await?;
    let rolled_out = fleet.churn(per_second, fleet.until_rolled_out(LIMIT)).await.context("rollout")?;
    let rollout = Span::until_now(server, Some(&before))?;
    let calm = fleet.until_settled(LIMIT).await.context("after churn")?;

    let before = Span::until_now(server, None)?;
    fleet.remove((machines / REMOVED).into()).await?;
    let gone = fleet.until_gone(LIMIT).await.context("removal")?;
    let removal = Span::until_now(server, Some(&before))?;

    let per_minute = |count: f64, span: Duration| count / span.as_secs_f64() * 60.0;
    Ok(vec![
        ("start, until all is told", "s", settled.as_secs_f64()),
        ("start, processor time", "s", start.usage.cpu),
        ("start, requests", "", start.requests.all),
        ("rest, requests", "a minute", per_minute(rest.requests.all, REST)),
        ("rest, processor time", "ms a minute", per_minute(rest.usage.cpu * 1000.0, REST)),
        ("rest, memory (proportional set size)", "MiB", rest.usage.pss),
        ("churn, requests", "a minute", per_minute(churn.requests.all, ALONE)),
        ("churn, statuses of pools", "a minute", per_minute(churn.requests.pool_statuses, ALONE)),
        ("churn, written", "kB a minute", per_minute(churn.requests.bytes / 1000.0, ALONE)),
        ("churn, processor time", "ms a minute", per_minute(churn.usage.cpu * 1000.0, ALONE)),
        ("churn, from its end until all is told", "s", calm.as_secs_f64()),
        ("rollout under churn, until all follow", "s", rolled_out.as_secs_f64()),
        ("rollout under churn, processor time", "s", rollout.usage.cpu),
        ("rollout under churn, requests", "", rollout.requests.all),
        ("rollout under churn, statuses of pools", "", rollout.requests.pool_statuses),
        ("rollout under churn, written", "kB", rollout.requests.bytes / 1000.0),
        ("removal of a tenth, until all are gone", "s", gone.as_secs_f64()),
        ("removal of a tenth, processor time", "s", removal.usage.cpu),
        ("removal of a tenth, requests", "", removal.requests.all),
        ("removal of a tenth, refused requests", "", removal.requests.refused),
        ("removal of a tenth, written", "kB", removal.requests.bytes / 1000.0),
        ("memory at most (resident set size)", "MiB", removal.usage.peak),
    ])
}

/// What the operators have used and asked for.
struct Span {
    usage: Usage,
    requests: Requests,
}

impl Span {
    /// Since an earlier look, or since their start. Memory is as it is now.
    fn until_now(server: &Server, before: Option<&Self>) -> Result<Self> {
        let (usage, requests) = (server.usage()?, server.requests()?);
        Ok(match before {
            Some(before) => Self {
                usage: Usage { cpu: usage.cpu - before.usage.cpu, ..usage },
                requests: requests.since(before.requests),
            },
            None => Self { usage, requests },
        })
    }
}

/// Lets something go on for a while that ends only when it fails.
async fn until_over(what: impl Future<Output = Result<()>>, span: Duration) -> Result<()> {
    match timeout(span, what).await {
        Err(_) => Ok(()),
        Ok(ended) => ended,
    }
}
