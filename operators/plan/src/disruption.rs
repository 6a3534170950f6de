//! What a change would disrupt, told before it is made: `kubectl apply --dry-run=server` and `kubectl diff` show warnings of the API
//! server, and these come from admission policies that compare an object with the one that it replaces.

use garboard_catalog::{containerd, kube_apiserver, kube_controller_manager, kube_proxy, kube_scheduler, kubelet};
use serde_json::{Value, json};

use crate::addons;

/// Fields whose change disrupts something, and what.
struct Disruption {
    /// The fields that they belong to, joined by dots; empty for the settings themselves.
    parent: &'static str,
    /// Their names.
    fields: &'static [&'static str],
    /// The services that restart.
    restarts: &'static [&'static str],
    /// What that means for others.
    means: &'static str,
}

/// Of a machine's settings, in whichever layer.
const MACHINE: [Disruption; 3] = [
    Disruption {
        parent: "kubelet",
        fields: &[
            "maxPods",
            // kubelet registers with them.
            "taints",
            "kubeReserved",
            "systemReserved",
            "evictionHard",
            "featureGates",
            "shutdownGracePeriodSeconds",
            "shutdownGracePeriodCriticalPodsSeconds",
        ],
        restarts: &[kubelet::NAME],
        means: "running pods go on",
    },
    Disruption { parent: "", fields: &["registries"], restarts: &[containerd::NAME], means: "running pods go on" },
    Disruption {
        parent: "network",
        fields: &["links", "rules"],
        restarts: &[],
        means: "links, addresses and routes change at once: connections over them may break",
    },
];

/// Of the Cluster's own settings.
const CLUSTER: [Disruption; 6] = [
    Disruption {
        parent: "controlPlane",
        fields: &["featureGates"],
        restarts: &[kube_apiserver::NAME, kube_controller_manager::NAME, kube_scheduler::NAME],
        means: "the API of a cluster with one control-plane machine is away meanwhile",
    },
    Disruption {
        parent: "controlPlane",
        fields: &["apiServer"],
        restarts: &[kube_apiserver::NAME],
        means: "the API of a cluster with one control-plane machine is away meanwhile",
    },
    Disruption {
        parent: "controlPlane",
        fields: &["controllerManager"],
        restarts: &[kube_controller_manager::NAME],
        means: "nothing else is disturbed",
    },
    Disruption {
        parent: "controlPlane",
        fields: &["scheduler"],
        restarts: &[kube_scheduler::NAME],
        means: "new pods wait for it",
    },
    Disruption {
        parent: "",
        fields: &["virtualAddress"],
        restarts: &[],
        means: "the API is no longer at the former virtual address, if there was one: connections to it break, and kubeconfigs and \
                machines that know it find nobody there",
    },
    Disruption {
        parent: "",
        fields: &["proxyMode"],
        restarts: &[kube_proxy::NAME, kubelet::NAME],
        means: "connections to Services may break",
    },
];

/// The policies, and what binds them: they warn and refuse nothing.
pub fn policies() -> Vec<Value> {
    let machines = |base: &'static str, whom: &'static str| MACHINE.iter().map(move |each| each.validation(base, whom));
    let kinds: [(&str, Vec<Value>); 3] = [
        ("machines", machines("spec", "").collect()),
        (
            "machinepools",
            machines("spec.template.spec", "on each machine of the pool, when its rollout comes to it, ").collect(),
        ),
        (
            "clusters",
            CLUSTER
                .iter()
                .map(|each| each.validation("spec", ""))
                .chain(machines("spec.machines", "on each machine that has no setting of its own, "))
                .collect(),
        ),
    ];
    kinds.into_iter().flat_map(|(plural, validations)| policy(plural, &validations)).collect()
}

fn policy(plural: &str, validations: &[Value]) -> [Value; 2] {
    let spec = json!({
        "failurePolicy": "Ignore",
        "matchConstraints": { "resourceRules": [{
            "apiGroups": [garboard_api::GROUP],
            "apiVersions": [garboard_api::VERSION],
            "operations": ["UPDATE"],
            "resources": [plural],
        }] },
        "validations": validations,
    });
    addons::policy(&format!("disruption.{plural}.{}", garboard_api::GROUP), "Warn", spec)
}

impl Disruption {
    /// A rule that holds when none of the fields changes, with what is said when one does.
    fn validation(&self, base: &str, whom: &str) -> Value {
        let Self { parent, fields, restarts, means } = self;
        let path: String = base
            .split('.')
            .chain(parent.split('.'))
            .filter(|part| !part.is_empty())
            .map(|part| format!(".?{part}"))
            .collect();
        let restart = match restarts {
            [] => String::new(),
            [one] => format!("{one} restarts; "),
            [others @ .., last] => format!("{} and {last} restart; ", others.join(", ")),
        };
        json!({
            "expression": format!("{fields:?}.all(field, object{path}[?field] == oldObject{path}[?field])"),
            "message": format!("{whom}{restart}{means}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use garboard_api::{ClusterSpec, MachineSpec};
    use garboard_catalog::{CatalogInput, EtcdFacts, NodeFacts};

    fn restarted(machine: Value, cluster: Value) -> BTreeSet<String> {
        let specs = |machine: MachineSpec, cluster: ClusterSpec| {
            let node = NodeFacts {
                name: "node-1".into(),
                addresses: vec!["192.0.2.7".parse().unwrap()],
                memory_bytes: 2 << 30,
                pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
                api_servers: Vec::new(),
                peers: Vec::new(),
                etcd: Some(EtcdFacts { votes: true, ..EtcdFacts::default() }),
            };
            let input = CatalogInput { cluster, machine, node, pause_image: "garboard.dev/pause:0".into() };
            garboard_catalog::services(&input).unwrap()
        };
        let before = specs(MachineSpec::default(), ClusterSpec::default());
        let after = specs(serde_json::from_value(machine).unwrap(), serde_json::from_value(cluster).unwrap());
        let changed = after.iter().filter(|spec| !before.contains(spec));
        changed.map(|spec| spec.name.to_string()).collect()
    }

    /// Some other value of a field.
    fn example(field: &str) -> Value {
        match field {
            "maxPods" => json!(7),
            "taints" => json!([{ "key": "a", "effect": "NoSchedule" }]),
            "kubeReserved" | "systemReserved" => json!({ "memory": "3Gi" }),
            "evictionHard" => json!({ "memory.available": "1%" }),
            "featureGates" => json!({ "Some": true }),
            "shutdownGracePeriodSeconds" => json!(77),
            "shutdownGracePeriodCriticalPodsSeconds" => json!(7),
            "registries" => json!([{ "host": "registry.example" }]),
            "links" => json!([{ "match": { "name": "eth0" }, "mtu": 1400 }]),
            "rules" => json!([{ "from": "192.0.2.0/24", "table": 7, "priority": 9 }]),
            "apiServer" | "controllerManager" | "scheduler" => json!({ "extraArgs": { "v": "3" } }),
            "proxyMode" => json!("iptables"),
            "virtualAddress" => json!({ "address": "192.0.2.5" }),
            other => panic!("no example of {other}"),
        }
    }

    fn setting(parent: &str, field: &str) -> Value {
        match parent {
            "" => json!({ (field): example(field) }),
            parent => json!({ (parent): { (field): example(field) } }),
        }
    }

    #[test]
    fn each_field_restarts_what_is_said() {
        let expected = |each: &Disruption| each.restarts.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        for each in &MACHINE {
            for field in each.fields {
                assert_eq!(restarted(setting(each.parent, field), json!({})), expected(each), "{field}");
            }
        }
        for each in &CLUSTER {
            for field in each.fields {
                assert_eq!(restarted(json!({}), setting(each.parent, field)), expected(each), "{field}");
            }
        }
    }

    /// A field that is in no table must restart nothing.
    #[test]
    fn other_fields_restart_nothing() {
        let machine = json!({
            "hostname": "keel",
            "time": { "servers": ["ntp.example.org"] },
            "watchdog": { "enabled": true, "timeoutSeconds": 120 },
            "logs": { "maxSizeMebibytes": 1, "maxFiles": 2 },
            "network": { "nameservers": ["192.0.2.53"], "searchDomains": ["example.org"], "hosts": [{ "address": "192.0.2.9", "names": ["a"] }] },
            "kernel": { "sysctls": { "vm.swappiness": "10" }, "modules": ["nbd"] },
            "kubelet": { "nodeLabels": { "a": "b" } },
        });
        let cluster = json!({ "certSANs": ["api.example.org"], "endpoint": { "host": "api.example.org" } });
        assert_eq!(restarted(machine, cluster), BTreeSet::new());
    }
}
