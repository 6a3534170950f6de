//! `Machine`: one machine and what it should be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::CustomResourceExt;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{
    Cidr, DOMAIN, INTERFACE, LABEL, MODULE, MacAddress, QUANTITY, QUANTITY_OR_PERCENT, REGISTRY, URL, address_schema,
    addresses_schema, optional_address_schema, texts_schema,
};

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
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pool.name"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.versions.garboard"),
    printcolumn(name = "Kubernetes", type_ = "string", json_path = ".status.versions.kubernetes", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.versions.kernel", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// The machine's host name: one DNS label. Default: the name of the Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub hostname: Option<String>,
    /// Links, addresses and name servers. Default: DHCPv4 on the first link with a carrier and a server.
    #[serde(default)]
    pub network: MachineNetwork,
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
}

/// Network of a machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineNetwork {
    /// The links to configure. When empty, all links with a carrier ask for a lease by DHCPv4, and the first that is granted
    /// one is used, until it loses its carrier or its lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub links: Vec<Link>,
    /// Name servers, asked before those that DHCP brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses_schema")]
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 6),
        inner(
            length(min = 1, max = 253),
            regex(pattern = DOMAIN)
        )
    )]
    pub search_domains: Vec<String>,
    /// Names that are looked up nowhere else: entries of `/etc/hosts` for the machine itself and for pods on its network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub hosts: Vec<HostEntry>,
}

/// Names of an address.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEntry {
    /// The address.
    #[schemars(schema_with = "address_schema")]
    pub address: IpAddr,
    /// Its names.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253), regex(pattern = DOMAIN)))]
    pub names: Vec<String>,
}

/// One network link of a machine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.gateway) || self.addresses.exists(a, cidr(a).containsIP(self.gateway))")
        .message("gateway must be in the range of one of addresses")
)]
pub struct Link {
    /// Which link is meant: by name or by hardware address.
    #[serde(rename = "match")]
    pub matches: LinkMatch,
    /// Whether a DHCPv4 server configures the link. Default: true, unless `addresses` has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp4: Option<bool>,
    /// Addresses that the link has in any case, each with its prefix, such as `192.0.2.10/24`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<Cidr>,
    /// Next hop of the default route, on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_address_schema")]
    pub gateway: Option<IpAddr>,
    /// MTU, bytes. Default: what DHCP says, else the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
}

impl Link {
    /// Whether a DHCPv4 server configures the link.
    pub fn dhcp4(&self) -> bool {
        self.dhcp4.unwrap_or(self.addresses.is_empty())
    }
}

/// Which link is meant: exactly one of the fields is given.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.mac)").message("give either name or mac"))]
pub struct LinkMatch {
    /// Name of the interface, such as `eth0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub name: Option<String>,
    /// Hardware address, such as `52:54:00:12:34:56`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
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
}

/// Settings of a machine's kernel.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineKernel {
    /// Parameters by their names, such as `net.core.somaxconn: "4096"`. One that is changed on the machine is set again within seconds;
    /// one that is taken out of here gets back the value that it had before. What Garboard or kubelet rely on cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "sysctls_schema")]
    pub sysctls: BTreeMap<String, String>,
    /// Modules that are loaded in any case, with those that they need. One that is taken out of here stays until the machine restarts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64), regex(pattern = MODULE)))]
    pub modules: Vec<String>,
}

/// Kernel parameters that are not the user's to change, and why.
pub(crate) const KEPT_SYSCTLS: [(&str, &str); 12] = [
    ("kernel.core_pattern", "it names a program that the kernel runs as root"),
    ("kernel.hotplug", "it names a program that the kernel runs as root"),
    ("kernel.modprobe", "it names a program that the kernel runs as root"),
    ("kernel.poweroff_cmd", "it names a program that the kernel runs as root"),
    ("kernel.modules_disabled", "it cannot be taken back, and drivers that are needed later could not be loaded"),
    ("kernel.kexec_load_disabled", "it cannot be taken back"),
    ("kernel.panic", "kubelet relies on it"),
    ("kernel.panic_on_oops", "kubelet relies on it"),
    ("vm.overcommit_memory", "kubelet relies on it"),
    ("vm.panic_on_oom", "kubelet relies on it"),
    ("net.ipv4.ip_forward", "pods have no network without it"),
    ("net.ipv6.conf.all.forwarding", "pods have no network without it"),
];

fn sysctls_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let kept = KEPT_SYSCTLS.map(|(name, _)| name);
    texts_schema(
        128,
        256,
        &kept,
        "sysctls has a kernel parameter that is not to be changed, because the machine relies on it",
    )
}

/// Settings of a machine's node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.shutdownGracePeriodCriticalPodsSeconds) || !has(self.shutdownGracePeriodSeconds) \
        || self.shutdownGracePeriodCriticalPodsSeconds <= self.shutdownGracePeriodSeconds")
    .message("shutdownGracePeriodCriticalPodsSeconds is a part of shutdownGracePeriodSeconds and cannot be longer"))]
pub struct MachineKubelet {
    /// Labels that the node has in any case. Others' labels stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_labels: BTreeMap<String, String>,
    /// Taints that the node has in any case, so that only pods which tolerate them run there. Others' taints stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key", "effect"])
    )]
    pub taints: Vec<Taint>,
    /// Resources that are kept from pods for the parts of Kubernetes: cpu, memory, ephemeral-storage and pid, such as `memory: 1Gi`.
    /// Default: by the machine's memory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "reserved_schema")]
    pub kube_reserved: BTreeMap<String, String>,
    /// Resources that are kept from pods for the rest of the machine: cpu, memory, ephemeral-storage and pid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "reserved_schema")]
    pub system_reserved: BTreeMap<String, String>,
    /// What must be left of a resource before pods are evicted, as an amount or in percent: memory.available, nodefs.available,
    /// nodefs.inodesFree, imagefs.available, imagefs.inodesFree and pid.available, such as `nodefs.available: 5%`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "eviction_schema")]
    pub eviction_hard: BTreeMap<String, String>,
    /// Feature gates of Kubernetes for kubelet, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub feature_gates: BTreeMap<String, bool>,
    /// Most pods at a time. A node has 253 addresses for pods. Default: 110.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 250))]
    pub max_pods: Option<u32>,
    /// Time that pods have to end when the machine shuts down, seconds: at most 570, as the machine waits ten minutes for them.
    /// Default: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 570))]
    pub shutdown_grace_period_seconds: Option<u32>,
    /// The last part of that time, which is kept for critical pods, seconds. Default: 10, or all of a shorter time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 570))]
    pub shutdown_grace_period_critical_pods_seconds: Option<u32>,
}

/// What keeps pods away from a node unless they tolerate it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Its key, as that of a label.
    #[schemars(length(min = 1, max = 316))]
    pub key: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// What becomes of pods that do not tolerate it: NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: TaintEffect,
}

/// What becomes of pods that do not tolerate a taint.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaintEffect {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    NoSchedule,
    #[allow(missing_docs, reason = "as above")]
    PreferNoSchedule,
    #[allow(missing_docs, reason = "as above")]
    NoExecute,
}

/// Resources that can be reserved.
pub(crate) const RESERVABLE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];

/// What evictions can depend on.
pub(crate) const EVICTION_SIGNALS: [&str; 6] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
];

fn reserved_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    amounts_schema(&RESERVABLE, QUANTITY)
}

fn eviction_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    amounts_schema(&EVICTION_SIGNALS, QUANTITY_OR_PERCENT)
}

/// Amounts by the names of what they are amounts of.
fn amounts_schema(names: &[&str], pattern: &str) -> schemars::Schema {
    let listed = names.join(", ");
    let rule = format!("self.all(name, name in {names:?})");
    schemars::json_schema!({
        "type": "object",
        "maxProperties": names.len(),
        "additionalProperties": { "type": "string", "maxLength": 32, "pattern": pattern },
        "x-kubernetes-validations": [{ "rule": rule, "message": format!("there are {listed}") }],
    })
}

impl MachineKubelet {
    /// Most pods at a time.
    pub fn max_pods(&self) -> u32 {
        self.max_pods.unwrap_or(110)
    }

    /// Time that pods have to end when the machine shuts down, seconds.
    pub fn shutdown_grace_period_seconds(&self) -> u32 {
        self.shutdown_grace_period_seconds.unwrap_or(30)
    }

    /// The last part of that time, which is kept for critical pods, seconds.
    pub fn shutdown_grace_period_critical_pods_seconds(&self) -> u32 {
        self.shutdown_grace_period_critical_pods_seconds.unwrap_or(10).min(self.shutdown_grace_period_seconds())
    }
}

/// What a machine is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// The generation of the declaration that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the machine is doing, in one word: Starting, Running, Degraded or Stopping. For people; programs use the
    /// conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What holds of the machine: Ready, Accepted, NetworkReady, KernelReady, CertificatesReady,
    /// ServicesReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The supervised processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<ServiceSummary>,
    /// The machine's addresses, the one that it is known by in the cluster first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "status_addresses_schema")]
    pub addresses: Vec<IpAddr>,
    /// What runs in which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// The pool that the machine belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReference>,
    /// What the layers of configuration come to: the image's defaults, the Cluster's `machines`, the MachinePool's template and the
    /// Machine itself, each of which counts before those named before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Identifies this start of the machine.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Identifies the installation.
    #[serde(default, rename = "machineID", skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// SHA-256 of the machine's public key, by which its machine API is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// Nobody but the agent writes a status, so it needs no rules, and the API server counts the cost of each.
fn status_addresses_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "string", "maxLength": 45 } })
}

/// A machine's pool.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReference {
    /// Name of the MachinePool.
    pub name: String,
    /// The generation of the MachinePool that the machine follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// What the layers of configuration come to.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Effective {
    /// The settings that are in force, in the form of the Machine's spec.
    #[schemars(schema_with = "any_object_schema")]
    pub spec: MachineSpec,
    /// Which layer set each of them, by the path of the field below `spec`: Image, Cluster, MachinePool/NAME or Machine.
    pub sources: BTreeMap<String, String>,
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

    /// Name of its custom resource definition.
    pub fn crd_name() -> &'static str {
        <Self as CustomResourceExt>::crd_name()
    }
}
