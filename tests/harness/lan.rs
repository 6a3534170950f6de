//! A network that several machines share.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::image::top;
use crate::wait;

/// A link with a router that knows the way to the host, as `image/boot` has it. It serves DHCP, the first address to the first that asks;
/// it goes on when machines lose their power, and ends when this is dropped.
pub struct Lan {
    link: Child,
    directory: PathBuf,
}

/// A port of the host that leads to one of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// The host's, on loopback.
    pub host: u16,
    /// The machine's address.
    pub address: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

impl Lan {
    /// The address that DHCP gives to the first machine.
    pub const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// The router: gateway, and with the next address name server.
    pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// A free address, for the API servers together.
    pub const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 50);
    /// Length of the link's prefix.
    pub const PREFIX: u8 = 24;

    /// Starts the router; what it says goes to a file in `directory`.
    ///
    /// # Errors
    /// When it does not start; with what it printed.
    pub fn start(directory: &Path, forwards: &[Forward]) -> Result<Self> {
        let log = directory.join("lan.log");
        let said = fs::File::create(&log).context("make lan.log")?;
        let mut link = Command::new(top().join("image/steps/link.py"));
        link.arg(directory);
        for Forward { host, address, port } in forwards {
            link.args([host.to_string(), address.to_string(), port.to_string()]);
        }
        let link = link
            .stdin(Stdio::null())
            .stdout(said.try_clone().context("share lan.log")?)
            .stderr(said)
            .spawn()
            .context("start the link")?;
        let mut lan = Self { link, directory: directory.to_owned() };
        let taken = |forward: &Forward| TcpListener::bind(("127.0.0.1", forward.host)).is_err();
        wait::until("the router to listen", Duration::from_secs(20), || {
            if let Ok(Some(status)) = lan.link.try_wait() {
                return Ok(Err(status));
            }
            if forwards.iter().all(taken) { Ok(Ok(())) } else { Err("it does not yet".to_owned()) }
        })?
        .or_else(|status| bail!("the link ended with {status}: {}", fs::read_to_string(&log).unwrap_or_default()))?;
        Ok(lan)
    }

    /// QEMU's argument for the machine with this number, from 1 to 8, on the link.
    pub(crate) fn netdev(&self, id: &str, number: u8) -> String {
        let [own, other] = ["machine", "switch"].map(|end| self.directory.join(format!("{end}-{number}.sock")));
        let (own, other) = (own.display(), other.display());
        format!("dgram,id={id},local.type=unix,local.path={own},remote.type=unix,remote.path={other}")
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // It takes its router with it; whoever ended it before has done what is to be done.
        let ended = i32::try_from(self.link.id()).map(|pid| Command::new("kill").arg(pid.to_string()).status());
        if ended.is_ok() {
            let _ = self.link.wait();
        }
    }
}
