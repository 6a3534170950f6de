//! The D-Bus system bus with the part of logind that lets kubelet delay a shutdown.

use garboard_supervisor::spec::{Directory, ProbeAction, ServiceSpec, Slice};

use crate::base::{MIB, blank, cgroup, readiness};
use crate::{CatalogError, CatalogInput, users};

/// The service's name.
pub const NAME: &str = "bus";

/// The specification of the system bus.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(_input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let argv = vec!["/usr/lib/garboard/garboard-bus".to_owned()];
    let mut limits = cgroup(Slice::System, -998, 64, 2, 8);
    limits.memory_max = Some(64 * MIB);

    let mut spec = blank(NAME, users::MESSAGEBUS, limits, argv)?;
    spec.directories.push(Directory { path: "/run/dbus".into(), mode: 0o755, owner: None });
    spec.isolation.read_write.push("/run/dbus".into());
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    Ok(spec)
}
