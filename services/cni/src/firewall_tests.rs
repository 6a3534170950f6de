//! What holds of the table for every configuration and every set of attachments.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::attachment::{AttachmentId, ContainerId, PortMapping, Protocol, mac_of};

fn attachment(number: u8, ports: Vec<PortMapping>) -> Attachment {
    let id = AttachmentId {
        container: ContainerId::try_from(format!("c{number}")).unwrap(),
        interface: InterfaceName::try_from("eth0".to_owned()).unwrap(),
    };
    let addresses = vec![IpAddr::from([10, 244, 0, number]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number.into()])];
    Attachment {
        network: "garboard".to_owned(),
        pod: None,
        host_link: InterfaceName::try_from(id.host_link()).unwrap(),
        id,
        mac: mac_of(addresses[0]),
        addresses,
        ports,
    }
}

fn port(number: u16, host_ip: Option<&str>, protocol: Protocol) -> PortMapping {
    let host_ip = host_ip.map(|address| address.parse().unwrap());
    PortMapping { host_port: number, host_ip, container_port: 80, protocol }
}

fn config() -> Config {
    Config::parse(r#"{"podCIDRs": ["10.244.0.0/24", "fd00::/64"], "clusterCIDRs": ["10.244.0.0/16"]}"#).unwrap()
}

fn sizes(attachments: &[Attachment]) -> Vec<usize> {
    table(&config(), attachments.iter()).sets.iter().map(|set| set.elements.len()).collect()
}

#[test]
fn a_host_port_is_open_on_the_addresses_that_it_names() {
    // The sets in order: of one address, of every address, hairpins; for IPv4, then for IPv6.
    let cases: [(&str, Option<&str>, [usize; 6]); 5] = [
        ("every address", None, [0, 1, 1, 0, 1, 1]),
        ("every IPv4 address", Some("0.0.0.0"), [0, 1, 1, 0, 0, 0]),
        ("every IPv6 address", Some("::"), [0, 0, 0, 0, 1, 1]),
        ("one IPv4 address", Some("192.0.2.1"), [1, 0, 1, 0, 0, 0]),
        ("one IPv6 address", Some("fd01::1"), [0, 0, 0, 1, 0, 1]),
    ];
    for (name, host_ip, expected) in cases {
        assert_eq!(sizes(&[attachment(2, vec![port(80, host_ip, Protocol::Tcp)])]), expected, "{name}");
    }
    assert_eq!(sizes(&[attachment(2, Vec::new())]), [0; 6]);
}

#[test]
fn the_other_machines_are_in_a_set_of_their_ip_version() {
    let with = |address: &str, peer: &str| {
        let config = serde_json::json!({
            "podCIDRs": ["10.244.0.0/24"], "clusterCIDRs": ["10.244.0.0/16"], "backend": "vxlan",
            "vxlan": {"address": address}, "peers": [{"name": "b", "address": peer}],
        });
        let table = table(&Config::parse(&config.to_string()).unwrap(), std::iter::empty());
        let set = table.sets.into_iter().find(|set| set.name == tunnel::PEERS).unwrap();
        (set.key, set.elements.into_iter().map(|element| element.key).collect::<Vec<_>>())
    };
    let v6: IpAddr = "2001:db8::2".parse().unwrap();
    assert_eq!(with("192.0.2.1", "192.0.2.2"), (&[Datatype::Ipv4][..], vec![vec![192, 0, 2, 2]]));
    assert_eq!(with("2001:db8::1", "2001:db8::2"), (&[Datatype::Ipv6][..], vec![octets(v6)]));
    let without = table(&config(), std::iter::empty());
    assert!(without.sets.iter().all(|set| set.name != tunnel::PEERS), "no tunnels");
    assert!(without.chains.iter().all(|chain| !chain.name.starts_with("tunnel")));
}

#[test]
fn chains_are_there_before_they_are_called() {
    let table = table(&config(), std::iter::empty());
    let mut known = BTreeSet::new();
    for chain in &table.chains {
        for expression in chain.rules.iter().flatten() {
            if let Expression::Verdict(Verdict::Jump(called) | Verdict::Goto(called)) = expression {
                assert!(known.contains(called), "{} calls {called}", chain.name);
            }
        }
        known.insert(chain.name);
    }
}

proptest! {
    /// Ports that do not clash never meet in a set, where the kernel would refuse both.
    #[test]
    fn elements_are_unique(wanted in prop::collection::vec((1u16..5, 0usize..4, any::<bool>()), 0..20)) {
        let addresses = [None, Some("0.0.0.0"), Some("192.0.2.1"), Some("127.0.0.1")];
        let mut attachments: Vec<Attachment> = Vec::new();
        for (index, (number, host_ip, tcp)) in wanted.into_iter().enumerate() {
            let port = port(number, addresses[host_ip], if tcp { Protocol::Tcp } else { Protocol::Udp });
            if attachments.iter().flat_map(|a| &a.ports).all(|other| !other.clashes(&port)) {
                attachments.push(attachment(index as u8 + 2, vec![port]));
            }
        }
        for set in table(&config(), attachments.iter()).sets {
            let keys: BTreeSet<&[u8]> = set.elements.iter().map(|element| element.key.as_slice()).collect();
            prop_assert_eq!(keys.len(), set.elements.len());
        }
    }
}
