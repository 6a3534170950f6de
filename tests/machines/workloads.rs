//! What people run on a cluster: Deployments, Services, names, logs, exec, updates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::sample_pod;
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready(
            "workloads::a_deployment_serves_through_its_service_and_name",
            a_deployment_serves_through_its_service_and_name,
        ),
        on_ready("workloads::an_update_rolls_out_and_is_undone", an_update_rolls_out_and_is_undone),
        on_ready("workloads::logs_exec_and_port_forward_work", logs_exec_and_port_forward_work),
        on_ready("workloads::names_resolve_as_the_specification_says", names_resolve_as_the_specification_says),
        on_ready("workloads::metrics_of_the_kubelet_are_served", metrics_of_the_kubelet_are_served),
        on_ready(
            "workloads::a_pod_that_eats_all_memory_takes_nothing_else_down",
            a_pod_that_eats_all_memory_takes_nothing_else_down,
        ),
    ]
}

/// A Deployment of the sample's web server with a Service in front of it.
fn web(scene: &Scene, replicas: u32) -> Result<String> {
    let image = scene.cluster.sample_image()?;
    let labels = json!({ "app": "web" });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [{
                        "name": "web", "image": image, "args": ["serve", "--port", "8080"],
                        "ports": [{ "containerPort": 8080 }],
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": labels, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    });
    Ok(format!("{deployment}\n---\n{service}\n"))
}

/// A pod to run commands in.
fn client(scene: &Scene) -> Result<()> {
    scene.cluster.apply(&sample_pod(&scene.cluster.sample_image()?, "client", &["sleep"]).to_string())?;
    scene.cluster.wait_condition(&["pod", "client"], "Ready", POD_LIMIT)
}

fn in_client(scene: &Scene, arguments: &[&str]) -> Result<String> {
    scene.cluster.kubectl_ok(&[&["exec", "client", "--", "/sample"], arguments].concat())
}

pub fn a_deployment_serves_through_its_service_and_name(scene: &mut Scene) -> Result<()> {
    scene.cluster.apply(&web(scene, 2)?)?;
    client(scene)?;
    scene.cluster.wait_for(&["deployment", "web"], "/status/readyReplicas", &json!(2), POD_LIMIT)?;
    let address =
        scene.cluster.get(&["service", "web"])?["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    for url in
        [format!("http://{address}/"), "http://web/".to_owned(), "http://web.default.svc.cluster.local/".to_owned()]
    {
        wait::until(&format!("{url} to answer"), POD_LIMIT, || {
            let page = in_client(scene, &["get", &url]).map_err(|error| error.to_string())?;
            if page.contains("web-") { Ok(()) } else { Err(page) }
        })?;
    }
    Ok(())
}

fn an_update_rolls_out_and_is_undone(scene: &mut Scene) -> Result<()> {
    scene.cluster.apply(&web(scene, 2)?)?;
    let rolled = ["rollout", "status", "deployment/web", "--timeout=180s"];
    scene.cluster.kubectl_ok(&rolled)?;
    let image_of = |scene: &Scene| -> Result<Value> {
        Ok(scene.cluster.get(&["deployment", "web"])?["spec"]["template"]["spec"]["containers"][0]["args"].clone())
    };
    let before = image_of(scene)?;
    let patch = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/args","value":["serve","--port","8080","--grace","1"]}]"#;
    scene.cluster.kubectl_ok(&["patch", "deployment", "web", "--type=json", "-p", patch])?;
    scene.cluster.kubectl_ok(&rolled)?;
    ensure!(image_of(scene)? != before, "the update changed nothing");
    scene.cluster.kubectl_ok(&["rollout", "undo", "deployment/web"])?;
    scene.cluster.kubectl_ok(&rolled)?;
    ensure!(image_of(scene)? == before, "undo did not bring back the first version");
    Ok(())
}

fn logs_exec_and_port_forward_work(scene: &mut Scene) -> Result<()> {
    scene.cluster.apply(&web(scene, 1)?)?;
    scene.cluster.wait_for(&["deployment", "web"], "/status/readyReplicas", &json!(1), POD_LIMIT)?;
    let logs = scene.cluster.kubectl_ok(&["logs", "deployment/web"])?;
    ensure!(!logs.trim().is_empty(), "the sample's server logged nothing");
    let own =
        scene.cluster.kubectl_ok(&["exec", "deployment/web", "--", "/sample", "get", "http://127.0.0.1:8080/"])?;
    ensure!(own.contains("web-"), "exec saw another page: {own}");
    let port = garboard_tests::machine::Ports::free()?.api;
    let mut forward = scene.cluster.kubectl_command(&["port-forward", "service/web", &format!("{port}:80")]).spawn()?;
    let answered =
        wait::until("the forwarded port to answer", POD_LIMIT, || http_get(port).map_err(|error| error.to_string()));
    forward.kill()?;
    forward.wait()?;
    let page = answered?;
    ensure!(page.contains("web-"), "the forwarded port served another page: {page}");
    Ok(())
}

fn http_get(port: u16) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    if page.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(page) }
}

fn names_resolve_as_the_specification_says(scene: &mut Scene) -> Result<()> {
    scene.cluster.apply(&web(scene, 1)?)?;
    client(scene)?;
    let address =
        scene.cluster.get(&["service", "web"])?["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    let reversed: Vec<&str> = address.split('.').rev().collect();
    let reverse = format!("{}.in-addr.arpa.", reversed.join("."));
    let questions = [
        ("web.default.svc.cluster.local.", "A", address.as_str()),
        ("_http._tcp.web.default.svc.cluster.local.", "SRV", "web.default.svc.cluster.local"),
        (reverse.as_str(), "PTR", "web.default.svc.cluster.local"),
        ("kubernetes.default.svc.cluster.local.", "A", "10.96.0.1"),
    ];
    for (name, kind, expected) in questions {
        wait::until(&format!("{kind} of {name}"), POD_LIMIT, || {
            let answer = in_client(scene, &["resolve", name, kind]).map_err(|error| error.to_string())?;
            if answer.contains(expected) { Ok(()) } else { Err(answer) }
        })?;
    }
    let missing = in_client(scene, &["resolve", "absent.default.svc.cluster.local.", "A"]);
    ensure!(missing.is_err(), "a name that does not exist was answered: {missing:?}");
    Ok(())
}

fn metrics_of_the_kubelet_are_served(scene: &mut Scene) -> Result<()> {
    let metrics = scene.cluster.kubectl_ok(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/resource"])?;
    ensure!(metrics.contains("node_memory_working_set_bytes"), "{metrics}");
    Ok(())
}

fn a_pod_that_eats_all_memory_takes_nothing_else_down(scene: &mut Scene) -> Result<()> {
    let before = scene.cluster.restarts()?;
    let eater = sample_pod(&scene.cluster.sample_image()?, "eater", &["eat", "8192"]);
    scene.cluster.apply(&eater.to_string())?;
    scene.cluster.until("the pod to be killed for its memory", &["pod", "eater"], POD_LIMIT, |pod| {
        let status = &pod["status"];
        let text = status.to_string();
        if text.contains("OOMKilled") || status["reason"] == "Evicted" || text.contains("\"exitCode\":137") {
            Ok(())
        } else {
            Err(text)
        }
    })?;
    let after = scene.cluster.restarts()?;
    ensure!(before == after, "services went down: {before:?}, now {after:?}");
    scene.cluster.wait_ready(POD_LIMIT)
}
