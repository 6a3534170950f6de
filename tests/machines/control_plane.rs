//! A control plane of several machines.

use std::fs;

use anyhow::{Context, Result};
use garboard_tests::cluster::{READY_LIMIT, sample_pod};
use garboard_tests::lan::Lan;
use garboard_tests::machine::{Hardware, Machine, is_emulated};
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Place, Scenario, Scene, on_ready};

/// The names of those that join.
const OTHERS: [&str; 2] = ["node-2", "node-3"];
/// The name of what replaces the last of them.
const REPLACEMENT: &str = "node-4";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready("control_plane::a_second_machine_takes_over_from_the_first", a_second_machine_takes_over),
        // Three API servers on two emulated processors take half an hour.
        on_ready("control_plane::three_machines_outlive_the_loss_of_one_and_of_two", three_machines_outlive_losses)
            .ignored(is_emulated()),
    ]
}

fn a_second_machine_takes_over(scene: &mut Scene) -> Result<()> {
    with_others(scene, 1, |scene, _| it_is_alone_when_the_first_leaves(scene))
}

fn three_machines_outlive_losses(scene: &mut Scene) -> Result<()> {
    with_others(scene, 2, |scene, others| {
        the_loss_of_the_first_is_outlived(scene)?;
        // The third is gone for good: its disk too.
        others.truncate(1);
        others.push(a_dead_machine_is_replaced(scene)?);
        the_loss_of_the_majority_is_mended(scene, others)
    })
}

/// Lets machines join the control plane, and does something with them.
fn with_others(
    scene: &mut Scene,
    count: usize,
    then: impl FnOnce(&mut Scene, &mut Vec<Machine>) -> Result<()>,
) -> Result<()> {
    // The next scenario knows one machine.
    let config = scene.cluster.directory().join("config.yaml");
    let known = fs::read(&config)?;
    let outcome = grow(scene, count).and_then(|mut others| then(scene, &mut others));
    fs::write(&config, known)?;
    outcome
}

/// One joins after the other, by the virtual address, which the first has taken when it was declared.
fn grow(scene: &Scene, count: usize) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    let declared = json!({ "spec": { "virtualAddress": { "address": Lan::VIRTUAL } } }).to_string();
    scene.cluster.kubectl_ok(&["patch", "clusters.garboard.dev", "cluster", "--type=merge", "-p", &declared])?;
    scene.cluster.wait_virtual_address(scene.virtual_port, "node-1")?;
    let endpoint = json!(format!("{}:6443", Lan::VIRTUAL));
    scene.cluster.wait_for(&["clusters.garboard.dev", "cluster"], "/status/endpoint", &endpoint, READY_LIMIT)?;
    for (name, place) in OTHERS.into_iter().zip(scene.places).take(count) {
        machines.push(join(scene, name, place)?);
    }
    // What a member says of itself may be from before the last election.
    wait::until("all to vote, and one to lead", READY_LIMIT, || {
        let members = scene.cluster.get(&["etcdmembers"]).map_err(|error| error.to_string())?;
        let of = |pointer: &str| -> Vec<Value> {
            let items = members["items"].as_array().into_iter().flatten();
            items.filter_map(|member| member.pointer(pointer).cloned()).collect()
        };
        let lead = of("/status/leader").iter().filter(|leads| **leads == json!(true)).count();
        let vote = of("/status/role") == vec![json!("Voter"); count + 1];
        if vote && lead == 1 { Ok(()) } else { Err(members.to_string()) }
    })?;
    // Every machine knows every API server.
    wait::until("every API server to be known", READY_LIMIT, || {
        let slice = scene.cluster.get(&["endpointslice", "kubernetes"]).map_err(|error| error.to_string())?;
        let served = slice["endpoints"].as_array().map_or(0, Vec::len);
        if served == count + 1 { Ok(()) } else { Err(slice.to_string()) }
    })?;
    Ok(machines)
}

/// Starts a machine that waits, and lets it into the control plane: the second by a claim, others by a Machine that says where they wait.
fn join(scene: &Scene, name: &str, place: Place) -> Result<Machine> {
    let hardware = Hardware { memory_mib: 2560, ..Hardware::default() };
    let mut machine = scene.another(name, place, hardware)?;
    machine.start()?;
    let joined = || {
        let (host, key) = machine.wait_waiting(READY_LIMIT)?;
        if name == OTHERS[0] {
            scene.claim(name, place, &key, &["--control-plane"])?;
        } else {
            scene.declare_waiting(name, place, "ControlPlane", &json!({ "host": host, "fingerprint": key }))?;
            scene.cluster.know(name, place.ports, &key)?;
        }
        scene.cluster.wait_for(&["etcdmember", name], "/status/role", &json!("Voter"), READY_LIMIT)?;
        scene.cluster.wait_condition(&["etcdmember", name], "Healthy", READY_LIMIT)?;
        scene.cluster.wait_condition(&["machine", name], "Ready", READY_LIMIT * 2)?;
        scene.cluster.wait_condition(&["node", name], "Ready", READY_LIMIT)
    };
    joined().with_context(|| format!("the console of {name} ends with:\n{}", machine.console_end()))?;
    Ok(machine)
}

/// Without the machine that founded it, the cluster works on: its API, its scheduler and its controllers.
fn the_loss_of_the_first_is_outlived(scene: &mut Scene) -> Result<()> {
    let [second, _] = scene.places;
    scene.machine.cut_power()?;
    wait::until("another API server to answer at the virtual address", READY_LIMIT, || {
        scene
            .cluster
            .kubectl_at(scene.virtual_port, &["get", "--raw", "/livez"])
            .map(drop)
            .map_err(|error| error.to_string())
    })?;
    let mut pod = sample_pod(&scene.cluster.sample_image()?, "survivor", &["serve", "--port", "8080"]);
    // That the first is gone becomes known by and by.
    pod["spec"]["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["node-2"] }] }],
    } } });
    let file = scene.folder().join("survivor.json");
    fs::write(&file, pod.to_string())?;
    let file = file.to_string_lossy().into_owned();
    wait::until("another API server to take a pod", READY_LIMIT, || {
        at(scene, second, &["apply", "-f", &file]).map(drop).map_err(|error| error.to_string())
    })?;
    let serves = "jsonpath={.status.phase}";
    wait::until("the pod to run", POD_LIMIT, || {
        let phase = at(scene, second, &["get", "pod", "survivor", "-o", serves]).map_err(|error| error.to_string())?;
        if phase == "Running" { Ok(()) } else { Err(phase) }
    })?;
    scene.machine.start()?;
    scene.wait_ready()?;
    scene.cluster.wait_condition(&["etcdmember", "node-1"], "Healthy", READY_LIMIT)
}

/// A machine that will not come back is let go by a deliberate act, and another takes its place.
fn a_dead_machine_is_replaced(scene: &Scene) -> Result<Machine> {
    give_up(scene, scene.places[0], OTHERS[1])?;
    join(scene, REPLACEMENT, scene.places[1])
}

/// Removes a machine that is dead.
fn give_up(scene: &Scene, place: Place, name: &str) -> Result<()> {
    at(scene, place, &["delete", "machine", name, "--wait=false"])?;
    at(scene, place, &["annotate", "machine", name, "garboard.dev/force-removal=true"])?;
    at(scene, place, &["wait", "--for=delete", &format!("machine/{name}"), &timeout()])?;
    // What belongs to a Machine goes after it.
    wait::until(&format!("nothing to be left of {name}"), POD_LIMIT, || {
        let left = at(scene, place, &["get", "etcdmembers,nodes", "-o", "name"]).map_err(|error| error.to_string())?;
        if left.lines().any(|line| line.ends_with(&format!("/{name}"))) { Err(left) } else { Ok(()) }
    })
}

/// With two of three gone nothing can be agreed on, until the one that is left makes the store anew with what it has.
fn the_loss_of_the_majority_is_mended(scene: &mut Scene, others: &mut [Machine]) -> Result<()> {
    let [second, _] = scene.places;
    at(scene, second, &["create", "configmap", "kept", "--from-literal=a=b"])?;
    scene.machine.cut_power()?;
    others.last_mut().context("a third machine")?.cut_power()?;
    wait::until("nothing to be agreed on", READY_LIMIT, || {
        match at(scene, second, &["create", "configmap", "lost", "--request-timeout=5s"]) {
            Ok(said) => Err(said),
            Err(_) => Ok(()),
        }
    })?;
    scene.cluster.garboardctl_ok(&["-m", OTHERS[0], "etcd", "restore", "--from-own-data", "--yes"])?;
    wait::until("what was agreed on to be there", READY_LIMIT, || {
        at(scene, second, &["get", "configmap", "kept"]).map(drop).map_err(|error| error.to_string())
    })?;
    for name in ["node-1", REPLACEMENT] {
        give_up(scene, second, name)?;
    }
    it_is_alone(scene)
}

/// What `kubectl` says, asked at the API server of a machine.
fn at(scene: &Scene, place: Place, arguments: &[&str]) -> Result<String> {
    scene.cluster.kubectl_at(place.ports.api, arguments)
}

/// The machine that founded the cluster is taken out of etcd too, and forgets the cluster; the one that is left goes on alone.
fn it_is_alone_when_the_first_leaves(scene: &mut Scene) -> Result<()> {
    let [second, _] = scene.places;
    at(scene, second, &["delete", "machine", "node-1", &timeout()])?;
    scene.machine.wait_off(READY_LIMIT)?;
    it_is_alone(scene)
}

/// The second machine is the whole cluster.
fn it_is_alone(scene: &Scene) -> Result<()> {
    let [second, _] = scene.places;
    scene.cluster.wait_virtual_address(scene.virtual_port, OTHERS[0])?;
    wait::until("the one that is left to be the whole control plane", READY_LIMIT, || {
        let seen = at(scene, second, &["get", "etcdmembers,machines,nodes", "-o", "name"]);
        let seen = seen.map_err(|error| error.to_string())?;
        let others = seen.lines().any(|line| !line.ends_with("/node-2"));
        if others || seen.lines().count() != 3 { Err(seen) } else { Ok(()) }
    })?;
    wait::until("it to be Ready", READY_LIMIT, || {
        let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let ready = at(scene, second, &["get", "machine", "node-2", "-o", ready]).map_err(|error| error.to_string())?;
        if ready == "True" { Ok(()) } else { Err(ready) }
    })
}

/// How long a removal may take, for `kubectl`.
fn timeout() -> String {
    format!("--timeout={}s", READY_LIMIT.as_secs())
}
