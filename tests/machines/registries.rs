//! Images that come from a registry of the user's own.

use anyhow::{Context, Result};
use garboard_tests::cluster::{READY_LIMIT, sample_pod};
use garboard_tests::image::Image;
use garboard_tests::registry::{self, Registry};
use serde_json::{Value, json};

use crate::scene::{POD_LIMIT, Scenario, Scene, on_ready};

/// What references of images name, and nobody answers for.
const HOST: &str = "registry.example";
const MACHINE: [&str; 2] = ["machine", "node-1"];

pub fn scenarios() -> Vec<Scenario> {
    vec![on_ready("registries::a_mirror_is_asked_as_the_user_that_is_declared", a_mirror_is_asked)]
}

fn a_mirror_is_asked(scene: &mut Scene) -> Result<()> {
    let registry = Registry::start(&scene.folder().join("registry"))?;
    registry.push(&Image::latest()?.sample(), "team/sample", "1")?;
    let pulls = || {
        let mut declared = json!({ "host": HOST, "mirrors": [registry.url()], "ca": registry.authority()? });
        declare(scene, &declared)?;
        pull(scene, "stranger")?;
        scene.cluster.until("the registry to refuse a stranger", &["pod", "stranger"], POD_LIMIT, |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            if waiting.to_string().contains("no basic auth credentials") { Ok(()) } else { Err(waiting.to_string()) }
        })?;

        let (user, password) = (registry::USER, registry::PASSWORD);
        let login = [format!("--docker-username={user}"), format!("--docker-password={password}")];
        let secret = ["create", "secret", "docker-registry", "login", "-n", "garboard-registries", "--docker-server"];
        scene.cluster.kubectl_ok(&[&secret[..], &[HOST, &login[0], &login[1]]].concat())?;
        declared["credentials"] = json!({ "secretName": "login" });
        declare(scene, &declared)?;
        pull(scene, "guest")?;
        scene.cluster.wait_condition(&["pod", "guest"], "Ready", POD_LIMIT)
    };
    pulls().with_context(|| format!("the registry has logged:\n{}", registry.log()))
}

/// Declares the one registry, and waits until that has proved itself.
fn declare(scene: &Scene, registry: &Value) -> Result<()> {
    let patch = json!({ "spec": { "registries": [registry] } }).to_string();
    scene.cluster.kubectl_ok(&["patch", MACHINE[0], MACHINE[1], "--type=merge", "-p", &patch])?;
    scene.cluster.wait_for(&MACHINE, "/status/effective/spec/registries/0", registry, READY_LIMIT)?;
    scene.cluster.wait_condition(&MACHINE, "ChangeProved", READY_LIMIT)?;
    scene.cluster.wait_condition(&MACHINE, "RegistriesReady", READY_LIMIT)
}

/// Starts a pod of the image, which is in the registry alone.
fn pull(scene: &Scene, name: &str) -> Result<()> {
    let mut pod = sample_pod(&format!("{HOST}/team/sample:1"), name, &["serve", "--port", "8080"]);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    scene.cluster.apply(&pod.to_string()).map(drop)
}
