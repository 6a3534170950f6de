//! What strangers, pods and services may not do, and what a stolen disk does not tell.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use serde_json::json;

use crate::scene::{Scene, on_ready, sample_pod};

pub fn scenarios() -> Vec<Trial> {
    vec![
        on_ready("security::strangers_and_privileged_pods_are_refused", strangers_and_privileged_pods_are_refused),
        on_ready("security::secrets_are_sealed_on_disk", secrets_are_sealed_on_disk),
        on_ready("security::services_have_few_rights", services_have_few_rights),
    ]
}

/// Services that never are root.
const UNPRIVILEGED: &[&str] =
    &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "operators", "dns", "bus"];

/// Services that make containers, or are PID 1's own: the only ones whose programs may gain rights.
const TRUSTED: &[&str] = &["agent", "containerd", "kubelet"];

fn strangers_and_privileged_pods_are_refused(scene: &mut Scene) -> Result<()> {
    let config = scene.cluster.directory().join("stranger");
    let server = format!("https://127.0.0.1:{}", scene.machine.ports().api);
    let stranger = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "stranger",
        "clusters": [{ "name": "it", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "contexts": [{ "name": "stranger", "context": { "cluster": "it", "user": "" } }],
    });
    fs::write(&config, stranger.to_string()).context("write a stranger's kubeconfig")?;
    let config = config.to_str().context("the folder's path is not UTF-8")?;
    let ask = |path: &str| scene.cluster.kubectl(&["--kubeconfig", config, "get", "--raw", path]);
    let health = ask("/readyz")?;
    ensure!(health.stdout == b"ok", "health is not for everybody: {health:?}");
    for path in ["/api/v1/nodes", "/apis", "/version", "/metrics"] {
        let answer = ask(path)?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!(!answer.status.success() && said.contains("Unauthorized"), "{path} for a stranger: {answer:?}");
    }

    let mut pod = sample_pod(&scene.sample_image()?, "privileged", &["sleep"]);
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
    scene.start_intruder()?;
    let count = |text: &str, folder: &str| -> Result<u64> {
        let said = scene.intrude(&["count", text, &format!("/proc/1/root{folder}")])?;
        said.trim().parse().with_context(|| format!("{said:?} is no number"))
    };
    let encoded = STANDARD.encode(secret);
    ensure!(count(open, "/var/lib/etcd")? > 0, "what is no secret is not found in etcd's files either");
    ensure!(count(secret, "/var/lib/etcd")? == 0, "a Secret lies open in etcd's files");
    ensure!(count("secrets/sealed", "/var/log/audit")? > 0, "the audit log does not tell of the Secret");
    for text in [secret, &encoded] {
        ensure!(count(text, "/var/log")? == 0, "a Secret's value is in a log");
    }
    Ok(())
}

fn services_have_few_rights(scene: &mut Scene) -> Result<()> {
    scene.start_intruder()?;
    for service in scene.cluster.services()? {
        let name = service["name"].as_str().context("a service without a name")?;
        let Some(pid) = service["pid"].as_u64().filter(|pid| *pid != 0) else { continue };
        let status = scene.intrude(&["cat", &format!("/proc/{pid}/status")])?;
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        let of = |field: &str| fields.get(field).copied().with_context(|| format!("{name}: no {field} in {status}"));
        let root = of("Uid")?.split_whitespace().any(|user| user == "0");
        ensure!(root != UNPRIVILEGED.contains(&name), "{name} runs as {}", of("Uid")?);
        if !root {
            ensure!(of("CapEff")?.trim_start_matches('0').is_empty() || name == "dns", "{name} has {}", of("CapEff")?);
        }
        ensure!(of("NoNewPrivs")? == "1" || TRUSTED.contains(&name), "{name} may gain rights");
        ensure!(of("Seccomp")? == "2" || TRUSTED.contains(&name) || name == "cni", "{name} may make any system call");
    }
    Ok(())
}
