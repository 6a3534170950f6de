//! The machine's end, once all services have ended or had their time: nothing may survive, everything is written, the power goes.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use garboard_control::ShutdownKind;
use garboard_sys::mount::{self, MountInfo, Unmount};
use garboard_sys::power::{self, Power};
use garboard_sys::process;
use tracing::{error, info, warn};

use crate::cgroups::Tree;
use crate::kmsg::chain;

/// Longest time that inhibitors can hold a shutdown up: kubelet asks for its whole grace period of pods, of which
/// `Machine.spec.kubelet` allows half a minute less. It goes on at once when the last inhibitor has ended.
pub const MAX_INHIBIT_DELAY: Duration = Duration::from_secs(600);

/// Longest time for all services together to end, after which they are killed.
pub const MAX_STOP_TIME: Duration = Duration::from_secs(90);

/// Time that what was killed has to go away.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Time for file systems that are still busy.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// Kills everything, writes everything, unmounts what can be unmounted and ends the machine. Does not return unless the kernel refuses.
pub fn finish(kind: ShutdownKind, tree: Option<&Tree>) {
    kill_everything(tree);
    power::sync();
    unmount_everything();
    power::sync();
    power(kind);
}

/// Ends the machine at once. Does not return unless the kernel refuses.
pub fn power(kind: ShutdownKind) {
    let power = match kind {
        ShutdownKind::Reboot => Power::Reboot,
        ShutdownKind::PowerOff => Power::Off,
        ShutdownKind::Halt => Power::Halt,
    };
    info!(?kind, "the machine ends");
    match power::change(power) {
        Ok(never) => match never {},
        Err(error) => error!(error = %chain(&error), "the machine does not end"),
    }
}

/// Kills every process of the machine but this one.
pub fn kill_everything(tree: Option<&Tree>) {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        if let Some(tree) = tree {
            tree.kill_all();
        }
        if let Err(error) = process::signal_everyone(nix::libc::SIGKILL) {
            warn!(error = %chain(&error), "cannot kill what is left");
        }
        // What was reaped is gone; a process that is still there is found by the next round.
        let mut reaped = 0;
        let result = process::reap_all(|_, _| reaped += 1);
        if let Err(error) = result {
            warn!(error = %chain(&error), "cannot reap");
        }
        if !others_are_left() || Instant::now() >= deadline {
            break;
        }
        sleep(Duration::from_millis(10));
    }
}

/// Whether a process of user space other than this one exists. Kernel threads have no memory map of their own, which shows as an empty
/// command line, as does a process that has ended.
fn others_are_left() -> bool {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        pid.is_some_and(|pid| pid != own)
            && std::fs::read(entry.path().join("cmdline")).is_ok_and(|text| !text.is_empty())
    })
}

/// Unmounts from the top down, first kindly, at last by force. A file system that cannot be unmounted is made read only, so that its
/// journal is closed.
fn unmount_everything() {
    let deadline = Instant::now() + UNMOUNT_PATIENCE;
    loop {
        let left = to_unmount();
        if left.is_empty() {
            return;
        }
        let last = Instant::now() >= deadline;
        let mut progress = false;
        for path in &left {
            progress |= unmount(path, last);
        }
        if last {
            return;
        }
        if !progress {
            sleep(Duration::from_millis(100));
        }
    }
}

fn unmount(path: &Path, last: bool) -> bool {
    match mount::unmount(path, Unmount::Clean) {
        Ok(()) => return true,
        Err(_) if !last => return false,
        Err(error) => warn!(mount = %path.display(), error = %chain(&error), "a file system is still busy"),
    }
    if let Err(error) = mount::remount_read_only(path) {
        warn!(mount = %path.display(), error = %chain(&error), "cannot make it read only");
    }
    for how in [Unmount::Force, Unmount::Detach] {
        if mount::unmount(path, how).is_ok() {
            return true;
        }
    }
    false
}

fn to_unmount() -> Vec<PathBuf> {
    match mount::mounts() {
        Ok(mounts) => unmount_order(&mounts),
        Err(error) => {
            error!(error = %chain(&error), "cannot tell what is mounted");
            Vec::new()
        }
    }
}

/// What is unmounted, later mounts first: everything with data on a disk or network, and all that lies on it. The kernel's own file
/// systems have nothing to lose, and the root stays.
fn unmount_order(mounts: &[MountInfo]) -> Vec<PathBuf> {
    const KEPT: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];
    let kept = |path: &Path| path == Path::new("/") || KEPT.iter().any(|kept| path.starts_with(kept));
    let on_disk = |mount: &MountInfo| {
        !matches!(
            mount.fs_type.as_str(),
            "proc" | "sysfs" | "devtmpfs" | "devpts" | "tmpfs" | "cgroup2" | "mqueue" | "bpf" | "securityfs" | "nsfs"
        )
    };
    mounts
        .iter()
        .rev()
        .filter(|mount| mount.mount_point != Path::new("/") && (!kept(&mount.mount_point) || on_disk(mount)))
        .filter(|mount| mount.fs_type != "efivarfs")
        .map(|mount| mount.mount_point.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use garboard_sys::mount::parse_mountinfo;

    #[test]
    fn disks_go_and_the_kernels_own_file_systems_stay() {
        let table = parse_mountinfo(
            b"1 0 254:0 / / ro - erofs /dev/dm-0 ro\n\
              2 1 0:1 / /proc rw - proc proc rw\n\
              3 1 0:2 / /run rw - tmpfs tmpfs rw\n\
              4 1 8:3 / /state rw - ext4 /dev/vda3 rw\n\
              5 1 8:4 / /var rw - ext4 /dev/vda4 rw\n\
              6 5 0:9 / /var/lib/kubelet/pods/x/volumes/secret rw - tmpfs tmpfs rw\n\
              7 3 0:8 / /run/containerd/io/rootfs rw - overlay overlay rw\n\
              8 3 0:7 net:[1] /run/netns/a rw - nsfs nsfs rw\n",
        )
        .unwrap();
        let order: Vec<String> = unmount_order(&table).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(order, ["/run/containerd/io/rootfs", "/var/lib/kubelet/pods/x/volumes/secret", "/var", "/state"]);
    }
}
