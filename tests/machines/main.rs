//! Scenarios on whole machines, one file each, run one after the other: two processors emulate one machine at a time.
//!
//! Most scenarios start from one saved state of a machine whose node is Ready, so that the image is booted once for all of them;
//! those whose point is booting make a machine of their own.

mod control_plane;
mod cuts;
mod declare;
mod docs;
mod etcd;
mod faults;
mod joining;
mod power;
mod ready;
mod refusal;
mod registries;
mod rollout;
mod scene;
mod security;
mod sources;
mod trial;
mod workloads;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let scenarios = [
        docs::scenarios(),
        ready::scenarios(),
        declare::scenarios(),
        trial::scenarios(),
        sources::scenarios(),
        workloads::scenarios(),
        registries::scenarios(),
        joining::scenarios(),
        control_plane::scenarios(),
        cuts::scenarios(),
        security::scenarios(),
        etcd::scenarios(),
        faults::scenarios(),
        power::scenarios(),
        refusal::scenarios(),
    ];
    let conclusion = libtest_mimic::run(&arguments, scene::in_order(scenarios.into_iter().flatten()));
    scene::finish();
    conclusion.exit();
}
