//! `Machine`: one machine and what it should be.

mod join;
mod kernel;
mod kubelet;
mod network;
mod time;
mod trial;
mod upkeep;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::CustomResourceExt;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::types::{DOMAIN, LABEL, REGISTRY, URL, read};

pub use self::join::{MachineJoin, MachineRole, WaitingMachine};
pub(crate) use self::kernel::KEPT_SYSCTLS;
pub use self::kernel::MachineKernel;
pub(crate) use self::kubelet::{EVICTION_SIGNALS, RESERVABLE};
pub use self::kubelet::{MachineKubelet, Taint, TaintEffect};
pub use self::network::{
    Bond, BondMode, Bridge, HostEntry, LacpRate, Link, LinkMatch, LinkRoute, MachineNetwork, RoutingRule,
    TransmitHashPolicy, Vlan, VlanProtocol, Wireguard, WireguardPeer, WireguardStatus,
};
pub use self::time::{MachineTime, TimeStatus};
pub use self::trial::{MachineTrial, TcpServer, TrialFailure, TrialProbe, TrialState, TrialStatus};
pub use self::upkeep::{MachineLogs, MachineWatchdog};

/// What a machine should be.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "garboard.dev",
    version = "v1alpha1",
    kind = "Machine",
    plural = "machines",
    singular = "machine",
    shortname = "gm",
    category = "garboard",
    status = "MachineStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "One machine that runs Garboard: what it should be, and what it is. Its name is also the name of its node.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')")
        .message("metadata.name must be one DNS label of at most 63 characters: a-z, 0-9 and -"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "What the machine is doing"),
    printcolumn(name = "Role", type_ = "string", json_path = ".status.role"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pool.name"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.versions.garboard"),
    printcolumn(name = "Kubernetes", type_ = "string", json_path = ".status.versions.kubernetes", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.versions.kernel", priority = 1),
    printcolumn(name = "Key", type_ = "string", json_path = ".status.identityKey", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.role) || self.role != 'Worker' || has(self.join)")
        .message("a worker joins a cluster and says in `join` which; only a control-plane machine can found one, without `join`"),
    validation = Rule::new("has(self.join) == has(oldSelf.join)")
        .message("a machine that founds its cluster has no `join`, one that joins it keeps its `join`"),
    validation = Rule::new("(has(self.role) ? self.role : 'ControlPlane') == (has(oldSelf.role) ? oldSelf.role : 'ControlPlane')")
        .message("role cannot be changed")
)]
pub struct MachineSpec {
    /// What the machine is for: a ControlPlane machine runs a part of the cluster's control plane and pods, a Worker runs pods. It cannot
    /// be changed. Default: ControlPlane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MachineRole>,
    /// The cluster that the machine joins. A control-plane machine without it founds the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<MachineJoin>,
    /// The machine's host name: one DNS label. Default: the name of the Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub hostname: Option<String>,
    /// Links, addresses and name servers. Default: DHCPv4 on the first link with a carrier and a server.
    #[serde(default)]
    pub network: MachineNetwork,
    /// Where the time of day comes from. The clock is led to the servers' time by letting it run a little faster or slower. It is set in
    /// one step only when it is more than 0.4 seconds off: at once when the machine has just started, and later only when three rounds of
    /// questions, within about a minute, agree on it, and never to a time before the image was made. Leases of etcd and of Kubernetes count
    /// by a clock that no step changes; certificates, tokens, CronJobs and the times in logs go by the date.
    #[serde(default)]
    pub time: MachineTime,
    /// The node's settings.
    #[serde(default)]
    pub kubelet: MachineKubelet,
    /// The kernel's settings.
    #[serde(default)]
    pub kernel: MachineKernel,
    /// Registries of container images that need more than their name to be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["host"])
    )]
    pub registries: Vec<Registry>,
    /// The hardware watchdog, which restarts a machine that hangs.
    #[serde(default)]
    pub watchdog: MachineWatchdog,
    /// How much is kept of the logs of services, as `garboardctl logs` and the files of the machine have them.
    #[serde(default)]
    pub logs: MachineLogs,
    /// How changes prove themselves.
    #[serde(default)]
    pub trial: MachineTrial,
}

/// A registry of container images.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Its name in references of images, with its port if that is not the usual one, such as `docker.io` or `registry.example:5000`.
    #[schemars(length(min = 1, max = 253), regex(pattern = REGISTRY))]
    pub host: String,
    /// What is asked for its images before itself, in this order, such as `https://mirror.example`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253), regex(pattern = URL)))]
    pub mirrors: Vec<String>,
    /// Certificates (PEM) of the authorities that vouch for it and its mirrors, besides those of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca: Option<String>,
    /// The user that the machine is to the registry when it pulls images for pods, whatever their own `imagePullSecrets` are. A mirror
    /// that asks for a user is shown the same. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// Where a user's name and password are, which stand in no Machine.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryCredentials {
    /// Name of a Secret in the namespace `garboard-registries`, as `kubectl create secret docker-registry NAME -n garboard-registries
    /// --docker-server=HOST --docker-username=USER --docker-password=PASSWORD` makes it: its type is kubernetes.io/dockerconfigjson, and
    /// among its servers is `host`, or repositories of it such as `registry.example/team`. All machines of the cluster may read the
    /// Secrets of this namespace, and no others. A machine keeps what it uses of them on its own disk; while one cannot be used, the
    /// condition RegistriesReady tells why. A change counts within seconds: kubelet is started again, and pods run on.
    #[schemars(length(min = 1, max = 253), regex(pattern = DOMAIN))]
    pub secret_name: String,
}

/// What a machine is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// The generation of the declaration that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the machine is doing, in one word: Starting, Running, Degraded or Stopping; before it has joined, Waiting until it is found
    /// and told what it should be, and then Joining. For people; programs use the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What holds of the machine: Ready, Accepted, NetworkReady, TimeSynchronized, KernelReady, CertificatesReady,
    /// RegistriesReady, ServicesReady, ChangeProved; HandedOver of one that waited without manifests; Drained while it leaves because it was
    /// deleted; Undisputed, which is there and False while another machine wants to join as this one and is refused; and Unique, which is
    /// there and False while another runs as this one, such as one that was started from a copy of its disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What the machine is for: ControlPlane or Worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MachineRole>,
    /// The supervised processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<ServiceSummary>,
    /// The machine's addresses, the one that it is known by in the cluster first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "status_addresses_schema")]
    pub addresses: Vec<IpAddr>,
    /// The WireGuard links that it has, with the public keys by which their peers know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub wireguard: Vec<WireguardStatus>,
    /// The server whose time it follows, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeStatus>,
    /// The virtual address of the Kubernetes API, while the machine holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "status_address_schema")]
    pub virtual_address: Option<Ipv4Addr>,
    /// What runs in which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// The pool that the machine follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReference>,
    /// What the layers of configuration come to: the image's defaults, the Cluster's `machines`, the MachinePool's template and the
    /// Machine itself, each of which counts before those named before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// The latest change and how it proves itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialStatus>,
    /// Identifies this start of the machine.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Identifies the installation.
    #[serde(default, rename = "machineID", skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// SHA-256 of the machine's public key, by which its machine API is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Where the key is with which the machine authenticates to its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<IdentityKey>,
}

/// Where the key is with which the machine authenticates to its cluster. TPM: in the machine's TPM, which made it and never gives it away.
/// File: on the disk, because the machine has no TPM, had none when the key was made, or has one that made no key. Each renewal of the
/// certificate makes a new key.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityKey {
    /// In the machine's TPM.
    #[serde(rename = "TPM")]
    Tpm,
    /// On its disk.
    File,
}

/// Nobody but the agent writes a status, so it needs no rules, and the API server counts the cost of each.
fn status_addresses_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "string", "maxLength": 45 } })
}

fn status_address_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "maxLength": 45, "nullable": true })
}

/// A pool as it is at one of its generations.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReference {
    /// Name of the MachinePool.
    pub name: String,
    /// The generation of the MachinePool whose template that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What the layers of configuration come to.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The settings that are in force, in the form of the Machine's spec.
    #[schemars(schema_with = "any_object_schema")]
    #[serde(deserialize_with = "without_nulls")]
    pub spec: MachineSpec,
    /// Which layer set each of them, by the path of the field below `spec`: Image, Cluster, MachinePool/NAME or Machine.
    pub sources: BTreeMap<String, String>,
}

/// An API server keeps a part whose last field was withdrawn as null.
fn without_nulls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MachineSpec, D::Error> {
    fn prune(value: &mut Value) {
        if let Value::Object(fields) = value {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(prune);
        }
    }
    let mut value = Value::deserialize(deserializer)?;
    prune(&mut value);
    read(&value).map_err(D::Error::custom)
}

/// It repeats the Machine's spec, which has the documentation and the rules.
fn any_object_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// One supervised process.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// Its state: Waiting, Starting, Running, Stopping, Finished, Failed or BackOff.
    pub state: String,
    /// Whether it serves.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it does not serve: what it waits for, or how it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What runs in which version.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// The image.
    pub garboard: String,
    /// Linux.
    pub kernel: String,
    /// Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd: Option<String>,
    /// runc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runc: Option<String>,
}

impl Machine {
    /// The machine's host name.
    pub fn hostname(&self) -> &str {
        self.spec.hostname.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// The name of its node: the machine's own.
    pub fn node_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// What it is for.
    pub fn role(&self) -> MachineRole {
        self.spec.role()
    }

    /// Whether it joins a cluster that is there, instead of founding one.
    pub fn joins(&self) -> bool {
        self.spec.join.is_some()
    }

    /// The machine that it is for, if that one waits without manifests.
    pub fn waiting(&self) -> Option<&WaitingMachine> {
        self.spec.join.as_ref()?.waiting.as_ref()
    }

    /// What the machine tells of itself; none before it was ever there, when others may have told of it.
    pub fn own_status(&self) -> Option<&MachineStatus> {
        self.status.as_ref().filter(|status| status.fingerprint.is_some())
    }

    /// What is told of it, by whomever.
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    /// Name of its custom resource definition.
    pub fn crd_name() -> &'static str {
        <Self as CustomResourceExt>::crd_name()
    }
}

impl MachineSpec {
    /// What the machine is for.
    pub fn role(&self) -> MachineRole {
        self.role.unwrap_or_default()
    }
}
