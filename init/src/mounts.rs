//! The kernel's file systems and settings.

use std::fs;
use std::path::Path;

use garboard_sys::mount::{Mount, MountFlags, MountPropagationFlags, set_propagation};
use tracing::{error, warn};

use crate::kmsg::chain;

const NOSUID: MountFlags = MountFlags::NOSUID;
const NODEV: MountFlags = MountFlags::NODEV;
const NOEXEC: MountFlags = MountFlags::NOEXEC;

/// A mount, and whether the machine can be what it should without it.
struct Wanted {
    mount: Mount<'static>,
    needed: bool,
}

const fn needed(mount: Mount<'static>) -> Wanted {
    Wanted { mount, needed: true }
}

/// A kernel or firmware may be without it.
const fn optional(mount: Mount<'static>) -> Wanted {
    Wanted { mount, needed: false }
}

const fn mount(target: &'static str, fs_type: &'static str, flags: MountFlags, data: &'static str) -> Mount<'static> {
    Mount { source: fs_type, target, fs_type, flags, data }
}

/// In this order; what the first stage has mounted already stays.
const MOUNTS: [Wanted; 12] = [
    needed(mount("/proc", "proc", NOSUID.union(NODEV).union(NOEXEC), "")),
    needed(mount("/sys", "sysfs", NOSUID.union(NODEV).union(NOEXEC), "")),
    needed(mount("/dev", "devtmpfs", NOSUID, "mode=0755")),
    // Group 5 is tty everywhere; a terminal of kubectl exec belongs to it.
    needed(mount("/dev/pts", "devpts", NOSUID.union(NOEXEC), "mode=0620,gid=5,ptmxmode=0666")),
    needed(mount("/dev/shm", "tmpfs", NOSUID.union(NODEV), "mode=1777")),
    needed(mount("/run", "tmpfs", NOSUID.union(NODEV), "mode=0755,size=20%")),
    needed(mount("/tmp", "tmpfs", NOSUID.union(NODEV), "mode=1777,size=20%")),
    // With memory_recursiveprot the guarantee of a slice protects all its services without one of their own.
    needed(mount("/sys/fs/cgroup", "cgroup2", NOSUID.union(NODEV).union(NOEXEC), "nsdelegate,memory_recursiveprot")),
    optional(mount("/dev/mqueue", "mqueue", NOSUID.union(NODEV).union(NOEXEC), "")),
    // Programs that filter devices of containers are pinned there.
    optional(mount("/sys/fs/bpf", "bpf", NOSUID.union(NODEV).union(NOEXEC), "mode=0700")),
    optional(mount("/sys/kernel/security", "securityfs", NOSUID.union(NODEV).union(NOEXEC), "")),
    // Boot counting and the choice of the next slot are variables of the firmware.
    optional(mount("/sys/firmware/efi/efivars", "efivarfs", NOSUID.union(NODEV).union(NOEXEC), "")),
];

/// Settings of the kernel, with their reasons.
const SYSCTLS: [(&str, &str); 18] = [
    // A crashed kernel restarts the machine rather than standing still.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    // What kubelet demands: memory may be promised twice, and running out of it is no reason to panic.
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    // Each container takes a key ring.
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
    // Process numbers come back late, so that a stale one rarely means another process.
    ("kernel/pid_max", "4194304"),
    // Many watchers of files and big address spaces, as workloads expect them of a node.
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    ("vm/max_map_count", "262144"),
    // Pods' packets are forwarded.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // Answers may come back another way than questions went, but not from everywhere.
    ("net/ipv4/conf/all/rp_filter", "2"),
    // Addresses of the kernel, its log and foreign processes are nobody's business; unprivileged users load no programs into it.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
];

/// Directories below the fresh `/run` that everything else relies on.
const DIRECTORIES: [&str; 5] =
    ["/run/garboard", "/run/garboard/etc", "/run/garboard/services", "/run/garboard/pki", "/run/lock"];

/// Mounts the list and sets the kernel's settings. What fails is logged and left out: a machine that can say what is wrong is better than
/// none.
///
/// Returns what failed and was needed, in words.
pub fn mount_all() -> Vec<String> {
    let mut problems = Vec::new();
    for Wanted { mount, needed } in MOUNTS {
        // The directories of optional file systems are the kernel's own, and absent without the feature.
        if !needed && !Path::new(mount.target).exists() && !mount.target.starts_with("/dev/") {
            continue;
        }
        if let Err(error) = mount.apply() {
            let text = chain(&error);
            if needed {
                error!(target = mount.target, "{text}");
                problems.push(text);
            } else {
                warn!(target = mount.target, "{text}");
            }
        }
    }
    // Mounts that kubelet or a container makes are seen by all who share the machine's view.
    if let Err(error) = set_propagation(Path::new("/"), MountPropagationFlags::SHARED | MountPropagationFlags::REC) {
        problems.push(chain(&error));
    }
    for path in DIRECTORIES {
        if let Err(error) = fs::create_dir_all(path) {
            problems.push(format!("cannot make {path}: {error}"));
        }
    }
    problems
}

/// Sets the kernel's settings; one that the kernel does not know is passed over with a warning.
pub fn set_sysctls() {
    for (name, value) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        if let Err(error) = fs::write(&path, value) {
            warn!(setting = name, value, %error, "the kernel does not take a setting");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_mounted_before_what_lies_below() {
        for (index, wanted) in MOUNTS.iter().enumerate() {
            for later in &MOUNTS[index + 1..] {
                assert!(
                    !Path::new(wanted.mount.target).starts_with(later.mount.target),
                    "{} hides {}",
                    later.mount.target,
                    wanted.mount.target
                );
            }
        }
    }
}
