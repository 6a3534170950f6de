//! The loopback plugin: switches a pod's `lo` on, without the daemon.

use std::os::fd::BorrowedFd;

use garboard_sys::netlink::{Netlink, NetlinkError};
use tokio::runtime;

use crate::spec::{AddResult, CniError, Code, Dns, Interface, IpConfig, Version, ip_version};

/// The interface's name in every namespace.
const LOOPBACK: &str = "lo";

/// Switches the loopback interface on, or (`check`) tells whether it is on.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel refuses, or the interface is off.
pub fn run(netns: BorrowedFd<'_>, check: bool) -> Result<(), CniError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CniError::caused(Code::Io, "start a runtime", &error))?;
    runtime.block_on(switch_on(netns, check))
}

async fn switch_on(netns: BorrowedFd<'_>, check: bool) -> Result<(), CniError> {
    let opened = Netlink::open_in(netns);
    let mut netlink =
        opened.map_err(|error| CniError::caused(Code::InvalidNetns, "enter the network namespace", &error))?;
    let kernel = |error: NetlinkError| CniError::caused(Code::Kernel, "configure the loopback interface", &error);
    let loopback = netlink.link(LOOPBACK).await.map_err(kernel)?;
    let loopback =
        loopback.ok_or_else(|| CniError::new(Code::InvalidNetns, "the namespace has no loopback interface"))?;
    if check {
        return if loopback.up { Ok(()) } else { Err(CniError::new(Code::Changed, "the loopback interface is off")) };
    }
    netlink.set_up(loopback.index).await.map_err(kernel)
}

/// What ADD returns.
pub fn result(version: Version, netns: &str) -> AddResult {
    let address = |text: &str| {
        let address: ipnet::IpNet = text.parse().ok()?;
        Some(IpConfig { version: ip_version(version, address.addr()), interface: 0, address, gateway: None })
    };
    AddResult {
        cni_version: version,
        interfaces: vec![Interface {
            name: LOOPBACK.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            mtu: None,
            sandbox: netns.to_owned(),
        }],
        ips: ["127.0.0.1/8", "::1/128"].into_iter().filter_map(address).collect(),
        routes: Vec::new(),
        dns: Dns {},
    }
}
