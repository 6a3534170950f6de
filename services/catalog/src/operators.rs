//! The cluster operators: duties for the whole cluster, such as approving the serving certificates that kubelets request.

use garboard_supervisor::spec::{ProbeAction, ServiceSpec, Slice};

use crate::base::{MIB, blank, cgroup, readiness, ready};
use crate::{CatalogError, CatalogInput, kube_apiserver, users};

/// The service's name.
pub const NAME: &str = "operators";

/// The specification of the cluster operators.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let argv = vec!["/usr/lib/garboard/garboard-operators".to_owned(), "cluster".to_owned(), input.node.name.clone()];
    let mut limits = cgroup(Slice::System, -997, 128, 4, 16);
    limits.memory_max = Some(256 * MIB);

    let mut spec = blank(NAME, users::OPERATORS, limits, argv)?;
    spec.requires.push(ready(kube_apiserver::NAME)?);
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    Ok(spec)
}
