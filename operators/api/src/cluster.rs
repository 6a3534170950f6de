//! `Cluster`: what all machines of a cluster have in common.

use std::fmt;

use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control_plane::ControlPlane;
use crate::machine::{Machine, MachineSpec};
use crate::types::{ACCESS_NAME, Cidr, DOMAIN, HOST, PublicKeyPin, WILDCARD_HOST};
use crate::virtual_address::VirtualAddress;

/// The one name of the one `Cluster`.
pub const NAME: &str = "cluster";

/// Port of the Kubernetes API.
pub const API_PORT: u16 = 6443;

/// What a cluster should be.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "garboard.dev",
    version = "v1alpha1",
    kind = "Cluster",
    plural = "clusters",
    singular = "cluster",
    shortname = "gc",
    category = "garboard",
    status = "ClusterStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "The cluster that the machines form. There is one, named `cluster`.",
    validation = Rule::new("self.metadata.name == 'cluster'").message("there is one Cluster, and its name is cluster"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Kubernetes", type_ = "string", json_path = ".status.kubernetesVersion"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!cidr(self.podCIDR).containsCIDR(self.serviceCIDR) && !cidr(self.serviceCIDR).containsCIDR(self.podCIDR)")
        .message("podCIDR and serviceCIDR must not overlap"),
    validation = Rule::new("!has(self.virtualAddress) || !(cidr(self.podCIDR).containsIP(self.virtualAddress.address) || cidr(self.serviceCIDR).containsIP(self.virtualAddress.address))")
        .message("virtualAddress.address must be outside of podCIDR and serviceCIDR")
)]
pub struct ClusterSpec {
    /// Where the Kubernetes API is reached. Default: the virtual address, or without one the machine's first address; port 6443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// An address of the Kubernetes API that the control-plane machines keep among themselves: it is always on one whose API server serves.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<VirtualAddress>,
    /// Further names and addresses for the API server's certificate.
    #[serde(default, rename = "certSANs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 253),
            regex(pattern = WILDCARD_HOST)
        )
    )]
    pub cert_sans: Vec<String>,
    /// Addresses of pods. Each node gets a part of them. Cannot be changed.
    #[serde(rename = "podCIDR", default = "default_pod_cidr")]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("podCIDR cannot be changed"),
        validation = Rule::new("cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 24")
            .message("podCIDR must be an IPv4 range with a prefix of 8 to 24"),
        validation = Rule::new("cidr(self) == cidr(self).masked()").message("podCIDR must be the start of its range")
    )]
    pub pod_cidr: Cidr,
    /// Addresses of Services. Cannot be changed.
    #[serde(rename = "serviceCIDR", default = "default_service_cidr")]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("serviceCIDR cannot be changed"),
        validation = Rule::new("cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 12 && cidr(self).prefixLength() <= 28")
            .message("serviceCIDR must be an IPv4 range with a prefix of 12 to 28"),
        validation = Rule::new("cidr(self) == cidr(self).masked()").message("serviceCIDR must be the start of its range")
    )]
    pub service_cidr: Cidr,
    /// Domain of the names of Services and pods. Cannot be changed.
    #[serde(default = "default_dns_domain")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = DOMAIN)
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("dnsDomain cannot be changed"))]
    pub dns_domain: String,
    /// How pods of different machines reach each other.
    #[serde(default)]
    pub pod_network: PodNetwork,
    /// How kube-proxy carries traffic to Services.
    #[serde(default)]
    pub proxy_mode: ProxyMode,
    /// Settings of the control plane's components.
    #[serde(default)]
    pub control_plane: ControlPlane,
    /// Who may use the machine API, and get a kubeconfig there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub access: Vec<Access>,
    /// Settings of all machines. Those of a MachinePool's template and of a Machine itself count more; a list counts as a whole, a
    /// mapping entry by entry.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!has(self.hostname) && !has(self.role) && !has(self.join)")
        .message("hostname, role and join belong to one machine: declare them in the Machine"))]
    pub machines: MachineSpec,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            endpoint: None,
            virtual_address: None,
            cert_sans: Vec::new(),
            pod_cidr: default_pod_cidr(),
            service_cidr: default_service_cidr(),
            dns_domain: default_dns_domain(),
            pod_network: PodNetwork::default(),
            proxy_mode: ProxyMode::default(),
            control_plane: ControlPlane::default(),
            access: Vec::new(),
            machines: MachineSpec::default(),
        }
    }
}

fn default_pod_cidr() -> Cidr {
    Cidr::new(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)))
}

fn default_service_cidr() -> Cidr {
    Cidr::new(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12)))
}

fn default_dns_domain() -> String {
    "cluster.local".to_owned()
}

/// Where the Kubernetes API is reached.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// A DNS name or an address.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = HOST)
    )]
    pub host: String,
    /// The port there.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

const fn default_port() -> u16 {
    API_PORT
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How pods of different machines reach each other: in VXLAN packets between the machines (UDP port 4789).
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNetwork {
    /// Whether machines of one link send each other the packets of pods as they are. It is faster, and needs a link that carries packets
    /// of the pods' own addresses, as most clouds' do not.
    #[serde(default)]
    pub direct_routes: bool,
}

/// How kube-proxy carries traffic to Services.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    #[default]
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    Nftables,
    #[allow(missing_docs, reason = "as above")]
    Iptables,
    #[allow(missing_docs, reason = "as above")]
    Ipvs,
}

/// Someone who may use the machine API.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// A name for people and logs; also the user name in Kubernetes.
    #[schemars(length(min = 1, max = 63), regex(pattern = ACCESS_NAME))]
    pub name: String,
    /// What the holder of the key may do: a reader looks, an operator also restarts, an admin does everything.
    pub role: Role,
    /// SHA-256 of the holder's public key.
    pub public_key: PublicKeyPin,
}

/// What the holder of a key may do.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    Admin,
    #[allow(missing_docs, reason = "as above")]
    Operator,
    #[allow(missing_docs, reason = "as above")]
    Reader,
}

/// What a cluster is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// The generation of the declaration that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds of the cluster: Ready, Accepted, APIAvailable; and VirtualAddressHeld where a virtual address is declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Version of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// Where the API is reached, as `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// SHA-256 of the public key of the cluster's certificate authority.
    #[serde(default, rename = "caPin", skip_serializing_if = "Option::is_none")]
    pub ca_pin: Option<String>,
    /// Machines that were removed and may still have certificates: these count no longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["machine"]))]
    pub removed_machines: Vec<RemovedMachine>,
}

/// A machine that was removed.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedMachine {
    /// Its name.
    pub machine: String,
    /// When the last of its certificates ends.
    pub until: Time,
}

impl Cluster {
    /// Where the Kubernetes API is reached, given the machine's address; none before it has one, if nothing is declared.
    pub fn endpoint(&self, address: Option<IpAddr>) -> Option<Endpoint> {
        self.declared_endpoint().or_else(|| Some(Endpoint { host: address?.to_string(), port: API_PORT }))
    }

    /// Where the Kubernetes API is reached, as a machine with this address knows it: as declared, or at the cluster that it has joined, or
    /// at itself; none before it has an address.
    pub fn endpoint_of(&self, machine: &Machine, address: Option<IpAddr>) -> Option<Endpoint> {
        match (self.declared_endpoint(), &machine.spec.join) {
            (Some(endpoint), _) => Some(endpoint),
            (None, Some(join)) => join.endpoints.first().cloned(),
            (None, None) => self.endpoint(address),
        }
    }

    /// Where the Kubernetes API is reached whichever machine serves it.
    fn declared_endpoint(&self) -> Option<Endpoint> {
        let virtual_address = self.spec.virtual_address.as_ref();
        let at = |address: &VirtualAddress| Endpoint { host: address.address.to_string(), port: API_PORT };
        self.spec.endpoint.clone().or_else(|| virtual_address.map(at))
    }
}
