//! Users and groups of Garboard's own clients, as their certificates name them and as roles are bound to them.

/// kube-apiserver when it asks kubelets for logs, exec and metrics.
pub const APISERVER_KUBELET_CLIENT: &str = "garboard:apiserver-kubelet-client";
/// Group of the node agents of control-plane machines.
pub const AGENT_GROUP: &str = "garboard:agent";
/// What the user names of the node agents of control-plane machines begin with; the machine's name follows.
pub const AGENT_PREFIX: &str = "garboard:agent:";
/// Group of kube-proxy on every machine: each has a name of its own, so that one can be told from another.
pub const KUBE_PROXIES_GROUP: &str = "garboard:kube-proxies";
/// Group of the cluster operators.
pub const OPERATORS_GROUP: &str = "garboard:operators";
/// Group of cluster DNS.
pub const DNS_GROUP: &str = "garboard:dns";
/// Group of people who may do everything.
pub const ADMINS_GROUP: &str = "garboard:admins";
/// Group of people who may read everything but Secrets.
pub const READERS_GROUP: &str = "garboard:readers";
/// Group of the node agents of workers.
pub const WORKERS_GROUP: &str = "garboard:workers";
/// What the user names of the node agents of workers begin with; the machine's name follows.
pub const WORKER_PREFIX: &str = "garboard:worker:";
/// Group of all who show a token to join, as their role is bound to it.
pub const JOINERS_GROUP: &str = "system:bootstrappers:garboard";
/// What the groups of workers who show a token begin with; the name of the machine that it is for follows.
pub const JOINER_PREFIX: &str = "system:bootstrappers:garboard:machine:";
/// The same of control-plane machines.
pub const CONTROL_PLANE_JOINER_PREFIX: &str = "system:bootstrappers:garboard:control-plane:";
/// The same of those whose token has let a machine in before.
pub const LATE_JOINER_PREFIX: &str = "system:bootstrappers:garboard:late:";
