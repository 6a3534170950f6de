//! The objects that Garboard keeps in a cluster's API: who may do what, and the way to cluster DNS.
//!
//! Upstream's own roles are used wherever one fits. [`due`] names the objects to apply, which are those that differ in
//! something that is declared here; what others add to an object stays.

use std::collections::BTreeMap;
use std::net::IpAddr;

use garboard_api::REGISTRIES_NAMESPACE;
use garboard_api::cluster::ClusterSpec;
use garboard_catalog::identity;
use garboard_catalog::input::dns_service_address;
use serde_json::{Value, json};

use crate::{cluster, csr, join, leader};

/// The name under which Garboard owns fields of objects.
pub const FIELD_MANAGER: &str = "garboard-agent";
/// The Service of cluster DNS.
pub const DNS_SERVICE: &str = "kube-dns";

const RBAC: &str = "rbac.authorization.k8s.io";

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Group and version, such as `rbac.authorization.k8s.io/v1`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; none for an object of the whole cluster.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object.
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&object["metadata"]["name"]),
        }
    }
}

/// This node, as far as its objects depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInput {
    /// The node's name.
    pub name: String,
    /// The UID of its Node object: what belongs to the node goes with it.
    pub uid: String,
    /// Addresses of the pod bridge, where cluster DNS listens; empty until the node has its part of the pod addresses.
    pub bridge_addresses: Vec<IpAddr>,
    /// Whether cluster DNS serves on this node.
    pub dns_ready: bool,
}

/// Those of `desired` that are missing from `live` or differ from what is there.
pub fn due(desired: Vec<Value>, live: &BTreeMap<ObjectKey, Value>) -> Vec<Value> {
    desired
        .into_iter()
        .filter(|object| !live.get(&ObjectKey::of(object)).is_some_and(|found| holds(found, object)))
        .collect()
}

/// Whether `live` has everything that `desired` says. Maps may hold more; lists are compared whole.
fn holds(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, value)| live.get(key).is_some_and(|found| holds(found, value)))
        }
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(live, desired)| holds(live, desired))
        }
        (live, desired) => live == desired,
    }
}

/// The namespace of the Secrets with credentials of registries, which comes before [`roles`]. It has nothing but what every machine may
/// read, so that no machine need be trusted with other Secrets, nor its declaration with the choice of one.
pub fn namespaces() -> Vec<Value> {
    vec![json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": REGISTRIES_NAMESPACE, "labels": labels() },
    })]
}

/// Roles and their bindings. They give rights away, so only an administrator can apply them.
pub fn roles() -> Vec<Value> {
    let mut objects = vec![
        bind_group("garboard:admins", "cluster-admin", identity::ADMINS_GROUP),
        bind_group("garboard:readers:view", "view", identity::READERS_GROUP),
        bind_group("garboard:kube-proxies", "system:node-proxier", identity::KUBE_PROXIES_GROUP),
        binding(
            "garboard:apiserver-kubelet-client",
            "system:kubelet-api-admin",
            "User",
            identity::APISERVER_KUBELET_CLIENT,
        ),
    ];
    for (name, group, rules) in [
        ("garboard:readers", identity::READERS_GROUP, readers_rules()),
        ("garboard:dns", identity::DNS_GROUP, dns_rules()),
        ("garboard:operators", identity::OPERATORS_GROUP, operators_rules()),
        ("garboard:agent", identity::AGENT_GROUP, agent_rules()),
    ] {
        objects.extend(role(name, group, &rules));
    }
    for (name, group, rules) in [
        ("garboard:operators", identity::OPERATORS_GROUP, operators_system_rules()),
        ("garboard:agent", identity::AGENT_GROUP, agent_system_rules()),
    ] {
        objects.extend(system_role(name, group, &rules));
    }
    objects.extend(registries_role("garboard:agent", identity::AGENT_GROUP));
    objects
}

/// What workers may do, and those who are about to be some, and what the operators may do with tokens. Only what is bound by
/// [`join::policies`] may have it.
pub fn worker_roles() -> Vec<Value> {
    let mut objects = vec![bind_group("garboard:joiners", "system:node-bootstrapper", identity::JOINERS_GROUP)];
    objects.extend(role("garboard:workers", identity::WORKERS_GROUP, &worker_rules()));
    objects.extend(system_role("garboard:workers", identity::WORKERS_GROUP, &worker_system_rules()));
    objects.extend(registries_role("garboard:workers", identity::WORKERS_GROUP));
    objects.extend(system_role("garboard:tokens", identity::OPERATORS_GROUP, &tokens_rules()));
    objects
}

/// A role in the whole cluster, and a group that has it.
fn role(name: &str, group: &str, rules: &Value) -> [Value; 2] {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": name, "labels": labels() },
        "rules": rules,
    });
    [role, bind_group(name, name, group)]
}

/// A role among the cluster's own objects, and a group that has it.
fn system_role(name: &str, group: &str, rules: &Value) -> [Value; 2] {
    let metadata = json!({ "name": name, "namespace": "kube-system", "labels": labels() });
    role_in(&metadata, rules, "Group", group)
}

/// The right to the credentials of registries, and a group that has it.
fn registries_role(name: &str, group: &str) -> [Value; 2] {
    let metadata = json!({ "name": name, "namespace": REGISTRIES_NAMESPACE, "labels": labels() });
    role_in(&metadata, &json!([rule("", &["secrets"], &["list", "watch"])]), "Group", group)
}

/// A role in a namespace, and who has it: two objects with the same metadata.
pub(crate) fn role_in(metadata: &Value, rules: &Value, subject_kind: &str, subject: &str) -> [Value; 2] {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": rules,
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": metadata["name"] },
        "subjects": [{ "apiGroup": RBAC, "kind": subject_kind, "name": subject }],
    });
    [role, binding]
}

/// The Service of cluster DNS. It has no selector: its endpoints are the nodes' own daemons, of which the nearest is preferred.
pub fn dns_service(cluster: &ClusterSpec) -> Option<Value> {
    let address = dns_service_address(cluster)?;
    Some(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": DNS_SERVICE,
            "namespace": "kube-system",
            "labels": { "app.kubernetes.io/managed-by": FIELD_MANAGER, "k8s-app": DNS_SERVICE },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "trafficDistribution": "PreferSameNode",
            "ports": dns_ports(),
        },
    }))
}

/// This node's endpoint of cluster DNS; none before the pod bridge has an address.
pub fn dns_endpoint(node: &NodeInput) -> Option<Value> {
    let address = node.bridge_addresses.first()?;
    Some(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{DNS_SERVICE}-{}", node.name),
            "namespace": "kube-system",
            "labels": {
                "app.kubernetes.io/managed-by": FIELD_MANAGER,
                "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER,
                "kubernetes.io/service-name": DNS_SERVICE,
            },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid }],
        },
        "addressType": if address.is_ipv6() { "IPv6" } else { "IPv4" },
        "endpoints": [{
            "addresses": [address],
            "conditions": { "ready": node.dns_ready, "serving": node.dns_ready, "terminating": false },
            "nodeName": node.name,
            "hints": { "forNodes": [{ "name": node.name }] },
        }],
        "ports": dns_ports(),
    }))
}

/// The label that marks a node of the control plane; the nodes of workers have none. The UID keeps it from making a Node that is not there.
pub fn node_labels(node: &NodeInput) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "uid": node.uid,
            "labels": { "node-role.kubernetes.io/control-plane": "" },
        },
    })
}

/// Labels of every object here.
pub(crate) fn labels() -> Value {
    json!({ "app.kubernetes.io/managed-by": FIELD_MANAGER })
}

/// An admission policy, and what binds it for everything: what it says no to is dealt with by `action`, Warn or Deny.
pub(crate) fn policy(name: &str, action: &str, spec: Value) -> [Value; 2] {
    let object = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": { "name": name, "labels": labels() },
            "spec": spec,
        })
    };
    let binding = json!({ "policyName": name, "validationActions": [action] });
    [object("ValidatingAdmissionPolicy", spec), object("ValidatingAdmissionPolicyBinding", binding)]
}

fn dns_ports() -> Value {
    json!([
        { "name": "dns", "protocol": "UDP", "port": 53 },
        { "name": "dns-tcp", "protocol": "TCP", "port": 53 },
    ])
}

fn bind_group(name: &str, role: &str, group: &str) -> Value {
    binding(name, role, "Group", group)
}

fn binding(name: &str, role: &str, subject_kind: &str, subject: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name, "labels": labels() },
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": RBAC, "kind": subject_kind, "name": subject }],
    })
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}

/// The same for the objects of one name.
pub(crate) fn rule_for(name: &str, group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs })
}

const READ: [&str; 3] = ["get", "list", "watch"];

/// What the upstream role `view` leaves out because it belongs to the cluster and not to a namespace.
fn readers_rules() -> Value {
    json!([
        rule("", &["namespaces", "nodes", "persistentvolumes"], &READ),
        rule("storage.k8s.io", &["storageclasses", "csidrivers", "csinodes", "volumeattachments"], &READ),
        rule("apiextensions.k8s.io", &["customresourcedefinitions"], &READ),
        rule(garboard_api::GROUP, &["clusters", "etcdmembers", "machinepools", "machines"], &READ),
    ])
}

fn dns_rules() -> Value {
    json!([
        rule("", &["namespaces", "services"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
    ])
}

/// The operators sign nothing themselves: they approve requests for kubelets' serving certificates and for workers' clients.
fn operators_rules() -> Value {
    json!([
        rule("certificates.k8s.io", &["certificatesigningrequests"], &READ),
        rule("certificates.k8s.io", &["certificatesigningrequests/approval"], &["update", "patch"]),
        rule_for(csr::SIGNER, "certificates.k8s.io", "signers", &["approve"]),
        rule_for(join::SIGNER, "certificates.k8s.io", "signers", &["approve"]),
        rule("", &["nodes"], &["get", "list", "watch", "patch", "delete"]),
        // Of a machine that leaves.
        rule("", &["pods"], &["list"]),
        rule("", &["pods/eviction"], &["create"]),
        rule(garboard_api::GROUP, &["clusters", "etcdmembers", "machinepools", "machines"], &READ),
        rule(garboard_api::GROUP, &["etcdmembers", "machines"], &["patch"]),
        rule(
            garboard_api::GROUP,
            &["clusters/status", "machinepools/status", "machines/status"],
            &["get", "update", "patch"],
        ),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ])
}

/// One lease: to create it no name can be demanded, as the API server decides before it knows the object.
fn operators_system_rules() -> Value {
    json!([
        rule("coordination.k8s.io", &["leases"], &["create"]),
        rule_for(leader::OPERATORS, "coordination.k8s.io", "leases", &["get", "update"]),
    ])
}

/// To mark those that have let their machine in.
fn tokens_rules() -> Value {
    json!([rule("", &["secrets"], &["patch"])])
}

/// What every node agent looks at.
fn common_rules() -> Vec<Value> {
    vec![
        rule(garboard_api::GROUP, &["machinepools"], &READ),
        rule("", &["nodes"], &["get", "list", "watch", "patch"]),
        // The addresses of the API servers are in one of these.
        rule("discovery.k8s.io", &["endpointslices"], &READ),
        rule_for(cluster::ACCOUNT, "", "serviceaccounts", &["get"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]
}

fn worker_rules() -> Value {
    let own = [
        rule(garboard_api::GROUP, &["clusters"], &READ),
        rule(garboard_api::GROUP, &["machines"], &["get", "list", "watch", "create", "update"]),
        rule(garboard_api::GROUP, &["machines/status"], &["get", "update", "patch"]),
        rule("certificates.k8s.io", &["certificatesigningrequests"], &["get", "list", "watch", "create"]),
    ];
    common_rules().into_iter().chain(own).collect()
}

fn worker_system_rules() -> Value {
    json!([rule("discovery.k8s.io", &["endpointslices"], &["create", "patch"])])
}

fn agent_rules() -> Value {
    let own = [
        rule(
            garboard_api::GROUP,
            &["clusters", "etcdmembers", "machines"],
            &["get", "list", "watch", "create", "update", "patch"],
        ),
        rule(
            garboard_api::GROUP,
            &["clusters/status", "etcdmembers/status", "machines/status"],
            &["get", "update", "patch"],
        ),
        rule(
            "apiextensions.k8s.io",
            &["customresourcedefinitions"],
            &["get", "list", "watch", "create", "update", "patch"],
        ),
    ];
    common_rules().into_iter().chain(own).collect()
}

/// One lease: those of the node agents that hold it change the membership of the cluster's store.
fn agent_system_rules() -> Value {
    json!([
        rule("coordination.k8s.io", &["leases"], &["create"]),
        rule_for(leader::ETCD, "coordination.k8s.io", "leases", &["get", "update"]),
        rule("", &["services"], &["get", "list", "watch", "create", "patch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["get", "list", "watch", "create", "patch"]),
    ])
}

#[cfg(test)]
#[path = "addons_tests.rs"]
mod tests;
