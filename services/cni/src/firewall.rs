//! The nftables table of the pod network, `inet garboard-cni`: host ports, masquerading, what must not leave a pod, and who may
//! send into the tunnels.
//!
//! Only this table is ever changed. It is replaced whole when the daemon starts or its configuration changes, from the
//! attachments that are reserved then; in between, only elements of its sets come and go. Connections survive both:
//! the kernel keeps the translation with the connection.

pub mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::attachment::Attachment;
use crate::config::{Backend, Config};
use crate::host_ports;
use crate::interface::InterfaceName;
use crate::netfilter::nft::{self, Chain, Datatype, Hook, Set, Table};
use crate::netfilter::nft_expression::{Expression, Field, Verdict};
use crate::netfilter::{Connection, NetfilterError};

/// Name of the table.
pub const TABLE: &str = "garboard-cni";

const PRE_ROUTING: u32 = 0;
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// The types of the messages that redirect a route.
const ICMP_REDIRECT: u8 = 5;
const ICMP_V6_REDIRECT: u8 = 137;

/// The names and offsets that differ between the IP versions.
pub(crate) struct Version {
    pub(crate) number: u8,
    source: Field,
    destination: Field,
    address: Datatype,
    /// Registers of an address.
    width: u8,
    /// Host ports of one address: key address, protocol, port.
    pub(crate) addressed_ports: &'static str,
    /// Host ports of every address: key protocol, port.
    pub(crate) ports: &'static str,
    /// Pods that may reach themselves by a host port: key source, destination.
    pub(crate) hairpins: &'static str,
    /// The chain of packets that a pod sends.
    leaving: &'static str,
}

const V4: Version = Version {
    number: 2,
    source: Field::Network(12, 4),
    destination: Field::Network(16, 4),
    address: Datatype::Ipv4,
    width: 1,
    addressed_ports: "host-ip-ports4",
    ports: "host-ports4",
    hairpins: "hairpins4",
    leaving: "leaving4",
};

const V6: Version = Version {
    number: 10,
    source: Field::Network(8, 16),
    destination: Field::Network(24, 16),
    address: Datatype::Ipv6,
    width: 4,
    addressed_ports: "host-ip-ports6",
    ports: "host-ports6",
    hairpins: "hairpins6",
    leaving: "leaving6",
};

/// Name, key and value of a set.
type SetLayout = (&'static str, &'static [Datatype], Option<&'static [Datatype]>);

impl Version {
    /// That of an address.
    pub(crate) fn of(address: IpAddr) -> &'static Self {
        match address {
            IpAddr::V4(_) => &V4,
            IpAddr::V6(_) => &V6,
        }
    }

    /// The sets of a version: name, key and value.
    fn sets(&self) -> [SetLayout; 3] {
        use Datatype::{Ipv4, Ipv6, Port, Protocol};
        match self.address {
            Ipv6 => [
                (self.addressed_ports, &[Ipv6, Protocol, Port], Some(&[Ipv6, Port])),
                (self.ports, &[Protocol, Port], Some(&[Ipv6, Port])),
                (self.hairpins, &[Ipv6, Ipv6], None),
            ],
            Ipv4 | Protocol | Port => [
                (self.addressed_ports, &[Ipv4, Protocol, Port], Some(&[Ipv4, Port])),
                (self.ports, &[Protocol, Port], Some(&[Ipv4, Port])),
                (self.hairpins, &[Ipv4, Ipv4], None),
            ],
        }
    }
}

/// The bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The whole table for a configuration and the attachments that are there.
pub fn table<'a>(config: &Config, attachments: impl Iterator<Item = &'a Attachment>) -> Table {
    let mut sets: Vec<Set> = [&V4, &V6]
        .iter()
        .flat_map(|version| version.sets())
        .map(|(name, key, value)| Set { name, key, value, elements: Vec::new() })
        .collect();
    for (name, element) in attachments.flat_map(|attachment| host_ports::elements(attachment).collect::<Vec<_>>()) {
        if let Some(set) = sets.iter_mut().find(|set| set.name == name) {
            set.elements.push(element);
        }
    }
    let bridge = &config.bridge;
    let mut chains = vec![
        Chain { name: V4.leaving, hook: None, rules: leaving(config, &V4) },
        Chain { name: V6.leaving, hook: None, rules: leaving(config, &V6) },
        Chain { name: "host-ports", hook: None, rules: [&V4, &V6].into_iter().flat_map(host_ports).collect() },
        Chain {
            name: "pod-input",
            hook: Some(Hook { kind: "filter", number: PRE_ROUTING, priority: PRIORITY_RAW }),
            rules: loopback_is_not_a_pods(bridge),
        },
        Chain {
            name: "pod-output",
            hook: Some(Hook { kind: "filter", number: LOCAL_OUT, priority: PRIORITY_FILTER }),
            rules: no_redirects(bridge),
        },
        Chain {
            name: "prerouting",
            hook: Some(Hook { kind: "nat", number: PRE_ROUTING, priority: PRIORITY_DNAT }),
            rules: vec![to_host_ports()],
        },
        Chain {
            name: "output",
            hook: Some(Hook { kind: "nat", number: LOCAL_OUT, priority: PRIORITY_DNAT }),
            rules: vec![to_host_ports()],
        },
        Chain {
            name: "postrouting",
            hook: Some(Hook { kind: "nat", number: POST_ROUTING, priority: PRIORITY_SNAT }),
            rules: postrouting(config),
        },
    ];
    if let Backend::Vxlan(own) = &config.backend {
        sets.push(tunnel::peers(own, &config.peers));
        chains.extend(tunnel::chains(own, bridge));
    }
    Table { name: TABLE, sets, chains }
}

fn interface(field: Field, name: &str) -> Vec<Expression> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    vec![Expression::Load(field, 0), Expression::Equal(0, bytes)]
}

fn version(version: &Version) -> Vec<Expression> {
    vec![Expression::Load(Field::IpVersion, 0), Expression::Equal(0, vec![version.number])]
}

fn within(field: Field, network: IpNet) -> Vec<Expression> {
    let mask = octets(network.netmask());
    vec![Expression::Load(field, 0), Expression::Mask(0, mask), Expression::Equal(0, octets(network.network()))]
}

fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

/// `route_localnet`, which host ports on 127.0.0.1 need, would let pods reach the machine's own loopback services
/// (CVE-2020-8558).
fn loopback_is_not_a_pods(bridge: &InterfaceName) -> Vec<Vec<Expression>> {
    let rule = |field| {
        let drop = vec![Expression::Verdict(Verdict::Drop)];
        [interface(Field::InputInterface, bridge.as_str()), version(&V4), within(field, loopback()), drop].concat()
    };
    vec![rule(V4.destination), rule(V4.source)]
}

/// Pods talk to each other through this machine by design; a redirect would make them try the direct way, which their
/// isolated ports do not have.
fn no_redirects(bridge: &InterfaceName) -> Vec<Vec<Expression>> {
    let rule = |protocol: u8, kind: u8| {
        let mut rule = interface(Field::OutputInterface, bridge.as_str());
        rule.extend([Expression::Load(Field::Protocol, 0), Expression::Equal(0, vec![protocol])]);
        rule.extend([Expression::Load(Field::Transport(0, 1), 0), Expression::Equal(0, vec![kind])]);
        rule.push(Expression::Verdict(Verdict::Drop));
        rule
    };
    vec![rule(ICMP, ICMP_REDIRECT), rule(ICMP_V6, ICMP_V6_REDIRECT)]
}

fn to_host_ports() -> Vec<Expression> {
    vec![
        Expression::LoadDestinationType(0),
        Expression::Equal(0, LOCAL.to_ne_bytes().to_vec()),
        Expression::Verdict(Verdict::Jump("host-ports")),
    ]
}

/// A host port of one address is looked for before one of every address.
fn host_ports(v: &Version) -> Vec<Vec<Expression>> {
    /// Where the key begins; the value is read to register 0.
    const KEY: u8 = 8;
    let value_port = v.width;
    let rule = |set, address: bool| {
        let mut rule = version(v);
        let mut next = KEY;
        if address {
            rule.push(Expression::Load(v.destination, next));
            next += v.width;
        }
        rule.push(Expression::Load(Field::Protocol, next));
        rule.push(Expression::Load(Field::Transport(2, 2), next + 1));
        rule.push(Expression::Map(set, KEY, 0));
        rule.push(Expression::Dnat(v.number, 0, value_port));
        rule
    };
    vec![rule(v.addressed_ports, true), rule(v.ports, false)]
}

fn postrouting(config: &Config) -> Vec<Vec<Expression>> {
    let masquerade = || vec![Expression::Masquerade];
    let mut rules = Vec::new();
    // The machine to a host port of its loopback address: the pod must have somebody to answer.
    let to_pod = interface(Field::OutputInterface, config.bridge.as_str());
    rules.push([to_pod, version(&V4), within(V4.source, loopback()), masquerade()].concat());
    // A pod to itself by a host port: it would not take a packet from its own address.
    for v in [&V4, &V6] {
        let pair = vec![
            Expression::Load(v.source, 8),
            Expression::Load(v.destination, 8 + v.width),
            Expression::Contains(v.hairpins, 8),
        ];
        rules.push([version(v), pair, masquerade()].concat());
    }
    for &network in &config.pod_cidrs {
        let v = Version::of(network.addr());
        let verdict = vec![Expression::Verdict(Verdict::Goto(v.leaving))];
        rules.push([version(v), within(v.source, network), verdict].concat());
    }
    rules
}

/// What pods send is masqueraded unless it stays in the cluster or is for a group.
fn leaving(config: &Config, v: &Version) -> Vec<Vec<Expression>> {
    let groups: &[IpNet] = if v.number == V4.number {
        &[IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4))]
    } else {
        &[
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
        ]
    };
    let kept = config.pod_cidrs.iter().chain(&config.cluster_cidrs).chain(groups);
    let same_version = |network: &&IpNet| Version::of(network.addr()).number == v.number;
    let mut rules: Vec<_> = kept
        .filter(same_version)
        .map(|&network| {
            let mut rule = within(v.destination, network);
            rule.push(Expression::Verdict(Verdict::Return));
            rule
        })
        .collect();
    rules.push(vec![Expression::Masquerade]);
    rules
}

/// Replaces the table.
///
/// # Errors
/// When the kernel refuses; the old table is then still there.
pub fn replace(table: &Table) -> Result<(), NetfilterError> {
    Connection::open()?.run(&nft::transaction(|batch| nft::replace(batch, table)))
}

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
