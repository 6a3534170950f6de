//! The specification's examples, and what holds for every index.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::index::NamedPort;

fn zone() -> Zone {
    Zone {
        domain: name("cluster.local."),
        networks: ["10.3.0.0/16", "10.244.0.0/16", "fd00:3::/108"].map(|n| n.parse().unwrap()).to_vec(),
        servers: vec![[10, 244, 0, 1].into()],
    }
}

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn port(name: &str, number: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol: Protocol::Tcp, number }
}

fn endpoint(hostname: Option<&str>, addresses: &[&str]) -> Endpoint {
    Endpoint { hostname: hostname.map(Box::from), addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
}

/// The specification's cluster.
fn index() -> Index {
    let mut index = Index::default();
    index.add_namespace("default");
    let kubernetes = Service::Cluster {
        addresses: vec!["10.3.0.1".parse().unwrap(), "fd00:3::1".parse().unwrap()],
        ports: vec![port("https", 443)],
    };
    index.put_service(ServiceKey::new("default", "kubernetes"), kubernetes);
    index.put_service(ServiceKey::new("default", "headless"), Service::Headless);
    index.put_service(ServiceKey::new("default", "idle"), Service::Headless);
    index.put_service(ServiceKey::new("default", "foo"), Service::External(name("www.example.com.")));
    index.put_service(
        ServiceKey::new("default", "inner"),
        Service::External(name("kubernetes.default.svc.cluster.local.")),
    );
    index.put_service(ServiceKey::new("default", "ring"), Service::External(name("ring.default.svc.cluster.local.")));
    let slice = |endpoints| Slice { ports: vec![port("https", 443)], endpoints };
    let headless = || ServiceKey::new("default", "headless");
    let (first, second) = (
        slice(vec![endpoint(Some("my-pet"), &["10.3.0.100"]), endpoint(None, &["10.3.0.102"])]),
        slice(vec![endpoint(Some("my-pet-2"), &["10.3.0.101"]), endpoint(Some("my-pet"), &["10.3.0.100"])]),
    );
    index.put_slice(("default".into(), "headless-a".into()), headless(), first);
    index.put_slice(("default".into(), "headless-b".into()), headless(), second);
    let unready = Slice { ports: vec![port("https", 443)], endpoints: Vec::new() };
    index.put_slice(("default".into(), "idle-a".into()), ServiceKey::new("default", "idle"), unready);
    index
}

/// Records as text without owner and TTL; or the negative answer's name.
fn ask(question: &str) -> Vec<String> {
    let (owner, kind) = question.split_once(' ').unwrap();
    match zone().answer(&index(), &name(owner), kind.parse().unwrap()) {
        Answer::Records { answers, .. } => answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect(),
        Answer::Alias { answers, target } => {
            let aliases = answers.iter().map(|r| format!("{} {}", r.record_type(), r.data));
            aliases.chain([format!("ask {target}")]).collect()
        }
        other => vec![format!("{other:?}")],
    }
}

#[test]
fn the_specifications_examples() {
    let table: &[(&str, &[&str])] = &[
        ("dns-version.cluster.local. TXT", &["TXT 1.1.0"]),
        ("kubernetes.default.svc.cluster.local. A", &["A 10.3.0.1"]),
        ("kubernetes.default.svc.cluster.local. AAAA", &["AAAA fd00:3::1"]),
        ("KuberneteS.Default.SVC.cluster.LOCAL. A", &["A 10.3.0.1"]),
        (
            "_https._tcp.kubernetes.default.svc.cluster.local. SRV",
            &["SRV 0 100 443 kubernetes.default.svc.cluster.local."],
        ),
        ("1.0.3.10.in-addr.arpa. PTR", &["PTR kubernetes.default.svc.cluster.local."]),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa. PTR",
            &["PTR kubernetes.default.svc.cluster.local."],
        ),
        ("headless.default.svc.cluster.local. A", &["A 10.3.0.100", "A 10.3.0.102", "A 10.3.0.101"]),
        ("my-pet.headless.default.svc.cluster.local. A", &["A 10.3.0.100"]),
        ("10-3-0-102.headless.default.svc.cluster.local. A", &["A 10.3.0.102"]),
        (
            "_https._tcp.headless.default.svc.cluster.local. SRV",
            &[
                "SRV 0 100 443 my-pet.headless.default.svc.cluster.local.",
                "SRV 0 100 443 10-3-0-102.headless.default.svc.cluster.local.",
                "SRV 0 100 443 my-pet-2.headless.default.svc.cluster.local.",
            ],
        ),
        ("100.0.3.10.in-addr.arpa. PTR", &["PTR my-pet.headless.default.svc.cluster.local."]),
        ("idle.default.svc.cluster.local. A", &["NoName"]),
        ("foo.default.svc.cluster.local. A", &["CNAME www.example.com.", "ask www.example.com."]),
        ("foo.default.svc.cluster.local. CNAME", &["CNAME www.example.com."]),
        ("inner.default.svc.cluster.local. A", &["CNAME kubernetes.default.svc.cluster.local.", "A 10.3.0.1"]),
        ("10-244-3-7.default.pod.cluster.local. A", &["A 10.244.3.7"]),
        ("fd00--7.default.pod.cluster.local. AAAA", &["AAAA fd00::7"]),
    ];
    for (question, expected) in table {
        assert_eq!(ask(question), *expected, "{question}");
    }
}

#[test]
fn what_exists_without_records_and_what_does_not_exist() {
    let no_data = [
        "cluster.local. A",
        "svc.cluster.local. A",
        "pod.cluster.local. A",
        "default.svc.cluster.local. A",
        "default.pod.cluster.local. A",
        "kubernetes.default.svc.cluster.local. MX",
        "headless.default.svc.cluster.local. AAAA",
        "_tcp.kubernetes.default.svc.cluster.local. SRV",
        "_https._tcp.kubernetes.default.svc.cluster.local. A",
        "10-244-3-7.default.pod.cluster.local. AAAA",
        "1.0.3.10.in-addr.arpa. A",
        "dns-version.cluster.local. A",
    ];
    let no_name = [
        "nothing.cluster.local. A",
        "nowhere.svc.cluster.local. A",
        "nothing.default.svc.cluster.local. A",
        "kubernetes.elsewhere.svc.cluster.local. A",
        "my-pet.kubernetes.default.svc.cluster.local. A",
        "stranger.headless.default.svc.cluster.local. A",
        "_http._tcp.kubernetes.default.svc.cluster.local. SRV",
        "_https._udp.kubernetes.default.svc.cluster.local. SRV",
        "_udp.kubernetes.default.svc.cluster.local. SRV",
        "_https._tcp.idle.default.svc.cluster.local. SRV",
        "a._https._tcp.kubernetes.default.svc.cluster.local. SRV",
        "10-244-3.default.pod.cluster.local. A",
        "10-244-3-7.nowhere.pod.cluster.local. A",
        "9.0.3.10.in-addr.arpa. PTR",
    ];
    let not_ours = ["example.com. A", "notcluster.local. A", "1.1.168.192.in-addr.arpa. PTR", "3.10.in-addr.arpa. PTR"];
    for (questions, expected) in
        [(no_data.as_slice(), "NoData"), (no_name.as_slice(), "NoName"), (not_ours.as_slice(), "NotOurs")]
    {
        for question in questions {
            assert_eq!(ask(question), [expected], "{question}");
        }
    }
}

#[test]
fn an_alias_to_itself_ends() {
    let answers = ask("ring.default.svc.cluster.local. A");
    assert!(answers.len() <= MAX_ALIASES + 1);
    assert!(answers.iter().all(|answer| answer.starts_with("CNAME ring")));
}

#[test]
fn srv_answers_bring_the_addresses_of_their_targets() {
    for (owner, count) in [("_https._tcp.kubernetes", 2), ("_https._tcp.headless", 3)] {
        let answer = zone().answer(&index(), &name(&format!("{owner}.default.svc.cluster.local.")), RecordType::SRV);
        let Answer::Records { answers, additionals } = answer else { panic!("{answer:?}") };
        assert_eq!(additionals.len(), count);
        for record in &answers {
            let RData::SRV(srv) = &record.data else { panic!("{record}") };
            assert!(additionals.iter().any(|additional| additional.name == srv.target));
        }
    }
}

#[test]
fn the_apex_names_its_server_and_that_has_an_address() {
    assert_eq!(ask("cluster.local. NS"), ["NS ns.dns.cluster.local."]);
    assert_eq!(ask("ns.dns.cluster.local. A"), ["A 10.244.0.1"]);
    assert!(ask("cluster.local. SOA")[0].starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local. "));
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "svc",
            "pod",
            "default",
            "kubernetes",
            "headless",
            "_https",
            "_tcp",
            "dns",
            "cluster",
            "local",
            "my-pet",
            "in-addr",
            "arpa",
            "10",
            "3",
            "0",
            "1",
            "foo",
            "ring",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z0-9_-]{1,12}",
    ]
}

proptest! {
    /// No question is answered with another name's records, and what is the cluster's is never sent elsewhere.
    #[test]
    fn answers_belong_to_their_question(labels in prop::collection::vec(label(), 0..8), inside: bool, kind in 0u16..66) {
        let suffix = if inside { "cluster.local." } else { "" };
        let question = format!("{}.{suffix}", labels.join("."));
        let Ok(question) = Name::from_str(question.trim_start_matches('.')) else { return Ok(()) };
        let (zone, index, kind) = (zone(), index(), RecordType::from(kind));
        match zone.answer(&index, &question, kind) {
            Answer::Records { answers, .. } => {
                prop_assert_eq!(&answers[0].name, &question);
                prop_assert!(answers.iter().all(|r| r.record_type() == kind || r.record_type() == RecordType::CNAME));
            }
            Answer::Alias { answers, target } => {
                prop_assert_eq!(&answers[0].name, &question);
                prop_assert!(!zone.owns(&target));
            }
            Answer::NotOurs => prop_assert!(!zone.owns(&question)),
            Answer::NoData | Answer::NoName => prop_assert!(zone.owns(&question)),
        }
    }

    /// Every pod's address has a name, and the name the address.
    #[test]
    fn a_pods_label_is_read_back(address: u128, v4: bool) {
        let address = if v4 { IpAddr::V4((address as u32).into()) } else { IpAddr::V6(address.into()) };
        // Addresses that embed IPv4 are written with dots, which no pod has.
        prop_assume!(!address.to_string().contains(':') || !address.to_string().contains('.'));
        prop_assert_eq!(undashed(&crate::index::dashed(address)), Some(address));
    }

    /// Removing everything leaves nothing but what the zone itself has.
    #[test]
    fn an_empty_listing_empties_the_zone(labels in prop::collection::vec(label(), 2..6)) {
        let mut index = index();
        index.keep_services(&HashSet::new());
        index.keep_slices(&HashSet::new());
        index.keep_namespaces(&HashSet::new());
        let Ok(question) = Name::from_str(&format!("{}.svc.cluster.local.", labels.join("."))) else { return Ok(()) };
        prop_assert_eq!(zone().answer(&index, &question, RecordType::A), Answer::NoName);
    }
}
