//! The local way to the cluster's API servers: what runs on every machine finds them at one address, whichever of them serve.

use std::net::SocketAddr;

use garboard_supervisor::spec::{ProbeAction, ServiceSpec, Slice};
use serde_json::json;

use crate::base::{MIB, blank, cgroup, loopback, private_file, readiness};
use crate::kubeconfig::pretty;
use crate::paths::service_file;
use crate::{CatalogError, users};

/// The service's name.
pub const NAME: &str = "balancer";
/// Where it takes connections, on loopback.
pub const PORT: u16 = 6444;

/// The specification of the balancer for these API servers, the preferred one first.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(servers: &[SocketAddr]) -> Result<ServiceSpec, CatalogError> {
    let config = service_file(NAME, "config.json");
    let argv = ["/usr/lib/garboard/garboard-balancer", "--listen", &loopback(PORT).to_string(), "--config", &config];
    let mut limits = cgroup(Slice::System, -998, 64, 2, 8);
    limits.memory_max = Some(64 * MIB);

    let mut spec = blank(NAME, users::BALANCER, limits, argv.map(str::to_owned).to_vec())?;
    spec.files.push(private_file(config, pretty(&json!({ "servers": servers }))));
    spec.watches_files = true;
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    Ok(spec)
}
