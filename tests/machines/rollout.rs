//! Changes that reach the machines of a pool one after the other, and changes that go no further.

use anyhow::{Result, ensure};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Scene};

const POOL: [&str; 2] = ["machinepool", "all"];
/// The label of its machines.
const LABEL: &str = "rolled";

/// No kubelet knows it, so that none starts with it.
const BAD: &str = r#"{"spec": {"template": {"spec": {"kubelet": {"featureGates": {"NoSuchGate": true}}}}}}"#;
/// It is mended, and with it comes something that can be seen.
const GOOD: &str = r#"{"spec": {"template": {"spec": {
    "kubelet": {"featureGates": null}, "kernel": {"sysctls": {"vm.swappiness": "17"}}}}}}"#;

/// Two machines are in a pool. A change with which kubelet does not start is tried by one of them and never reaches the other, and the pool
/// says why; a good one comes to both, never at once.
pub fn a_pool_stops_at_a_change_that_fails(scene: &Scene, machines: [&str; 2]) -> Result<()> {
    let cluster = &scene.cluster;
    let pool = json!({
        "apiVersion": "garboard.dev/v1alpha1",
        "kind": "MachinePool",
        "metadata": { "name": POOL[1] },
        "spec": {
            "selector": { "matchLabels": { LABEL: "yes" } },
            "template": { "spec": { "trial": { "deadlineSeconds": 40 } } },
        },
    });
    cluster.apply(&pool.to_string())?;
    for machine in machines {
        cluster.kubectl_ok(&["label", "machines.garboard.dev", machine, &format!("{LABEL}=yes")])?;
    }
    wait_updated(cluster)?;

    change(cluster, BAD)?;
    let stopped = roll(cluster, machines, "the rollout to stop", |pool| ready(pool)["reason"] == "Stopped")?;
    let failures = &stopped["status"]["rollout"]["failures"];
    let failed = machines.into_iter().find(|machine| failures[0]["machine"] == *machine);
    let message = ready(&stopped)["message"].as_str().unwrap_or_default();
    ensure!(failures[0]["probe"] == "service kubelet" && failures[1].is_null(), "{failures}");
    ensure!(failed.is_some_and(|failed| message.contains(&format!("{failed}: service kubelet"))), "{message}");
    cluster.wait_event("RolloutStopped", POD_LIMIT)?;
    for machine in machines {
        let found = cluster.get(&["machine", machine])?;
        let gates = &found["status"]["effective"]["spec"]["kubelet"]["featureGates"];
        ensure!(gates.is_null(), "{machine} has kept {gates}");
        let tried = found["status"]["trial"]["state"] == "Failed";
        ensure!(tried == (failed == Some(machine)), "{machine}: {}", found["status"]["trial"]);
        cluster.wait_condition(&["node", machine], "Ready", READY_LIMIT)?;
    }

    change(cluster, GOOD)?;
    roll(cluster, machines, "the good change to come to both machines", |pool| {
        pool["metadata"]["generation"] == pool["status"]["observedGeneration"] && is_updated(pool)
    })?;
    for machine in machines {
        source(cluster, machine, &json!(format!("MachinePool/{}", POOL[1])))?;
    }

    cluster.kubectl_ok(&["delete", POOL[0], POOL[1]])?;
    for machine in machines {
        source(cluster, machine, &Value::Null)?;
        cluster.wait_for(&["machine", machine], "/status/trial/state", &json!("Proved"), READY_LIMIT)?;
    }
    Ok(())
}

fn change(cluster: &Cluster, patch: &str) -> Result<()> {
    cluster.kubectl_ok(&["patch", POOL[0], POOL[1], "--type=merge", "-p", patch]).map(drop)
}

/// Waits until both machines follow the template.
fn wait_updated(cluster: &Cluster) -> Result<()> {
    cluster.until("both machines to follow the template", &POOL, READY_LIMIT, |pool| {
        if is_updated(pool) { Ok(()) } else { Err(pool["status"].to_string()) }
    })
}

fn is_updated(pool: &Value) -> bool {
    ready(pool)["reason"] == "Updated" && pool["status"]["updatedMachines"] == 2
}

fn ready(pool: &Value) -> &Value {
    &pool["status"]["conditions"][0]
}

/// Waits until something holds of the pool, and fails as soon as more machines try a change than may.
fn roll(cluster: &Cluster, machines: [&str; 2], what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let [one, other] = machines.map(|machine| format!("machine/{machine}"));
    let all = [one, other, POOL.join("/")];
    let (at_once, pool) = wait::until(what, READY_LIMIT, || {
        let seen = cluster.get(&all.each_ref().map(String::as_str)).map_err(|error| error.to_string())?;
        let [one, other, pool] = [0, 1, 2].map(|index| &seen["items"][index]);
        let at_once = [one, other].iter().all(|machine| machine["status"]["trial"]["state"] == "Running");
        if at_once || holds(pool) { Ok((at_once, pool.clone())) } else { Err(pool["status"].to_string()) }
    })?;
    ensure!(!at_once, "both machines try it at once: {pool}");
    Ok(pool)
}

/// Waits until this is what sets the kernel parameter of the good change.
fn source(cluster: &Cluster, machine: &str, wanted: &Value) -> Result<()> {
    let what = format!("{machine} to have the parameter from {wanted}");
    cluster.until(&what, &["machine", machine], READY_LIMIT, |found| {
        let source = &found["status"]["effective"]["sources"]["kernel.sysctls.vm.swappiness"];
        if source == wanted { Ok(()) } else { Err(source.to_string()) }
    })
}
