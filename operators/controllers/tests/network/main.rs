//! The network controller against the kernel and dnsmasq, each test in network and UTS namespaces of its own.
//!
//! Needs root, `ip` (iproute2) and `dnsmasq`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod links;
mod scene;

use std::net::IpAddr;
use std::time::Duration;

use garboard_plan::network::{Config, LinkConfig, RouteConfig, Selector};
use garboard_sys::netlink::SHARED;

use self::scene::Scene;

/// `IFAPROT_KERNEL_RA`.
const KERNEL_RA: u8 = 2;

fn by_name(name: &str) -> LinkConfig {
    LinkConfig {
        selector: Selector::Name(name.to_owned()),
        label: None,
        port: false,
        dhcp4: true,
        accept_ra: None,
        addresses: vec![],
        gateways: vec![],
        routes: vec![],
        mtu: None,
    }
}

fn dhcp() -> Config {
    Config { links: vec![by_name("eth0")], ..Config::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_lease_configures_the_link() {
    Scene::run(|mut scene| async move {
        scene.serve(&[
            "--dhcp-option=option:dns-server,192.0.2.53",
            "--dhcp-option=option:domain-name,example.org",
            "--dhcp-option=option:ntp-server,192.0.2.123,192.0.2.124",
        ]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty() && node.link.is_some()).await;
        assert!(scene.pool().contains(&node.addresses[0]), "{node:?}");
        assert_eq!(node.link.as_deref(), Some("eth0"));
        assert_eq!((node.nameservers, node.search), (vec![ip("192.0.2.53")], vec!["example.org".to_owned()]));
        assert_eq!(node.time_servers, [ip("192.0.2.123"), ip("192.0.2.124")]);
        assert_eq!((node.waiting, node.problems), (vec![], vec![]));
        assert!(scene.ip("route show default").contains("default via 192.0.2.1 dev eth0 proto 103 metric 1024"));
        assert!(scene.ip("addr show dev lo").contains("state UNKNOWN"), "lo is up");
        let resolv_conf = scene.etc("resolv.conf");
        assert!(resolv_conf.contains("nameserver 192.0.2.53\nsearch example.org\n"), "{resolv_conf}");
        assert_eq!(scene.etc("hostname"), "keel\n");
        assert!(scene.etc("hosts").contains(&format!("{} keel\n", node.addresses[0])));
        assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), "keel\n");
    });
}

#[test]
fn the_first_request_follows_the_carrier_at_once() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.outside("link set dev peer down");
        scene.start(dhcp());
        scene.wait("its wait for the carrier", |node| node.waiting == ["a carrier on eth0"]).await;
        scene.outside("link set dev peer up");
        let before = std::time::Instant::now();
        scene.wait("an address", |node| !node.addresses.is_empty()).await;
        assert!(before.elapsed() < Duration::from_secs(3), "took {:?}", before.elapsed());
    });
}

#[test]
fn a_removed_address_is_repaired() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty() && node.link.is_some()).await;
        scene.ip(&format!("addr del {}/24 dev eth0", node.addresses[0]));
        scene
            .until("the address and the default route are back", |scene| {
                scene.ip("addr show dev eth0").contains(&node.addresses[0].to_string())
                    && scene.ip("route show default").contains("via 192.0.2.1")
            })
            .await;
        scene.ip("route del default");
        scene.until("the route is back", |scene| scene.ip("route show default").contains("via 192.0.2.1")).await;
    });
}

#[test]
fn a_lease_is_renewed() {
    Scene::run(|mut scene| async move {
        scene.serve(&["--dhcp-option-force=option:T1,3", "--dhcp-option-force=option:T2,60"]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty()).await;
        // The first exchange logs DISCOVER and REQUEST; a request alone is the renewal, from the address itself.
        scene.until("two renewals", |scene| scene.server_log().matches("DHCPACK").count() >= 3).await;
        assert_eq!(scene.server_log().matches("DHCPDISCOVER").count(), 1, "{}", scene.server_log());
        assert_eq!(scene.node().addresses, node.addresses);
    });
}

#[test]
fn a_refused_address_is_given_up_for_a_new_one() {
    Scene::run(|mut scene| async move {
        scene.serve(&["--dhcp-option-force=option:T1,3", "--dhcp-option-force=option:T2,6"]);
        scene.start(dhcp());
        let old = scene.wait("an address", |node| !node.addresses.is_empty()).await;
        scene.stop_server();
        scene.outside("addr flush dev peer");
        scene.outside("addr add 198.51.100.1/24 dev peer");
        scene.serve_subnet("198.51.100", &["--dhcp-authoritative"]);
        let node = scene
            .wait("an address of the other server", |node| {
                node.addresses.first().is_some_and(|address| address.to_string().starts_with("198.51.100."))
            })
            .await;
        assert_eq!(node.addresses.len(), 1, "the old one {:?} is gone", old.addresses);
        assert!(scene.server_log().contains("DHCPNAK"), "{}", scene.server_log());
        scene.until("the route follows", |scene| scene.ip("route show default").contains("via 198.51.100.1")).await;
        assert!(!scene.ip("route show").contains("192.0.2."));
    });
}

#[test]
fn a_lost_carrier_keeps_the_address() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty()).await;
        scene.outside("link set dev peer down");
        scene.wait("its wait for the carrier", |node| node.waiting == ["a carrier on eth0"]).await;
        assert!(scene.ip("addr show dev eth0").contains(&node.addresses[0].to_string()));
        scene.outside("link set dev peer up");
        scene.until("it is confirmed", |scene| scene.server_log().matches("DHCPACK").count() >= 2).await;
        let after = scene.wait("its default route", |node| node.link.is_some() && node.waiting.is_empty()).await;
        assert_eq!(after.addresses, node.addresses);
    });
}

#[test]
fn mtu_change_keeps_the_address() {
    Scene::run(|mut scene| async move {
        scene.serve(&["--dhcp-option-force=option:mtu,1400"]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty() && node.link.is_some()).await;
        assert!(scene.ip("link show dev eth0").contains("mtu 1400"));
        let mut config = dhcp();
        config.links[0].mtu = Some(1300);
        scene.watch_removals();
        scene.declare(config);
        scene.until("the MTU", |scene| scene.ip("link show dev eth0").contains("mtu 1300")).await;
        assert_eq!(scene.node().addresses, node.addresses);
        assert_eq!(scene.removals(), "", "nothing was removed on the way");
    });
}

#[test]
fn what_is_not_ours_is_untouched() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.ip("addr add 203.0.113.5/24 dev eth0");
        scene.ip("link set dev eth0 up");
        scene.ip("route add 203.0.113.128/25 dev eth0 metric 7");
        scene.start(dhcp());
        let node = scene.wait("an address", |node| node.addresses.len() == 2).await;
        let leased = node.addresses.iter().find(|address| scene.pool().contains(address)).unwrap().to_string();
        scene.declare(Config {
            links: vec![LinkConfig {
                dhcp4: false,
                addresses: vec!["192.0.2.200/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()],
                gateways: vec![ip("192.0.2.254")],
                selector: Selector::Mac([2, 0, 0, 0, 0, 9]),
                ..by_name("")
            }],
            ..Config::default()
        });
        // There is no link with that address: the machine says so and keeps what is not its own.
        scene.wait("the missing link", |node| node.waiting.iter().any(|wait| wait.contains("02:00:00:00:00:09"))).await;
        scene.until("the lease is given back", |scene| !scene.ip("addr show dev eth0").contains(&leased)).await;
        assert!(scene.ip("addr show dev eth0").contains("203.0.113.5/24"));
        assert!(scene.ip("route show").contains("203.0.113.128/25"));
    });
}

#[test]
fn addresses_from_router_advertisements_are_the_kernels_own() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.add_address("2001:db8::aa/64", KERNEL_RA).await;
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty()).await;
        assert!(scene.pool().contains(&node.addresses[0]) && node.addresses.len() == 1, "{node:?}");
        assert!(scene.ip("addr show dev eth0").contains("2001:db8::aa/64"));
    });
}

#[test]
fn the_virtual_address_is_neither_removed_nor_the_machines_own() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.add_address("192.0.2.5/32", SHARED).await;
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty()).await;
        assert!(scene.pool().contains(&node.addresses[0]) && node.addresses.len() == 1, "{node:?}");
        assert!(scene.ip("addr show dev eth0").contains("192.0.2.5/32"));
    });
}

#[test]
fn declared_addresses_and_gateways_need_no_server() {
    Scene::run(|mut scene| async move {
        let link = LinkConfig {
            dhcp4: false,
            addresses: vec!["192.0.2.200/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()],
            gateways: vec![ip("192.0.2.254"), ip("fe80::1")],
            ..by_name("eth0")
        };
        scene.start(Config {
            links: vec![link],
            nameservers: vec![ip("192.0.2.53"), ip("2001:db8::53")],
            ..Config::default()
        });
        let node = scene.wait("the addresses", |node| node.addresses.len() == 2 && node.link.is_some()).await;
        assert_eq!(node.addresses, [ip("192.0.2.200"), ip("2001:db8::7")]);
        assert_eq!((node.waiting, node.problems), (vec![], vec![]));
        scene
            .until("the routes", |scene| {
                scene.ip("route show default").contains("via 192.0.2.254 dev eth0 proto 103")
                    && scene.ip("-6 route show default").contains("via fe80::1 dev eth0 proto 103")
            })
            .await;
        assert!(scene.etc("resolv.conf").contains("nameserver 192.0.2.53\nnameserver 2001:db8::53\n"));
    });
}

#[test]
fn declared_routes_come_back_when_somebody_removes_them() {
    Scene::run(|mut scene| async move {
        let route = |destination: &str, gateway: &str, metric| RouteConfig {
            destination: destination.parse().unwrap(),
            gateway: Some(ip(gateway)),
            metric,
            table: None,
        };
        let link = LinkConfig {
            dhcp4: false,
            addresses: vec!["192.0.2.200/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()],
            routes: vec![
                route("198.51.100.0/24", "192.0.2.254", Some(7)),
                route("2001:db8:1::/48", "2001:db8::1", None),
            ],
            ..by_name("eth0")
        };
        let config = |link: LinkConfig| Config { links: vec![link], ..Config::default() };
        scene.start(config(link.clone()));
        let there = |scene: &Scene| {
            scene.ip("route show 198.51.100.0/24").contains("via 192.0.2.254 dev eth0 proto 103 metric 7")
                && scene.ip("-6 route show 2001:db8:1::/48").contains("via 2001:db8::1 dev eth0 proto 103 metric 100")
        };
        scene.until("the routes", there).await;
        scene.ip("route delete 198.51.100.0/24");
        scene.until("the removed route", there).await;
        scene.declare(config(LinkConfig { routes: vec![], ..link }));
        scene.until("no routes", |scene| scene.ip("route show 198.51.100.0/24").is_empty()).await;
    });
}

#[test]
fn a_restarted_agent_keeps_the_lease_undisturbed() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.start(dhcp());
        let node = scene.wait("an address", |node| !node.addresses.is_empty() && node.link.is_some()).await;
        scene.stop().await;
        assert!(scene.ip("addr show dev eth0").contains(&node.addresses[0].to_string()), "it stays without the agent");
        scene.watch_removals();
        scene.start(dhcp());
        scene.wait("the same address", |after| after.addresses == node.addresses).await;
        scene.until("it is confirmed", |scene| scene.server_log().matches("DHCPACK").count() >= 2).await;
        assert_eq!(scene.server_log().matches("DHCPDISCOVER").count(), 1);
        assert_eq!(scene.removals(), "");
    });
}

#[test]
fn a_restarted_agent_that_knows_no_declaration_yet_changes_nothing() {
    Scene::run(|mut scene| async move {
        scene.start(dhcp());
        let link = LinkConfig { dhcp4: false, addresses: vec!["192.0.2.200/24".parse().unwrap()], ..by_name("eth0") };
        scene.declare(Config { links: vec![link], ..Config::default() });
        let node = scene.wait("the address", |node| node.addresses == [ip("192.0.2.200")]).await;
        scene.stop().await;
        scene.watch_removals();
        scene.restart_undeclared();
        scene.wait("the same address", |after| after.addresses == node.addresses).await;
        assert_eq!(scene.removals(), "");
        assert_eq!(scene.etc("hostname"), "keel\n");
        scene.declare(dhcp());
        scene.wait("the new declaration's effect", |node| node.addresses.is_empty()).await;
    });
}

/// How often the server was asked by `eth0` while its network was behind the other link.
fn asked_in_vain(scene: &Scene) -> usize {
    scene.server_log().matches("received on peer which has no address").count()
}

#[test]
fn without_a_declaration_the_link_with_a_server_is_used() {
    Scene::run(|mut scene| async move {
        scene.add_link("eth1", "peer1");
        scene.move_network("peer", "peer1");
        scene.start(Config::default());
        let asked = ["an address by DHCP on eth0 (discovering)", "an address by DHCP on eth1 (discovering)"];
        scene.wait("both to be asked", |node| node.waiting == asked).await;
        scene.serve(&["--interface=peer1"]);
        let node = scene.wait("an address", |node| node.link.as_deref() == Some("eth1")).await;
        assert!(scene.pool().contains(&node.addresses[0]), "{node:?}");
        assert_eq!((node.waiting, node.problems), (vec![], vec![]), "nobody waits for the other link");

        // It stays in use until another link is granted a lease.
        scene.outside("link set dev peer1 down");
        let gone = ["a carrier on eth1", asked[0]];
        let without = scene.wait("the other to be asked again", |node| node.waiting == gone).await;
        assert_eq!(without.addresses, node.addresses);
        scene.until("its request", |scene| asked_in_vain(scene) > 0).await;
        scene.move_network("peer1", "peer");
        let moved = scene.wait("an address", |node| node.link.as_deref() == Some("eth0")).await;
        assert!(scene.pool().contains(&moved.addresses[0]) && moved.addresses.len() == 1, "{moved:?}");
        scene.until("the former is given up", |scene| !scene.ip("addr show dev eth1").contains("192.0.2.")).await;
    });
}

#[test]
fn without_a_declaration_a_restarted_agent_asks_on_its_link_only() {
    Scene::run(|mut scene| async move {
        scene.add_link("eth1", "peer1");
        scene.move_network("peer", "peer1");
        scene.serve(&["--interface=peer1"]);
        scene.start(Config::default());
        let node = scene.wait("an address", |node| !node.addresses.is_empty() && node.waiting.is_empty()).await;
        scene.stop().await;
        // What is still on its way ends with the server; another one has to take the lease on trust.
        scene.stop_server();
        let before = asked_in_vain(&scene);
        scene.serve(&["--interface=peer1", "--dhcp-authoritative"]);
        scene.until("it serves", |scene| scene.server_log().matches("DHCP, IP range").count() == 2).await;
        scene.watch_removals();
        scene.start(Config::default());
        scene.wait("the same address", |after| after.addresses == node.addresses).await;
        scene.until("it is confirmed", |scene| scene.server_log().matches("DHCPACK").count() >= 2).await;
        assert_eq!((asked_in_vain(&scene), scene.removals()), (before, String::new()));
    });
}

#[test]
fn a_link_that_comes_later_is_configured() {
    Scene::run(|mut scene| async move {
        scene.ip("link set dev eth0 name eth9");
        scene.serve(&[]);
        scene.start(dhcp());
        scene.wait("the missing link", |node| node.waiting == ["the link eth0: the machine has no such link"]).await;
        scene.ip("link set dev eth9 name eth0");
        scene.wait("an address", |node| !node.addresses.is_empty()).await;
    });
}

#[test]
fn a_refused_step_is_reported_and_stops_nothing_else() {
    Scene::run(|mut scene| async move {
        let link = LinkConfig {
            dhcp4: false,
            addresses: vec!["192.0.2.200/24".parse().unwrap()],
            gateways: vec![ip("192.0.2.254")],
            mtu: Some(60),
            ..by_name("eth0")
        };
        scene.start(Config { links: vec![link], ..Config::default() });
        let node =
            scene.wait("the address and the problem", |node| node.link.is_some() && !node.problems.is_empty()).await;
        assert!(node.problems[0].contains("MTU"), "{:?}", node.problems);
        assert_eq!(node.addresses, [ip("192.0.2.200")]);
    });
}
