//! What it costs that each change is a trial: until it counts, until it has proved itself, and processor time of the node agent.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::wait;
use serde_json::json;

use crate::report::{Reference, Report};
use crate::running::Running;

const MACHINE: [&str; 2] = ["machines.garboard.dev", "node-1"];
/// The kernel parameter that is changed, and where a pod sees it.
const PARAMETER: &str = "vm.swappiness";
const FILE: &str = "/proc/sys/vm/swappiness";
/// The least value that it is given: none that it has by itself.
const FIRST: u32 = 11;
/// Ticks of processor time in a second (proc_pid_stat(5)).
const TICKS: f64 = 100.0;

/// Changes a parameter several times, each beside as long a time in which nothing is changed.
///
/// # Errors
/// When a change does not prove itself, or the machine's processes cannot be seen.
pub fn measure(running: &Running, runs: u32, report: &mut Report) -> Result<()> {
    let cluster = running.cluster();
    let agent = agent(cluster)?;
    let (mut looks, mut in_force, mut proved) = (Vec::new(), Vec::new(), Vec::new());
    let (mut busy, mut rest) = (Vec::new(), Vec::new());
    for value in (FIRST..).take(runs.try_into()?) {
        let value = value.to_string();
        let start = Instant::now();
        cluster.intrude(&["cat", FILE])?;
        looks.push(start.elapsed().as_secs_f64());

        let before = used(cluster, agent)?;
        let start = Instant::now();
        let patch = json!({ "spec": { "kernel": { "sysctls": { PARAMETER: value } } } }).to_string();
        cluster.kubectl_ok(&["patch", &MACHINE.join("/"), "--type=merge", "-p", &patch])?;
        cluster.wait_file(FILE, &value, READY_LIMIT)?;
        in_force.push(start.elapsed().as_secs_f64());
        wait_proved(cluster, &value)?;
        let took = start.elapsed();
        proved.push(took.as_secs_f64());
        let between = used(cluster, agent)?;
        wait::throughout("the machine to rest", took, || Ok(()))?;
        let after = used(cluster, agent)?;
        busy.push(between - before);
        rest.push(after - between);
    }
    report.add("trial: patch to in force", "s", &in_force, Reference::beside("one look from a pod", &looks));
    report.add("trial: patch to proved", "s", &proved, None);
    report.add(
        "trial: processor time of the agent",
        "s",
        &busy,
        Reference::beside("in as long a time without a change", &rest),
    );
    Ok(())
}

fn wait_proved(cluster: &Cluster, value: &str) -> Result<()> {
    cluster.until("the change to prove itself", &MACHINE, READY_LIMIT, |machine| {
        let status = &machine["status"];
        let is_tried = status["effective"]["spec"]["kernel"]["sysctls"][PARAMETER] == value;
        let state = &status["trial"]["state"];
        if is_tried && state == "Proved" { Ok(()) } else { Err(status["trial"].to_string()) }
    })
}

/// The process of the node agent.
fn agent(cluster: &Cluster) -> Result<u32> {
    for line in cluster.intrude(&["processes"])?.lines().filter(|line| line.ends_with("garboard-operators")) {
        let Some(pid) = line.split_whitespace().next() else { continue };
        let arguments = cluster.intrude(&["cat", &format!("/proc/{pid}/cmdline")])?;
        if arguments.split('\0').nth(1) == Some("agent") {
            return pid.parse().context("a process's number");
        }
    }
    bail!("the node agent is not among the machine's processes")
}

/// Processor time that a process has used, seconds (proc_pid_stat(5)).
fn used(cluster: &Cluster, pid: u32) -> Result<f64> {
    let stat = cluster.intrude(&["cat", &format!("/proc/{pid}/stat")])?;
    let fields = stat.rsplit_once(')').context("a process's statistics")?.1;
    // utime and stime are the fields 14 and 15, and that after the name is the third.
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS)
}
