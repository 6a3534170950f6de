//! The cluster's store is kept in a file, and made anew from it.

use std::fs;

use anyhow::{Result, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::wait;
use serde_json::json;

use crate::scene::{Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![on_ready(
        "etcd::a_snapshot_brings_back_what_was_there_when_it_was_taken",
        a_snapshot_brings_back_what_was_there,
    )]
}

fn a_snapshot_brings_back_what_was_there(scene: &mut Scene) -> Result<()> {
    let cluster = &scene.cluster;
    let members: serde_json::Value =
        serde_json::from_str(&cluster.garboardctl_ok(&["etcd", "members", "-o", "json"])?)?;
    ensure!(members.pointer("/members/0/leader") == Some(&json!(true)), "{members}");
    cluster.kubectl_ok(&["create", "configmap", "kept", "--from-literal=a=before"])?;
    let file = scene.folder().join("store.db");
    let path = file.to_string_lossy();
    cluster.garboardctl_ok(&["etcd", "snapshot", &path, "--force"])?;
    cluster.kubectl_ok(&["delete", "configmap", "kept"])?;
    cluster.kubectl_ok(&["create", "configmap", "late", "--from-literal=a=after"])?;

    // What is not whole changes nothing.
    let whole = fs::read(&file)?;
    let cut = scene.folder().join("cut.db");
    fs::write(&cut, &whole[..whole.len() / 2])?;
    let refused = cluster.garboardctl(&["etcd", "restore", &cut.to_string_lossy(), "--yes"])?;
    ensure!(!refused.status.success(), "half a snapshot was taken");
    cluster.kubectl_ok(&["get", "configmap", "late"])?;

    cluster.garboardctl_ok(&["etcd", "restore", &path, "--yes"])?;
    wait::until("the object of the snapshot to be back", READY_LIMIT, || {
        let maps = cluster.kubectl_ok(&["get", "configmaps", "-o", "name"]).map_err(|error| error.to_string())?;
        let (kept, late) = (maps.contains("configmap/kept"), maps.contains("configmap/late"));
        if kept && !late { Ok(()) } else { Err(maps) }
    })?;
    // Whoever watches takes part again: a change reaches the machine, and the machine tells it.
    cluster.kubectl_ok(&[
        "patch",
        "machine",
        "node-1",
        "--type=merge",
        "-p",
        r#"{"metadata":{"labels":{"restored":"yes"}},"spec":{"kubelet":{"maxPods":100}}}"#,
    ])?;
    cluster.wait_for(&["machine", "node-1"], "/status/effective/spec/kubelet/maxPods", &json!(100), READY_LIMIT)?;
    cluster.wait_condition(&["etcdmember", "node-1"], "Healthy", READY_LIMIT)?;
    cluster.wait_condition(&["machine", "node-1"], "Ready", READY_LIMIT)?;
    cluster.wait_ready(READY_LIMIT)
}
