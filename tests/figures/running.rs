//! What a machine at rest needs, and how fast pods start on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;
use serde_json::json;

use crate::report::{Reference, Report};

/// How long a machine is left alone before its rest is measured, and how long that is measured.
const SETTLE: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(60);

/// Our own programs, by the end of their path.
const OURS: &[&str] =
    &["garboard-init", "garboard-operators", "garboard-cni", "garboard-dns", "garboard-bus", "garboard-balancer"];

/// A Ready machine with a pod that sees its processes.
pub struct Running {
    fresh: Fresh,
    sample: String,
}

impl Running {
    /// Boots a machine and waits until it is at rest.
    ///
    /// # Errors
    /// When it does not become Ready.
    pub fn start(image: &Image) -> Result<Self> {
        let mut fresh = Fresh::new(image, Hardware::default())?;
        fresh.machine.start()?;
        fresh.cluster.fetch_kubeconfig(READY_LIMIT)?;
        fresh.cluster.wait_ready(READY_LIMIT)?;
        // The upstream controllers make the accounts that pods run under.
        for namespace in ["kube-system", "default"] {
            fresh.cluster.wait_exists(&["serviceaccount", "default", "-n", namespace], READY_LIMIT)?;
        }
        fresh.cluster.start_intruder(READY_LIMIT)?;
        let running = Self { sample: fresh.cluster.sample_image()?, fresh };
        wait::throughout("the machine to settle", SETTLE, || Ok(()))?;
        Ok(running)
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.fresh.cluster
    }

    /// Proportional set sizes of our own programs.
    ///
    /// # Errors
    /// When the machine's processes cannot be seen.
    pub fn memory(&self, report: &mut Report) -> Result<()> {
        let mut total = 0.0;
        let mut per_program = vec![0.0; OURS.len()];
        for line in self.fresh.cluster.intrude(&["processes"])?.lines() {
            let mut fields = line.split_whitespace();
            let (Some(pid), Some(pss_kib), Some(program)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // The first stage starts it as /sbin/init.
            let program = if pid == "1" { OURS[0] } else { program };
            let Some(index) = OURS.iter().position(|ours| program.ends_with(ours)) else { continue };
            let mib = pss_kib.parse::<f64>().context("a proportional set size")? / 1024.0;
            per_program[index] += mib;
            total += mib;
        }
        for (program, mib) in OURS.iter().zip(&per_program) {
            report.add(format!("memory: {program}"), "MiB", &[*mib], None);
        }
        let reference = Reference {
            what: "Debian's systemd, journald, udevd, networkd, logind, dbus".to_owned(),
            value: 24.0,
            same_call: false,
        };
        report.add("memory: all of Garboard", "MiB", &[total], Some(reference));
        Ok(())
    }

    /// Part of the processors' time that is idle at rest.
    ///
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub fn idle(&self, report: &mut Report) -> Result<()> {
        let before = self.ticks()?;
        wait::throughout("the machine to rest", REST, || Ok(()))?;
        let after = self.ticks()?;
        let (all, idle) = (after.0 - before.0, after.1 - before.1);
        let reference = Reference {
            what: "a bare script as init 83 %, Debian with systemd".to_owned(),
            value: 78.0,
            same_call: false,
        };
        report.add("idle: processors at rest", "%", &[idle / all.max(1.0) * 100.0], Some(reference));
        Ok(())
    }

    /// Time from creating pods to all of them Ready.
    ///
    /// # Errors
    /// When a pod does not become Ready.
    pub fn pods(&self, report: &mut Report) -> Result<()> {
        for (count, name) in [(1, "one"), (10, "ten")] {
            let pods: Vec<String> = (0..count).map(|i| self.pod(&format!("{name}-{i}")).to_string()).collect();
            let start = Instant::now();
            self.fresh.cluster.apply(&pods.join("\n---\n"))?;
            let ready = format!("--timeout={}s", READY_LIMIT.as_secs());
            self.fresh.cluster.kubectl_ok(&[
                "wait",
                "--for=condition=Ready",
                "pod",
                "--selector",
                "bench=pods",
                &ready,
            ])?;
            report.add(format!("pods: {name} at once, created to Ready"), "s", &[start.elapsed().as_secs_f64()], None);
            self.fresh.cluster.kubectl_ok(&[
                "delete",
                "pod",
                "--selector",
                "bench=pods",
                "--wait=true",
                "--grace-period=1",
            ])?;
        }
        Ok(())
    }

    fn pod(&self, name: &str) -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "bench": "pods" } },
            "spec": { "containers": [{ "name": name, "image": self.sample, "args": ["sleep"] }] },
        })
    }

    /// All ticks and idle ticks since boot.
    fn ticks(&self) -> Result<(f64, f64)> {
        let stat = self.fresh.cluster.intrude(&["cat", "/proc/stat"])?;
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); guest time is part of user.
        let all = ticks.iter().take(8).sum();
        Ok((all, ticks.get(3).copied().unwrap_or_default() + ticks.get(4).copied().unwrap_or_default()))
    }
}
