//! What a machine is told after its image was written: manifests that come late, and changes over the machine API.

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::machine::Hardware;
use libtest_mimic::Trial;
use serde_json::json;

use crate::refusal::EARLY_LIMIT;
use crate::scene::{POD_LIMIT, Scene, cold, on_ready};

pub fn scenarios() -> Vec<Trial> {
    vec![
        cold("declare::a_machine_without_manifests_waits_and_takes_them_later", without_manifests_it_waits),
        on_ready("declare::the_machine_api_takes_what_new_wrote_and_its_changes", the_machine_api_takes_changes),
    ]
}

fn without_manifests_it_waits() -> Result<()> {
    let mut scene = Scene::new(Hardware::default())?;
    scene.machine.set_manifests(None);
    scene.machine.start()?;
    for shown in ["a Machine and a Cluster to be declared", "sha256:"] {
        scene.machine.wait_console(shown, EARLY_LIMIT)?;
    }
    let answer = scene.cluster.garboardctl(&["status"])?;
    ensure!(!answer.status.success(), "a machine that knows nobody answers: {answer:?}");

    scene.machine.cut_power()?;
    scene.machine.set_manifests(Some(scene.cluster.manifests()));
    // By the key of the manifests: the one that the machine has made for itself is of no more use.
    scene.boot()
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
    scene.cluster.edit("machine.yaml", "maxPods: 110", "maxPods: 0")?;
    let refused = apply(&[])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && error.contains("maxPods"), "maxPods: 0 was not refused by name: {refused:?}");
    scene.cluster.edit("machine.yaml", "maxPods: 0", "maxPods: 50")?;
    outcomes(&["--dry-run"], &[["Machine/node-1", "changed"]])?;
    ensure!(scene.cluster.get(&machine)?.pointer(pointer) == Some(&json!(110)), "a dry run or a refusal changed it");
    outcomes(&[], &[["Machine/node-1", "changed"]])?;
    scene.cluster.wait_for(&machine, pointer, &json!(50), POD_LIMIT)?;
    scene.cluster.wait_for(&["node", "node-1"], "/status/allocatable/pods", &json!("50"), READY_LIMIT)?;
    scene.cluster.wait_ready(READY_LIMIT)
}
