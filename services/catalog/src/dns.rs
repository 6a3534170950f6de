//! Cluster DNS on the bridge's address, which pods reach as the Service kube-dns.

use std::net::SocketAddr;

use garboard_supervisor::spec::{ProbeAction, ServiceSpec, Slice};
use serde_json::{Value, json};

use crate::base::{MIB, blank, cgroup, private_file, readiness};
use crate::kubeconfig::{APISERVERS, pretty};
use crate::paths::{RESOLV_CONF, service_file};
use crate::pki::Leaf;
use crate::{CatalogError, CatalogInput, users};

/// The service's name.
pub const NAME: &str = "dns";
/// Port of DNS.
pub const PORT: u16 = 53;

/// The specification of cluster DNS.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let argv = vec!["/usr/lib/garboard/garboard-dns".to_owned()];
    let mut limits = cgroup(Slice::System, -998, 128, 8, 24);
    limits.memory_max = Some(256 * MIB);

    let mut spec = blank(NAME, users::DNS, limits, argv)?;
    spec.files.push(private_file(service_file(NAME, "config.json"), pretty(&config(input))));
    spec.watches_files = true;
    spec.isolation.capabilities = Some(vec!["CAP_NET_BIND_SERVICE".to_owned()]);
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    // It serves when it knows the cluster's Services, which takes as long as the API server does.
    spec.start_timeout_ms = 3_600_000;
    Ok(spec)
}

fn config(input: &CatalogInput) -> Value {
    let listen: Vec<SocketAddr> = input.bridge_addresses().into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect();
    json!({
        "listen": listen,
        "domain": input.cluster.dns_domain,
        "server": APISERVERS,
        "identity": Leaf::Dns.folder(),
        "resolvConf": RESOLV_CONF,
        "serviceCIDRs": [input.cluster.service_cidr],
        "podCIDRs": [input.cluster.pod_cidr],
    })
}
