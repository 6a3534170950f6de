//! The custom resources of garboard.dev/v1alpha1.
//!
//! One file per kind. Documentation of fields is what `kubectl explain` shows. What a schema can express is in the
//! schema; rules between fields are in [`validate`], and the most useful of them are also CEL rules, so that a local
//! manifest and the API server refuse the same things.
//!
//! | kind | scope | name |
//! |---|---|---|
//! | [`Machine`] | cluster | the machine's, which is also its node's |
//! | [`Cluster`] | cluster | always `cluster` |
//! | [`MachinePool`] | cluster | the pool's |
//! | [`EtcdMember`] | cluster | that of the machine that runs it |

pub mod cluster;
pub mod condition;
pub mod control_plane;
pub mod crds;
pub mod etcd_member;
pub mod field_error;
pub mod machine;
pub mod machine_pool;
pub mod manifest;
pub mod reference;
pub mod refusal;
pub mod schema;
pub mod types;
pub mod validate;
pub mod virtual_address;

pub use cluster::{Access, Cluster, ClusterSpec, ClusterStatus, Endpoint, PodNetwork, ProxyMode, Role};
pub use etcd_member::{EtcdMember, EtcdMemberSpec, EtcdMemberStatus, EtcdRole};
pub use field_error::FieldError;
pub use machine::{
    Effective, HostEntry, Link, LinkMatch, LinkRoute, Machine, MachineJoin, MachineKernel, MachineKubelet,
    MachineNetwork, MachineRole, MachineSpec, MachineStatus, MachineTrial, PoolReference, Registry,
    RegistryCredentials, ServiceSummary, Taint, TaintEffect, Versions,
};
pub use machine_pool::{
    MachinePool, MachinePoolSpec, MachinePoolStatus, MachineTemplate, MaxUnavailable, Rollout, RolloutFailure,
    RolloutStatus,
};
pub use refusal::{About, Refusals};
pub use types::{Cidr, MacAddress, PublicKeyPin};
pub use virtual_address::VirtualAddress;

/// The API group.
pub const GROUP: &str = "garboard.dev";
/// The version of the API.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every kind here.
pub const API_VERSION: &str = "garboard.dev/v1alpha1";
/// The finalizer that keeps a Machine until its machine has left.
pub const REMOVAL_FINALIZER: &str = "garboard.dev/removal";
/// Type of the Secret that holds a machine's own key.
pub const IDENTITY_SECRET_TYPE: &str = "garboard.dev/machine-identity";
/// Key of the PEM-encoded private key in that Secret.
pub const IDENTITY_SECRET_KEY: &str = "identity.key";
/// Type of the Secret that holds the token by which a machine joins a cluster.
pub const JOIN_SECRET_TYPE: &str = "garboard.dev/join-token";
/// Key of the token in that Secret.
pub const JOIN_SECRET_KEY: &str = "token";
/// The namespace of the Secrets with credentials of registries.
pub const REGISTRIES_NAMESPACE: &str = "garboard-registries";
/// Type of the Secrets that hold credentials of registries, one of Kubernetes' own.
pub const REGISTRY_SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// Key of the credentials in such a Secret.
pub const REGISTRY_SECRET_KEY: &str = ".dockerconfigjson";
