//! Simulated machines: their Machines and Nodes, and what their agents and kubelets would write of them.
//!
//! All of them are one client of the API server, where real ones would be as many. What the operators see of them is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::stream::{self, FuturesUnordered};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How long a template proves itself on a machine.
const TRIAL: Duration = Duration::from_secs(1);
/// Requests at a time where many are due.
const AT_ONCE: usize = 16;
/// Pools beside the one that has every second machine.
const SMALL_POOLS: usize = 10;
/// What most machines of a pool that is rolled out may be at a time.
const MAX_UNAVAILABLE: &str = "10%";
/// Time between two reports of a kubelet that has nothing new to say (Kubernetes: nodeStatusReportFrequency).
const HEARTBEAT: Duration = Duration::from_secs(300);
const FIELD_MANAGER: &str = "garboard-agent";

/// The machines.
pub struct Fleet {
    machines: Api<DynamicObject>,
    /// The same, of which only the metadata is looked at.
    there: Api<PartialObjectMeta<DynamicObject>>,
    pools: Api<DynamicObject>,
    nodes: Api<Node>,
    state: Mutex<State>,
    /// Told of each change of the state.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What each machine is, by its name.
    members: BTreeMap<String, Member>,
    /// The pools as the API server has them.
    pools: BTreeMap<String, DynamicObject>,
    /// The Machines there, and whether the operators keep them.
    there: BTreeMap<String, bool>,
}

/// What a machine tells of itself.
#[derive(Clone)]
struct Member {
    number: usize,
    pool: String,
    /// The generation of the pool that it follows.
    follows: i64,
    trial: Option<&'static str>,
    restarts: u32,
}

impl Fleet {
    /// Pools for so many machines, and the machines.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn create(client: &Client, machines: usize) -> Result<Self> {
        let [machine, pool] = ["Machine", "MachinePool"]
            .map(|kind| ApiResource::from_gvk(&GroupVersionKind::gvk("garboard.dev", "v1alpha1", kind)));
        let fleet = Self {
            machines: Api::all_with(client.clone(), &machine),
            there: Api::all_with(client.clone(), &machine),
            pools: Api::all_with(client.clone(), &pool),
            nodes: Api::all(client.clone()),
            state: Mutex::default(),
            changed: Notify::new(),
        };
        for number in 0..=SMALL_POOLS {
            let name = pool_name(number);
            let spec = json!({
                "selector": { "matchLabels": { "pool": name } },
                "rollout": { "maxUnavailable": MAX_UNAVAILABLE },
                "template": template(0),
            });
            let pool = object("MachinePool", &name, json!({}), spec)?;
            let pool = fleet.pools.create(&PostParams::default(), &pool).await.context("make a pool")?;
            fleet.state().pools.insert(name, pool);
        }
        stream::iter(0..machines).map(Ok).try_for_each_concurrent(AT_ONCE, |number| fleet.join(number)).await?;
        Ok(fleet)
    }

    /// Does what agents do by themselves, which is to follow their pools; ends only with what fails.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn run(&self) -> Result<()> {
        let pools = garboard_api_client::uninterrupted(
            "pool",
            watcher::watcher(self.pools.clone(), watcher::Config::default()),
        );
        let machines = garboard_api_client::uninterrupted(
            "machine",
            watcher::watcher(self.there.clone(), watcher::Config::default()),
        );
        let (mut pools, mut machines, mut trials) = (pin!(pools), pin!(machines), FuturesUnordered::new());
        loop {
            // Each arm is cancel-safe: streams keep what they have.
            tokio::select! {
                Some(event) = pools.next() => {
                    let (Event::Apply(pool) | Event::InitApply(pool)) = event else { continue };
                    trials.extend(self.begin(&pool).into_iter().map(|(name, generation)| self.prove(name, generation)));
                    self.state().pools.insert(pool.name_any(), pool);
                }
                Some(event) = machines.next() => match event {
                    Event::Apply(machine) | Event::InitApply(machine) => {
                        let kept = !machine.finalizers().is_empty();
                        self.state().there.insert(machine.name_any(), kept);
                    }
                    Event::Delete(machine) => {
                        self.state().there.remove(&machine.name_any());
                    }
                    Event::Init | Event::InitDone => {}
                },
                Some(proved) = trials.next() => proved?,
                else => bail!("the watches have ended"),
            }
            self.changed.notify_waiters();
        }
    }

    /// Waits until the operators keep every Machine and every pool says what is so, and gives the time that it took.
    ///
    /// # Errors
    /// When it is not so within `limit`.
    pub async fn until_settled(&self, limit: Duration) -> Result<Duration> {
        self.until("the operators to tell what is", limit, |state| {
            let kept = state.there.len() == state.members.len() && state.there.values().all(|kept| *kept);
            if !kept {
                return Err(format!("{} machines", state.there.len()));
            }
            state.pools.iter().try_for_each(|(name, pool)| state.is_settled(name, pool))
        })
        .await
    }

    /// Waits until every machine follows the newest template and has proved it, and gives the time that it took.
    ///
    /// # Errors
    /// When it is not so within `limit`.
    pub async fn until_rolled_out(&self, limit: Duration) -> Result<Duration> {
        self.until("machines to follow their pools", limit, |state| {
            let proved =
                |member: &&Member| member.follows == state.generation(&member.pool) && member.trial != Some("Running");
            let behind = state.members.values().filter(|member| !proved(member)).count();
            if behind == 0 { Ok(()) } else { Err(format!("{behind} do not")) }
        })
        .await
    }

    /// Waits until every machine has left that was removed, and gives the time that it took.
    ///
    /// # Errors
    /// When it is not so within `limit`.
    pub async fn until_gone(&self, limit: Duration) -> Result<Duration> {
        self.until("machines to be gone", limit, |state| {
            let left = state.there.keys().filter(|name| !state.members.contains_key(*name)).count();
            if left == 0 { Ok(()) } else { Err(format!("{left} are there")) }
        })
        .await
    }

    /// Changes the template of every pool.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn change_templates(&self, version: u32) -> Result<()> {
        let change = Patch::Merge(json!({ "spec": { "template": template(version) } }));
        for number in 0..=SMALL_POOLS {
            self.pools.patch(&pool_name(number), &PatchParams::default(), &change).await.context("change a pool")?;
        }
        Ok(())
    }

    /// Removes so many machines at once.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn remove(&self, machines: usize) -> Result<()> {
        let names: Vec<String> = self.state().members.keys().take(machines).cloned().collect();
        self.state().members.retain(|name, _| !names.contains(name));
        stream::iter(&names)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, async |name| {
                self.machines.delete(name, &DeleteParams::default()).await.context("delete a machine").map(drop)
            })
            .await
    }

    /// Changes so many machines a second until something has ended, and gives what that gives: of ten changes seven are of the status,
    /// two of the label by which a pool picks the machine, and one is the removal of a machine that then comes again.
    ///
    /// # Errors
    /// The API server's answer, and that which it goes on for.
    pub async fn churn<T>(&self, per_second: f64, until: impl Future<Output = Result<T>>) -> Result<T> {
        let names: Vec<String> = self.state().members.keys().cloned().collect();
        let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut changes, mut next) = (FuturesUnordered::new(), names.iter().cycle().zip(0_usize..));
        let mut until = pin!(until);
        let ended = loop {
            // Cancel-safe: no arm takes what it does not give.
            tokio::select! {
                _ = ticks.tick() => {
                    let (name, count) = next.next().context("no machines")?;
                    changes.push(self.change(name, count));
                }
                Some(changed) = changes.next() => changed?,
                ended = &mut until => break ended?,
            }
        };
        // What has begun is not left halfway.
        changes.try_collect::<()>().await?;
        Ok(ended)
    }

    /// Has kubelets report as they do when nothing happens; ends only with what fails.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn heartbeats(&self) -> Result<()> {
        let numbers: Vec<(String, usize)> =
            self.state().members.iter().map(|(name, member)| (name.clone(), member.number)).collect();
        let mut ticks = interval(HEARTBEAT / u32::try_from(numbers.len().max(1))?);
        for (beat, (name, number)) in numbers.iter().cycle().enumerate() {
            ticks.tick().await;
            self.report(name, *number, beat).await?;
        }
        Ok(())
    }

    async fn change(&self, name: &str, count: usize) -> Result<()> {
        let Some(mut member) = self.state().members.get(name).cloned() else { return Ok(()) };
        // One that is removed before the operators have seen it leaves its node behind.
        let kept = self.state().there.get(name).copied().unwrap_or_default();
        match count % 10 {
            0 if kept => {
                self.machines.delete(name, &DeleteParams::default()).await.context("delete a machine")?;
                self.state().members.remove(name);
                self.until("a machine to be gone", Duration::from_secs(600), |state| match state.there.get(name) {
                    None => Ok(()),
                    Some(_) => Err(format!("{name} is there")),
                })
                .await?;
                return self.join(member.number).await;
            }
            1 | 2 => {
                member.pool = pool_name(1 + count / 10 % SMALL_POOLS);
                member.follows = self.state().generation(&member.pool);
                member.trial = None;
                let label = Patch::Merge(json!({ "metadata": { "labels": { "pool": member.pool } } }));
                self.machines.patch(name, &PatchParams::default(), &label).await.context("label a machine")?;
            }
            _ => member.restarts += 1,
        }
        self.tell(name, &member).await
    }

    /// Makes a machine: what is declared of it, and what its agent and its kubelet say first.
    async fn join(&self, number: usize) -> Result<()> {
        let name = machine_name(number);
        let pool = pool_name(if number.is_multiple_of(2) { 0 } else { 1 + number / 2 % SMALL_POOLS });
        let spec = json!({
            "role": "Worker",
            "join": { "endpoints": [{ "host": "192.0.2.1" }], "caPin": format!("sha256:{}", "0".repeat(64)) },
        });
        let machine = object("Machine", &name, json!({ "pool": pool, "rack": format!("rack-{}", number / 40) }), spec)?;
        self.machines.create(&PostParams::default(), &machine).await.context("make a machine")?;
        let node = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        self.nodes.create(&PostParams::default(), &node).await.context("make a node")?;
        self.report(&name, number, 0).await?;
        let follows = self.state().generation(&pool);
        self.tell(&name, &Member { number, pool, follows, trial: None, restarts: 0 }).await
    }

    /// The machines that a pool names and that do not follow it yet, and what they are to follow.
    fn begin(&self, pool: &DynamicObject) -> Vec<(String, i64)> {
        let generation = pool.metadata.generation.unwrap_or_default();
        let status = &pool.data["status"];
        // What a pool says is about the generation that it was said of.
        if status["observedGeneration"] != generation {
            return Vec::new();
        }
        let named = status["rollout"]["machines"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut state = self.state();
        named
            .filter_map(|name| {
                let member = state.members.get_mut(name)?;
                let begins = member.pool == pool.name_any() && member.follows < generation;
                begins.then(|| {
                    member.follows = generation;
                    (name.to_owned(), generation)
                })
            })
            .collect()
    }

    /// Follows a template and proves it, unless the machine has gone to another pool or away meanwhile.
    async fn prove(&self, name: String, generation: i64) -> Result<()> {
        for state in ["Running", "Proved"] {
            let member = self.state().members.get(&name).filter(|member| member.follows == generation).cloned();
            let Some(member) = member else { return Ok(()) };
            self.tell(&name, &Member { trial: Some(state), ..member }).await?;
            if state == "Running" {
                sleep(TRIAL).await;
            }
        }
        Ok(())
    }

    /// Writes what an agent tells of its machine.
    async fn tell(&self, name: &str, member: &Member) -> Result<()> {
        self.state().members.insert(name.to_owned(), member.clone());
        let body = json!({
            "apiVersion": "garboard.dev/v1alpha1",
            "kind": "Machine",
            "metadata": { "name": name },
            "status": member.status(),
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match self.machines.patch_status(name, &parameters, &Patch::Apply(&body)).await {
            // It was removed meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            told => told.context("write a machine's status").map(drop),
        }
    }

    /// Writes what a kubelet tells of its node.
    async fn report(&self, name: &str, number: usize, beat: usize) -> Result<()> {
        let status = json!({ "status": node_status(number, beat) });
        let reported = self.nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await;
        reported.context("write a node's status").map(drop)
    }

    async fn until(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&State) -> Result<(), String>,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let changed = self.changed.notified();
            let seen = match look(&self.state()) {
                Ok(()) => return Ok(start.elapsed()),
                Err(seen) => seen,
            };
            let left = limit.saturating_sub(start.elapsed());
            if timeout(left, changed).await.is_err() {
                bail!("{what}: not within {} s; last seen: {seen}", limit.as_secs());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn generation(&self, pool: &str) -> i64 {
        self.pools.get(pool).and_then(|pool| pool.metadata.generation).unwrap_or_default()
    }

    /// Whether a pool says of all its machines that they follow its template and are Ready.
    fn is_settled(&self, name: &str, pool: &DynamicObject) -> Result<(), String> {
        let machines = self.members.values().filter(|member| member.pool == name).count();
        let status = &pool.data["status"];
        let says = |field: &str| status[field].as_u64().and_then(|count| usize::try_from(count).ok()) == Some(machines);
        let news = status["observedGeneration"] == pool.metadata.generation.unwrap_or_default();
        if news && ["machines", "updatedMachines", "readyMachines"].into_iter().all(says) {
            return Ok(());
        }
        Err(format!("{name} has {machines} machines and says: {}", status["conditions"][0]["message"]))
    }
}

impl Member {
    /// As an agent writes it.
    fn status(&self) -> Value {
        let condition = |name: &str| {
            json!({
                "type": name,
                "status": "True",
                "reason": "AsDeclared",
                "message": "everything that is declared is in force",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let service = |name: &str| {
            let restarts = if name == "kubelet" { self.restarts } else { 0 };
            json!({ "name": name, "state": "Running", "ready": true, "restarts": restarts })
        };
        let reference = json!({ "name": self.pool, "observedGeneration": self.follows });
        let sources: BTreeMap<String, Value> = self.settings().into_iter().map(|path| (path, json!("Image"))).collect();
        let mut status = json!({
            "observedGeneration": 1,
            "phase": "Running",
            "conditions": CONDITIONS.map(condition),
            "role": "Worker",
            "services": SERVICES.map(service),
            "addresses": [address(self.number)],
            "versions": {
                "garboard": "0.1.0", "kernel": "6.12.48", "kubernetes": "1.37.2", "containerd": "2.4.2", "runc": "1.5.2",
            },
            "pool": reference,
            "effective": { "spec": template(0)["spec"], "sources": sources },
            "bootID": format!("00000000-0000-4000-8000-{:012}", self.number),
            "machineID": format!("{:032}", self.number),
            "fingerprint": format!("sha256:{:064}", self.number),
        });
        if let Some(state) = self.trial {
            status["trial"] = json!({ "state": state, "pool": reference, "required": SERVICES });
        }
        status
    }

    /// Paths of so many settings as a machine has that is declared in some detail.
    fn settings(&self) -> BTreeSet<String> {
        (0..30).map(|setting| format!("kernel.sysctls.net.ipv4.setting_{setting}")).collect()
    }
}

/// The conditions of a machine.
const CONDITIONS: [&str; 8] = [
    "Ready",
    "Accepted",
    "NetworkReady",
    "TimeSynchronized",
    "KernelReady",
    "CertificatesReady",
    "ServicesReady",
    "ChangeProved",
];

/// The services of a worker.
const SERVICES: [&str; 7] = ["balancer", "bus", "cni", "containerd", "dns", "kube-proxy", "kubelet"];

/// The conditions of a node.
const NODE_CONDITIONS: [(&str, &str); 4] =
    [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")];

fn machine_name(number: usize) -> String {
    format!("machine-{number:04}")
}

fn pool_name(number: usize) -> String {
    format!("pool-{number}")
}

fn address(number: usize) -> String {
    format!("198.18.{}.{}", number / 256, number % 256)
}

/// The template of a pool in one of its versions.
fn template(version: u32) -> Value {
    json!({ "spec": { "kernel": { "sysctls": { "vm.swappiness": version.to_string() } } } })
}

/// As kubelet writes it, with the images that it lists.
fn node_status(number: usize, beat: usize) -> Value {
    let condition = |(name, status): (&str, &str)| {
        json!({
            "type": name,
            "status": status,
            "reason": "Kubelet",
            "message": "as kubelet sees it",
            "lastHeartbeatTime": format!("2026-01-01T{:02}:{:02}:{:02}Z", beat / 3600 % 24, beat / 60 % 60, beat % 60),
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let image = |image: usize| {
        let digest = format!("{image:064}");
        json!({ "names": [format!("registry.example/image-{image}@sha256:{digest}")], "sizeBytes": 1_000_000 })
    };
    json!({
        "addresses": [{ "type": "InternalIP", "address": address(number) }],
        "capacity": { "cpu": "4", "memory": "8Gi", "pods": "110" },
        "allocatable": { "cpu": "4", "memory": "7Gi", "pods": "110" },
        "conditions": NODE_CONDITIONS.map(condition),
        "images": (0..20).map(image).collect::<Vec<_>>(),
    })
}

fn object(kind: &str, name: &str, labels: Value, spec: Value) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "garboard.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "labels": labels },
        "spec": spec,
    }))?)
}
