//! The machine's cgroup tree.

use std::path::Path;

use garboard_supervisor::slices::{SlicePlan, slices};
use garboard_supervisor::spec::{self, ServiceName, ServiceSpec};
use garboard_sys::cgroup::{Cgroup, CgroupError};
use tracing::warn;

use crate::kmsg::chain;

/// Controllers that are used; one that the kernel lacks is passed over.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Slices whose groups are made by PID 1; those of pods and shims are made by kubelet and containerd.
const OWN_SLICES: [spec::Slice; 3] = [spec::Slice::System, spec::Slice::ControlPlane, spec::Slice::Node];

/// The tree below the root of a version 2 hierarchy.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Cgroup,
}

impl Tree {
    /// Makes the slices below `root`, with `total_memory` bytes to be divided, and moves this process into its own. Guarantees that the
    /// kernel does not take are logged and left out.
    ///
    /// # Errors
    /// When `root` is no version 2 hierarchy or no group can be made in it.
    pub fn create(root: &Path, total_memory: u64) -> Result<Self, CgroupError> {
        let root = Cgroup::root(root)?;
        let plans = slices(total_memory);
        for plan in &plans {
            root.child(plan.name).create()?;
        }
        // First: a group with processes cannot hand controllers on (the root could, but a container's root is none).
        root.child("init").enter()?;
        enable(&root);
        for plan in &plans {
            divide(&root.child(plan.name), plan);
        }
        for slice in OWN_SLICES {
            enable(&root.child(slice.directory()));
        }
        Ok(Self { root })
    }

    /// The tree as it was made before; none when there is no version 2 hierarchy.
    pub fn existing(root: &Path) -> Option<Self> {
        Cgroup::root(root).ok().map(|root| Self { root })
    }

    /// The group of a service.
    pub fn service(&self, spec: &ServiceSpec) -> Cgroup {
        self.root.child(spec.cgroup.slice.directory()).child(spec.name.as_str())
    }

    /// Makes a service's group with its limits. Limits that the kernel does not take are logged and left out.
    ///
    /// # Errors
    /// When the group cannot be made.
    pub fn prepare(&self, spec: &ServiceSpec) -> Result<Cgroup, CgroupError> {
        let group = self.service(spec);
        group.create()?;
        let spec::Cgroup {
            slice: _,
            memory_min,
            memory_low,
            memory_max,
            cpu_weight,
            io_weight,
            pids_max,
            oom_score_adj: _,
        } = &spec.cgroup;
        // Absent is written too: the group may be that of an earlier specification.
        let text =
            |value: Option<u64>, absent: &str| value.map_or_else(|| absent.to_owned(), |value| value.to_string());
        set(&group, "memory.min", &text(*memory_min, "0"));
        set(&group, "memory.low", &text(*memory_low, "0"));
        set(&group, "memory.max", &text(*memory_max, "max"));
        set(&group, "cpu.weight", &text(cpu_weight.map(u64::from), "100"));
        set(&group, "io.weight", &text(io_weight.map(u64::from), "100"));
        set(&group, "pids.max", &text(pids_max.map(u64::from), "max"));
        Ok(group)
    }

    /// The service that a group belongs to, by its path as in `/proc/PID/cgroup`.
    pub fn owner(path: &str) -> Option<ServiceName> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let slice = parts.next()?;
        OWN_SLICES.iter().any(|own| own.directory() == slice).then_some(())?;
        ServiceName::try_from(parts.next()?).ok()
    }

    /// Kills every process of the machine but this one's group.
    pub fn kill_all(&self) {
        for plan in slices(0).iter().filter(|plan| plan.name != "init") {
            if let Err(error) = self.root.child(plan.name).kill() {
                warn!(cgroup = plan.name, error = %chain(&error), "cannot kill a cgroup");
            }
        }
    }
}

fn enable(group: &Cgroup) {
    let present = group.controllers().unwrap_or_default();
    for name in CONTROLLERS.iter().filter(|name| present.iter().any(|other| other == *name)) {
        if let Err(error) = group.enable(&[name]) {
            warn!(controller = name, error = %chain(&error), "a controller is not handed on");
        }
    }
}

fn divide(group: &Cgroup, plan: &SlicePlan) {
    let SlicePlan { name: _, memory_min, memory_low, cpu_weight, io_weight, pids_max } = plan;
    set(group, "memory.min", &memory_min.to_string());
    set(group, "memory.low", &memory_low.to_string());
    set(group, "cpu.weight", &cpu_weight.to_string());
    set(group, "io.weight", &io_weight.to_string());
    set(group, "pids.max", &pids_max.map_or_else(|| "max".to_owned(), |max| max.to_string()));
}

fn set(group: &Cgroup, attribute: &str, value: &str) {
    match group.write(attribute, value) {
        // Without its controller the file is not there; that was said once when the tree was made.
        Err(error) if error.is_missing() => {}
        Err(error) => warn!(error = %chain(&error), "a limit is not in force"),
        Ok(()) => {}
    }
}

/// The machine's memory, bytes, from the text of `/proc/meminfo`; 0 when it does not say.
pub fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        assert_eq!(total_memory("MemTotal:        2048000 kB\nMemFree: 1 kB\n"), 2_048_000 * 1024);
        assert_eq!(total_memory("nothing"), 0);
    }

    #[test]
    fn groups_have_owners() {
        let name = |name: &str| ServiceName::try_from(name).ok();
        let cases = [
            ("/system/agent", name("agent")),
            ("/control-plane/etcd/below", name("etcd")),
            ("/system", None),
            ("/pods/etcd", None),
            ("/init", None),
            ("", None),
        ];
        for (path, owner) in cases {
            assert_eq!(Tree::owner(path), owner, "{path}");
        }
    }
}
