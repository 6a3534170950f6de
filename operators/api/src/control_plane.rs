//! Settings of the control plane's components, a part of `Cluster`.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{HTTPS_URL, LABEL, texts_schema};

/// Flags of the components that Garboard gives itself, or that would undo what keeps a cluster safe.
pub const OWN_FLAGS: [&str; 68] = [
    "admission-control-config-file",
    "advertise-address",
    "allocate-node-cidrs",
    "allow-privileged",
    "anonymous-auth",
    "audit-log-maxage",
    "audit-log-maxbackup",
    "audit-log-maxsize",
    "audit-log-path",
    "audit-policy-file",
    "authentication-config",
    "authentication-kubeconfig",
    "authentication-skip-lookup",
    "authorization-config",
    "authorization-kubeconfig",
    "authorization-mode",
    "bind-address",
    "cert-dir",
    "client-ca-file",
    "cluster-cidr",
    "cluster-name",
    "cluster-signing-cert-file",
    "cluster-signing-key-file",
    "config",
    "controllers",
    "enable-admission-plugins",
    "enable-bootstrap-token-auth",
    "encryption-provider-config",
    "encryption-provider-config-automatic-reload",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-prefix",
    "etcd-servers",
    "feature-gates",
    "flex-volume-plugin-dir",
    "kube-api-burst",
    "kube-api-qps",
    "kubeconfig",
    "kubelet-certificate-authority",
    "kubelet-client-certificate",
    "kubelet-client-key",
    "kubelet-preferred-address-types",
    "leader-elect",
    "node-cidr-mask-size",
    "permit-port-sharing",
    "profiling",
    "proxy-client-cert-file",
    "proxy-client-key-file",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-username-headers",
    "root-ca-file",
    "secure-port",
    "service-account-issuer",
    "service-account-key-file",
    "service-account-private-key-file",
    "service-account-signing-key-file",
    "service-cluster-ip-range",
    "shutdown-watch-termination-grace-period",
    "tls-cert-file",
    "tls-cipher-suites",
    "tls-min-version",
    "tls-private-key-file",
    "token-auth-file",
    "use-service-account-credentials",
];

/// Settings of the control plane's components.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Feature gates of Kubernetes for all components of the control plane, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub feature_gates: BTreeMap<String, bool>,
    /// Settings of kube-apiserver.
    #[serde(default)]
    pub api_server: ApiServer,
    /// Settings of kube-controller-manager.
    #[serde(default)]
    pub controller_manager: Component,
    /// Settings of kube-scheduler.
    #[serde(default)]
    pub scheduler: Component,
}

/// Settings of a component.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Further flags by name, without dashes, such as `v: "4"`. Those that Garboard gives itself are not among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "extra_args_schema")]
    pub extra_args: BTreeMap<String, String>,
}

fn extra_args_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    texts_schema(
        64,
        1024,
        &OWN_FLAGS,
        "extraArgs has a flag that Garboard gives itself, so that the cluster works and is safe",
    )
}

/// Settings of kube-apiserver.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServer {
    /// Further flags by name, without dashes, such as `event-ttl: 2h`. Those that Garboard gives itself are not among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "extra_args_schema")]
    pub extra_args: BTreeMap<String, String>,
    /// Issuers of OpenID Connect whose tokens are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["issuerURL"])
    )]
    pub oidc: Vec<OidcIssuer>,
    /// What pods may do in namespaces whose labels do not say it.
    #[serde(default)]
    pub pod_security: PodSecurity,
    /// Further admission plugins of Kubernetes, of those that are off by default and need no configuration: AlwaysPullImages (images that a
    /// machine has count for nobody who could not pull them, so pods need their registry), DenyServiceExternalIPs,
    /// ExtendedResourceToleration, LimitPodHardAntiAffinityTopology, NamespaceAutoProvision, PodNodeSelector, PodTolerationRestriction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub admission_plugins: Vec<AdmissionPlugin>,
    /// How many Events are taken before further ones are refused; each limit counts for itself. Default: no limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub event_rate_limits: Vec<EventRateLimit>,
    /// What is noted in the audit log besides what is by default: the first rule that a request matches counts. Those that leave out what
    /// the cluster's own components read all day come before these, and so does the one by which of Secrets, ConfigMaps and tokens never
    /// more is noted than who did what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub audit_rules: Vec<AuditRule>,
}

/// An admission plugin that is off by default and needs no configuration.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AdmissionPlugin {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    AlwaysPullImages,
    #[allow(missing_docs, reason = "as above")]
    DenyServiceExternalIPs,
    #[allow(missing_docs, reason = "as above")]
    ExtendedResourceToleration,
    #[allow(missing_docs, reason = "as above")]
    LimitPodHardAntiAffinityTopology,
    #[allow(missing_docs, reason = "as above")]
    NamespaceAutoProvision,
    #[allow(missing_docs, reason = "as above")]
    PodNodeSelector,
    #[allow(missing_docs, reason = "as above")]
    PodTolerationRestriction,
}

/// How many Events are taken.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRateLimit {
    /// Whose Events are counted together: Server (all), Namespace, User or SourceAndObject (the same source about the same object).
    #[serde(rename = "type")]
    pub type_: EventLimitType,
    /// Events in a second in the long run.
    #[schemars(range(min = 1, max = 100_000))]
    pub qps: i32,
    /// Events that may come at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: i32,
    /// How many namespaces, users or objects are counted at a time; the one that was quiet longest is forgotten. Default: 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub cache_size: Option<i32>,
}

/// Whose Events are counted together.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EventLimitType {
    #[allow(missing_docs, reason = "as above")]
    Server,
    #[allow(missing_docs, reason = "as above")]
    Namespace,
    #[allow(missing_docs, reason = "as above")]
    User,
    #[allow(missing_docs, reason = "as above")]
    SourceAndObject,
}

/// Which requests, and how much of them is noted in the audit log. A list that is empty lets any request match.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRule {
    /// How much: None, Metadata (who did what when), Request (also what was sent) or RequestResponse (also what was answered).
    pub level: AuditLevel,
    /// Users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub users: Vec<String>,
    /// Groups of users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub user_groups: Vec<String>,
    /// Verbs, such as `create`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub verbs: Vec<String>,
    /// Resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub resources: Vec<AuditResources>,
    /// Namespaces; an empty name stands for what is in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
    /// Paths that belong to no resource, such as `/metrics` or `/healthz*`.
    #[serde(default, rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub non_resource_urls: Vec<String>,
}

/// Resources of an API group.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditResources {
    /// The group; empty for the core.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// The resources, such as `pods` or `pods/exec`. Default: all of the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 126)))]
    pub resources: Vec<String>,
    /// Names of the objects that are meant. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub resource_names: Vec<String>,
}

/// How much of a request is noted.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditLevel {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    None,
    #[allow(missing_docs, reason = "as above")]
    Metadata,
    #[allow(missing_docs, reason = "as above")]
    Request,
    #[allow(missing_docs, reason = "as above")]
    RequestResponse,
}

/// An issuer of OpenID Connect.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OidcIssuer {
    /// Where it is, as its tokens say it (`iss`): an https URL.
    #[serde(rename = "issuerURL")]
    #[schemars(length(min = 1, max = 253), regex(pattern = HTTPS_URL))]
    pub issuer_url: String,
    /// Whom its tokens are for (`aud`): one of these, usually the identifier of a client.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 253)))]
    pub audiences: Vec<String>,
    /// The claim that is the name of the user.
    #[serde(default = "default_username_claim")]
    #[schemars(length(min = 1, max = 63))]
    pub username_claim: String,
    /// What is put before names, so that they cannot be taken for those of others, such as `oidc:`.
    #[schemars(length(min = 1, max = 63))]
    pub username_prefix: String,
    /// The claim that lists the user's groups. Default: none, and users have no groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub groups_claim: Option<String>,
    /// What is put before groups. Default: what is put before names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub groups_prefix: Option<String>,
    /// Certificates (PEM) of the authorities that vouch for it, in place of those of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca: Option<String>,
}

fn default_username_claim() -> String {
    "sub".to_owned()
}

/// What pods may do in namespaces whose labels do not say it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSecurity {
    /// The profile that pods must keep to.
    #[serde(default = "baseline")]
    pub enforce: PodSecurityLevel,
    /// The profile whose violations are noted in the audit log.
    #[serde(default = "restricted")]
    pub audit: PodSecurityLevel,
    /// The profile of whose violations the user is warned.
    #[serde(default = "restricted")]
    pub warn: PodSecurityLevel,
    /// Namespaces, besides kube-system, in which pods may do anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = LABEL)))]
    pub exempt_namespaces: Vec<String>,
}

impl Default for PodSecurity {
    fn default() -> Self {
        Self { enforce: baseline(), audit: restricted(), warn: restricted(), exempt_namespaces: Vec::new() }
    }
}

const fn baseline() -> PodSecurityLevel {
    PodSecurityLevel::Baseline
}

const fn restricted() -> PodSecurityLevel {
    PodSecurityLevel::Restricted
}

/// A profile of the Pod Security Standards.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSecurityLevel {
    #[allow(missing_docs, reason = "a documented variant would become a schema of its own, which is not structural")]
    Privileged,
    #[allow(missing_docs, reason = "as above")]
    Baseline,
    #[allow(missing_docs, reason = "as above")]
    Restricted,
}
