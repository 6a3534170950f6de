//! Users and groups of Garboard's own clients, as their certificates name them and as roles are bound to them.

/// kube-apiserver when it asks kubelets for logs, exec and metrics.
pub const APISERVER_KUBELET_CLIENT: &str = "garboard:apiserver-kubelet-client";
/// Group of the node agents.
pub const AGENT_GROUP: &str = "garboard:agent";
/// Group of the cluster operators.
pub const OPERATORS_GROUP: &str = "garboard:operators";
/// Group of cluster DNS.
pub const DNS_GROUP: &str = "garboard:dns";
/// Group of people who may do everything.
pub const ADMINS_GROUP: &str = "garboard:admins";
/// Group of people who may read everything but Secrets.
pub const READERS_GROUP: &str = "garboard:readers";
