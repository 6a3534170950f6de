//! Links, addresses and routes against this kernel, each test in network namespaces of its own. Needs root.
#![cfg(feature = "netlink")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use garboard_sys::netlink::{
    Address, BridgePort, MAIN_TABLE, MacAddress, Monitor, Netlink, NetlinkError, PROTOCOL, Route, SHARED, VethPair,
};
use nix::sched::{CloneFlags, unshare};
use support::{LIMIT, MAC, SILENCE, in_namespace};
use tokio::time::timeout;

const PEER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 8]);

fn namespace() -> OwnedFd {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    std::thread::spawn(open).join().unwrap().into()
}

async fn index(netlink: &mut Netlink, name: &str) -> u32 {
    netlink.link(name).await.unwrap().unwrap_or_else(|| panic!("no link {name}")).index
}

/// Makes the bridge `br0`; returns its index.
async fn add_bridge(netlink: &mut Netlink) -> u32 {
    netlink.add_bridge("br0", MAC, 1500).await.unwrap();
    index(netlink, "br0").await
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn links_are_made_changed_and_removed() {
    in_namespace(async |mut netlink| {
        netlink.add_bridge("br0", MAC, 1400).await.unwrap();
        let bridge = netlink.link("br0").await.unwrap().unwrap();
        assert_eq!((bridge.kind.as_deref(), bridge.mac, bridge.mtu), (Some("bridge"), Some(MAC), 1400));
        assert_eq!((bridge.up, bridge.loopback, bridge.alias.as_deref()), (false, false, None));
        assert_eq!((bridge.controller, bridge.port), (None, None));

        netlink.configure(bridge.index, "ours", PEER_MAC, 1300).await.unwrap();
        netlink.set_mtu(bridge.index, 1350).await.unwrap();
        let lo = index(&mut netlink, "lo").await;
        netlink.set_up(lo).await.unwrap();
        let links = netlink.links().await.unwrap();
        let bridge = links.iter().find(|link| link.name == "br0").unwrap();
        assert_eq!((bridge.alias.as_deref(), bridge.mac, bridge.mtu), (Some("ours"), Some(PEER_MAC), 1350));
        assert!(bridge.up && links.iter().any(|link| link.loopback && link.up && link.mac.is_none()));

        netlink.remove_link(bridge.index).await.unwrap();
        assert_eq!(netlink.link("br0").await.unwrap(), None);
        assert!(netlink.remove_link(bridge.index).await.unwrap_err().is_missing());
    });
}

#[test]
fn a_veth_pair_leads_into_another_namespace() {
    in_namespace(async |mut netlink| {
        let bridge = add_bridge(&mut netlink).await;
        let inside = namespace();
        let port = BridgePort { hairpin: true, isolated: true };
        let pair = VethPair {
            name: "host0",
            alias: "ours",
            bridge,
            port,
            peer: "eth0",
            peer_mac: PEER_MAC,
            peer_namespace: inside.as_fd(),
            mtu: 1400,
        };
        netlink.add_veth(&pair).await.unwrap();
        let host = netlink.link("host0").await.unwrap().unwrap();
        assert_eq!((host.kind.as_deref(), host.alias.as_deref(), host.mtu), (Some("veth"), Some("ours"), 1400));
        assert_eq!((host.controller, host.port, host.up), (Some(bridge), Some(port), true));
        assert!(!host.carrier, "the other end is down");
        assert_eq!(netlink.link("eth0").await.unwrap(), None);

        let mut peer = Netlink::open_in(inside.as_fd()).unwrap();
        let eth0 = peer.link("eth0").await.unwrap().unwrap();
        assert_eq!((eth0.mac, eth0.mtu, eth0.up, eth0.port), (Some(PEER_MAC), 1400, false, None));
        peer.set_up(eth0.index).await.unwrap();
        assert!(netlink.link("host0").await.unwrap().unwrap().up);
        netlink.remove_link(host.index).await.unwrap();
        assert_eq!(peer.link("eth0").await.unwrap(), None);
    });
}

#[test]
fn addresses_and_routes_are_made_read_back_and_removed() {
    in_namespace(async |mut netlink| {
        let index = add_bridge(&mut netlink).await;
        netlink.set_up(index).await.unwrap();
        let address = |text: &str, protocol| Address { index, address: text.parse().unwrap(), protocol, unique: true };
        let route = |destination: &str, gateway, metric| Route {
            destination: destination.parse().unwrap(),
            gateway,
            index,
            metric,
            table: MAIN_TABLE,
            protocol: PROTOCOL,
        };
        let addresses = [address("192.0.2.7/24", PROTOCOL), address("2001:db8::7/64", 0)];
        let routes = [
            route("198.51.100.1/32", None, 7),
            route("0.0.0.0/0", Some(ip("192.0.2.1")), 0),
            route("2001:db8:1::/48", None, 9),
            route("::/0", Some(ip("2001:db8::1")), 1024),
        ];
        for address in &addresses {
            netlink.add_address(address).await.unwrap();
        }
        for route in &routes {
            netlink.add_route(route).await.unwrap();
        }
        let made = netlink.addresses().await.unwrap();
        for address in &addresses {
            // IPv4 has no duplicate detection to leave out.
            let expected = Address { unique: address.address.addr().is_ipv6(), ..address.clone() };
            assert!(made.contains(&expected), "{expected:?}: {made:?}");
        }
        let made = netlink.routes().await.unwrap();
        assert_eq!(made.iter().filter(|made| made.protocol == PROTOCOL).count(), routes.len(), "{made:?}");
        for route in &routes {
            assert!(made.contains(route), "{route:?}: {made:?}");
        }
        for route in &routes {
            netlink.remove_route(route).await.unwrap();
            assert!(netlink.remove_route(route).await.unwrap_err().is_missing(), "{route:?}");
        }
        for address in &addresses {
            netlink.remove_address(index, address.address).await.unwrap();
            assert!(netlink.remove_address(index, address.address).await.unwrap_err().is_missing(), "{address:?}");
        }
        assert!(netlink.routes().await.unwrap().iter().all(|route| route.protocol != PROTOCOL));
    });
}

#[test]
fn an_address_that_is_lent_goes_by_itself_unless_it_is_renewed() {
    in_namespace(async |mut netlink| {
        let index = add_bridge(&mut netlink).await;
        let lent = |text: &str| Address { index, address: text.parse().unwrap(), protocol: SHARED, unique: false };
        let [kept, left] = [lent("192.0.2.5/32"), lent("192.0.2.6/32")];
        netlink.lend_address(&kept, Duration::from_secs(1)).await.unwrap();
        netlink.lend_address(&left, Duration::from_secs(1)).await.unwrap();
        assert_eq!(netlink.addresses().await.unwrap(), [kept.clone(), left]);
        netlink.lend_address(&kept, Duration::from_secs(60)).await.unwrap();
        let mut monitor = Monitor::open().unwrap();
        while netlink.addresses().await.unwrap() != [kept.clone()] {
            timeout(LIMIT, monitor.changed()).await.unwrap().unwrap();
        }
    });
}

#[test]
fn a_refusal_names_what_was_asked_and_why_not() {
    in_namespace(async |mut netlink| {
        let index = add_bridge(&mut netlink).await;
        let error = netlink.add_bridge("br0", MAC, 1500).await.unwrap_err();
        assert_eq!(error.to_string(), "the kernel refuses to add bridge br0");
        assert!(!error.is_missing());
        netlink.set_up(index).await.unwrap();
        let gateway = Some(ip("192.0.2.1"));
        let route = Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            gateway,
            index,
            metric: 0,
            table: MAIN_TABLE,
            protocol: PROTOCOL,
        };
        let error = netlink.add_route(&route).await.unwrap_err();
        let expected =
            format!("the kernel refuses to add route 0.0.0.0/0 over link {index} (Nexthop has invalid gateway)");
        assert_eq!(error.to_string(), expected);
        let file = File::open("/proc/self/status").unwrap();
        assert!(matches!(Netlink::open_in(file.as_fd()), Err(NetlinkError::Enter(_))));
        // The connection is as good as before.
        assert_eq!(netlink.links().await.unwrap().len(), 2);
    });
}

#[test]
fn a_monitor_tells_of_changes_in_its_namespace() {
    in_namespace(async |mut netlink| {
        let index = add_bridge(&mut netlink).await;
        let mut monitor = Monitor::open().unwrap();
        netlink.links().await.unwrap();
        Netlink::open_in(namespace().as_fd()).unwrap().set_up(1).await.unwrap();
        assert!(timeout(SILENCE, monitor.changed()).await.is_err(), "nothing changed here");

        for last in [7, 8] {
            let address = format!("192.0.2.{last}/24").parse().unwrap();
            netlink.add_address(&Address { index, address, protocol: 0, unique: false }).await.unwrap();
        }
        timeout(LIMIT, monitor.changed()).await.expect("a changed address").unwrap();
        assert!(timeout(SILENCE, monitor.changed()).await.is_err(), "it was told already");

        netlink.set_mtu(index, 1400).await.unwrap();
        timeout(LIMIT, monitor.changed()).await.expect("a changed link").unwrap();
        let address = "2001:db8::7/64".parse().unwrap();
        netlink.add_address(&Address { index, address, protocol: 0, unique: true }).await.unwrap();
        timeout(LIMIT, monitor.changed()).await.expect("a changed IPv6 address").unwrap();
    });
}

#[test]
fn a_monitor_survives_more_changes_than_its_socket_holds() {
    in_namespace(async |mut netlink| {
        let index = add_bridge(&mut netlink).await;
        let mut monitor = Monitor::open().unwrap();
        for mtu in (1300..1500).cycle().take(2000) {
            netlink.set_mtu(index, mtu).await.unwrap();
        }
        timeout(LIMIT, monitor.changed()).await.expect("changes").unwrap();
        while timeout(SILENCE, monitor.changed()).await.is_ok() {}
        netlink.set_mtu(index, 1280).await.unwrap();
        timeout(LIMIT, monitor.changed()).await.expect("one more change").unwrap();
    });
}
