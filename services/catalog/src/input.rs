//! What the services of a machine depend on.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::CatalogError;

/// Everything that the catalog looks at: declared settings and facts of the node, both already valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogInput {
    /// Settings of the cluster.
    pub cluster: ClusterSettings,
    /// Settings of the machine.
    pub machine: MachineSettings,
    /// Facts of the node.
    pub node: NodeFacts,
    /// The image that holds a pod's namespaces, with its tag: one of the preloaded ones.
    pub pause_image: String,
}

/// What the catalog uses of a `Cluster`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Addresses of pods: one range per address family, never empty.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of Services: one range per address family, never empty.
    pub service_cidrs: Vec<IpNet>,
    /// Address of cluster DNS, within a Service range.
    pub dns_address: IpAddr,
    /// The cluster's DNS domain.
    pub dns_domain: String,
    /// How kube-proxy writes its rules.
    pub proxy_mode: ProxyMode,
}

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// nftables.
    #[default]
    Nftables,
    /// iptables (by its nftables back end).
    Iptables,
    /// IPVS.
    Ipvs,
}

/// What the catalog uses of a `Machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSettings {
    /// Most pods at a time.
    pub max_pods: u32,
    /// Time for pods to end when the machine shuts down, seconds.
    pub shutdown_grace_seconds: u32,
    /// The part of it that is kept for critical pods, seconds.
    pub shutdown_grace_critical_seconds: u32,
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self { max_pods: 110, shutdown_grace_seconds: 30, shutdown_grace_critical_seconds: 10 }
    }
}

/// What is known of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The node's addresses, the one to register with first.
    pub addresses: Vec<IpAddr>,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Processors of the machine.
    pub cpus: u32,
    /// The node's part of the pod addresses; empty until the cluster has assigned it.
    pub pod_cidrs: Vec<IpNet>,
}

impl CatalogInput {
    /// The address to register with.
    ///
    /// # Errors
    /// [`CatalogError::NoAddress`] when there is none yet.
    pub(crate) fn node_address(&self) -> Result<IpAddr, CatalogError> {
        self.node.addresses.first().copied().ok_or(CatalogError::NoAddress)
    }

    /// Addresses of the bridge: the first of each part of the pod addresses.
    pub fn bridge_addresses(&self) -> Vec<IpAddr> {
        self.node.pod_cidrs.iter().filter_map(|cidr| cidr.hosts().next()).collect()
    }
}

/// The first address of a Service range, which is the API server's own.
pub fn first_service_address(range: &IpNet) -> Option<IpAddr> {
    range.hosts().next()
}

/// The usual address of cluster DNS: the tenth of the first Service range.
pub fn default_dns_address(service_cidrs: &[IpNet]) -> Option<IpAddr> {
    service_cidrs.first().and_then(|range| range.hosts().nth(9))
}
