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

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready("control_plane::a_second_machine_takes_over_from_the_first", a_second_machine_takes_over),
        // Three API servers on two emulated processors take a quarter of an hour.
        on_ready("control_plane::three_machines_outlive_the_loss_of_the_first", three_machines_outlive_a_loss)
            .ignored(is_emulated()),
    ]
}

fn a_second_machine_takes_over(scene: &mut Scene) -> Result<()> {
    with_others(scene, 1, |scene, _| it_is_alone_when_the_first_leaves(scene))
}

fn three_machines_outlive_a_loss(scene: &mut Scene) -> Result<()> {
    with_others(scene, 2, |scene, others| {
        the_loss_of_the_first_is_outlived(scene)?;
        let third = others.last_mut().context("a third machine")?;
        at(scene, scene.places[0], &["delete", "machine", OTHERS[1], &timeout()])?;
        third.wait_off(READY_LIMIT).with_context(|| format!("the console of node-3:\n{}", third.console_end()))?;
        it_is_alone_when_the_first_leaves(scene)
    })
}

/// Lets machines join the control plane, and does something with them.
fn with_others(
    scene: &mut Scene,
    count: usize,
    then: impl FnOnce(&mut Scene, &mut [Machine]) -> Result<()>,
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
        machines.push(machine);
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

/// What `kubectl` says, asked at the API server of a machine.
fn at(scene: &Scene, place: Place, arguments: &[&str]) -> Result<String> {
    scene.cluster.kubectl_at(place.ports.api, arguments)
}

/// The machine that founded the cluster is taken out of etcd too, and forgets the cluster; the one that is left goes on alone.
fn it_is_alone_when_the_first_leaves(scene: &mut Scene) -> Result<()> {
    let [second, _] = scene.places;
    at(scene, second, &["delete", "machine", "node-1", &timeout()])?;
    scene.machine.wait_off(READY_LIMIT)?;
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
