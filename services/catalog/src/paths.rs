//! Where things lie on the machine.

use std::path::PathBuf;

/// The kernel and identity files that `/etc` points to.
pub const RESOLV_CONF: &str = "/run/garboard/etc/resolv.conf";
/// Socket of containerd.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Images that the release brings, as OCI archives.
pub const PRELOADED_IMAGES: &str = "/usr/share/garboard/images";
/// Socket of the D-Bus system bus.
pub const SYSTEM_BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
/// Where the CNI daemon puts its configuration list when it is ready to attach pods.
pub const CNI_CONF_DIR: &str = "/run/cni/net.d";
/// Where the CNI plugins lie.
pub const CNI_BIN_DIR: &str = "/usr/lib/cni";
/// Audit log of the API server.
pub const AUDIT_DIR: &str = "/var/log/audit";
/// The cgroup that kubelet makes its own tree in.
pub const PODS_CGROUP: &str = "/pods";
/// The cgroup of containerd's shims.
pub const SHIMS_CGROUP: &str = "/shims";
/// Certificates and keys of services, deployed from the state partition.
pub const PKI_DIR: &str = "/run/garboard/pki";

/// The folder of a service's rendered files.
pub fn service_dir(service: &str) -> PathBuf {
    PathBuf::from(format!("/run/garboard/services/{service}"))
}

/// One rendered file of a service.
pub fn service_file(service: &str, file: &str) -> String {
    format!("/run/garboard/services/{service}/{file}")
}
