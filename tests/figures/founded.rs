//! A machine that has founded a cluster, on a network on which others can join it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::lan::{Forward, Lan};
use garboard_tests::machine::{Hardware, Machine, Ports};
use tempfile::TempDir;

use crate::boot::KERNEL_STARTS;

/// The number of the last machine that has room on the network.
pub const LAST: u8 = 8;

/// The cluster and its first machine.
pub struct Founded {
    pub machine: Machine,
    pub cluster: Cluster,
    /// Time from power-on to the kernel's start, and to a Ready node.
    pub times: [Duration; 2],
    /// The host's port that leads to the API at [`Lan::VIRTUAL`].
    pub virtual_port: u16,
    image: Image,
    lan: Lan,
    directory: TempDir,
}

impl Founded {
    /// Boots the machine and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not become Ready.
    pub fn start(image: &Image) -> Result<Self> {
        let Fresh { mut machine, cluster, directory } = Fresh::new(image, Hardware::default())?;
        let (ports, virtual_port) = (machine.ports(), Ports::free()?.api);
        let forwards = [
            Forward { host: ports.api, address: Lan::FIRST, port: 6443 },
            Forward { host: ports.machine, address: Lan::FIRST, port: 7443 },
            Forward { host: virtual_port, address: Lan::VIRTUAL, port: 6443 },
        ];
        let lan = Lan::start(directory.path(), &forwards)?;
        machine.connect(&lan, 1);
        let on = Instant::now();
        machine.start()?;
        machine.wait_console(KERNEL_STARTS, READY_LIMIT)?;
        let kernel = on.elapsed();
        let ready = cluster.fetch_kubeconfig(READY_LIMIT).and_then(|()| cluster.wait_ready(READY_LIMIT));
        ready.with_context(|| machine.console_end())?;
        let times = [kernel, on.elapsed()];
        Ok(Self { machine, cluster, times, virtual_port, image: image.clone(), lan, directory })
    }

    /// A machine with manifests by which it joins, as `node-NUMBER`; it is not started. `more` is for `garboardctl join`.
    ///
    /// # Errors
    /// When `garboardctl` refuses, or files cannot be made.
    pub fn declare(&self, number: u8, hardware: Hardware, more: &[&str]) -> Result<Machine> {
        let (name, ports) = (format!("node-{number}"), Ports::free()?);
        let at = format!("127.0.0.1:{}", ports.machine);
        self.cluster.garboardctl_ok(&[&["-m", "node-1", "join", &name, "--at", &at], more].concat())?;
        let mut machine = Machine::create(&self.image, &self.directory.path().join(&name), hardware, ports)?;
        machine.set_manifests(Some(self.cluster.directory().join(format!("{name}.yaml"))));
        machine.connect(&self.lan, number);
        Ok(machine)
    }
}
