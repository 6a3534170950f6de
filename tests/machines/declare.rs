//! What a machine is told after its image was written: manifests that come late, and changes over the machine API.

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::{Cluster, READY_LIMIT};
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;
use serde_json::json;

use crate::refusal::EARLY_LIMIT;
use crate::scene::{POD_LIMIT, Scenario, Scene, cold, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        cold("declare::a_machine_without_manifests_waits_for_the_first_who_claims_it", without_manifests_it_waits),
        on_ready("declare::the_machine_api_takes_what_new_wrote_and_its_changes", the_machine_api_takes_changes),
        on_ready("declare::layers_are_merged_and_drift_is_repaired", layers_are_merged),
    ]
}

fn without_manifests_it_waits() -> Result<()> {
    let mut scene = Scene::new(Hardware::default())?;
    scene.machine.set_manifests(None);
    scene.machine.start()?;
    let (_, key) = scene.machine.wait_waiting(EARLY_LIMIT)?;
    let ports = scene.machine.ports();
    let [owner, stranger] = ["owner", "stranger"]
        .map(|name| Cluster::new(&Image::latest()?, &scene.folder().join(name), ports, Some(&key)));
    let (owner, stranger) = (owner?, stranger?);
    let manifests = |cluster: &Cluster| cluster.manifests().to_string_lossy().into_owned();
    let refused = |cluster: &Cluster, arguments: &[&str], why: &str| -> Result<()> {
        let answer = cluster.garboardctl(arguments)?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(!answer.status.success() && said.contains(why), "{arguments:?} is not refused with {why:?}: {said}");
        Ok(())
    };
    refused(&stranger, &["status"], "the role claimant")?;
    stranger.garboardctl_ok(&["claim", "--dry-run", "-f", &manifests(&stranger)])?;
    owner.garboardctl_ok(&["claim", "-f", &manifests(&owner)])?;
    refused(&stranger, &["claim", "-f", &manifests(&stranger)], "the machine does not wait")?;
    scene.cluster = owner;
    scene.wait_ready()
}

fn the_machine_api_takes_changes(scene: &mut Scene) -> Result<()> {
    let file = scene.cluster.directory().join("machine.yaml");
    let apply = |arguments: &[&str]| {
        let path = file.to_str().context("the folder's path is not UTF-8")?;
        scene.cluster.garboardctl(&[&["apply", "-f", path], arguments].concat())
    };
    let outcomes = |arguments: &[&str], wanted: &[[&str; 2]]| -> Result<()> {
        let answer = apply(arguments)?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        for [object, outcome] in wanted {
            let found = said.lines().any(|line| line.split_whitespace().take(2).eq([*object, *outcome]));
            ensure!(found, "no {object} {outcome} in: {said}{}", String::from_utf8_lossy(&answer.stderr));
        }
        Ok(())
    };
    outcomes(&[], &[["Machine/node-1", "unchanged"], ["Secret/node-1", "unchanged"]])?;

    let pointer = "/spec/kubelet/maxPods";
    let machine = ["machines.garboard.dev", "node-1"];
    scene.cluster.edit("machine.yaml", "kubelet: {}", "kubelet: {maxPods: 0}")?;
    let refused = apply(&[])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && error.contains("maxPods"), "maxPods: 0 was not refused by name: {refused:?}");
    scene.cluster.edit("machine.yaml", "maxPods: 0", "maxPods: 50")?;
    outcomes(&["--dry-run"], &[["Machine/node-1", "changed"]])?;
    ensure!(scene.cluster.get(&machine)?.pointer(pointer).is_none(), "a dry run or a refusal changed it");
    outcomes(&[], &[["Machine/node-1", "changed"]])?;
    scene.cluster.wait_for(&machine, pointer, &json!(50), POD_LIMIT)?;
    scene.cluster.wait_for(&["node", "node-1"], "/status/allocatable/pods", &json!("50"), READY_LIMIT)?;
    scene.cluster.wait_ready(READY_LIMIT)
}

/// A pool of the machines with a label.
fn pool(name: &str, label: &str, max_pods: u32) -> String {
    json!({
        "apiVersion": "garboard.dev/v1alpha1",
        "kind": "MachinePool",
        "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { (label): "yes" } },
            "template": { "spec": { "kubelet": {
                "maxPods": max_pods,
                "nodeLabels": { "example.org/pool": name },
                "taints": [{ "key": "example.org/pool", "value": name, "effect": "PreferNoSchedule" }],
            } } },
        },
    })
    .to_string()
}

fn layers_are_merged(scene: &mut Scene) -> Result<()> {
    let cluster = &scene.cluster;
    let (machine, node) = (["machines.garboard.dev", "node-1"], ["node", "node-1"]);
    let source = |field: &str, wanted: &str| {
        cluster.wait_for(&machine, &format!("/status/effective/sources/{field}"), &json!(wanted), POD_LIMIT).map(drop)
    };
    let patch =
        |object: &str, patch: &str| cluster.kubectl_ok(&["patch", object, "--type=merge", "-p", patch]).map(drop);
    cluster.start_intruder(POD_LIMIT)?;
    source("kubelet.maxPods", "Image")?;

    // The pool counts before the image, for the machines that it picks.
    cluster.apply(&pool("workers", "workers", 50))?;
    cluster.wait_for(&["machinepool", "workers"], "/status/conditions/0/reason", &json!("NoMachines"), POD_LIMIT)?;
    cluster.kubectl_ok(&["label", "machines.garboard.dev", "node-1", "workers=yes"])?;
    source("kubelet.maxPods", "MachinePool/workers")?;
    cluster.wait_for(&node, "/status/allocatable/pods", &json!("50"), READY_LIMIT)?;
    cluster.wait_for(&node, "/metadata/labels/example.org~1pool", &json!("workers"), POD_LIMIT)?;
    cluster.wait_for(&node, "/spec/taints/0/value", &json!("workers"), POD_LIMIT)?;
    cluster.wait_condition(&["machinepool", "workers"], "Ready", READY_LIMIT)?;
    let counted = cluster.get(&["machinepool", "workers"])?;
    ensure!(counted.pointer("/status/updatedMachines") == Some(&json!(1)), "not counted: {counted}");

    // A second pool is one too many: the machine says so and keeps what it has.
    cluster.apply(&pool("others", "others", 30))?;
    cluster.kubectl_ok(&["label", "machines.garboard.dev", "node-1", "others=yes"])?;
    let accepted = cluster.until("the machine to refuse two pools", &machine, POD_LIMIT, |found| {
        let accepted = found.pointer("/status/conditions/0").map(ToString::to_string).unwrap_or_default();
        if accepted.contains("others, workers") { Ok(found.clone()) } else { Err(accepted) }
    })?;
    ensure!(
        accepted.pointer("/status/effective/spec/kubelet/maxPods") == Some(&json!(50)),
        "it did not keep: {accepted}"
    );
    cluster.kubectl_ok(&["delete", "machinepool", "others"])?;

    // What a change would disrupt is told before it is made.
    let disruptive = r#"{"spec": {"template": {"spec": {"kubelet": {"maxPods": 40}}}}}"#;
    let dry = ["patch", "machinepool", "workers", "--type=merge", "--dry-run=server", "-p", disruptive];
    wait::until("a warning of what a change disrupts", POD_LIMIT, || {
        let warned = cluster.kubectl(&dry).map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&warned.stderr).into_owned();
        if said.contains("on each machine of the pool, when its rollout comes to it, kubelet restarts") {
            Ok(())
        } else {
            Err(said)
        }
    })?;

    // The Machine itself counts before all others, and what the Cluster says reaches it too.
    patch("machines.garboard.dev/node-1", r#"{"spec": {"kubelet": {"maxPods": 60}}}"#)?;
    patch(
        "clusters.garboard.dev/cluster",
        r#"{"spec": {"machines": {"kernel": {"sysctls": {"vm.swappiness": "13"}}}}}"#,
    )?;
    source("kubelet.maxPods", "Machine")?;
    source("kernel.sysctls.vm.swappiness", "Cluster")?;
    let swappiness = |wanted: &str| cluster.wait_file("/proc/sys/vm/swappiness", wanted, POD_LIMIT);
    swappiness("13")?;

    // What somebody else changes is set again and told; what is withdrawn is as it was.
    cluster.intrude(&["write", "/proc/sys/vm/swappiness", "77"])?;
    swappiness("13")?;
    cluster.wait_event("DriftRepaired", POD_LIMIT)?;
    patch("clusters.garboard.dev/cluster", r#"{"spec": {"machines": {"kernel": null}}}"#)?;
    swappiness("60")?;

    // Without its pool the machine is what it was before.
    patch("machines.garboard.dev/node-1", r#"{"spec": {"kubelet": {"maxPods": null}}}"#)?;
    cluster.kubectl_ok(&["delete", "machinepool", "workers"])?;
    source("kubelet.maxPods", "Image")?;
    cluster.until("the taint to go", &node, POD_LIMIT, |found| {
        found.pointer("/spec/taints/0").map_or(Ok(()), |taint| Err(taint.to_string()))
    })?;

    // PID 1 has the watchdog and the logs.
    source("watchdog.timeoutSeconds", "Image")?;
    patch(
        "machines.garboard.dev/node-1",
        r#"{"spec": {"watchdog": {"timeoutSeconds": 120}, "logs": {"maxFiles": 2}}}"#,
    )?;
    wait::until("the watchdog's new time", POD_LIMIT, || {
        let said = cluster.garboardctl_ok(&["logs", "kernel", "-n", "300"]).map_err(|error| error.to_string())?;
        if said.contains("the hardware watchdog runs") && said.contains("seconds=120") { Ok(()) } else { Err(said) }
    })?;
    patch("machines.garboard.dev/node-1", r#"{"spec": {"watchdog": null, "logs": null}}"#)?;
    source("watchdog.timeoutSeconds", "Image")?;

    // Nobody answers on loopback: the machine says so, and serves all the same.
    let condition = |reason: &str| cluster.wait_reason(&machine, "TimeSynchronized", reason, POD_LIMIT).map(drop);
    condition("NoServers")?;
    patch("machines.garboard.dev/node-1", r#"{"spec": {"time": {"servers": ["127.0.0.1"]}}}"#)?;
    condition("NoAnswer")?;
    source("time.servers", "Machine")?;
    cluster.wait_condition(&machine, "ChangeProved", READY_LIMIT)?;
    patch("machines.garboard.dev/node-1", r#"{"spec": {"time": null}}"#)?;
    condition("NoServers")?;

    // Links that are made of others come and go with their declaration.
    let made = json!([
        { "match": { "name": "eth0" } },
        { "name": "lan7", "vlan": { "parent": "eth0", "id": 7 } },
        { "name": "bond7", "bond": { "mode": "active-backup", "members": ["lan7"] } },
        { "name": "br7", "bridge": { "ports": ["bond7"] }, "addresses": ["192.168.77.2/24"] },
    ]);
    for (links, there) in [(made, true), (json!(null), false)] {
        patch("machines.garboard.dev/node-1", &format!(r#"{{"spec": {{"network": {{"links": {links}}}}}}}"#))?;
        cluster.until(&format!("the bridge's address: {there}"), &machine, POD_LIMIT, |found| {
            let addresses = found.pointer("/status/addresses").map(ToString::to_string).unwrap_or_default();
            if addresses.contains("192.168.77.2") == there { Ok(()) } else { Err(addresses) }
        })?;
        cluster.wait_condition(&machine, "ChangeProved", READY_LIMIT)?;
    }
    a_wireguard_link_comes_and_goes(cluster)?;
    cluster.wait_for(&node, "/status/allocatable/pods", &json!("110"), READY_LIMIT)?;

    let unsafe_setting = r#"{"spec": {"kernel": {"sysctls": {"kernel.core_pattern": "|/bin/sh"}}}}"#;
    let refused = cluster.kubectl(&["patch", "machines.garboard.dev/node-1", "--type=merge", "-p", unsafe_setting])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && error.contains("not to be changed"), "not refused in words: {refused:?}");
    cluster.wait_ready(READY_LIMIT)
}

/// With its address, and the public part of a key that is the same when it comes again.
fn a_wireguard_link_comes_and_goes(cluster: &Cluster) -> Result<()> {
    let machine = ["machines.garboard.dev", "node-1"];
    let peer = r#"{"publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=", "endpoint": "192.168.78.3:51820"}"#;
    let wireguard = format!(
        r#"[{{"match": {{"name": "eth0"}}}}, {{"name": "wg0", "addresses": ["192.168.78.2/24"],
            "wireguard": {{"listenPort": 51820, "peers": [{peer}]}}}}]"#
    );
    let mut keys = Vec::new();
    for (links, there) in [(wireguard.as_str(), true), ("null", false), (&wireguard, true), ("null", false)] {
        let patch = format!(r#"{{"spec": {{"network": {{"links": {links}}}}}}}"#);
        cluster.kubectl_ok(&["patch", "machines.garboard.dev/node-1", "--type=merge", "-p", &patch])?;
        let what = format!("the WireGuard link's address and key: {there}");
        let key = cluster.until(&what, &machine, POD_LIMIT, |found| {
            let told = |field: &str| found.pointer(field).map(ToString::to_string).unwrap_or_default();
            let (addresses, key) = (told("/status/addresses"), told("/status/wireguard/0/publicKey"));
            let seen = (addresses.contains("192.168.78.2"), !key.is_empty());
            if seen == (there, there) { Ok(key) } else { Err(format!("{addresses} {key}")) }
        })?;
        keys.push(key);
        cluster.wait_condition(&machine, "ChangeProved", READY_LIMIT)?;
    }
    ensure!(keys[0] == keys[2], "its key is another one: {keys:?}");
    Ok(())
}
