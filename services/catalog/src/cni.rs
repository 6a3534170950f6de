//! The pod network's daemon. It learns the node's address block when the cluster has assigned one, by a change of its file.

use garboard_supervisor::spec::{Directory, ProbeAction, ServiceSpec, Slice};
use serde_json::{Value, json};

use crate::base::{MIB, blank, cgroup, private_directory, private_file, readiness};
use crate::kubeconfig::pretty;
use crate::paths::{self, service_file};
use crate::{CatalogError, CatalogInput, Peer, users};

/// The service's name.
pub const NAME: &str = "cni";
/// The bridge that pods are attached to.
pub const BRIDGE: &str = "gb0";
/// Reservations of addresses and the daemon's state, for as long as the machine runs.
pub const STATE_DIR: &str = "/run/garboard/cni";

/// The specification of the pod network's daemon.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address at which others reach it.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let argv = vec!["/usr/lib/garboard/garboard-cni".to_owned(), "daemon".to_owned()];
    let mut limits = cgroup(Slice::System, -998, 128, 4, 16);
    limits.memory_max = Some(128 * MIB);

    let mut spec = blank(NAME, users::ROOT, limits, argv)?;
    spec.directories.extend([
        private_directory(STATE_DIR),
        Directory { path: "/run/cni".into(), mode: 0o755, owner: None },
        Directory { path: paths::CNI_CONF_DIR.into(), mode: 0o755, owner: None },
    ]);
    spec.files.push(private_file(service_file(NAME, "config.json"), pretty(&config(input)?)));
    spec.watches_files = true;
    // The daemon makes the bridge, moves links into the network namespaces of pods (CAP_SYS_ADMIN) and finds those by mount.
    spec.isolation.private_mounts = false;
    spec.isolation.private_devices = false;
    spec.isolation.private_tmp = false;
    spec.isolation.seccomp = garboard_supervisor::spec::Seccomp::Unconfined;
    spec.isolation.capabilities = Some(
        ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]
            .map(str::to_owned)
            .to_vec(),
    );
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    // It is ready only when the node has an address block, which takes as long as the API server does.
    spec.start_timeout_ms = 3_600_000;
    Ok(spec)
}

fn config(input: &CatalogInput) -> Result<Value, CatalogError> {
    let address = input.node_address()?;
    // A tunnel leads from and to addresses of one version.
    let is_reached = |peer: &&Peer| peer.address.is_ipv4() == address.is_ipv4();
    let peers: Vec<_> = input.node.peers.iter().filter(is_reached).collect();
    Ok(json!({
        "podCIDRs": input.node.pod_cidrs,
        "clusterCIDRs": [input.cluster.pod_cidr],
        "bridge": BRIDGE,
        "backend": "vxlan",
        "vxlan": { "address": address, "directRoutes": input.cluster.pod_network.direct_routes },
        "peers": peers,
    }))
}
