//! From the hand-over by the first stage to the event loop, and beyond it to the machine's end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use garboard_control::{MachineInfo, ShutdownKind};
use garboard_sys::isolate::Accounts;
use garboard_sys::{mount, power};
use tracing::{error, info, warn};

use crate::boot::{self, BootFacts};
use crate::builtin::{self, builtin};
use crate::cgroups::{Tree, total_memory};
use crate::console::Console;
use crate::disks::Volume;
use crate::kmsg::{self, KernelLog, chain};
use crate::logfile::FileLog;
use crate::logs::Logs;
use crate::pid1::{self, Pid1, Pid1Error, Reporter, Settings};
use crate::{identity, mounts, power_button, shutdown};

/// The group of the bus service.
const INHIBIT_GROUP: &str = "messagebus";

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const STATE: &str = Volume::State.mount_point();

const DATA: &str = Volume::Data.mount_point();

const LOG_DIRECTORY: &str = "/var/log/garboard";

/// Time between two notes of the time.
const CLOCK_PERIOD: Duration = Duration::from_secs(1800);

/// Runs the machine. Returns only if the kernel refuses to end it.
pub fn main() {
    let problems = mounts::mount_all();
    KernelLog::install();
    // Otherwise the message would go to a standard error that may not be there.
    std::panic::set_hook(Box::new(|panic| error!("PID 1 failed: {panic}")));
    mounts::set_sysctls();
    // PID 1's own messages are few and must not be dropped.
    if let Err(error) = garboard_sys::kmsg::unlimit_processes() {
        warn!(error = %chain(&error), "the kernel may drop messages");
    }
    // When memory runs out, anything else goes first. Services set their own when they start.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        warn!(%error, "PID 1 may be killed when memory runs out");
    }
    if let Err(error) = power::ctrl_alt_del_as_signal() {
        warn!(error = %chain(&error), "ctrl-alt-del restarts at once");
    }
    let facts = facts();
    let version = facts.as_ref().map_or_else(|| os_release("IMAGE_VERSION"), |facts| facts.version.clone());
    info!(version, "PID 1 starts");
    let mut console = Console::open();
    console.line(&format!("Garboard {version} starts"));
    for problem in &problems {
        console.line(problem);
    }
    let kind =
        std::panic::catch_unwind(|| supervise(settings(console, problems, version, facts))).unwrap_or_else(|_| {
            error!("supervision has failed; the machine restarts");
            ShutdownKind::Reboot
        });
    if mount::is_mounted(Path::new(STATE)).unwrap_or(false) {
        for saved in [identity::save_clock(Path::new(STATE)), identity::save_random(Path::new(STATE))] {
            if let Err(error) = saved {
                warn!(%error, "something is not kept for the next run");
            }
        }
    }
    shutdown::finish(kind, Tree::existing(Path::new(CGROUP_ROOT)).as_ref());
}

fn supervise(settings: Settings) -> ShutdownKind {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(pid1::run(settings, beside));
            // A thread that hangs on a broken disk is not waited for.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Pid1Error::Wait(error)),
    };
    result.unwrap_or_else(|error| {
        error!(error = %chain(&error), "supervision is not possible");
        ShutdownKind::Reboot
    })
}

/// What the first stage has left; none when the machine was started in another way.
pub(crate) fn facts() -> Option<BootFacts> {
    let text = fs::read(boot::PATH).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| warn!(%error, path = boot::PATH, "what the first stage has left is not understood"))
        .ok()
}

fn settings(console: Console, problems: Vec<String>, version: String, facts: Option<BootFacts>) -> Settings {
    let memory = total_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let tree = Tree::create(Path::new(CGROUP_ROOT), memory)
        .inspect_err(|error| error!(error = %chain(error), "services run without cgroups"))
        .ok();
    let inhibit_group = Accounts::load(Path::new("/etc"))
        .and_then(|accounts| accounts.group(INHIBIT_GROUP))
        .inspect_err(|error| warn!(error = %chain(error), "only root may delay shutdowns"))
        .unwrap_or(0);
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default().trim().to_owned();
    let machine = MachineInfo {
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        version,
        root_hash: facts.as_ref().map(|facts| facts.root_hash.clone()).unwrap_or_default(),
        slot: facts.as_ref().map(|facts| facts.slot.clone()).unwrap_or_default(),
        problems,
        cmdline,
        ..MachineInfo::default()
    };
    Settings {
        runtime: PathBuf::from("/run/garboard"),
        executor: PathBuf::from(builtin::SELF),
        tree,
        // The error is for names that are no names; these are constants, and a test reads them.
        builtin: builtin().unwrap_or_default(),
        inhibit_group,
        machine,
        lacking: Some(format!("{DATA} to be mounted")),
        console,
        reached,
    }
}

/// What goes on beside the loop.
fn beside(reporter: &Reporter, logs: &Logs) {
    tokio::spawn(kmsg::copy(logs.clone()));
    tokio::spawn(save_clock());
    tokio::spawn(power_button::watch(reporter.clone()));
}

/// Notes the time now and then, for a machine whose own clock is not kept.
async fn save_clock() {
    loop {
        tokio::time::sleep(CLOCK_PERIOD).await;
        // A hung disk then holds up this thread only.
        let saved = tokio::task::spawn_blocking(|| identity::save_clock(Path::new(STATE))).await;
        if let Ok(Err(error)) = saved {
            warn!(%error, "the time is not kept");
        }
    }
}

/// What is done when one of this program's own services has done its work.
fn reached(pid1: &mut Pid1, service: &str) {
    match service {
        builtin::STATE => {
            let machine_id = fs::read_to_string("/run/garboard/etc/machine-id").unwrap_or_default();
            let machine = pid1.machine_mut();
            machine.machine_id = machine_id.trim().to_owned();
            machine.state_device = device_at(STATE);
            if machine.state_device.is_none() {
                machine.problems.push(format!("{STATE} lies in memory: nothing is kept when the machine ends"));
            }
        }
        builtin::DATA => {
            pid1.machine_mut().data_device = device_at(DATA);
            match FileLog::start(Path::new(LOG_DIRECTORY), pid1.log_limits()) {
                Ok(files) => pid1.logs().set_files(files),
                Err(error) => warn!(%error, "logs are kept in memory only"),
            }
            pid1.lack(None);
        }
        builtin::DEVICES => pid1.watch_over(),
        _ => {}
    }
}

/// The device that is mounted there; none for memory.
fn device_at(mount_point: &str) -> Option<PathBuf> {
    let mounts = mount::mounts().ok()?;
    let found = mounts.into_iter().rev().find(|mount| mount.mount_point == Path::new(mount_point))?;
    Some(PathBuf::from(found.source)).filter(|source| source.starts_with("/dev"))
}

/// A value of `/usr/lib/os-release` (os-release(5)), empty when it has none.
fn os_release(key: &str) -> String {
    let text = fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

/// The last value of `name=` on a kernel's command line.
pub(crate) fn argument<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_argument_counts() {
        let cmdline = "quiet roothash=aa rootx=1 roothash=bb";
        assert_eq!(argument(cmdline, "roothash"), Some("bb"));
        assert_eq!(argument(cmdline, "root"), None);
    }
}
