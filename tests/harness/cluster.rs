//! The cluster in a machine, used as a person would: with `garboardctl` and `kubectl`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::image::Image;
use crate::lan::Lan;
use crate::machine::Ports;
use crate::wait::{self, Look};

/// Longest time from power-on to a Ready node that a test accepts: three times what is usual under emulation.
pub const READY_LIMIT: Duration = Duration::from_secs(300);

/// How long `kubectl` follows an object over one connection: a machine whose power is cut ends none.
const FOLLOW: Duration = Duration::from_secs(10);

/// The user's side of a cluster: manifests, keys, kubeconfig.
pub struct Cluster {
    image: Image,
    directory: PathBuf,
}

impl Cluster {
    /// Makes manifests and an admin key in `directory` with `garboardctl new`, for a machine that waits and has this `key`, or for one that
    /// is given its key with them.
    ///
    /// # Errors
    /// What `garboardctl` says.
    pub fn new(image: &Image, directory: &Path, ports: Ports, key: Option<&str>) -> Result<Self> {
        let cluster = Self::of_kubeconfig(image, directory);
        let output = Command::new(&image.garboardctl)
            .arg("new")
            .arg(directory)
            .args(["--name", "node-1"])
            .args(["--endpoint", &format!("127.0.0.1:{}", ports.machine)])
            .args(["--api-endpoint", &format!("127.0.0.1:{}", ports.api)])
            .args(key.map(|key| format!("--key={key}")))
            .stdin(Stdio::null())
            .output()
            .context("run garboardctl new")?;
        succeeded("garboardctl new", &output)?;
        cluster.write_manifests("")?;
        Ok(cluster)
    }

    /// A cluster that `kubectl` alone reaches, by the kubeconfig that is in `directory`.
    pub fn of_kubeconfig(image: &Image, directory: &Path) -> Self {
        Self { image: image.clone(), directory: directory.to_path_buf() }
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait_api_ready(&self, limit: Duration) -> Result<()> {
        wait::until("the API server to be ready", limit, || {
            self.kubectl_ok(&["get", "--raw", "/readyz"]).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Where its files are: manifests, keys, kubeconfig.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifests in one file, as the machine is given them.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests.yaml")
    }

    /// Joins the manifests into one file, with `more` documents after them.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write_manifests(&self, more: &str) -> Result<()> {
        let mut text = String::new();
        for name in ["cluster.yaml", "machine.yaml"] {
            let file = self.directory.join(name);
            text += &fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            text += "\n---\n";
        }
        fs::write(self.manifests(), text + more).context("write manifests.yaml")
    }

    /// Replaces the first `from` in one of its files, such as `machine.yaml`.
    ///
    /// # Errors
    /// When the file does not have it, or cannot be read or written.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let file = self.directory.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("read {name}"))?;
        let changed = text.replacen(from, to, 1);
        ensure!(changed != text, "{name} has no {from:?}:\n{text}");
        fs::write(&file, changed).with_context(|| format!("write {name}"))
    }

    /// Tells `garboardctl` of another machine.
    ///
    /// # Errors
    /// When config.yaml cannot be read or written.
    pub fn know(&self, name: &str, ports: Ports, key: &str) -> Result<()> {
        let file = self.directory.join("config.yaml");
        let text = fs::read_to_string(&file).context("read config.yaml")?;
        let entry = format!("- name: {name}\n  endpoint: \"127.0.0.1:{}\"\n  fingerprint: {key}\n", ports.machine);
        fs::write(&file, text + &entry).context("write config.yaml")
    }

    /// Runs `garboardctl` in this cluster's context.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is in the output.
    pub fn garboardctl(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.image.garboardctl)
            .arg("--config")
            .arg(&self.directory)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run garboardctl")
    }

    /// Runs `garboardctl` and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn garboardctl_ok(&self, arguments: &[&str]) -> Result<String> {
        succeeded(&format!("garboardctl {}", arguments.join(" ")), &self.garboardctl(arguments)?)
    }

    /// Fetches the kubeconfig, waiting for the machine to have one to give.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn fetch_kubeconfig(&self, limit: Duration) -> Result<()> {
        let file = self.kubeconfig();
        let file = file.to_str().context("the folder's path is not UTF-8")?;
        wait::until("a kubeconfig", limit, || {
            self.garboardctl_ok(&["kubeconfig", "--file", file]).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Where the kubeconfig is.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Runs `kubectl`.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is in the output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl_command(arguments).output().context("run kubectl")
    }

    /// A `kubectl` to be run by the caller.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.image.kubectl);
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--request-timeout=30s")
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs `kubectl` and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn kubectl_ok(&self, arguments: &[&str]) -> Result<String> {
        succeeded(&format!("kubectl {}", arguments.join(" ")), &self.kubectl(arguments)?)
    }

    /// The same, asked at the API server that a port of the host leads to.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_ok`].
    pub fn kubectl_at(&self, port: u16, arguments: &[&str]) -> Result<String> {
        let server = format!("--server=https://127.0.0.1:{port}");
        self.kubectl_ok(&[&[server.as_str()], arguments].concat())
    }

    /// Waits until the virtual address, which a port of the host leads to, is that of an API server, and a machine says that it has it.
    ///
    /// # Errors
    /// When it does not say so in time; with what it says.
    pub fn wait_virtual_address(&self, port: u16, machine: &str) -> Result<()> {
        wait::until("the virtual address", READY_LIMIT, || {
            let held = ["get", "machine", machine, "-o", "jsonpath={.status.virtualAddress}"];
            let held = self.kubectl_at(port, &held).map_err(|error| error.to_string())?;
            if held == Lan::VIRTUAL.to_string() { Ok(()) } else { Err(format!("{machine} holds {held:?}")) }
        })
    }

    /// An object, or a list of them, as JSON.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_ok`].
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl_ok(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("parse what kubectl printed")
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// What `kubectl apply` says.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.directory.join("apply.yaml");
        fs::write(&file, yaml).context("write apply.yaml")?;
        self.kubectl_ok(&["apply", "-f", file.to_str().context("the folder's path is not UTF-8")?])
    }

    /// Looks at an object, and again whenever it has changed, until it is as wanted; gives what the look found. Asking for it again and
    /// again would take of the processors that the machine runs on.
    ///
    /// # Errors
    /// When `limit` has passed: names `what` and the last thing seen.
    pub fn until<T>(
        &self,
        what: &str,
        object: &[&str],
        limit: Duration,
        mut look: impl FnMut(&Value) -> Look<T>,
    ) -> Result<T> {
        let start = Instant::now();
        wait::until(what, limit, || {
            let follow = FOLLOW.min(limit.saturating_sub(start.elapsed())).as_secs().max(1);
            let timeout = format!("--request-timeout={follow}s");
            let arguments = [&["get", "--watch", "-o", "json", &timeout], object].concat();
            let mut followed =
                Followed::start(self.kubectl_command(&arguments)).map_err(|error| format!("{error:#}"))?;
            let mut seen = None;
            while let Some(value) = followed.next() {
                match look(&value) {
                    Ok(wanted) => return Ok(wanted),
                    Err(other) => seen = Some(other),
                }
            }
            Err(seen.unwrap_or_else(|| followed.complaint()))
        })
    }

    /// Waits until an object's JSON pointer has this value.
    ///
    /// # Errors
    /// When it has not within `limit`; says what it had.
    pub fn wait_for(&self, object: &[&str], pointer: &str, wanted: &Value, limit: Duration) -> Result<Value> {
        self.until(&format!("{} {pointer} = {wanted}", object.join(" ")), object, limit, |seen| {
            let value = seen.pointer(pointer);
            if value == Some(wanted) { Ok(seen.clone()) } else { Err(format!("{value:?}")) }
        })
    }

    /// Waits until a condition of an object is `True`.
    ///
    /// # Errors
    /// When it is not within `limit`; says what it was, with reason and message.
    pub fn wait_condition(&self, object: &[&str], condition: &str, limit: Duration) -> Result<()> {
        self.until(&format!("{} {condition}", object.join(" ")), object, limit, |seen| {
            match condition_of(seen, condition) {
                Some(found) if found["status"] == "True" => Ok(()),
                Some(found) => match seen.pointer("/status/containerStatuses") {
                    Some(containers) => Err(format!("{found}; {containers}")),
                    None => Err(found.to_string()),
                },
                None => Err("no such condition yet".to_owned()),
            }
        })
    }

    /// Waits until a condition of an object has this reason.
    ///
    /// # Errors
    /// When it has not within `limit`; says what the condition was.
    pub fn wait_reason(&self, object: &[&str], condition: &str, reason: &str, limit: Duration) -> Result<Value> {
        self.until(&format!("{} {condition}: {reason}", object.join(" ")), object, limit, |seen| {
            match condition_of(seen, condition) {
                Some(found) if found["reason"] == reason => Ok(seen.clone()),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// Waits until an object exists.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait_exists(&self, object: &[&str], limit: Duration) -> Result<()> {
        self.until(&object.join(" "), object, limit, |_| Ok(()))
    }

    /// Waits until the node is Ready.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.wait_condition(&["node", "node-1"], "Ready", limit)
    }

    /// The name of the sample image that the machine holds.
    ///
    /// # Errors
    /// When `release.json` cannot be read.
    pub fn sample_image(&self) -> Result<String> {
        Ok(format!("garboard.dev/sample:{}", self.image.version()?))
    }

    /// Starts a pod that shares the machine's processes and may do anything to them.
    ///
    /// # Errors
    /// When it does not run within `limit`.
    pub fn start_intruder(&self, limit: Duration) -> Result<()> {
        self.start_privileged("intruder", &["sleep"], limit)
    }

    /// Starts such a pod, in `kube-system`, with a command of the sample program.
    ///
    /// # Errors
    /// When it does not run within `limit`.
    pub fn start_privileged(&self, name: &str, command: &[&str], limit: Duration) -> Result<()> {
        let mut pod = sample_pod(&self.sample_image()?, name, command);
        pod["spec"]["hostPID"] = json!(true);
        // As root, which the image's own user is not.
        pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true, "runAsUser": 0 });
        pod["metadata"]["namespace"] = json!("kube-system");
        self.apply(&pod.to_string())?;
        self.wait_condition(&["pod", name, "-n", "kube-system"], "Ready", limit)
    }

    /// Runs a command of the sample program in that pod.
    ///
    /// # Errors
    /// When it fails, or the answer is lost.
    pub fn intrude(&self, command: &[&str]) -> Result<String> {
        self.kubectl_ok(&[&["exec", "-n", "kube-system", "intruder", "--", "/sample"], command].concat())
    }

    /// Waits until a file of the machine, seen from that pod, holds this and nothing else but space around it.
    ///
    /// # Errors
    /// When it does not within `limit`; says what it held.
    pub fn wait_file(&self, path: &str, wanted: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("{path} to hold {wanted}"), limit, || {
            let content = self.intrude(&["cat", path]).map_err(|error| error.to_string())?;
            if content.trim() == wanted { Ok(()) } else { Err(content) }
        })
    }

    /// Waits until an Event has this reason.
    ///
    /// # Errors
    /// When there is none within `limit`; says which there are.
    pub fn wait_event(&self, reason: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("an Event {reason}"), limit, || {
            let events = self.kubectl_ok(&["get", "events", "-A"]).map_err(|error| error.to_string())?;
            if events.contains(reason) { Ok(()) } else { Err(events) }
        })
    }

    /// The machine's services by name, from the machine API.
    ///
    /// # Errors
    /// What `garboardctl` says.
    pub fn services(&self) -> Result<Vec<Value>> {
        self.list_services(&["services", "-o", "json"])
    }

    /// The same of one machine of several.
    ///
    /// # Errors
    /// What `garboardctl` says.
    pub fn services_of(&self, machine: &str) -> Result<Vec<Value>> {
        self.list_services(&["-m", machine, "services", "-o", "json"])
    }

    fn list_services(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.garboardctl_ok(arguments)?;
        let value: Value = serde_json::from_str(&text).context("parse what garboardctl printed")?;
        match value {
            Value::Array(services) => Ok(services),
            Value::Object(mut object) => match object.remove("services") {
                Some(Value::Array(services)) => Ok(services),
                other => bail!("no list of services: {other:?}"),
            },
            other => bail!("no list of services: {other}"),
        }
    }

    /// How often each of the machine's services was restarted.
    ///
    /// # Errors
    /// What `garboardctl` says.
    pub fn restarts(&self) -> Result<BTreeMap<String, i64>> {
        let restarts = |service: &Value| Some((service["name"].as_str()?.to_owned(), service["restarts"].as_i64()?));
        let services = self.services()?;
        services.iter().map(|service| restarts(service).with_context(|| format!("no restarts in {service}"))).collect()
    }
}

/// The condition of an object that has this type.
pub fn condition_of<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_)
}

/// A `kubectl` that prints objects one after the other; it ends when this is dropped.
struct Followed {
    kubectl: Child,
    printed:
        serde_json::StreamDeserializer<'static, serde_json::de::IoRead<BufReader<std::process::ChildStdout>>, Value>,
}

impl Followed {
    fn start(mut command: Command) -> Result<Self> {
        let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run kubectl")?;
        let stdout = kubectl.stdout.take().context("kubectl has no pipe")?;
        let printed = serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter();
        Ok(Self { kubectl, printed })
    }

    /// The next object; none when `kubectl` has ended.
    fn next(&mut self) -> Option<Value> {
        self.printed.next().and_then(Result::ok)
    }

    /// What `kubectl` said before it ended.
    fn complaint(mut self) -> String {
        let mut said = String::new();
        let read = self.kubectl.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        match read {
            Some(Ok(_)) => said.trim().to_owned(),
            other => format!("kubectl said nothing: {other:?}"),
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.kubectl.kill().ok();
        self.kubectl.wait().ok();
    }
}

/// A pod of the sample image that is not started again.
pub fn sample_pod(image: &str, name: &str, arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": name, "image": image, "args": arguments }],
        },
    })
}

fn succeeded(what: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
