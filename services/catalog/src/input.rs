//! What the services of a machine depend on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use garboard_api::cluster::ClusterSpec;
use garboard_api::machine::MachineSpec;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::base::loopback;
use crate::{CatalogError, kube_apiserver};

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
    /// API servers of other machines, the preferred one first.
    pub api_servers: Vec<SocketAddr>,
    /// The other nodes of the pod network.
    pub peers: Vec<Peer>,
    /// The machine's part in the cluster's store; none on a worker, and on a control-plane machine that has no part yet or has left.
    pub etcd: Option<EtcdFacts>,
}

/// What is known of a machine's part in the cluster's store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdFacts {
    /// The members by name, itself among them, with which it joined, and where they were reached; none on the machine that founds the
    /// cluster.
    pub initial_cluster: Option<BTreeMap<String, String>>,
    /// Whether it counts: only then the rest of the control plane can work with it.
    pub votes: bool,
    /// Whether other machines have a part too.
    pub others: bool,
    /// Whether the machine's own API server serves.
    pub serves: bool,
    /// What is being done to make the store anew; none as long as it serves.
    pub restore: Option<EtcdRestore>,
}

/// What is being done to make the store anew. Nothing that uses it runs meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtcdRestore {
    /// Everything that uses the store ends, and its files are looked at by nobody else.
    Still,
    /// The data of a new member are made.
    Make {
        /// Of what.
        source: EtcdSource,
        /// What tells the new cluster of members from any other.
        token: String,
    },
}

/// What a new store is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EtcdSource {
    /// A snapshot that was given to the machine.
    Snapshot,
    /// The machine's own data.
    OwnData,
    /// What the latest restore has set aside.
    SetAside,
}

/// Another node of the pod network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The address at which the cluster knows it.
    pub address: IpAddr,
    /// Its part of the pod addresses.
    #[serde(rename = "podCIDRs")]
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

    /// Whether the machine runs the control plane.
    pub(crate) fn runs_control_plane(&self) -> bool {
        self.node.etcd.as_ref().is_some_and(|etcd| etcd.votes && etcd.restore.is_none())
    }

    /// Whether the machine runs the control plane that it founded.
    pub(crate) fn founds_control_plane(&self) -> bool {
        self.node.etcd.as_ref().is_some_and(|etcd| etcd.initial_cluster.is_none())
    }

    /// Whether other machines run the control plane too.
    pub(crate) fn shares_control_plane(&self) -> bool {
        self.node.etcd.as_ref().is_some_and(|etcd| etcd.others)
    }

    /// The API servers, the machine's own first. Where there are others, one that does not serve is left out: it may take requests
    /// and answer none.
    pub(crate) fn api_servers(&self) -> Vec<SocketAddr> {
        let serves = self.node.etcd.as_ref().is_some_and(|etcd| etcd.votes && (etcd.serves || !etcd.others));
        let own = serves.then(|| loopback(kube_apiserver::PORT));
        own.into_iter().chain(self.node.api_servers.iter().copied()).collect()
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
