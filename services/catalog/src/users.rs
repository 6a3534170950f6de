//! The static users that services run as. The image's `/etc/passwd` and `/etc/group` hold the same table.

/// A user, and the group of the same name and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Name in `/etc/passwd` and `/etc/group`.
    pub name: &'static str,
    /// User and group number.
    pub id: u32,
}

/// For programs that make containers, mounts or packet filter rules, and for the agent.
pub const ROOT: User = User { name: "root", id: 0 };
/// etcd.
pub const ETCD: User = User { name: "etcd", id: 201 };
/// kube-apiserver.
pub const KUBE_APISERVER: User = User { name: "kube-apiserver", id: 202 };
/// kube-controller-manager.
pub const KUBE_CONTROLLER_MANAGER: User = User { name: "kube-controller-manager", id: 203 };
/// kube-scheduler.
pub const KUBE_SCHEDULER: User = User { name: "kube-scheduler", id: 204 };
/// Cluster DNS.
pub const DNS: User = User { name: "dns", id: 205 };
/// The D-Bus system bus.
pub const MESSAGEBUS: User = User { name: "messagebus", id: 206 };
/// The cluster operators.
pub const OPERATORS: User = User { name: "operators", id: 207 };
/// The local way to the API servers.
pub const BALANCER: User = User { name: "balancer", id: 208 };

/// Every user of the image.
pub const ALL: [User; 9] =
    [ROOT, ETCD, KUBE_APISERVER, KUBE_CONTROLLER_MANAGER, KUBE_SCHEDULER, DNS, MESSAGEBUS, OPERATORS, BALANCER];
