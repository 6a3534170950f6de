//! How the machine's memory, processors and process numbers are divided among the parts of the cgroup tree.
//!
//! Protection (`memory.min`, `memory.low`) keeps what pods do from pushing the others' pages out; what pods may take at most is
//! `memory.max` of `/pods`, which kubelet sets from its reservations. Weights only matter while the processors are all busy.

use crate::spec::Slice;

const MIB: u64 = 1 << 20;

/// Stack and bookkeeping of a thread times eight, as the kernel's own limit of threads reckons (kernel: fork_init).
const MEMORY_PER_THREAD: u64 = 8 * 16 * 1024;

/// A cgroup directly below the root, and what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlicePlan {
    /// The name of its directory.
    pub name: &'static str,
    /// `memory.min`, bytes: never reclaimed.
    pub memory_min: u64,
    /// `memory.low`, bytes: reclaimed only when there is nothing else.
    pub memory_low: u64,
    /// `cpu.weight`
    pub cpu_weight: u32,
    /// `io.weight`
    pub io_weight: u32,
    /// `pids.max`; none: the machine's own limit.
    pub pids_max: Option<u64>,
}

impl Slice {
    /// The name of the slice's directory below the root.
    pub fn directory(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::ControlPlane => "control-plane",
            Self::Node => "node",
        }
    }
}

/// The division for a machine with `total` bytes of memory. The guarantees together stay below two fifths of it.
pub fn slices(total: u64) -> [SlicePlan; 6] {
    let part = |divisor: u64, most: u64| (total / divisor).min(most * MIB);
    let threads = total / MEMORY_PER_THREAD;
    [
        SlicePlan {
            name: "init",
            memory_min: part(64, 16),
            memory_low: part(64, 16),
            cpu_weight: 1000,
            io_weight: 500,
            pids_max: Some(256),
        },
        SlicePlan {
            name: "system",
            memory_min: part(32, 128),
            memory_low: part(12, 384),
            cpu_weight: 400,
            io_weight: 300,
            pids_max: Some((threads / 4).max(1024)),
        },
        SlicePlan {
            name: "control-plane",
            memory_min: part(8, 1024),
            memory_low: part(5, 4096),
            // All others wait for the API server, at boot and later.
            cpu_weight: 1000,
            io_weight: 500,
            pids_max: Some((threads / 4).max(1024)),
        },
        SlicePlan {
            name: "node",
            memory_min: part(32, 128),
            memory_low: part(16, 256),
            cpu_weight: 300,
            io_weight: 200,
            pids_max: Some((threads / 8).max(512)),
        },
        SlicePlan {
            name: "shims",
            memory_min: 0,
            memory_low: part(32, 512),
            cpu_weight: 200,
            io_weight: 100,
            pids_max: None,
        },
        // A pod that forks without end must leave numbers for the others.
        SlicePlan {
            name: "pods",
            memory_min: 0,
            memory_low: 0,
            cpu_weight: 100,
            io_weight: 100,
            pids_max: Some((threads * 5 / 8).max(2048)),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_machine_guarantees_its_control_plane_what_it_needs_at_rest() {
        let plans = slices(2048 * MIB);
        assert_eq!(plans[2].memory_min, 256 * MIB);
        assert_eq!(plans[2].memory_low, 2048 * MIB / 5);
        assert_eq!(plans[5].pids_max, Some(10_240));
    }

    proptest! {
        #[test]
        fn guarantees_fit_the_machine(mib in 256..4_000_000u64) {
            let total = mib * MIB;
            let plans = slices(total);
            prop_assert!(plans.iter().map(|plan| plan.memory_min).sum::<u64>() * 5 < total * 2);
            prop_assert!(plans.iter().map(|plan| plan.memory_low).sum::<u64>() * 2 < total);
            for plan in plans {
                prop_assert!(plan.memory_min <= plan.memory_low, "{}", plan.name);
                prop_assert!((1..=10_000).contains(&plan.cpu_weight) && (1..=10_000).contains(&plan.io_weight));
            }
        }

        #[test]
        fn more_memory_never_guarantees_less(mib in 256..1_000_000u64, more in 0..1_000_000u64) {
            for (small, large) in slices(mib * MIB).into_iter().zip(slices((mib + more) * MIB)) {
                prop_assert!(small.memory_min <= large.memory_min && small.memory_low <= large.memory_low);
            }
        }
    }
}
