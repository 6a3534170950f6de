//! Typed settings rendered to service specifications: one file per supervised process.
//!
//! A control-plane machine runs all of them, and begins with etcd; a worker those of which the table says so.
//!
//! Everything here is a pure function of a [`CatalogInput`]. The order of start is not written down anywhere: each service
//! names what it cannot do without ([`garboard_supervisor::spec::ServiceSpec::requires`]) and everything else runs at once.
//! A service that runs as root says in its file why; what all have in common is in `base`.
//!
//! | service | on workers | user | listens on |
//! |---|---|---|---|
//! | [`balancer`] | yes | balancer | 127.0.0.1:6444, the API servers' TLS |
//! | [`containerd`] | yes | root | unix socket, root only |
//! | [`bus`] | yes | messagebus | unix socket |
//! | [`etcd`] | no | etcd | 127.0.0.1:2379 and :2380 of the node, mutual TLS; a socket for its group |
//! | [`etcd_restore`] | no, and only while the store is made anew | etcd | nothing |
//! | [`kube_apiserver`] | no | kube-apiserver | :6443, TLS with client certificates or tokens |
//! | [`kube_controller_manager`] | no | kube-controller-manager | 127.0.0.1:10257, TLS |
//! | [`kube_scheduler`] | no | kube-scheduler | 127.0.0.1:10259, TLS |
//! | [`kubelet`] | yes | root | :10250, TLS with client certificates or tokens; 127.0.0.1:10248 health |
//! | [`kube_proxy`] | yes | root with CAP_NET_ADMIN | 127.0.0.1:10249 metrics, :10256 health |
//! | [`cni`] | yes | root with network capabilities | unix socket, root only |
//! | [`dns`] | yes | dns | port 53 of the pod bridge |
//! | [`operators`] | no | operators | nothing |

pub mod balancer;
mod base;
pub mod bus;
pub mod cni;
pub mod containerd;
pub mod dns;
pub mod etcd;
pub mod etcd_restore;
pub mod identity;
pub mod input;
pub mod kube_apiserver;
pub mod kube_controller_manager;
pub mod kube_proxy;
pub mod kube_scheduler;
pub mod kubeconfig;
pub mod kubelet;
pub mod logins;
pub mod operators;
pub mod paths;
pub mod pki;
pub mod tls;
pub mod users;

use std::net::SocketAddr;

use garboard_supervisor::spec::{InvalidServiceName, ServiceSpec};

pub use garboard_api::cluster::ProxyMode;
pub use input::{CatalogInput, EtcdFacts, EtcdRestore, EtcdSource, NodeFacts, Peer};

/// Why there is no specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The control plane and kubelet need an address to be reached at.
    #[error("the node has no address yet")]
    NoAddress,
    /// A name in this crate is wrong; a test proves that none is.
    #[error(transparent)]
    Name(#[from] InvalidServiceName),
}

/// Every service of a machine.
///
/// # Errors
/// [`CatalogError::NoAddress`] as long as the node has none.
pub fn services(input: &CatalogInput) -> Result<Vec<ServiceSpec>, CatalogError> {
    let mut specs = vec![
        containerd::service(input)?,
        balancer::service(&input.api_servers())?,
        bus::service(input)?,
        kubelet::service(input)?,
        kube_proxy::service(input)?,
        cni::service(input)?,
        dns::service(input)?,
    ];
    match &input.node.etcd {
        Some(EtcdFacts { restore: Some(EtcdRestore::Make { source, token }), .. }) => {
            specs.push(etcd_restore::service(input, *source, token)?);
        }
        Some(etcd) if etcd.restore.is_none() => specs.push(etcd::service(input, etcd)?),
        Some(_) | None => {}
    }
    if input.runs_control_plane() {
        specs.extend([
            kube_apiserver::service(input)?,
            kube_controller_manager::service(input)?,
            kube_scheduler::service(input)?,
            operators::service(input)?,
        ]);
    }
    Ok(specs)
}

/// What a machine needs that has yet to learn what cluster it belongs to: the way to its API servers.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn joining(api_servers: &[SocketAddr]) -> Result<Vec<ServiceSpec>, CatalogError> {
    Ok(vec![balancer::service(api_servers)?])
}
