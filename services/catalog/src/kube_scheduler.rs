//! kube-scheduler: chooses a node for each pod. It listens on loopback only.

use garboard_supervisor::spec::{ServiceSpec, Slice};

use crate::base::{blank, cgroup, https, liveness, readiness, ready};
use crate::pki::Leaf;
use crate::{CatalogError, CatalogInput, kube_apiserver, kube_controller_manager, kubeconfig, users};

/// The service's name.
pub const NAME: &str = "kube-scheduler";
/// Port of health and metrics.
pub const PORT: u16 = 10259;

/// The specification of kube-scheduler.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let args = kube_controller_manager::controller_args(input, "/usr/bin/kube-scheduler", NAME, PORT, Leaf::Scheduler)
        .declared(&input.cluster.control_plane, &input.cluster.control_plane.scheduler.extra_args);
    let mut limits = cgroup(Slice::ControlPlane, -997, 512, 32, 96);
    limits.cpu_weight = Some(200);

    let mut spec = blank(NAME, users::KUBE_SCHEDULER, limits, args.into_vec())?;
    spec.files.push(kubeconfig::file(NAME, kubeconfig::LOCAL_APISERVER, Leaf::Scheduler));
    spec.requires.push(ready(kube_apiserver::NAME)?);
    spec.readiness = Some(readiness(https(PORT, "/readyz", Leaf::Scheduler.ca_file(), None)));
    spec.liveness = Some(liveness(https(PORT, "/livez", Leaf::Scheduler.ca_file(), None)));
    Ok(spec)
}
