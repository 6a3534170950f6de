//! How long a machine that is declared takes to be a node of a cluster that is there.

use std::time::Instant;

use anyhow::{Context, Result};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;

use crate::boot::KERNEL_STARTS;
use crate::founded::{Founded, LAST};
use crate::report::{Reference, Report};

/// Workers join one after the other; each is switched off before the next is switched on.
///
/// # Errors
/// When a machine does not become Ready.
pub fn times(image: &Image, runs: u32, report: &mut Report) -> Result<()> {
    let founded = Founded::start(image)?;
    let (mut power_on, mut kernel_start) = (Vec::new(), Vec::new());
    for (number, _) in (2..=LAST).zip(0..runs) {
        let name = format!("node-{number}");
        let mut worker = founded.declare(number, Hardware { memory_mib: 2048, ..Hardware::default() }, &[])?;
        let on = Instant::now();
        worker.start()?;
        worker.wait_console(KERNEL_STARTS, READY_LIMIT)?;
        let kernel = Instant::now();
        let ready = founded.cluster.wait_condition(&["node", &name], "Ready", READY_LIMIT);
        ready.with_context(|| worker.console_end())?;
        power_on.push(on.elapsed().as_secs_f64());
        kernel_start.push(kernel.elapsed().as_secs_f64());
    }
    let [kernel, ready] = founded.times.map(|time| time.as_secs_f64());
    let beside = |value| Reference::beside("the one that founded the cluster, alone", &[value]);
    report.add("join: power-on to node Ready", "s", &power_on, beside(ready));
    report.add("join: kernel start to node Ready", "s", &kernel_start, beside(ready - kernel));
    Ok(())
}
