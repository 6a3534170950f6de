use super::*;
use crate::ClusterSpec;

fn named(spec: ClusterSpec) -> Cluster {
    Cluster::new(cluster::NAME, spec)
}

#[test]
fn defaults_are_valid() {
    assert_eq!(cluster(&named(ClusterSpec::default())), []);
    assert_eq!(machine(&Machine::new("node-1", Default::default())), []);
}

#[test]
fn what_addresses_hang_on_cannot_change() {
    let old = named(ClusterSpec::default());
    let cases = [
        ("spec.podCIDR", ClusterSpec { pod_cidr: "10.200.0.0/16".parse().unwrap(), ..ClusterSpec::default() }),
        ("spec.serviceCIDR", ClusterSpec { service_cidr: "10.112.0.0/12".parse().unwrap(), ..ClusterSpec::default() }),
        ("spec.dnsDomain", ClusterSpec { dns_domain: "example.org".to_owned(), ..ClusterSpec::default() }),
    ];
    for (field, spec) in cases {
        let errors = cluster_change(&old, &named(spec));
        assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), [field]);
    }
    assert_eq!(cluster_change(&old, &old), []);
}

#[test]
fn hardware_addresses_are_six_pairs() {
    for (text, valid) in [
        ("52:54:00:12:34:56", true),
        ("AA:bb:00:12:34:56", true),
        ("52:54:00:12:34", false),
        ("52:54:00:12:34:56:78", false),
        ("5254:00:12:34:56", false),
        ("52:54:00:12:34:5g", false),
        ("", false),
    ] {
        assert_eq!(is_mac(text), valid, "{text:?}");
    }
}
