use proptest::prelude::*;

use super::*;

fn spec(yaml: &str) -> MachineSpec {
    serde_json::from_value(serde_json::to_value(serde_yaml_ng::from_str::<Value>(yaml).unwrap()).unwrap()).unwrap()
}

fn machine(yaml: &str) -> Machine {
    Machine::new("node-1", spec(yaml))
}

fn cluster(yaml: &str) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.spec.machines = spec(yaml);
    cluster
}

fn pool(name: &str, yaml: &str) -> MachinePool {
    let mut pool = MachinePool::default();
    pool.metadata.name = Some(name.into());
    pool.spec.template.spec = spec(yaml);
    pool
}

#[test]
fn each_layer_counts_before_those_below_it() {
    let all = |yaml: &str| (machine(yaml), pool("p", yaml), cluster(yaml));
    let (none_machine, none_pool, none_cluster) = all("{}");
    let (with_machine, _, _) = all("{kubelet: {maxPods: 40}}");
    let (_, with_pool, _) = all("{kubelet: {maxPods: 30}}");
    let (_, _, with_cluster) = all("{kubelet: {maxPods: 20}}");
    for (machine, pool, cluster, expected, source) in [
        (&none_machine, &none_pool, &none_cluster, 110, "Image"),
        (&none_machine, &none_pool, &with_cluster, 20, "Cluster"),
        (&none_machine, &with_pool, &with_cluster, 30, "MachinePool/p"),
        (&with_machine, &with_pool, &with_cluster, 40, "Machine"),
        (&with_machine, &none_pool, &none_cluster, 40, "Machine"),
    ] {
        let effective = merge(machine, Some(pool), Some(cluster));
        assert_eq!(effective.spec.kubelet.max_pods, Some(expected));
        assert_eq!(effective.sources["kubelet.maxPods"], source);
    }
}

#[test]
fn mappings_are_merged_and_lists_are_not() {
    let cluster =
        cluster("{kubelet: {nodeLabels: {a: cluster, b: cluster}}, network: {nameservers: [192.0.2.1, 192.0.2.2]}}");
    let machine = machine("{kubelet: {nodeLabels: {b: machine, c: machine}}, network: {nameservers: [192.0.2.3]}}");
    let effective = merge(&machine, None, Some(&cluster));
    let labels = [("a", "cluster"), ("b", "machine"), ("c", "machine")];
    assert_eq!(
        effective.spec.kubelet.node_labels,
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    );
    assert_eq!(effective.spec.network.nameservers, vec!["192.0.2.3".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(effective.sources["kubelet.nodeLabels.a"], "Cluster");
    assert_eq!(effective.sources["kubelet.nodeLabels.b"], "Machine");
    assert_eq!(effective.sources["network.nameservers"], "Machine");
}

#[test]
fn a_part_is_not_longer_than_the_whole_of_another_layer() {
    let cluster = cluster("{kubelet: {shutdownGracePeriodCriticalPodsSeconds: 20}}");
    let merged = merge(&machine("{kubelet: {shutdownGracePeriodSeconds: 15}}"), None, Some(&cluster));
    assert_eq!(merged.spec.kubelet.shutdown_grace_period_critical_pods_seconds, Some(15));
}

#[test]
fn a_machine_belongs_to_the_one_pool_that_picks_it() {
    let labelled = |name: &str, key: &str, value: &str| {
        let mut pool = pool(name, "{}");
        pool.spec.selector.match_labels = Some([(key.to_owned(), value.to_owned())].into());
        pool
    };
    let pools = [labelled("b", "role", "worker"), labelled("a", "zone", "1"), labelled("c", "role", "other")];
    let with = |labels: &[(&str, &str)]| {
        let mut machine = machine("{}");
        machine.metadata.labels =
            Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        machine
    };
    let name =
        |machine: &Machine| pool_of(machine, &pools).map(|pool| pool.and_then(|pool| pool.metadata.name.clone()));
    assert_eq!(name(&with(&[])), Ok(None));
    assert_eq!(name(&with(&[("role", "worker")])), Ok(Some("b".into())));
    assert_eq!(name(&with(&[("role", "worker"), ("zone", "1")])), Err(vec!["a".into(), "b".into()]));
}

fn specs() -> impl Strategy<Value = MachineSpec> {
    let labels = proptest::collection::btree_map("[a-c]", "[x-z]", 0..3);
    (labels, proptest::option::of(1..250u32), proptest::option::of(0..570u32)).prop_map(
        |(node_labels, max_pods, grace)| {
            let kubelet = MachineKubelet {
                node_labels,
                max_pods,
                shutdown_grace_period_seconds: grace,
                ..MachineKubelet::default()
            };
            MachineSpec { kubelet, ..MachineSpec::default() }
        },
    )
}

proptest! {
    /// What a machine sets itself is in force; every setting has a source that sets it; merging what was merged changes nothing.
    #[test]
    fn merging_keeps_its_rules(own in specs(), pooled in specs(), shared in specs()) {
        let machine = Machine::new("node-1", own.clone());
        let mut pool = MachinePool::default();
        pool.spec.template.spec = pooled.clone();
        let mut cluster = Cluster::default();
        cluster.spec.machines = shared.clone();
        let merged = merge(&machine, Some(&pool), Some(&cluster));
        let kubelet = &merged.spec.kubelet;
        let first = |of: fn(&MachineKubelet) -> Option<u32>| [&own, &pooled, &shared].into_iter().find_map(|spec| of(&spec.kubelet));
        prop_assert_eq!(kubelet.max_pods(), first(|kubelet| kubelet.max_pods).unwrap_or(110));
        prop_assert_eq!(kubelet.shutdown_grace_period_seconds(), first(|kubelet| kubelet.shutdown_grace_period_seconds).unwrap_or(30));
        for (key, value) in &kubelet.node_labels {
            let expected = [&own, &pooled, &shared].into_iter().find_map(|spec| spec.kubelet.node_labels.get(key));
            prop_assert_eq!(Some(value), expected);
            let path = ["kubelet.nodeLabels.", key].concat();
            prop_assert!(merged.sources.contains_key(&path));
        }
        let again = merge(&Machine::new("node-1", merged.spec.clone()), Some(&pool), Some(&cluster));
        prop_assert_eq!(again.spec, merged.spec);
    }
}
