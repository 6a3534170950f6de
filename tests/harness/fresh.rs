//! A machine that was never on, with the user's side of its cluster.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::image::Image;
use crate::machine::{Hardware, Machine, Ports};

/// A machine and its cluster, in a folder that goes away with them.
pub struct Fresh {
    /// The machine; dropped before its folder is.
    pub machine: Machine,
    /// Its cluster.
    pub cluster: Cluster,
    /// The folder of both.
    pub directory: TempDir,
}

impl Fresh {
    /// Makes the machine's disk, its manifests and an admin key; it is not started.
    ///
    /// # Errors
    /// When files cannot be made, or no port is free.
    pub fn new(image: &Image, hardware: Hardware) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("garboard-").tempdir().context("make a folder")?;
        let ports = Ports::free()?;
        let cluster = Cluster::new(image, &directory.path().join("cluster"), ports, None)?;
        let mut machine = Machine::create(image, &directory.path().join("machine"), hardware, ports)?;
        machine.set_manifests(Some(cluster.manifests()));
        Ok(Self { machine, cluster, directory })
    }
}
