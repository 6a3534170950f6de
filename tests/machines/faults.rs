//! Every process of the machine may be killed at any moment, or hang: it comes back, and the others are not disturbed. A full
//! disk stops nothing that is not on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::sample_pod;
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready(
            "faults::every_service_killed_comes_back_and_disturbs_no_other",
            every_service_killed_comes_back_and_disturbs_no_other,
        ),
        on_ready("faults::a_service_that_hangs_is_started_again", a_service_that_hangs_is_started_again),
        on_ready("faults::a_full_disk_leaves_etcd_writing", a_full_disk_leaves_etcd_writing),
    ]
}

/// Longest time for a killed service to be ready again.
const BACK_LIMIT: Duration = Duration::from_secs(120);

/// Longest time for a service that hangs to be ready again: it counts as hung after two minutes without an answer.
const HUNG_LIMIT: Duration = Duration::from_secs(300);

/// What a service is told by: its process, its restarts and whether it is ready.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    pid: i64,
    restarts: i64,
    ready: bool,
}

fn seen(scene: &Scene) -> Result<BTreeMap<String, Seen>> {
    let number =
        |service: &Value, field: &str| service[field].as_i64().with_context(|| format!("no {field} in {service}"));
    scene
        .cluster
        .services()?
        .iter()
        .map(|service| {
            let name = service["name"].as_str().context("a service without a name")?.to_owned();
            let pid = service["pid"].as_i64().unwrap_or(0);
            Ok((name, Seen { pid, restarts: number(service, "restarts")?, ready: service["ready"] == true }))
        })
        .collect()
}

fn every_service_killed_comes_back_and_disturbs_no_other(scene: &mut Scene) -> Result<()> {
    let image = scene.cluster.sample_image()?;
    scene.cluster.start_intruder(POD_LIMIT)?;
    let bystander = sample_pod(&image, "bystander", &["serve", "--port", "8080"]);
    scene.cluster.apply(&bystander.to_string())?;
    scene.cluster.wait_condition(&["pod", "bystander"], "Ready", POD_LIMIT)?;

    // What has ended, as the making of disks, has no process to kill.
    let running = seen(scene)?.into_iter().filter(|(_, seen)| seen.pid != 0);
    for victim in running.map(|(name, _)| name).collect::<Vec<_>>() {
        let before = seen(scene)?;
        let pid = before[&victim].pid.to_string();
        let after = wait::until(&format!("{victim} to be killed and back"), BACK_LIMIT, || {
            let after = seen(scene).map_err(|error| error.to_string())?;
            match after.get(&victim) {
                Some(now) if now.pid != before[&victim].pid && now.pid != 0 && now.ready => return Ok(after),
                Some(now) if now.pid != before[&victim].pid => return Err(format!("{now:?}")),
                _ => {}
            }
            // Asked again while it lives: a kubelet that has just come back knows no pods yet. The answer may be lost with the process
            // that carried it; whether it died is seen above.
            Err(scene.cluster.intrude(&["kill", &pid]).err().map(|error| error.to_string()).unwrap_or_default())
        })?;
        for (name, was) in before.iter().filter(|(name, _)| **name != victim) {
            let now = after.get(name).with_context(|| format!("{name} is gone after {victim} was killed"))?;
            ensure!(now.pid == was.pid, "{name} was restarted when {victim} was killed: {was:?}, now {now:?}");
        }
        scene.cluster.wait_ready(BACK_LIMIT).with_context(|| format!("after {victim} was killed"))?;
    }
    let pod = scene.cluster.get(&["pod", "bystander"])?;
    ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "a pod was restarted: {pod}");
    Ok(())
}

/// One service tells by itself that it lives, the other is asked.
fn a_service_that_hangs_is_started_again(scene: &mut Scene) -> Result<()> {
    scene.cluster.start_intruder(POD_LIMIT)?;
    let before = seen(scene)?;
    let hung = ["agent", "kube-proxy"];
    for name in hung {
        let pid = before[name].pid.to_string();
        scene.cluster.intrude(&["kill", &pid, "stop"])?;
    }
    let after = wait::until("what hung to be started again", HUNG_LIMIT, || {
        // The agent answers this, so it cannot before it is back.
        let after = seen(scene).map_err(|error| error.to_string())?;
        let back = |name: &str| after[name].pid != before[name].pid && after[name].ready;
        if hung.into_iter().all(back) { Ok(after) } else { Err(format!("{after:?}")) }
    })?;
    for (name, was) in before.iter().filter(|(name, _)| !hung.contains(&name.as_str())) {
        ensure!(after[name].pid == was.pid, "{name} was restarted too: {was:?}, now {:?}", after[name]);
    }
    scene.cluster.wait_ready(BACK_LIMIT)
}

/// Objects that are written to a full disk, and the size of each, bytes: more than etcd has set aside in its files.
const WRITES: usize = 40;
const WRITE_BYTES: usize = 500_000;

fn a_full_disk_leaves_etcd_writing(scene: &mut Scene) -> Result<()> {
    let before = scene.cluster.restarts()?;
    let mut filler = sample_pod(&scene.cluster.sample_image()?, "filler", &["fill", "/scratch/file"]);
    filler["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    filler["spec"]["volumes"] = json!([{ "name": "scratch", "emptyDir": {} }]);
    filler["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 0 });
    scene.cluster.apply(&filler.to_string())?;
    wait::until("the disk to be full", POD_LIMIT, || {
        let said = scene.cluster.kubectl_ok(&["logs", "filler"]).map_err(|error| error.to_string())?;
        if said.contains("full") { Ok(()) } else { Err(said) }
    })?;
    // In parts, because an argument has a longest length.
    let content = "x".repeat(WRITE_BYTES / 10);
    let parts: Vec<String> = (0..10).map(|part| format!("--from-literal=content-{part}={content}")).collect();
    for write in 0..WRITES {
        let name = format!("written-{write}");
        let mut command = vec!["create", "configmap", &name];
        command.extend(parts.iter().map(String::as_str));
        scene.cluster.kubectl_ok(&command).with_context(|| format!("write {write} to a full disk"))?;
    }
    // A program that ends well when it is told to leaves its pod Succeeded; the condition is there either way.
    scene.cluster.wait_reason(&["pod", "filler"], "DisruptionTarget", "TerminationByKubelet", POD_LIMIT)?;
    let after = scene.cluster.restarts()?;
    ensure!(before == after, "services went down: {before:?}, now {after:?}");
    Ok(())
}
