//! What is on the disk, and how long it takes to be a cluster.

use std::time::Instant;

use anyhow::{Context, Result};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;
use serde_json::Value;

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

/// From power-on to each point of a first boot.
pub fn times(image: &Image, runs: u32, report: &mut Report) -> Result<()> {
    let mut points: Vec<(&str, Vec<f64>)> = vec![
        ("kernel", Vec::new()),
        ("machine API", Vec::new()),
        ("API ready", Vec::new()),
        ("node Ready", Vec::new()),
    ];
    let mut phases: Vec<Vec<f64>> = vec![Vec::new(); PHASES.len()];
    for _ in 0..runs {
        let Fresh { machine, cluster, .. } = &mut Fresh::new(image, Hardware::default())?;
        let on = Instant::now();
        machine.start()?;
        machine.wait_console("\n", READY_LIMIT)?;
        let mut reached = vec![on.elapsed()];
        cluster.fetch_kubeconfig(READY_LIMIT)?;
        reached.push(on.elapsed());
        wait::until("the API server to be ready", READY_LIMIT, || {
            cluster.kubectl_ok(&["get", "--raw", "/readyz"]).map(drop).map_err(|error| error.to_string())
        })?;
        reached.push(on.elapsed());
        cluster.wait_ready(READY_LIMIT)?;
        reached.push(on.elapsed());
        for (point, at) in points.iter_mut().zip(&reached) {
            point.1.push(at.as_secs_f64());
        }
        for (values, at) in phases.iter_mut().zip(reached_phases(cluster)?) {
            values.extend(at);
        }
    }
    for (point, values) in &points {
        let reference = (*point == "node Ready").then(|| Reference {
            what: "a bare script as init 37 s, Debian with systemd".to_owned(),
            value: 52.0,
            same_call: false,
        });
        report.add(format!("boot: power-on to {point}"), "s", values, reference);
    }
    for (Phase { name, .. }, values) in PHASES.iter().zip(&phases) {
        report.add(format!("boot: kernel start to {name}"), "s", values, None);
    }
    Ok(())
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
    Phase { name: "agent ready", log: Log::Kernel, line: "ready service=agent" },
    Phase { name: "control plane started", log: Log::Kernel, line: "starting service=kube-apiserver" },
    Phase { name: "etcd ready", log: Log::Kernel, line: "ready service=etcd" },
    Phase { name: "containerd ready", log: Log::Kernel, line: "ready service=containerd" },
    Phase { name: "kubelet ready", log: Log::Kernel, line: "ready service=kubelet" },
    Phase { name: "API serving", log: Log::Service("kube-apiserver"), line: "Serving securely" },
    Phase { name: "node registered", log: Log::Service("kubelet"), line: "Successfully registered node" },
    Phase { name: "roles and CRDs applied", log: Log::Service("agent"), line: "the API server answers" },
    Phase { name: "pod network ready", log: Log::Kernel, line: "ready service=cni" },
    Phase { name: "node Ready", log: Log::Service("agent"), line: "node ready=true" },
    Phase { name: "API ready", log: Log::Kernel, line: "ready service=kube-apiserver" },
    Phase { name: "controllers ready", log: Log::Kernel, line: "ready service=kube-controller-manager" },
];

/// Seconds from the kernel's start to each phase; none where its line is not there any more.
fn reached_phases(cluster: &Cluster) -> Result<Vec<Option<f64>>> {
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
