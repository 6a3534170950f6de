//! Links that are made by kind, what belongs to them, rules, and drivers against this kernel, each test in network namespaces of its
//! own. A kind that the kernel does not have is skipped, which is said. Needs root.
#![cfg(feature = "netlink")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use garboard_sys::netlink::{
    Address, Bond, BondLacpRate, BondMode, BondXmitHashPolicy, Bridge, BridgePort, GROUP, Link, LinkKind, MAIN_TABLE,
    Monitor, Netlink, PROTOCOL, PrivateKey, Route, Rule, VethPair, Vlan, VlanProtocol, Wireguard, WireguardChange,
    WireguardLinks, WireguardPeer, driver, solicit_routers,
};
use support::{LIMIT, MAC, SILENCE, in_namespace};
use tokio::time::timeout;

/// Makes a link, or says why the test is skipped.
async fn add(netlink: &mut Netlink, name: &str, kind: &LinkKind) -> Option<Link> {
    match netlink.add_kind(name, GROUP, kind).await {
        Ok(()) => netlink.link(name).await.unwrap(),
        Err(error) => {
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
            let unknown = source.and_then(io::Error::raw_os_error) == Some(nix::errno::Errno::EOPNOTSUPP as i32);
            assert!(unknown, "{error}: {source:?}");
            eprintln!("skipped: this kernel makes no such links: {error}");
            None
        }
    }
}

async fn link(netlink: &mut Netlink, name: &str) -> Link {
    netlink.link(name).await.unwrap().unwrap_or_else(|| panic!("no link {name}"))
}

/// A link that can be anything's port: a bridge is one of the few that every kernel has.
async fn add_port(netlink: &mut Netlink, name: &str) -> u32 {
    netlink.add_bridge(name, MAC, 1500).await.unwrap();
    link(netlink, name).await.index
}

#[test]
fn a_bridge_is_made_changed_and_read_back() {
    in_namespace(async |mut netlink| {
        let kind = |stp| LinkKind::Bridge(Bridge { stp });
        let made = add(&mut netlink, "br0", &kind(true)).await.unwrap();
        assert_eq!((made.group, made.settings, made.up), (GROUP, Some(kind(true)), false));
        netlink.change_kind(made.index, &kind(false)).await.unwrap();
        let changed = link(&mut netlink, "br0").await;
        assert_eq!((changed.group, changed.settings), (GROUP, Some(kind(false))));
        assert!(netlink.add_kind("br0", GROUP, &kind(true)).await.unwrap_err().is_taken());
        netlink.set_up(made.index).await.unwrap();
        netlink.set_down(made.index).await.unwrap();
        assert!(!link(&mut netlink, "br0").await.up);
    });
}

#[test]
fn a_vlan_is_made_and_read_back() {
    in_namespace(async |mut netlink| {
        let lower = add_port(&mut netlink, "eth0").await;
        for (id, protocol) in [(1, VlanProtocol::Ieee8021Q), (4094, VlanProtocol::Ieee8021Ad)] {
            let kind = LinkKind::Vlan(Vlan { lower, id, protocol });
            let Some(made) = add(&mut netlink, &format!("v{id}"), &kind).await else { return };
            assert_eq!((made.group, made.settings), (GROUP, Some(kind)));
        }
        netlink.remove_link(lower).await.unwrap();
        assert_eq!(netlink.link("v1").await.unwrap(), None, "it goes with its parent");
    });
}

#[test]
fn a_bond_is_made_changed_and_read_back() {
    in_namespace(async |mut netlink| {
        let bond =
            |mode| Bond { mode, miimon_ms: 100, hash: BondXmitHashPolicy::Layer2, lacp_rate: None, primary: None };
        let lacp = Bond {
            hash: BondXmitHashPolicy::Layer34,
            lacp_rate: Some(BondLacpRate::Fast),
            ..bond(BondMode::Ieee8023Ad)
        };
        let modes = [
            BondMode::BalanceRr,
            BondMode::ActiveBackup,
            BondMode::BalanceXor,
            BondMode::Broadcast,
            BondMode::BalanceTlb,
            BondMode::BalanceAlb,
        ];
        for bond in modes.map(bond).into_iter().chain([lacp.clone()]) {
            let kind = LinkKind::Bond(bond);
            let Some(made) = add(&mut netlink, "bond0", &kind).await else { return };
            assert_eq!((made.group, made.settings), (GROUP, Some(kind)));
            netlink.remove_link(made.index).await.unwrap();
        }
        let lower = add_port(&mut netlink, "br0").await;
        netlink.set_up(lower).await.unwrap();
        let port = LinkKind::Vlan(Vlan { lower, id: 7, protocol: VlanProtocol::Ieee8021Q });
        let Some(port) = add(&mut netlink, "v7", &port).await else { return };
        let made = add(&mut netlink, "bond1", &LinkKind::Bond(bond(BondMode::ActiveBackup))).await.unwrap();
        netlink.set_up(made.index).await.unwrap();
        netlink.set_controller(port.index, Some(made.index)).await.unwrap();
        assert_eq!(link(&mut netlink, "v7").await.controller, Some(made.index));
        for primary in [Some(port.index), None] {
            let changed = LinkKind::Bond(Bond { miimon_ms: 50, primary, ..bond(BondMode::ActiveBackup) });
            netlink.change_kind(made.index, &changed).await.unwrap();
            assert_eq!(link(&mut netlink, "bond1").await.settings, Some(changed));
        }
        let made = add(&mut netlink, "bond2", &LinkKind::Bond(lacp.clone())).await.unwrap();
        netlink.set_up(made.index).await.unwrap();
        let changed = LinkKind::Bond(Bond { hash: BondXmitHashPolicy::Encap23, ..lacp });
        netlink.change_kind(made.index, &changed).await.unwrap();
        assert_eq!(link(&mut netlink, "bond2").await.settings, Some(changed), "while it is up");
    });
}

#[test]
fn a_wireguard_link_knows_what_it_is_told() {
    in_namespace(async |mut netlink| {
        let Some(made) = add(&mut netlink, "wg0", &LinkKind::Wireguard).await else { return };
        assert_eq!((made.group, made.settings, made.mac), (GROUP, Some(LinkKind::Wireguard), None));
        let links = WireguardLinks::open().unwrap();
        assert_eq!(links.get("wg0").unwrap(), Wireguard::default());
        // As the kernel keeps it.
        let key = PrivateKey([64; 32]);
        let allowed = |count: u8| (0..count).map(|last| format!("10.0.0.{last}/32").parse().unwrap()).collect();
        // More than one message holds.
        let peers = (1..=32).map(|number| WireguardPeer {
            public_key: [number; 32],
            endpoint: Some(format!("192.0.2.{number}:51820").parse().unwrap()),
            keepalive_seconds: 25,
            allowed: if number == 1 { allowed(255) } else { Vec::new() },
            handshake: None,
        });
        let peers: Vec<_> = peers.collect();
        let told = peers.iter().map(|peer| WireguardChange::Peer {
            public_key: peer.public_key,
            endpoint: peer.endpoint,
            keepalive_seconds: peer.keepalive_seconds,
            allowed: peer.allowed.clone(),
        });
        let device = [WireguardChange::PrivateKey(key.clone()), WireguardChange::ListenPort(51820)];
        for change in device.into_iter().chain(told) {
            links.change("wg0", &change).unwrap();
        }
        let mut known = links.get("wg0").unwrap();
        known.peers.sort_by_key(|peer| peer.public_key);
        known.peers.iter_mut().for_each(|peer| peer.allowed.sort());
        assert_eq!((known.private_key, known.listen_port), (Some(key), 51820));
        assert!(known.public_key.is_some());
        assert_eq!(known.peers, peers);
        links.change("wg0", &WireguardChange::RemovePeer([1; 32])).unwrap();
        assert_eq!(links.get("wg0").unwrap().peers.len(), 31);
        netlink.remove_link(made.index).await.unwrap();
        assert!(links.get("wg0").unwrap_err().is_missing());
    });
}

#[test]
fn a_port_has_one_controller_or_none() {
    in_namespace(async |mut netlink| {
        let (first, second) = (add_port(&mut netlink, "br1").await, add_port(&mut netlink, "br2").await);
        let file = File::open("/proc/thread-self/ns/net").unwrap();
        let pair = VethPair {
            name: "port",
            alias: "",
            bridge: first,
            port: BridgePort { hairpin: false, isolated: false },
            peer: "other",
            peer_mac: MAC,
            peer_namespace: file.as_fd(),
            mtu: 1500,
        };
        netlink.add_veth(&pair).await.unwrap();
        let port = link(&mut netlink, "port").await;
        assert_eq!(port.controller, Some(first));
        for controller in [Some(second), None, None, Some(first)] {
            netlink.set_controller(port.index, controller).await.unwrap();
            assert_eq!(link(&mut netlink, "port").await.controller, controller);
        }
        assert!(netlink.set_controller(port.index, Some(99)).await.is_err());
    });
}

#[test]
fn rules_are_made_read_back_and_removed() {
    in_namespace(async |mut netlink| {
        let net = |text: &str| Some(text.parse().unwrap());
        let rule = |ipv6, table, priority| Rule {
            ipv6,
            from: None,
            to: None,
            mark: None,
            table,
            priority,
            protocol: PROTOCOL,
        };
        let rules = [
            Rule { from: net("192.0.2.0/24"), ..rule(false, 100, 7) },
            Rule { from: net("192.0.2.1/32"), to: net("198.51.100.0/24"), ..rule(false, 1 << 20, 8) },
            Rule { mark: Some((0x10, 0xf0)), ..rule(false, 100, 8) },
            Rule { mark: Some((0, 1)), ..rule(true, 100, 8) },
            Rule { to: net("2001:db8::/32"), mark: Some((7, u32::MAX)), ..rule(true, 254, 9) },
            Rule { protocol: 4, ..rule(true, 253, 10) },
        ];
        let before = netlink.rules().await.unwrap();
        assert!(before.contains(&Rule { protocol: 2, ..rule(true, MAIN_TABLE, 32766) }), "{before:?}");
        let mut monitor = Monitor::open().unwrap();
        for rule in &rules {
            netlink.add_rule(rule).await.unwrap();
            timeout(LIMIT, monitor.changed()).await.expect("a change").unwrap();
            assert!(netlink.add_rule(rule).await.unwrap_err().is_taken(), "{rule:?}");
        }
        let made = netlink.rules().await.unwrap();
        assert_eq!(made.len(), before.len() + rules.len());
        for rule in &rules {
            assert!(made.contains(rule), "{rule:?}: {made:?}");
            let foreign = Rule { protocol: PROTOCOL + 1, ..rule.clone() };
            assert!(netlink.remove_rule(&foreign).await.unwrap_err().is_missing(), "another's");
            netlink.remove_rule(rule).await.unwrap();
            assert!(netlink.remove_rule(rule).await.unwrap_err().is_missing());
        }
        assert_eq!(netlink.rules().await.unwrap(), before);
    });
}

#[test]
fn routes_of_another_table_are_their_own() {
    in_namespace(async |mut netlink| {
        let index = add_port(&mut netlink, "br0").await;
        netlink.set_up(index).await.unwrap();
        let mut monitor = Monitor::open().unwrap();
        while timeout(SILENCE, monitor.changed()).await.is_ok() {}
        for destination in ["198.51.100.0/24", "2001:db8:1::/48"] {
            let route = |table| Route {
                destination: destination.parse().unwrap(),
                gateway: None,
                index,
                metric: 9,
                table,
                protocol: PROTOCOL,
            };
            for table in [100, 1000, MAIN_TABLE] {
                netlink.add_route(&route(table)).await.unwrap();
                timeout(LIMIT, monitor.changed()).await.expect("a change").unwrap();
            }
            let all = netlink.routes_of_all_tables().await.unwrap();
            assert!([100, 1000, MAIN_TABLE].iter().all(|table| all.contains(&route(*table))), "{all:?}");
            let main = netlink.routes().await.unwrap();
            assert!(main.contains(&route(MAIN_TABLE)) && main.iter().all(|route| route.table == MAIN_TABLE));
            netlink.remove_route(&route(1000)).await.unwrap();
            let all = netlink.routes_of_all_tables().await.unwrap();
            assert!(all.contains(&route(100)) && all.contains(&route(MAIN_TABLE)) && !all.contains(&route(1000)));
        }
    });
}

#[test]
fn drivers_are_told_and_routers_asked() {
    in_namespace(async |mut netlink| {
        let index = add_port(&mut netlink, "br0").await;
        assert_eq!(driver("br0").unwrap(), "bridge");
        for absent in ["", "br1", "a-name-that-is-too-long"] {
            assert!(driver(absent).is_err(), "{absent}");
        }
        netlink.set_up(index).await.unwrap();
        let address = "2001:db8::7/64".parse().unwrap();
        let address = Address { index, address, protocol: 0, unique: true };
        netlink.add_address(&address).await.unwrap();
        solicit_routers(index).unwrap();
        assert!(solicit_routers(99).is_err());
    });
}
