//! How long attaching a pod takes: our plugin and, in the same call, the reference plugins that Debian packages.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use garboard_tests::image::top;
use garboard_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::report::{Reference, Report};

/// Pods that are attached by each.
const PODS: usize = 30;
/// Longest time until our daemon is ready.
const DAEMON_LIMIT: Duration = Duration::from_secs(20);
/// Where Debian keeps the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// The network namespace that plays the machine.
const NODE: &str = "garboard-bench";

/// Times of ADD, ours and the reference's in turn.
///
/// # Errors
/// When a plugin fails, or this host cannot make network namespaces.
pub fn add(report: &mut Report) -> Result<()> {
    let node = Namespace::new(NODE)?;
    let ours = Ours::start(&node)?;
    let (mut own, mut reference) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        own.push(attach(&node, &format!("own-{number}"), |pod| ours.add(pod))?);
        reference.push(attach(&node, &format!("reference-{number}"), reference_add)?);
    }
    let beside = Reference::beside("bridge, host-local and portmap", &reference);
    report.add("cni: ADD", "ms", &own, beside);
    Ok(())
}

/// Runs `add` for a new pod and gives its time in milliseconds.
fn attach(node: &Namespace, name: &str, add: impl Fn(&Pod) -> Result<()>) -> Result<f64> {
    let namespace = Namespace::new(&format!("{NODE}-{name}"))?;
    let pod = Pod { node, namespace: &namespace, name };
    let start = Instant::now();
    add(&pod)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

struct Pod<'a> {
    node: &'a Namespace,
    namespace: &'a Namespace,
    name: &'a str,
}

impl Pod<'_> {
    /// Calls a plugin as a runtime does, in the machine's namespace.
    fn call(&self, plugin: &Path, config: &Value, socket: Option<&Path>) -> Result<Value> {
        let mut command = self.node.command(plugin);
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", self.name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", self.namespace.path())
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(socket) = socket {
            command.env("GARBOARD_CNI_SOCKET", socket);
        }
        let mut child = command.spawn().with_context(|| format!("run {}", plugin.display()))?;
        child.stdin.take().context("no pipe")?.write_all(config.to_string().as_bytes()).context("give the config")?;
        let output = child.wait_with_output().context("wait for the plugin")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {said}{}", plugin.display(), String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).with_context(|| format!("parse {said:?}"))
    }
}

/// What a runtime runs one after the other for each pod with the reference plugins.
fn reference_add(pod: &Pod) -> Result<()> {
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "ref0",
        "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.99.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": "/run/garboard-bench-reference" },
    });
    let result = pod.call(&Path::new(REFERENCE).join("bridge"), &bridge, None)?;
    let portmap = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "portmap", "prevResult": result,
        "runtimeConfig": { "portMappings": [] },
    });
    pod.call(&Path::new(REFERENCE).join("portmap"), &portmap, None).map(drop)
}

/// Our daemon in the machine's namespace.
struct Ours {
    program: PathBuf,
    folder: TempDir,
    daemon: Child,
}

impl Ours {
    fn start(node: &Namespace) -> Result<Self> {
        let program = top().join("target/image/programs/garboard-cni");
        let folder = tempfile::Builder::new().prefix("garboard-").tempdir().context("make a folder")?;
        let file = |name: &str| folder.path().join(name);
        let config = json!({ "podCIDRs": ["10.98.0.0/24"], "clusterCIDRs": ["10.98.0.0/16"] });
        fs::write(file("config.json"), config.to_string()).context("write config.json")?;
        let daemon = node
            .command(&program)
            .arg("daemon")
            .arg("--config")
            .arg(file("config.json"))
            .arg("--socket")
            .arg(file("cni.sock"))
            .arg("--state")
            .arg(file("state"))
            .arg("--networks")
            .arg(file("net.d"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start garboard-cni")?;
        let ours = Self { program, folder, daemon };
        wait::until("garboard-cni to be ready", DAEMON_LIMIT, || {
            let networks = ours.folder.path().join("net.d");
            let there = fs::read_dir(networks).is_ok_and(|mut files| files.next().is_some());
            if there { Ok(()) } else { Err("no network yet".to_owned()) }
        })?;
        Ok(ours)
    }

    fn add(&self, pod: &Pod) -> Result<()> {
        let config = json!({
            "cniVersion": "1.1.0", "name": "garboard", "type": "garboard", "runtimeConfig": { "portMappings": [] },
        });
        pod.call(&self.program, &config, Some(&self.folder.path().join("cni.sock"))).map(drop)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // It is over with the measurement either way.
        let _ = self.daemon.kill().and_then(|()| self.daemon.wait());
    }
}

/// A named network namespace that goes with this value.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Result<Self> {
        let made = Command::new("ip").args(["netns", "add", name]).status().context("run ip")?;
        ensure!(made.success(), "ip netns add {name}: {made}: measuring the plugin needs root");
        let namespace = Self(name.to_owned());
        let up = namespace.command("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
        ensure!(up.success(), "ip link set lo up: {up}");
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program.as_ref());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}
