//! What is on the disk, and how long it takes to be a cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;
use serde_json::Value;

use crate::baseline::Baseline;
use crate::report::{Reference, Report};

const MB: f64 = 1_000_000.0;

/// Sizes of what is on the disk.
pub fn sizes(image: &Image, report: &mut Report) -> Result<()> {
    let release = image.release()?;
    for (name, pointer, goal) in [
        ("root", "/rootSize", Some(120.0)),
        ("UKI", "/artifacts/garboard.efi/size", Some(16.0)),
        ("qcow2", "/artifacts/garboard.qcow2/size", None),
    ] {
        let bytes = release
            .pointer(pointer)
            .and_then(Value::as_f64)
            .with_context(|| format!("release.json has no {pointer}"))?;
        let goal =
            goal.map(|value| Reference { what: "goal of a release, at most".to_owned(), value, same_call: false });
        report.add(format!("size: {name}"), "MB", &[bytes / MB], goal);
    }
    Ok(())
}

/// From power-on and from the kernel's start to each point of a first boot, ours and the baseline's in turn.
///
/// # Errors
/// When a machine does not become Ready.
pub fn times(image: &Image, runs: u32, report: &mut Report) -> Result<()> {
    let baseline = Baseline::new(image)?;
    let (mut ours, mut bare) = (Times::default(), Times::default());
    let mut phases: Vec<Vec<f64>> = vec![Vec::new(); PHASES.len()];
    for _ in 0..runs {
        let mut fresh = Fresh::new(image, Hardware::default())?;
        ours.boot(&mut fresh, |fresh| fresh.cluster.fetch_kubeconfig(READY_LIMIT))?;
        for (values, at) in phases.iter_mut().zip(reached_phases(&fresh.cluster)?) {
            values.extend(at);
        }
        drop(fresh);
        bare.boot(&mut baseline.fresh()?, |fresh| Baseline::wait_started(fresh, READY_LIMIT))?;
    }
    for (point, values) in [
        ("kernel", &ours.kernel),
        ("machine API", &ours.reachable),
        ("API ready", &ours.api_ready),
        ("node Ready", &ours.node_ready),
    ] {
        report.add(format!("boot: power-on to {point}"), "s", values, None);
    }
    for (point, values, beside) in
        [("API ready", &ours.api_ready, &bare.api_ready), ("node Ready", &ours.node_ready, &bare.node_ready)]
    {
        let beside = Reference::beside("a bare script as init", &since(&bare.kernel, beside));
        report.add(format!("boot: kernel start to {point}"), "s", &since(&ours.kernel, values), beside);
    }
    for (Phase { name, .. }, values) in PHASES.iter().zip(&phases) {
        report.add(format!("boot log: kernel start to {name}"), "s", values, None);
    }
    Ok(())
}

/// What every kernel that an UEFI firmware starts says first: its EFI stub writes to the firmware's console.
pub const KERNEL_STARTS: &str = "EFI stub: ";

/// Seconds from power-on to each point of boots, by the host's clock.
#[derive(Default)]
struct Times {
    kernel: Vec<f64>,
    /// When it is worth asking for the API server: each asking takes of the processors that the machine runs on.
    reachable: Vec<f64>,
    api_ready: Vec<f64>,
    node_ready: Vec<f64>,
}

impl Times {
    /// Powers a machine on, waits until it is Ready and adds its times.
    fn boot(&mut self, fresh: &mut Fresh, reachable: impl Fn(&Fresh) -> Result<()>) -> Result<()> {
        let on = Instant::now();
        fresh.machine.start()?;
        fresh.machine.wait_console(KERNEL_STARTS, READY_LIMIT)?;
        let kernel = on.elapsed();
        let ready = reachable(fresh).and_then(|()| {
            let reachable = on.elapsed();
            let (api_ready, node_ready) = wait_both(&fresh.cluster, on)?;
            Ok([reachable, api_ready, node_ready])
        });
        let [reachable, api_ready, node_ready] = ready.with_context(|| fresh.machine.console_end())?;
        self.kernel.push(kernel.as_secs_f64());
        self.reachable.push(reachable.as_secs_f64());
        self.api_ready.push(api_ready.as_secs_f64());
        self.node_ready.push(node_ready.as_secs_f64());
        Ok(())
    }
}

/// Times from `on` to a ready API server and to a Ready node; either may be the first.
fn wait_both(cluster: &Cluster, on: Instant) -> Result<(Duration, Duration)> {
    // Without time to wait, each asks once.
    let asks: [fn(&Cluster, Duration) -> Result<()>; 2] = [Cluster::wait_api_ready, Cluster::wait_ready];
    let mut seen = [None; 2];
    wait::until("the API server and the node to be ready", READY_LIMIT, || {
        let mut missing = String::new();
        for (at, ask) in seen.iter_mut().zip(asks).filter(|(at, _)| at.is_none()) {
            match ask(cluster, Duration::ZERO) {
                Ok(()) => *at = Some(on.elapsed()),
                Err(error) => missing = error.to_string(),
            }
        }
        let [api_ready, node_ready] = seen;
        api_ready.zip(node_ready).ok_or(missing)
    })
}

/// From each of `starts` to the end of the same boot.
fn since(starts: &[f64], ends: &[f64]) -> Vec<f64> {
    starts.iter().zip(ends).map(|(start, end)| end - start).collect()
}

/// A point on the way to a Ready node, and the first line of a log that tells of it.
struct Phase {
    name: &'static str,
    log: Log,
    line: &'static str,
}

enum Log {
    Kernel,
    Service(&'static str),
}

/// The critical path, in its usual order: each waits for the one before, or for the API server.
const PHASES: &[Phase] = &[
    Phase { name: "first stage", log: Log::Kernel, line: "garboard-initrd: looking for the root" },
    Phase { name: "verified root", log: Log::Kernel, line: "verified and mounted" },
    Phase { name: "PID 1", log: Log::Kernel, line: "PID 1 starts" },
    Phase { name: "STATE mounted", log: Log::Kernel, line: "finished service=state" },
    Phase { name: "agent ready", log: Log::Kernel, line: "garboard: ready service=agent" },
    Phase { name: "control plane started", log: Log::Kernel, line: "starting service=kube-apiserver" },
    Phase { name: "etcd ready", log: Log::Kernel, line: "garboard: ready service=etcd" },
    Phase { name: "containerd ready", log: Log::Kernel, line: "garboard: ready service=containerd" },
    Phase { name: "kubelet ready", log: Log::Kernel, line: "garboard: ready service=kubelet" },
    Phase { name: "API serving", log: Log::Service("kube-apiserver"), line: "Serving securely" },
    Phase { name: "node registered", log: Log::Service("kubelet"), line: "Successfully registered node" },
    Phase { name: "pod network ready", log: Log::Kernel, line: "garboard: ready service=cni" },
    Phase { name: "API ready", log: Log::Kernel, line: "garboard: ready service=kube-apiserver" },
    Phase { name: "controllers ready", log: Log::Kernel, line: "garboard: ready service=kube-controller-manager" },
    Phase { name: "definitions applied", log: Log::Service("agent"), line: "the API server is set up" },
    Phase { name: "node seen Ready", log: Log::Service("agent"), line: "node ready=true" },
];

/// Longest wait for the phases that come after the machine is Ready.
const PHASES_LIMIT: Duration = Duration::from_secs(60);

/// Seconds from the kernel's start to each phase; none where its line has not come, or is not there any more.
fn reached_phases(cluster: &Cluster) -> Result<Vec<Option<f64>>> {
    let mut reached = Vec::new();
    wait::until("every phase to be reached", PHASES_LIMIT, || {
        reached = logged_phases(cluster).map_err(|error| format!("{error:#}"))?;
        if reached.iter().all(Option::is_some) { Ok(()) } else { Err("some are not".to_owned()) }
    })
    .or_else(|error| if reached.is_empty() { Err(error) } else { Ok(()) })?;
    Ok(reached)
}

/// Seconds from the kernel's start to each phase that the logs tell of.
fn logged_phases(cluster: &Cluster) -> Result<Vec<Option<f64>>> {
    let lines = |arguments: &[&str]| -> Result<Vec<(f64, String)>> {
        let text = cluster.garboardctl_ok(&[arguments, &["--timestamps", "--lines", "10000"]].concat())?;
        Ok(text.lines().filter_map(timed).collect())
    };
    let kernel = lines(&["dmesg"])?;
    let start = kernel.first().context("the kernel's log is empty")?.0;
    let find = |lines: &[(f64, String)], wanted: &str| {
        lines.iter().find(|(_, line)| line.contains(wanted)).map(|(at, _)| at - start)
    };
    PHASES
        .iter()
        .map(|Phase { log, line, .. }| match log {
            Log::Kernel => Ok(find(&kernel, line)),
            Log::Service(name) => Ok(find(&lines(&["logs", name])?, line)),
        })
        .collect()
}

/// A line and its time, seconds since 1970.
fn timed(line: &str) -> Option<(f64, String)> {
    let (time, text) = line.split_once(' ')?;
    let time: jiff::Timestamp = time.parse().ok()?;
    Some((time.as_duration().as_secs_f64(), text.to_owned()))
}
