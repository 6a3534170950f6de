//! How the machine ends.

use std::os::unix::process::ExitStatusExt;

use futures::StreamExt;
use garboard_control::{Client, MachinePhase, ShutdownKind};
use garboard_supervisor::spec::{Condition, Reached, ServiceName, ServiceSpec};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::trial;
use crate::world::World;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("dependents_end_first_and_nothing_survives", dependents_end_first_and_nothing_survives),
        trial("inhibitors_delay_the_end", inhibitors_delay_the_end),
        trial("ctrl_alt_del_restarts", ctrl_alt_del_restarts),
        trial("the_inhibit_socket_takes_nothing_else", the_inhibit_socket_takes_nothing_else),
    ]
}

/// The kernel turns reboot(2) in a PID namespace into a signal to its process 1 (pid_namespaces(7)).
const RESTARTED: i32 = Signal::SIGHUP as i32;
const POWERED_OFF: i32 = Signal::SIGINT as i32;

fn dependents_end_first_and_nothing_survives(mut world: World) {
    let requires = vec![Condition { service: ServiceName::try_from("a-base").unwrap(), state: Reached::Started }];
    let (base, top) = (world.path("base-ends"), world.path("top-ends"));
    let on_term = |file: &str| {
        let script =
            format!("trap 'date +%s%N > {file}; exit 0' TERM; : > {file}-awaited; while true; do sleep 0.01; done");
        ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
    };
    let specs = [
        ServiceSpec { argv: on_term(&base), ..world.service("a-base", &[]) },
        ServiceSpec { argv: on_term(&top), requires, ..world.service("b-top", &[]) },
        world.service("stubborn", &["daemon", "deaf", "notify=STATUS=deaf", "sleep"]),
    ];
    world.set(&specs);
    world.wait_for("stubborn", |status| status.message == "deaf");
    for file in [&base, &top] {
        world.until("the trap to be set", || std::path::Path::new(&format!("{file}-awaited")).exists());
    }
    world.block(world.client().shutdown(ShutdownKind::PowerOff, "a test")).unwrap();
    assert_eq!(world.wait_end().signal(), Some(POWERED_OFF));
    let time = |path: &str| std::fs::read_to_string(path).unwrap().trim().parse::<u128>().unwrap();
    assert!(time(&top) < time(&base));
}

fn inhibitors_delay_the_end(mut world: World) {
    let (seen, inhibitor) = world.block(async {
        let inhibitor = world.client().inhibit("kubelet", "pods are ending").await.unwrap();
        assert!(inhibitor.max_delay_ms() >= 60_000);
        let mut phases = world.client().watch_machine().await.unwrap();
        assert_eq!(phases.next().await.unwrap().unwrap(), MachinePhase::Running);
        world.client().shutdown(ShutdownKind::Reboot, "a test").await.unwrap();
        (phases.next().await.unwrap().unwrap(), inhibitor)
    });
    assert!(matches!(seen, MachinePhase::PreparingShutdown { kind: ShutdownKind::Reboot, .. }));
    // Still there and answering.
    world.block(world.client().list_services()).unwrap();
    drop(inhibitor);
    assert_eq!(world.wait_end().signal(), Some(RESTARTED));
}

fn ctrl_alt_del_restarts(mut world: World) {
    world.set(&[world.service("a", &["sleep"])]);
    world.wait_ready("a");
    world.signal_pid1(Signal::SIGINT);
    assert_eq!(world.wait_end().signal(), Some(RESTARTED));
}

fn the_inhibit_socket_takes_nothing_else(world: World) {
    let client = world.block(async { Client::at(world.path("inhibit.sock").as_ref()) }).unwrap();
    let error = world.block(client.shutdown(ShutdownKind::Halt, "no")).unwrap_err();
    assert_eq!(error.to_string(), "Shutdown failed: this socket only takes Inhibit and WatchMachine");
    assert!(world.block(client.list_services()).is_err());
    world.block(client.inhibit("kubelet", "why")).unwrap();
    let mode = |name: &str| {
        let found = std::fs::metadata(world.path(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    assert_eq!((mode("control.sock"), mode("inhibit.sock")), (0o600, 0o660));
}
