//! PID 1 of a Garboard machine.
//!
//! [`pid1`] is the event loop that owns all state: the pure [`garboard_supervisor::Supervisor`] decides, [`runner`] carries out. Each
//! service's process begins as [`launch`], a fresh executor that isolates itself and then becomes the service.
//!
//! | task | module |
//! |---|---|
//! | file systems of the kernel, sysctls | [`mounts`] |
//! | cgroup tree | [`cgroups`] |
//! | STATE and DATA | [`disks`] |
//! | machine id, random seed, clock | [`identity`] |
//! | processes, probes, sd_notify messages | [`runner`], [`probe`], [`notify`] |
//! | logs | [`logs`], [`logfile`], [`kmsg`] |
//! | consoles | [`console`] |
//! | power button, watchdog, the machine's end | [`power_button`], [`watchdog`], [`shutdown`] |

pub mod boot;
pub mod cgroups;
pub mod console;
pub mod kmsg;
pub mod launch;
pub mod logfile;
pub mod logs;
pub mod mounts;
pub mod notify;
pub mod pid1;
pub mod probe;
pub mod request;
mod requests;
pub mod runner;
pub mod shutdown;
pub mod watchdog;
pub mod watched;
