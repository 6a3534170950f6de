//! PID 1 of a Garboard machine.
//!
//! [`pid1`] is the event loop that owns all state: the pure [`garboard_supervisor::Supervisor`] decides, [`runner`] carries out. Each
//! service's process begins as [`launch`], a fresh executor that isolates itself and then becomes the service.
//!
//! | task | module |
//! |---|---|
//! | file systems of the kernel, sysctls | [`mounts`] |
//! | cgroup tree | [`cgroups`] |
//! | from the first stage's hand-over to the loop | [`boot`], [`startup`] |
//! | services that are part of this program, and the agent | [`builtin`], [`tasks`] |
//! | STATE and DATA | [`disks`], [`ext4`] |
//! | modules for devices | [`devices`] |
//! | machine id, random seed, clock | [`identity`] |
//! | processes, probes, sd_notify messages | [`runner`], [`probe`], [`notify`] |
//! | logs | [`logs`], [`logfile`], [`kmsg`] |
//! | consoles | [`console`] |
//! | power button, watchdog, the machine's end | [`power_button`], [`watchdog`], [`shutdown`] |

pub mod boot;
pub mod builtin;
pub mod cgroups;
pub mod console;
pub mod devices;
pub mod disks;
mod ending;
pub mod ext4;
pub mod identity;
pub mod kmsg;
pub mod launch;
pub mod logfile;
pub mod logs;
pub mod mounts;
pub mod notify;
pub mod pid1;
pub mod power_button;
pub mod probe;
mod report;
pub mod request;
mod requests;
pub mod runner;
pub mod shutdown;
pub mod startup;
pub mod tasks;
pub mod watchdog;
pub mod watched;
