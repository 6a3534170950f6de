//! What strangers, pods and services may not do, and what a stolen disk does not tell.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use garboard_tests::cluster::sample_pod;
use serde_json::json;

use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready("security::strangers_and_privileged_pods_are_refused", strangers_and_privileged_pods_are_refused),
        on_ready("security::secrets_are_sealed_on_disk", secrets_are_sealed_on_disk),
        on_ready("security::services_have_few_rights", services_have_few_rights),
    ]
}

/// Services that never are root.
const UNPRIVILEGED: &[&str] =
    &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "operators", "dns", "bus", "balancer"];

/// Services whose programs may gain rights: what they start are containers, which have rules of their own.
const MAY_GAIN: &[&str] = &["containerd", "kubelet"];

/// Services that may make any system call: they mount, make namespaces or load modules.
const UNFILTERED: &[&str] = &["agent", "cni", "containerd", "devices", "kubelet"];

/// The one capability of an unprivileged service: cluster DNS listens on port 53.
const NET_BIND_SERVICE: u64 = 1 << 10;

fn strangers_and_privileged_pods_are_refused(scene: &mut Scene) -> Result<()> {
    let config = scene.cluster.directory().join("stranger");
    let server = format!("https://127.0.0.1:{}", scene.machine.ports().api);
    let stranger = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "stranger",
        "clusters": [{ "name": "it", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "stranger", "user": { "token": "none-that-was-given" } }],
        "contexts": [{ "name": "stranger", "context": { "cluster": "it", "user": "stranger" } }],
    });
    fs::write(&config, stranger.to_string()).context("write a stranger's kubeconfig")?;
    let config = config.to_str().context("the folder's path is not UTF-8")?;
    for path in ["/api/v1/nodes", "/apis", "/version", "/metrics"] {
        let answer = scene.cluster.kubectl(&["--kubeconfig", config, "get", "--raw", path])?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(!answer.status.success() && said.contains("Unauthorized"), "{path} for a stranger: {answer:?}");
    }

    let mut pod = sample_pod(&scene.cluster.sample_image()?, "privileged", &["sleep"]);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    let refused = scene.cluster.apply(&pod.to_string()).err().context("a privileged pod was admitted")?;
    ensure!(format!("{refused:#}").contains("violates PodSecurity \"baseline"), "{refused:#}");
    Ok(())
}

fn secrets_are_sealed_on_disk(scene: &mut Scene) -> Result<()> {
    let (open, secret) = ("said-in-the-open-0c1f", "kept-to-oneself-7a2e");
    let value = |value: &str| format!("--from-literal=value={value}");
    scene.cluster.kubectl_ok(&["create", "configmap", "open", &value(open)])?;
    scene.cluster.kubectl_ok(&["create", "secret", "generic", "sealed", &value(secret)])?;
    scene.cluster.start_intruder(POD_LIMIT)?;
    let count = |folder: &str, text: &str| -> Result<u64> {
        let (start, end) = text.split_at(text.len() / 2);
        let said = scene.cluster.intrude(&["count", &format!("/proc/1/root{folder}"), start, end])?;
        said.trim().parse().with_context(|| format!("{said:?} is no number"))
    };
    ensure!(count("/var/lib/etcd", open)? > 0, "what is no secret is not found in etcd's files either");
    ensure!(count("/var/lib/etcd", secret)? == 0, "a Secret lies open in etcd's files");
    let told = r#""resource":"secrets","namespace":"default","name":"sealed""#;
    ensure!(count("/var/log/audit", told)? > 0, "the audit log does not tell of the Secret");
    for text in [secret, &STANDARD.encode(secret)] {
        ensure!(count("/var/log", text)? == 0, "a Secret's value is in a log");
    }
    Ok(())
}

fn services_have_few_rights(scene: &mut Scene) -> Result<()> {
    scene.cluster.start_intruder(POD_LIMIT)?;
    for service in scene.cluster.services()? {
        let name = service["name"].as_str().context("a service without a name")?;
        let Some(pid) = service["pid"].as_u64().filter(|pid| *pid != 0) else { continue };
        let status = scene.cluster.intrude(&["cat", &format!("/proc/{pid}/status")])?;
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        let of = |field: &str| fields.get(field).copied().with_context(|| format!("{name}: no {field} in {status}"));
        let root = of("Uid")?.split_whitespace().any(|user| user == "0");
        ensure!(root != UNPRIVILEGED.contains(&name), "{name} runs as {}", of("Uid")?);
        if !root {
            let capabilities = u64::from_str_radix(of("CapEff")?, 16).context("CapEff is no number")?;
            let allowed = if name == "dns" { NET_BIND_SERVICE } else { 0 };
            ensure!(capabilities == allowed, "{name} has the capabilities {capabilities:#x}");
        }
        ensure!((of("NoNewPrivs")? == "1") != MAY_GAIN.contains(&name), "{name}: NoNewPrivs {}", of("NoNewPrivs")?);
        ensure!((of("Seccomp")? == "2") != UNFILTERED.contains(&name), "{name}: Seccomp {}", of("Seccomp")?);
    }
    Ok(())
}
