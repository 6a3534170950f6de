//! A machine boots to a Ready node and says so.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::scene::{Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready("ready::every_service_is_ready", every_service_is_ready),
        on_ready("ready::machine_and_cluster_report_their_conditions", machine_and_cluster_report_their_conditions),
        on_ready("ready::the_node_is_what_the_image_says", the_node_is_what_the_image_says),
    ]
}

/// Longest time for a status to follow.
const STATUS_LIMIT: Duration = Duration::from_secs(60);

fn every_service_is_ready(scene: &mut Scene) -> Result<()> {
    let services = scene.cluster.services()?;
    ensure!(services.len() >= 10, "only these services: {services:?}");
    for service in &services {
        ensure!(service["ready"] == Value::Bool(true), "not ready: {service}");
        ensure!(service["restarts"] == 0, "was restarted during boot: {service}");
    }
    Ok(())
}

fn machine_and_cluster_report_their_conditions(scene: &mut Scene) -> Result<()> {
    scene.cluster.wait_condition(&["machine", "node-1"], "Ready", STATUS_LIMIT)?;
    scene.cluster.wait_condition(&["clusters.garboard.dev", "cluster"], "Ready", STATUS_LIMIT)?;
    let machine = scene.cluster.get(&["machine", "node-1"])?;
    ensure!(
        machine["status"]["observedGeneration"] == machine["metadata"]["generation"],
        "status is behind: {machine}"
    );
    Ok(())
}

fn the_node_is_what_the_image_says(scene: &mut Scene) -> Result<()> {
    let node = scene.cluster.get(&["node", "node-1"])?;
    let info = &node["status"]["nodeInfo"];
    ensure!(info["kubeletVersion"] == "v1.37.2", "{info}");
    ensure!(info["osImage"].as_str().is_some_and(|os| os.starts_with("Garboard")), "{info}");
    ensure!(info["containerRuntimeVersion"] == "containerd://2.4.2", "{info}");
    let machine = scene.cluster.get(&["machine", "node-1"])?;
    let versions = &machine["status"]["versions"];
    let same = [("kubernetes", "kubeletVersion"), ("kernel", "kernelVersion")];
    ensure!(same.iter().all(|(ours, nodes)| versions[ours] == info[nodes]), "{versions} {info}");
    ensure!(versions["containerd"] == "v2.4.2", "{versions}");
    ensure!(["etcd", "runc"].iter().all(|program| versions[program].is_string()), "{versions}");
    Ok(())
}
