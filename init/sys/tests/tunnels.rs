//! VXLAN links, what hangs on them, marked routes and notifications against this kernel, each test in network namespaces of its
//! own. Needs root.
#![cfg(feature = "netlink")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::IpAddr;

use garboard_sys::netlink::{
    Address, Change, Forward, MAIN_TABLE, MacAddress, MarkedRoute, Neighbour, Netlink, NextHop, Route, Vxlan, Watch,
};
use support::{LIMIT, MAC, SILENCE, in_namespace};
use tokio::time::timeout;

const PEER_MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 8]);
const MARK: u8 = 200;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Makes the tunnel `vx0` and sets it up; returns its index.
async fn add_tunnel(netlink: &mut Netlink) -> u32 {
    let vxlan = Vxlan::told(7, ip("192.0.2.1"), 4789);
    netlink.add_vxlan("vx0", MAC, 1450, &vxlan).await.unwrap();
    let index = netlink.link("vx0").await.unwrap().unwrap().index;
    netlink.set_up(index).await.unwrap();
    index
}

#[test]
fn a_tunnel_is_read_back_as_it_was_made() {
    in_namespace(async |mut netlink| {
        assert_eq!(netlink.vxlan("vx0").await.unwrap(), None);
        let flooding =
            Vxlan { learning: true, remote: Some(ip("2001:db8::2")), ..Vxlan::told(7, ip("2001:db8::1"), 4790) };
        for vxlan in [
            Vxlan::told(1, ip("192.0.2.1"), 4789),
            Vxlan::told(0xff_ffff, ip("2001:db8::1"), 8472),
            Vxlan { checksum: false, lower: Some(1), ..Vxlan::told(7, ip("192.0.2.1"), 4789) },
            flooding,
        ] {
            netlink.add_vxlan("vx0", MAC, 1400, &vxlan).await.unwrap();
            let (link, found) = netlink.vxlan("vx0").await.unwrap().unwrap();
            assert_eq!((link.mac, link.mtu, link.up, found), (Some(MAC), 1400, false, Some(vxlan)));
            assert_eq!(netlink.link_at(link.index).await.unwrap().unwrap().name, "vx0");
            netlink.remove_link(link.index).await.unwrap();
            assert_eq!(netlink.link_at(link.index).await.unwrap(), None);
        }
        netlink.add_bridge("br0", MAC, 1500).await.unwrap();
        assert_eq!(netlink.vxlan("br0").await.unwrap().unwrap().1, None, "no tunnel");
    });
}

#[test]
fn neighbours_and_forwards_are_made_read_back_and_removed() {
    in_namespace(async |mut netlink| {
        let index = add_tunnel(&mut netlink).await;
        netlink.add_bridge("br0", MAC, 1500).await.unwrap();
        let other = netlink.link("br0").await.unwrap().unwrap().index;
        netlink.set_up(other).await.unwrap();
        netlink.set_neighbour(&Neighbour { index: other, address: ip("10.0.0.9"), mac: MAC }).await.unwrap();
        let neighbour = |address: &str, mac| Neighbour { index, address: ip(address), mac };
        let mut wanted = vec![neighbour("10.0.1.0", PEER_MAC), neighbour("fd00:1::", PEER_MAC)];
        for neighbour in &wanted {
            netlink.set_neighbour(neighbour).await.unwrap();
        }
        assert_eq!(netlink.neighbours(index).await.unwrap(), wanted, "of this link only");
        wanted[0].mac = MAC;
        netlink.set_neighbour(&wanted[0]).await.unwrap();
        assert_eq!(netlink.neighbours(index).await.unwrap(), wanted);
        for neighbour in &wanted {
            netlink.remove_neighbour(index, neighbour.address).await.unwrap();
            assert!(netlink.remove_neighbour(index, neighbour.address).await.unwrap_err().is_missing());
        }
        assert_eq!(netlink.neighbours(index).await.unwrap(), []);

        // What the kernel looks for in vain is told from what it does not know, and from what it was told.
        let address = Address { index: other, address: "10.0.0.1/24".parse().unwrap(), protocol: 0, unique: true };
        netlink.add_address(&address).await.unwrap();
        std::net::UdpSocket::bind("10.0.0.1:0").unwrap().send_to(b"?", "10.0.0.7:9").unwrap();
        for (address, expected) in [("10.0.0.7", true), ("10.0.0.8", false), ("10.0.0.9", false)] {
            assert_eq!(netlink.is_missed(other, ip(address)).await.unwrap(), expected, "{address}");
        }
        assert!(!netlink.is_missed(index, ip("10.0.0.7")).await.unwrap(), "of another link");

        let remote = ip("192.0.2.2");
        netlink.add_forward(index, PEER_MAC, remote).await.unwrap();
        assert!(netlink.add_forward(index, PEER_MAC, remote).await.unwrap_err().is_taken());
        let forward = Forward { index, mac: PEER_MAC, remote: Some(remote) };
        assert_eq!(netlink.forwards(index).await.unwrap(), [forward]);
        assert_eq!(netlink.forwards(other).await.unwrap().iter().find(|found| found.index == index), None);
        netlink.remove_forward(index, PEER_MAC).await.unwrap();
        assert!(netlink.remove_forward(index, PEER_MAC).await.unwrap_err().is_missing());
        assert_eq!(netlink.forwards(index).await.unwrap(), []);
        // Another list on the same socket is as it was.
        assert_eq!(netlink.links().await.unwrap().len(), 3);
    });
}

#[test]
fn marked_routes_are_made_led_elsewhere_read_back_and_removed() {
    in_namespace(async |mut netlink| {
        let index = add_tunnel(&mut netlink).await;
        let address = "192.0.2.1/24".parse().unwrap();
        netlink.add_address(&Address { index, address, protocol: 0, unique: true }).await.unwrap();
        let hop = |gateway: &str, onlink| NextHop { index, gateway: Some(ip(gateway)), onlink };
        let route = |destination: &str, metric, hop| MarkedRoute {
            destination: destination.parse().unwrap(),
            metric,
            protocol: MARK,
            hop: Some(hop),
        };
        let mut wanted = [
            route("10.0.1.0/24", 0, hop("10.0.1.0", true)),
            route("10.0.2.0/24", 5, hop("192.0.2.2", false)),
            route("fd00:1::/64", 1024, hop("fd00:1::", true)),
        ];
        let foreign = Route {
            destination: "10.0.9.0/24".parse().unwrap(),
            gateway: None,
            index,
            metric: 0,
            table: MAIN_TABLE,
            protocol: 4,
        };
        netlink.add_route(&foreign).await.unwrap();
        for MarkedRoute { destination, metric, protocol, hop } in wanted.clone() {
            netlink.add_marked_route(destination, metric, protocol, hop.unwrap()).await.unwrap();
            let again = netlink.add_marked_route(destination, metric, protocol, hop.unwrap()).await;
            assert!(again.unwrap_err().is_taken(), "{destination}");
        }
        assert_eq!(netlink.marked_routes(MARK).await.unwrap(), wanted);
        assert_eq!(netlink.marked_routes(MARK + 1).await.unwrap(), []);

        for (number, other) in [(0, hop("192.0.2.3", false)), (2, hop("fd00:2::", true))] {
            let MarkedRoute { destination, metric, protocol, .. } = wanted[number];
            netlink.replace_marked_route(destination, metric, protocol, other).await.unwrap();
            wanted[number].hop = Some(other);
        }
        assert_eq!(netlink.marked_routes(MARK).await.unwrap(), wanted);

        let destination = foreign.destination;
        assert!(netlink.remove_marked_route(destination, 0, MARK).await.unwrap_err().is_missing(), "another's");
        for MarkedRoute { destination, metric, protocol, .. } in wanted {
            netlink.remove_marked_route(destination, metric, protocol).await.unwrap();
            let again = netlink.remove_marked_route(destination, metric, protocol).await;
            assert!(again.unwrap_err().is_missing(), "{destination}");
        }
        assert!(netlink.routes().await.unwrap().contains(&foreign));
    });
}

#[test]
fn the_way_to_an_address_has_a_gateway_or_not() {
    in_namespace(async |mut netlink| {
        let index = add_tunnel(&mut netlink).await;
        assert_eq!(netlink.way_to(ip("192.0.2.2")).await.unwrap(), None);
        assert_eq!(netlink.way_to(ip("2001:db8::2")).await.unwrap(), None);
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            let address = address.parse().unwrap();
            netlink.add_address(&Address { index, address, protocol: 0, unique: true }).await.unwrap();
        }
        let way = |gateway: Option<&str>| Some(NextHop { index, gateway: gateway.map(ip), onlink: false });
        let default = "0.0.0.0/0".parse().unwrap();
        netlink.add_marked_route(default, 0, MARK, way(Some("192.0.2.9")).unwrap()).await.unwrap();
        assert_eq!(netlink.way_to(ip("192.0.2.2")).await.unwrap(), way(None));
        assert_eq!(netlink.way_to(ip("2001:db8::2")).await.unwrap(), way(None));
        assert_eq!(netlink.way_to(ip("198.51.100.1")).await.unwrap(), way(Some("192.0.2.9")));
        assert_eq!(netlink.way_to(ip("192.0.2.1")).await.unwrap(), None, "its own");
    });
}

#[test]
fn a_watch_tells_what_changes() {
    in_namespace(async |mut netlink| {
        let index = add_tunnel(&mut netlink).await;
        let mut watch = Watch::open().unwrap();
        assert!(timeout(SILENCE, watch.next()).await.is_err(), "nothing changes");
        // Other notifications come along with some.
        async fn told(watch: &mut Watch, expected: Change) {
            loop {
                let change = timeout(LIMIT, watch.next()).await.unwrap_or_else(|_| panic!("{expected:?}")).unwrap();
                if change == expected {
                    return;
                }
            }
        }
        let address = Address { index, address: "10.0.0.0/32".parse().unwrap(), protocol: 0, unique: true };
        netlink.add_address(&address).await.unwrap();
        told(&mut watch, Change::Address { index, address: Some(ip("10.0.0.0")) }).await;
        for (destination, gateway) in [("10.0.1.0/24", "10.0.1.0"), ("fd00:1::/64", "fd00:1::")] {
            let hop = NextHop { index, gateway: Some(ip(gateway)), onlink: true };
            netlink.add_marked_route(destination.parse().unwrap(), 1024, MARK, hop).await.unwrap();
            told(&mut watch, Change::Route { protocol: MARK }).await;
            netlink.remove_marked_route(destination.parse().unwrap(), 1024, MARK).await.unwrap();
            told(&mut watch, Change::Route { protocol: MARK }).await;
        }
        netlink.set_neighbour(&Neighbour { index, address: ip("10.0.1.0"), mac: PEER_MAC }).await.unwrap();
        told(&mut watch, Change::Neighbour { index }).await;
        netlink.add_forward(index, PEER_MAC, ip("192.0.2.2")).await.unwrap();
        told(&mut watch, Change::Neighbour { index }).await;
        netlink.remove_link(index).await.unwrap();
        told(&mut watch, Change::Link { index, name: Some("vx0".to_owned()) }).await;
    });
}

#[test]
fn a_watch_says_that_it_missed_something() {
    in_namespace(async |mut netlink| {
        let index = add_tunnel(&mut netlink).await;
        let mut watch = Watch::open().unwrap();
        for mtu in (1300..1400).cycle().take(2000) {
            netlink.set_mtu(index, mtu).await.unwrap();
        }
        let mut changes = vec![timeout(LIMIT, watch.next()).await.expect("changes").unwrap()];
        while let Ok(change) = timeout(SILENCE, watch.next()).await {
            changes.push(change.unwrap());
        }
        assert!(changes.contains(&Change::Unknown), "{} changes", changes.len());
        netlink.set_mtu(index, 1280).await.unwrap();
        timeout(LIMIT, watch.next()).await.expect("one more change").unwrap();
    });
}
