//! What the services of a machine depend on.

use std::net::IpAddr;

use garboard_api::cluster::ClusterSpec;
use garboard_api::machine::MachineSpec;
use ipnet::IpNet;

use crate::CatalogError;

/// Everything that the catalog looks at: what is declared, already valid, and facts of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogInput {
    /// The declared cluster.
    pub cluster: ClusterSpec,
    /// The declared machine.
    pub machine: MachineSpec,
    /// Facts of the node.
    pub node: NodeFacts,
    /// The image that holds a pod's namespaces, with its tag: one of the preloaded ones.
    pub pause_image: String,
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

/// The API server's own Service address: the first of the range.
pub fn apiserver_service_address(cluster: &ClusterSpec) -> Option<IpAddr> {
    cluster.service_cidr.net().hosts().next()
}

/// The Service address of cluster DNS: the tenth of the range.
pub fn dns_service_address(cluster: &ClusterSpec) -> Option<IpAddr> {
    cluster.service_cidr.net().hosts().nth(9)
}
