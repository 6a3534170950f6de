//! Changes that prove themselves, and changes that do not.

use std::time::Duration;

use anyhow::{Result, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready("trial::a_change_proves_itself_or_is_ended", a_change_proves_itself_or_is_ended),
        on_ready("trial::a_change_that_cuts_the_machine_off_is_undone", a_change_that_cuts_off_is_undone),
    ]
}

/// The object of the machine that is changed.
pub const MACHINE: [&str; 2] = ["machines.garboard.dev", "node-1"];

/// Takes the machine off the network that it is reached by, for as long as it is tried.
pub const CUT_OFF: &str = r#"{"spec": {"trial": {"deadlineSeconds": 30}, "network": {"links": [
    {"match": {"name": "eth0"}, "addresses": ["192.0.2.10/24"], "gateway": "192.0.2.1"}]}}}"#;

/// Longest time until a machine that is cut off is back: its deadline, and twice the start of the services that know its address.
pub const BACK_LIMIT: Duration = Duration::from_secs(400);

fn patch(scene: &Scene, patch: &str) -> Result<()> {
    // With another address the API server is started again, also after what told that the machine has returned.
    wait::until("the API server to take a change", POD_LIMIT, || {
        let taken = scene.cluster.kubectl_ok(&["patch", &MACHINE.join("/"), "--type=merge", "-p", patch]);
        taken.map(drop).map_err(|error| error.to_string())
    })
}

/// Waits until the machine's latest change is in this state.
fn wait_trial(scene: &Scene, state: &str, limit: Duration) -> Result<Value> {
    scene.cluster.wait_for(&MACHINE, "/status/trial/state", &json!(state), limit)
}

fn swappiness(scene: &Scene, wanted: &str) -> Result<()> {
    scene.cluster.wait_file("/proc/sys/vm/swappiness", wanted, POD_LIMIT)
}

/// Waits until it is known that everything works before any change: of a machine that was just started the gateway may not have answered.
pub fn wait_known(scene: &Scene) -> Result<()> {
    let all = ["default gateway", "name server", "API server", "service etcd", "service kubelet"];
    let known = |machine: &Value| {
        let required = machine.pointer("/status/trial/required").and_then(Value::as_array);
        let is_known = |probe: &&str| required.is_some_and(|required| required.contains(&json!(probe)));
        if all.iter().all(is_known) { Ok(()) } else { Err(machine["status"]["trial"].to_string()) }
    };
    scene.cluster.until("what works to be known", &MACHINE, READY_LIMIT, known)
}

fn a_change_proves_itself_or_is_ended(scene: &mut Scene) -> Result<()> {
    scene.cluster.start_intruder(POD_LIMIT)?;
    wait_known(scene)?;

    // It proves itself.
    patch(scene, r#"{"spec": {"kernel": {"sysctls": {"vm.swappiness": "11"}}}}"#)?;
    wait_trial(scene, "Running", POD_LIMIT)?;
    swappiness(scene, "11")?;
    let refused = scene.cluster.garboardctl(&["trial", "extend", "0"])?;
    ensure!(refused.status.code() == Some(2), "an extension of nothing is none: {refused:?}");
    wait_trial(scene, "Proved", POD_LIMIT)?;
    scene.cluster.wait_condition(&MACHINE, "ChangeProved", POD_LIMIT)?;
    let refused = scene.cluster.garboardctl(&["trial", "confirm"])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && error.contains("no change is on trial"), "{error}");

    // It is ended by somebody: what was before is in force, and the change is not tried again until it is another one.
    patch(scene, r#"{"spec": {"kernel": {"sysctls": {"vm.swappiness": "12"}}}}"#)?;
    wait_trial(scene, "Running", POD_LIMIT)?;
    scene.cluster.garboardctl_ok(&["trial", "extend", "600"])?;
    scene.cluster.garboardctl_ok(&["trial", "abort"])?;
    let failed = wait_trial(scene, "Failed", POD_LIMIT)?;
    ensure!(failed["status"]["trial"]["reason"].as_str().is_some_and(|reason| reason.contains("admin")), "{failed}");
    ensure!(failed["status"]["effective"]["spec"]["kernel"]["sysctls"]["vm.swappiness"] == "11", "{failed}");
    swappiness(scene, "11")?;

    // Another one is.
    patch(scene, r#"{"spec": {"kernel": {"sysctls": {"vm.swappiness": "13"}}}}"#)?;
    wait_trial(scene, "Running", POD_LIMIT)?;
    scene.cluster.garboardctl_ok(&["trial", "confirm"])?;
    wait_trial(scene, "Proved", POD_LIMIT)?;
    swappiness(scene, "13")
}

fn a_change_that_cuts_off_is_undone(scene: &mut Scene) -> Result<()> {
    wait_known(scene)?;
    patch(scene, CUT_OFF)?;
    let returned = wait_returned(scene)?;
    let failing = returned["status"]["trial"]["failing"].to_string();
    ensure!(failing.contains("default gateway"), "{failing}");
    ensure!(returned["status"]["effective"]["spec"]["network"]["links"].is_null(), "{returned}");
    scene.cluster.wait_event("TrialFailed", POD_LIMIT)?;
    scene.cluster.wait_ready(READY_LIMIT)?;

    // The power goes in the middle of a trial: the machine goes on with it when it starts again, and returns.
    patch(scene, &CUT_OFF.replace("192.0.2.10", "192.0.2.11"))?;
    wait::until("the machine to be cut off", POD_LIMIT, || match scene.cluster.garboardctl(&["version"]) {
        Ok(answer) if answer.status.success() => Err("it answers".to_owned()),
        _ => Ok(()),
    })?;
    scene.machine.cut_power()?;
    scene.machine.start()?;
    let returned = wait_returned(scene)?;
    ensure!(returned["spec"]["network"]["links"].to_string().contains("192.0.2.11"), "{returned}");
    scene.cluster.wait_ready(READY_LIMIT)?;

    // What is declared is what is in force again: nothing is left to be told.
    patch(scene, r#"{"spec": {"network": {"links": null}, "trial": null}}"#)?;
    wait_trial(scene, "Proved", POD_LIMIT).map(drop)
}

/// Waits until the machine has returned from a change and says so.
fn wait_returned(scene: &Scene) -> Result<Value> {
    scene.cluster.wait_reason(&MACHINE, "ChangeProved", "Returned", BACK_LIMIT)
}
