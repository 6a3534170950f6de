//! Machines that join a cluster.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::{READY_LIMIT, condition_of, sample_pod};
use garboard_tests::lan::Lan;
use garboard_tests::machine::{Hardware, Machine};
use garboard_tests::wait;
use serde_json::json;

use crate::rollout;
use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

/// The worker's name.
const WORKER: &str = "node-2";

pub fn scenarios() -> Vec<Scenario> {
    vec![on_ready("joining::a_worker_joins_by_one_resource", a_worker_joins_by_one_resource)]
}

fn a_worker_joins_by_one_resource(scene: &mut Scene) -> Result<()> {
    // The next scenario knows one machine.
    let config = scene.cluster.directory().join("config.yaml");
    let known = fs::read(&config)?;
    let stale = token(scene, WORKER, &["--valid", "60"])?;
    let outcome = join(scene).and_then(|mut worker| {
        let machine = scene.cluster.get(&["machine", WORKER])?;
        ensure!(machine["status"]["role"] == "Worker", "{machine}");
        ensure!(machine["status"]["identityKey"] == "TPM", "{machine}");
        it_runs_what_a_worker_needs(scene)?;
        pods_reach_each_other_across_machines(scene)?;
        one_that_does_not_wait_is_not_told(scene)?;
        another_of_its_name_is_refused(scene, &stale)?;
        rollout::a_pool_stops_at_a_change_that_fails(scene, ["node-1", WORKER])?;
        it_works_on_while_the_control_plane_is_away(scene, &mut worker)?;
        it_leaves_when_its_machine_is_deleted(scene, &mut worker)
    });
    fs::write(&config, known)?;
    outcome
}

/// Declares a worker by the hardware address and the TPM that it will have, starts it without anything, and waits until it belongs to
/// the cluster.
fn join(scene: &Scene) -> Result<Machine> {
    let place = scene.places[0];
    let hardware = Hardware { memory_mib: 2048, tpm: true, ..Hardware::default() };
    let mut worker = scene.another(WORKER, place, hardware)?;
    let waiting = json!({ "macAddress": place.mac_address(), "endorsementKey": worker.endorsement_key()? });
    scene.declare_waiting(WORKER, place, "Worker", &waiting)?;
    let told = ["machine", WORKER];
    scene.cluster.wait_for(&told, "/status/conditions/0/reason", &json!("NotFound"), POD_LIMIT)?;
    worker.start()?;
    let ready = || {
        let (_, key) = worker.wait_waiting(READY_LIMIT)?;
        scene.cluster.know(WORKER, place.ports, &key)?;
        scene.cluster.wait_condition(&told, "HandedOver", READY_LIMIT)?;
        scene.cluster.wait_condition(&["machine", WORKER], "Ready", READY_LIMIT)?;
        scene.cluster.wait_condition(&["node", WORKER], "Ready", READY_LIMIT)
    };
    ready().with_context(|| format!("the worker's console ends with:\n{}", worker.console_end()))?;
    Ok(worker)
}

/// It is said why, and what is declared can be withdrawn.
fn one_that_does_not_wait_is_not_told(scene: &Scene) -> Result<()> {
    let fingerprint = &scene.cluster.get(&["machine", "node-1"])?["status"]["fingerprint"];
    let ghost = "ghost";
    let waiting = json!({ "host": Lan::FIRST, "fingerprint": fingerprint });
    scene.declare_waiting(ghost, scene.places[1], "Worker", &waiting)?;
    scene.cluster.wait_for(&["machine", ghost], "/status/conditions/0/reason", &json!("NotWaiting"), POD_LIMIT)?;
    scene.cluster.kubectl_ok(&["delete", "machine", ghost, &format!("--timeout={}s", POD_LIMIT.as_secs())]).map(drop)
}

/// A token that `garboardctl` makes for a machine. Nothing else stays of what it makes.
fn token(scene: &Scene, name: &str, more: &[&str]) -> Result<String> {
    let config = scene.cluster.directory().join("config.yaml");
    let known = fs::read(&config)?;
    let (file, _) = scene.join(name, scene.places[1], more)?;
    let token = token_of(&fs::read_to_string(&file)?)?.to_owned();
    fs::remove_file(file)?;
    fs::write(&config, known)?;
    Ok(token)
}

/// The token among manifests.
fn token_of(manifests: &str) -> Result<&str> {
    let token = manifests.lines().find_map(|line| line.strip_prefix("  token: "));
    token.context("the manifests have no token")
}

/// A token for the worker that a key was shown with.
fn served_token(scene: &Scene) -> Result<String> {
    let field = |name: &str| format!("{{{{index .data {name:?} | base64decode}}}}");
    let token = format!(
        "go-template={{{{range .items}}}}{}.{} {} {{{{.metadata.annotations}}}}\n{{{{end}}}}",
        field("token-id"),
        field("token-secret"),
        field("auth-extra-groups"),
    );
    let tokens = ["get", "secrets", "-n", "kube-system", "--field-selector=type=bootstrap.kubernetes.io/token"];
    let tokens = scene.cluster.kubectl_ok(&[&tokens[..], &["-o", &token]].concat())?;
    let served = |line: &&str| line.contains(&format!(":{WORKER} ")) && line.contains("garboard.dev/key");
    let token = tokens.lines().find(served).and_then(|line| line.split(' ').next());
    token.map(str::to_owned).with_context(|| format!("no token of {WORKER} has served:\n{tokens}"))
}

/// With a token whose time is over, that of another machine, or one that has served; it tells why, and takes another. With a token that
/// counts the name is still the first's, whose Machine says so too, and goes on.
fn another_of_its_name_is_refused(scene: &Scene, stale: &str) -> Result<()> {
    let object = ["machine", WORKER];
    let before = scene.cluster.get(&object)?["status"].clone();
    let id = before["machineID"].as_str().context("the worker has no id")?;
    let place = scene.places[1];
    let mut another = scene.another("another", place, Hardware { memory_mib: 1024, ..Hardware::default() })?;
    another.start()?;
    let stolen = token(scene, "node-9", &[])?;
    let served = served_token(scene)?;
    let (_, key) = another.wait_waiting(READY_LIMIT)?;
    // Whoever makes manifests of this name again does not know of the first.
    let config = scene.cluster.directory().join("config.yaml");
    let known = fs::read(&config)?;
    scene.cluster.edit("config.yaml", &format!("name: {WORKER}"), "name: first")?;
    let (file, told) = scene.join(WORKER, place, &[&format!("--key={key}")])?;
    ensure!(told.contains(&format!("The node {WORKER} is Ready")), "{told}");
    let manifests = fs::read_to_string(&file)?;
    let own = token_of(&manifests)?;
    let claims = || {
        let tokens = [
            ("claim", stale, "it has expired"),
            ("claim", &stolen, "node-9 may ask for"),
            // Its manifests say who may, until it knows its cluster.
            ("apply", &served, id),
            ("apply", own, id),
        ];
        let mut before = String::new();
        for (verb, token, said) in tokens {
            fs::write(&file, manifests.replace(own, token))?;
            scene.cluster.garboardctl_ok(&["-m", WORKER, verb, "-f", &file.to_string_lossy()])?;
            before = wait::until(&format!("the machine to say {said:?}"), POD_LIMIT, || {
                let status = scene.cluster.garboardctl_ok(&["-m", WORKER, "status"]);
                let status = status.map_err(|error| error.to_string())?;
                // The same answer is to another request.
                let now = status.lines().find(|line| line.contains("join: ") && line.contains(said));
                now.map(str::to_owned).filter(|now| *now != before).ok_or(status)
            })?;
        }
        // On its screen too.
        another.wait_console(id, POD_LIMIT)?;
        let log = scene.cluster.garboardctl_ok(&["-m", WORKER, "logs", "agent"])?;
        ensure!(!log.contains(&stolen) && !log.contains(own), "a token is in the log:\n{log}");
        anyhow::Ok(())
    };
    claims().with_context(|| format!("the other machine's console ends with:\n{}", another.console_end()))?;
    fs::write(&config, known)?;
    fs::remove_file(&file)?;
    let refused = scene.cluster.wait_reason(&object, "Undisputed", "AnotherMachine", READY_LIMIT)?;
    let message = condition_of(&refused, "Undisputed").map(|told| told["message"].to_string()).unwrap_or_default();
    ensure!(message.contains(&place.address.to_string()), "{message}");
    scene.cluster.wait_event("AnotherMachineRefused", POD_LIMIT)?;
    let after = &refused["status"];
    for field in ["bootID", "machineID", "phase"] {
        ensure!(before[field] == after[field], "{field}: {} and then {}", before[field], after[field]);
    }
    Ok(())
}

fn it_runs_what_a_worker_needs(scene: &Scene) -> Result<()> {
    let services = scene.cluster.services_of(WORKER)?;
    let names: Vec<_> = services.iter().filter_map(|service| service["name"].as_str()).collect();
    for absent in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "operators"] {
        ensure!(!names.contains(&absent), "a worker runs {absent}");
    }
    // It has no cluster's keys, and says who has.
    let refused = scene.cluster.garboardctl(&["-m", WORKER, "kubeconfig", "--file", "-"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("ask a control-plane machine"), "{said}");
    Ok(())
}

/// A pod of the sample on a node: with arguments, and a label by its name.
fn pod_on(scene: &Scene, node: &str, name: &str, arguments: &[&str]) -> Result<()> {
    let mut pod = sample_pod(&scene.cluster.sample_image()?, name, arguments);
    pod["spec"]["nodeName"] = json!(node);
    pod["metadata"]["labels"] = json!({ "app": name });
    scene.cluster.apply(&pod.to_string())?;
    scene.cluster.wait_condition(&["pod", name], "Ready", POD_LIMIT)
}

fn service(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    })
    .to_string()
}

fn pods_reach_each_other_across_machines(scene: &Scene) -> Result<()> {
    for (node, name) in [("node-1", "here"), (WORKER, "there")] {
        pod_on(scene, node, name, &["serve", "--port", "8080"])?;
        scene.cluster.apply(&service(name))?;
    }
    // By name: so each asks the cluster DNS of its own machine, too.
    for (from, to) in [("here", "there"), ("there", "here"), ("there", "there")] {
        let url = format!("http://{to}.default.svc.cluster.local/");
        wait::until(&format!("{from} to reach {to}"), POD_LIMIT, || {
            let page = scene.cluster.kubectl_ok(&["exec", from, "--", "/sample", "get", &url]);
            let page = page.map_err(|error| error.to_string())?;
            if page.contains(to) { Ok(()) } else { Err(page) }
        })?;
    }
    let logs = scene.cluster.kubectl_ok(&["logs", "there"])?;
    ensure!(!logs.trim().is_empty(), "the pod on the worker logged nothing");
    Ok(())
}

/// Without any API server a worker starts again with what it knows, and its cluster finds it again.
fn it_works_on_while_the_control_plane_is_away(scene: &mut Scene, worker: &mut Machine) -> Result<()> {
    let before = scene.cluster.get(&["machine", WORKER])?["status"]["bootID"].clone();
    scene.machine.cut_power()?;
    worker.cut_power()?;
    worker.start()?;
    wait::until("the worker's kubelet", READY_LIMIT, || {
        let services = scene.cluster.services_of(WORKER).map_err(|error| error.to_string())?;
        let kubelet = services.iter().find(|service| service["name"] == "kubelet");
        let runs = kubelet.is_some_and(|kubelet| kubelet["state"] == "Running");
        if runs { Ok(()) } else { Err(format!("{services:?}")) }
    })
    .with_context(|| format!("the worker's console ends with:\n{}", worker.console_end()))?;
    scene.machine.start()?;
    scene.wait_ready()?;
    let limit = READY_LIMIT + Duration::from_secs(60);
    scene.cluster.until("the worker to tell of its new start", &["machine", WORKER], limit, |machine| {
        let after = &machine["status"]["bootID"];
        if *after != before { Ok(()) } else { Err(after.to_string()) }
    })?;
    scene.cluster.wait_condition(&["node", WORKER], "Ready", READY_LIMIT)
}

/// Its pods go, then its node, then the machine itself; and it does not come back by what it once had.
fn it_leaves_when_its_machine_is_deleted(scene: &Scene, worker: &mut Machine) -> Result<()> {
    pod_on(scene, WORKER, "guest", &["sleep"])?;
    let limit = READY_LIMIT.as_secs();
    scene.cluster.kubectl_ok(&["delete", "machine", WORKER, &format!("--timeout={limit}s")])?;
    worker
        .wait_off(READY_LIMIT)
        .with_context(|| format!("the worker's console ends with:\n{}", worker.console_end()))?;
    for (kind, name) in [("node", WORKER), ("pod", "guest")] {
        let found = scene.cluster.kubectl_ok(&["get", kind, name, "--ignore-not-found", "-o", "name"])?;
        ensure!(found.is_empty(), "{found} is still there");
    }
    worker.start()?;
    worker.wait_waiting(READY_LIMIT).map(drop)
}
