//! Kernel adapters: each module turns one of the kernel's interfaces into values and named errors. The only home of unsafe code.
//!
//! | task | module |
//! |---|---|
//! | start, signal and reap processes | [`process`] |
//! | reduce the calling process to a service's rights | [`isolate`] |
//! | mount, unmount, list mounts | [`mount`] |
//! | make, limit, fill, kill and measure control groups | [`cgroup`] |
//! | restart or power off; the hardware watchdog | [`power`], [`watchdog`] |
//! | devices that come and go; kernel modules | [`uevent`], [`modules`] |
//! | disks and partitions; labelled media | [`block`], [`gpt`], [`filesystem`] |
//! | a verified root | [`dm`], [`verity`] |
//! | random numbers and clocks | [`rng`], [`clock`] |
//! | the kernel's log; consoles | [`kmsg`], [`console`] |
//! | configuration files of daemons (feature `config`), and when they change (feature `files`) | `config`, `files` |
//! | files that outlast a power cut | [`durable`] |
//! | links, addresses, routes (feature `netlink`); DHCP before there is an address | `netlink`, [`packet`] |
//! | agree with other machines on who holds an address, and tell the link | [`vrrp`], [`arp`] |
//!
//! Nothing here leaves a thread or keeps state of its own; every call is one or a few system calls, and says so if it can wait.

pub mod arp;
pub mod block;
pub mod cgroup;
pub mod clock;
#[cfg(feature = "config")]
pub mod config;
pub mod console;
pub mod dm;
pub mod durable;
#[cfg(feature = "files")]
pub mod files;
pub mod filesystem;
pub mod gpt;
pub mod isolate;
pub mod kmsg;
pub mod modules;
pub mod mount;
#[cfg(feature = "netlink")]
pub mod netlink;
pub mod packet;
pub mod power;
pub mod process;
pub mod rng;
pub mod uevent;
pub mod verity;
pub mod vrrp;
pub mod watchdog;
