//! Figures of the built image, each beside what it is compared with: measured, never judged.

mod baseline;
mod boot;
mod cni;
mod failover;
mod founded;
mod join;
mod operators;
mod pki;
mod report;
mod running;
mod trial;

use anyhow::{Result, bail};
use garboard_tests::image::Image;

use report::Report;

const USAGE: &str = "\
usage: tests/bench [-o text|json] [--runs N] [FIGURE ...]

Measures the built image in QEMU and prints each figure beside its reference. One machine at a time is measured; quote
medians, and compare only figures of one call: hosts differ, and so does one host from minute to minute.

  boot      power-on and kernel start to API ready and to Ready by this host's clock; in turn with ours, boots of a bare
            script as init that starts the image's own programs on the same kernel and hardware, and nothing for safety
            that they work without; and the phases of ours by the machine's own log
  memory    memory of everything that is not Kubernetes (proportional set size)
  idle      processor time of the machine at rest
  join      power-on and kernel start of a worker that is declared to its Ready, beside the machine that founded the cluster
  trial     a changed kernel parameter: from its patch until it is in force and until it has proved itself, and processor time
            of the node agent meanwhile, beside as long a time without a change
  failover  two control-plane machines: from taking out the cable of the one with the virtual address until an API server
            answers there, beside VRRP by its defaults
  pods      from creating a pod to its being Ready: one, and ten at once
  cni       attaching a pod to the network, on this host: the reference plugins beside it in the same call (needs root)
  operators the cluster operators with 1000 simulated machines beside 100, on this host: the image's own program with a real
            API server and etcd (needs root): how long it takes, processor time, memory, requests, what is written; at the
            start, at rest, while one of fifty machines changes in each second, in a rollout of new templates beside that, and
            when a tenth is removed at once
  sizes     of the image's files

  -o json   for programs
  --runs N  boots, changes and failures to measure, 3 by default";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut json, mut runs, mut wanted) = (false, 3_u32, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => {
                println!("{USAGE}");
                return Ok(());
            }
            "-o" => match arguments.next().as_deref() {
                Some("json") => json = true,
                Some("text") => json = false,
                other => bail!("-o {other:?}: text or json"),
            },
            "--runs" => match arguments.next().map(|runs| runs.parse()) {
                Some(Ok(number @ 1..=100)) => runs = number,
                other => bail!("--runs {other:?}: 1 to 100"),
            },
            "boot" | "cni" | "failover" | "idle" | "join" | "memory" | "operators" | "pods" | "sizes" | "trial" => {
                wanted.push(argument)
            }
            other => bail!("{other:?} is no figure\n\n{USAGE}"),
        }
    }
    let wants = |figure: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == figure);
    let mut report = Report::new(json);
    if wants("sizes") {
        boot::sizes(&Image::latest()?, &mut report)?;
    }
    if wants("cni") {
        cni::add(&mut report)?;
    }
    if wants("operators") {
        operators::measure(&mut report)?;
    }
    if wants("boot") {
        boot::times(&Image::latest()?, runs, &mut report)?;
    }
    if wants("join") {
        join::times(&Image::latest()?, runs, &mut report)?;
    }
    if wants("failover") {
        failover::times(&Image::latest()?, runs, &mut report)?;
    }
    if ["memory", "idle", "pods", "trial"].into_iter().any(wants) {
        let machine = running::Running::start(&Image::latest()?)?;
        if wants("memory") {
            machine.memory(&mut report)?;
        }
        if wants("idle") {
            machine.idle(&mut report)?;
        }
        if wants("pods") {
            machine.pods(&mut report)?;
        }
        if wants("trial") {
            trial::measure(&machine, runs, &mut report)?;
        }
    }
    report.finish()
}
