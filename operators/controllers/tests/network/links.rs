//! Links that are made because they are declared, links matched by driver, rules, and advertisements of routers.
//!
//! A kind of link that the running kernel does not have is skipped, which is said.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use garboard_api::machine::MachineNetwork;
use garboard_plan::network::Config;
use garboard_sys::netlink::{PrivateKey, WireguardChange, WireguardLinks};
use serde_json::{Value, json};

use crate::scene::Scene;

fn network(network: Value) -> Config {
    let network: MachineNetwork = serde_json::from_value(network).unwrap();
    Config::from(&network)
}

fn links(links: Value) -> Config {
    network(json!({ "links": links }))
}

/// A link of the machine that has nothing.
fn plain(name: &str) -> Value {
    json!({ "match": { "name": name }, "dhcp4": false })
}

/// Whether the kernel makes links of a kind.
fn has(scene: &Scene, kind: &str) -> bool {
    let made = scene.try_ip(&format!("link add link eth0 name probe0 type {kind}"));
    match &made {
        Ok(_) => drop(scene.ip("link delete dev probe0")),
        Err(error) => eprintln!("skipped: this kernel makes no {kind} links: {error}"),
    }
    made.is_ok()
}

/// What `ip` shows of a link; empty when there is none.
fn shown(scene: &Scene, name: &str) -> String {
    scene.try_ip(&format!("-details link show dev {name}")).unwrap_or_default()
}

fn index(scene: &Scene, name: &str) -> String {
    shown(scene, name).split(':').next().unwrap_or_default().to_owned()
}

/// Whether a machine answers: nobody listens there, which it says.
fn reaches(address: [u8; 4]) -> bool {
    let answer = TcpStream::connect_timeout(&SocketAddr::from((address, 9)), Duration::from_millis(500));
    answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_bridge_is_made_changed_repaired_and_removed() {
    Scene::run(|mut scene| async move {
        scene.add_link("eth1", "peer1");
        scene.ip("link add vpn0 type bridge");
        let declare = |ports: Value, stp: bool| {
            let bridge =
                json!({ "name": "br0", "bridge": { "ports": ports, "stp": stp }, "addresses": ["192.0.2.7/24"] });
            links(json!([bridge, plain("eth0"), plain("eth1")]))
        };
        scene.start(declare(json!(["eth0"]), false));
        let address = [IpAddr::from([192, 0, 2, 7])];
        let node = scene.wait("the address", |node| node.addresses == address && node.waiting.is_empty()).await;
        assert_eq!(node.problems, [] as [&str; 0]);
        scene.until("the way over its port", |_| reaches([192, 0, 2, 1])).await;
        assert!(shown(&scene, "br0").contains("group 103"), "{}", shown(&scene, "br0"));
        assert!(shown(&scene, "br0").contains("stp_state 0"));

        scene.watch_removals();
        let made = index(&scene, "br0");
        scene.declare(declare(json!(["eth0", "eth1"]), true));
        let is_port = |scene: &Scene, name: &str| shown(scene, name).contains("master br0");
        scene.until("the second port", |scene| is_port(scene, "eth1")).await;
        scene.until("the protocol", |scene| shown(scene, "br0").contains("stp_state 1")).await;
        assert_eq!((index(&scene, "br0"), scene.removals()), (made, String::new()), "nothing else was disturbed");

        scene.ip("link set dev br0 type bridge stp_state 0");
        scene.until("the protocol again", |scene| shown(scene, "br0").contains("stp_state 1")).await;
        scene.ip("link set dev eth1 nomaster");
        scene.until("the port again", |scene| is_port(scene, "eth1")).await;
        scene.ip("link delete dev br0");
        scene.until("the bridge again", |scene| is_port(scene, "eth0") && is_port(scene, "eth1")).await;
        scene.until("its address again", |scene| scene.ip("addr show dev br0").contains("192.0.2.7/24")).await;

        scene.declare(declare(json!(["eth1"]), false));
        scene.until("the port to be none", |scene| !is_port(scene, "eth0") && is_port(scene, "eth1")).await;
        scene.declare(links(json!([plain("eth0")])));
        scene.until("no bridge", |scene| shown(scene, "br0").is_empty()).await;
        assert!(shown(&scene, "vpn0").contains("bridge"), "somebody else's");
        assert!(!shown(&scene, "eth1").contains("master"));
    });
}

#[test]
fn a_lease_moves_to_the_bridge_that_its_link_becomes_a_port_of() {
    Scene::run(|mut scene| async move {
        scene.serve(&[]);
        scene.start(links(json!([{ "match": { "name": "eth0" } }])));
        scene.wait("an address", |node| node.link.as_deref() == Some("eth0")).await;
        scene.declare(links(
            json!([{ "match": { "name": "eth0" } }, { "name": "br0", "bridge": { "ports": ["eth0"] } }]),
        ));
        let node = scene.wait("an address", |node| node.link.as_deref() == Some("br0")).await;
        assert!(scene.pool().contains(&node.addresses[0]) && node.addresses.len() == 1, "{node:?}");
        assert!(!scene.ip("-4 addr show dev eth0").contains("inet"));
        scene.stop().await;
        scene.watch_removals();
        scene.restart_undeclared();
        scene.wait("the same address", |after| after.addresses == node.addresses).await;
        assert_eq!((scene.removals(), scene.node().problems), (String::new(), vec![]), "a restarted agent keeps it");
    });
}

#[test]
fn a_name_that_somebody_else_has_is_told_and_left() {
    Scene::run(|mut scene| async move {
        scene.ip("link add br0 type bridge");
        scene.start(links(json!([{ "name": "br0", "bridge": {}, "addresses": ["192.0.2.7/24"] }])));
        let taken = "the link br0: another link, which is not Garboard's, has its name";
        scene.wait("the name", |node| node.waiting == [taken]).await;
        assert!(!scene.ip("addr show dev br0").contains("192.0.2.7"));
        scene.ip("link delete dev br0");
        scene.wait("the address", |node| node.addresses == [IpAddr::from([192, 0, 2, 7])]).await;
    });
}

#[test]
fn a_vlan_is_made_changed_repaired_and_removed() {
    Scene::run(|mut scene| async move {
        if !has(&scene, "vlan id 9") {
            return;
        }
        for tag in [10, 11] {
            scene.outside(&format!("link add link peer name peer.{tag} type vlan id {tag}"));
            scene.outside(&format!("addr add 198.51.{tag}.1/24 dev peer.{tag}"));
            scene.outside(&format!("link set dev peer.{tag} up"));
        }
        let declare = |id: u16, mtu: u32| {
            let parent =
                json!({ "match": { "name": "eth0" }, "name": "uplink", "mtu": mtu, "addresses": ["192.0.2.7/24"] });
            let vlan = json!({ "name": "office", "vlan": { "parent": "uplink", "id": id }, "mtu": mtu,
                "addresses": [format!("198.51.{id}.7/24")] });
            links(json!([vlan, parent]))
        };
        scene.start(declare(10, 1500));
        scene.until("the way over the tag", |_| reaches([198, 51, 10, 1])).await;
        assert!(shown(&scene, "office").contains("802.1Q id 10"), "{}", shown(&scene, "office"));

        scene.watch_removals();
        let made = index(&scene, "office");
        scene.declare(declare(10, 1400));
        scene.until("the MTU", |scene| shown(scene, "office").contains("mtu 1400")).await;
        scene.declare(declare(10, 1450));
        scene.until("the larger MTU", |scene| shown(scene, "office").contains("mtu 1450")).await;
        assert_eq!(scene.node().problems, [] as [&str; 0]);
        assert_eq!((index(&scene, "office"), scene.removals()), (made, String::new()));

        scene.declare(declare(11, 1450));
        let tagged = |scene: &Scene| shown(scene, "office").contains("802.1Q id 11");
        scene.until("the other tag", tagged).await;
        scene.until("the way over it", |_| reaches([198, 51, 11, 1])).await;
        scene.ip("link delete dev office");
        scene.until("the link again", |scene| tagged(scene) && reaches([198, 51, 11, 1])).await;
        assert!(!scene.removals().contains("192.0.2.7"), "its parent was not disturbed: {}", scene.removals());

        scene.declare(links(json!([plain("eth0")])));
        scene.until("no VLAN", |scene| shown(scene, "office").is_empty()).await;
    });
}

#[test]
fn a_bond_is_made_changed_repaired_and_removed() {
    Scene::run(|mut scene| async move {
        if !has(&scene, "bond") {
            return;
        }
        scene.add_link("eth1", "peer1");
        // Both ends are on one switch.
        scene.outside("addr del 192.0.2.1/24 dev peer");
        scene.outside("link add switch type bridge");
        scene.outside("link set dev peer master switch");
        scene.outside("link set dev peer1 master switch");
        scene.outside("addr add 192.0.2.1/24 dev switch");
        scene.outside("link set dev switch up");
        scene.ip("link set dev eth0 up");
        scene.ip("addr add 203.0.113.5/24 dev eth0");
        let declare = |bond: Value| {
            let vlan = json!({ "name": "office", "vlan": { "parent": "bond0", "id": 10 }, "dhcp4": false });
            let bond = json!({ "name": "bond0", "bond": bond, "addresses": ["192.0.2.7/24"] });
            links(json!([vlan, bond, plain("eth0"), plain("eth1")]))
        };
        let bond = |primary: &str, miimon: u32| json!({ "mode": "active-backup", "members": ["eth0", "eth1"], "primary": primary, "miimon": miimon });
        scene.start(declare(bond("eth1", 100)));
        scene.until("the way over a member", |_| reaches([192, 0, 2, 1])).await;
        let is_member = |scene: &Scene, name: &str| shown(scene, name).contains("master bond0");
        scene.until("both members", |scene| is_member(scene, "eth0") && is_member(scene, "eth1")).await;
        let details = shown(&scene, "bond0");
        for setting in ["mode active-backup", "miimon 100", "primary eth1", "group 103"] {
            assert!(details.contains(setting), "{setting}: {details}");
        }
        scene.until("the active member", |scene| shown(scene, "bond0").contains("active_slave eth1")).await;
        scene.until("its VLAN to be up", |scene| shown(scene, "office").contains("LOWER_UP")).await;
        assert_eq!((scene.node().waiting, scene.node().problems), (vec![], vec![]));
        scene.outside("link set dev peer1 down");
        scene.until("the other member", |scene| shown(scene, "bond0").contains("active_slave eth0")).await;
        assert_eq!(scene.node().waiting, [] as [&str; 0], "it works");
        scene.until("the way over the other member", |_| reaches([192, 0, 2, 1])).await;
        scene.outside("link set dev peer1 up");

        scene.watch_removals();
        let made = index(&scene, "bond0");
        scene.declare(declare(bond("eth0", 50)));
        scene.until("the settings", |scene| shown(scene, "bond0").contains("miimon 50")).await;
        scene.until("the primary", |scene| shown(scene, "bond0").contains("primary eth0")).await;
        assert_eq!((index(&scene, "bond0"), scene.removals()), (made, String::new()), "it was not made anew");
        scene.ip("link set dev bond0 type bond miimon 77");
        scene.until("the interval again", |scene| shown(scene, "bond0").contains("miimon 50")).await;
        scene.ip("link set dev eth0 nomaster");
        scene.until("the member again", |scene| is_member(scene, "eth0")).await;
        scene.until("the primary again", |scene| shown(scene, "bond0").contains("primary eth0")).await;

        scene.declare(declare(json!({ "mode": "802.3ad", "members": ["eth0", "eth1"], "lacpRate": "fast",
            "transmitHashPolicy": "layer3+4" })));
        scene.until("the other mode", |scene| shown(scene, "bond0").contains("mode 802.3ad")).await;
        let details = shown(&scene, "bond0");
        for setting in ["lacp_rate fast", "xmit_hash_policy layer3+4"] {
            assert!(details.contains(setting), "{setting}: {details}");
        }
        scene.until("its VLAN", |scene| shown(scene, "office").contains("office@bond0")).await;
        scene.ip("link delete dev bond0");
        scene.until("the bond again", |scene| is_member(scene, "eth0") && is_member(scene, "eth1")).await;
        scene.until("its address", |scene| scene.ip("addr show dev bond0").contains("192.0.2.7/24")).await;

        scene.declare(links(json!([plain("eth0"), plain("eth1")])));
        scene.until("no bond", |scene| shown(scene, "bond0").is_empty()).await;
        scene.until("its members to be up", |scene| shown(scene, "eth1").contains("LOWER_UP")).await;
        assert!(scene.ip("addr show dev eth0").contains("203.0.113.5/24"), "somebody else's");
    });
}

#[test]
fn a_wireguard_link_is_made_changed_repaired_and_removed() {
    Scene::run(|mut scene| async move {
        if !has(&scene, "wireguard") {
            return;
        }
        let kernel = WireguardLinks::open().unwrap();
        let key = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
        let declare = |port: u16, peers: Value| {
            let wireguard = json!({ "listenPort": port, "peers": peers });
            links(json!([plain("eth0"), { "name": "wg0", "wireguard": wireguard, "addresses": ["192.0.2.7/24"] }]))
        };
        let peer = json!({ "publicKey": key(7), "endpoint": "203.0.113.9:51820", "allowedIPs": ["192.0.2.9/32"] });
        scene.start(declare(51820, json!([peer, { "publicKey": key(8) }])));
        let node = scene.wait("the address", |node| node.addresses == [IpAddr::from([192, 0, 2, 7])]).await;
        assert_eq!((node.problems, node.waiting), (vec![], vec![]));
        let known = kernel.get("wg0").unwrap();
        assert_eq!(node.wireguard[0].public_key, BASE64_STANDARD.encode(known.public_key.unwrap()));
        assert_eq!((known.listen_port, known.peers.len()), (51820, 2));

        scene.watch_removals();
        let made = index(&scene, "wg0");
        kernel.change("wg0", &WireguardChange::RemovePeer([7; 32])).unwrap();
        kernel.change("wg0", &WireguardChange::PrivateKey(PrivateKey([64; 32]))).unwrap();
        let repaired = || {
            let now = kernel.get("wg0").unwrap();
            now.private_key == known.private_key && now.peers.iter().any(|peer| peer.public_key == [7; 32])
        };
        scene.until("the peer and the key again", |_| repaired()).await;
        scene.declare(declare(51821, json!([{ "publicKey": key(8) }])));
        let changed = || kernel.get("wg0").is_ok_and(|link| (link.listen_port, link.peers.len()) == (51821, 1));
        scene.until("another port and one peer less", |_| changed()).await;
        assert_eq!((index(&scene, "wg0"), scene.removals()), (made, String::new()), "nothing else was disturbed");

        scene.declare(links(json!([plain("eth0")])));
        scene.until("no link", |scene| shown(scene, "wg0").is_empty()).await;
        assert_eq!(scene.wait("no status", |node| node.wireguard.is_empty()).await.problems, [] as [&str; 0]);
        scene.declare(declare(51820, json!([])));
        let again = || kernel.get("wg0").is_ok_and(|link| link.private_key == known.private_key);
        scene.until("the link with its key again", |_| again()).await;
    });
}

#[test]
fn rules_and_their_tables_are_made_changed_repaired_and_removed() {
    Scene::run(|mut scene| async move {
        scene.ip("rule add from 203.0.113.0/24 table 7 priority 50");
        let declare = |table: u32, rules: Value| {
            let link = json!({ "match": { "name": "eth0" }, "addresses": ["192.0.2.7/24", "2001:db8::7/64"], "routes": [
                { "to": "0.0.0.0/0", "via": "192.0.2.1", "table": table },
                { "to": "::/0", "via": "2001:db8::1", "table": table },
            ] });
            network(json!({ "links": [link], "rules": rules }))
        };
        let from = |table: u32| {
            json!([
                { "from": "192.0.2.7/32", "table": table, "priority": 100 },
                { "from": "2001:db8::/64", "to": "2001:db8:1::/48", "table": table, "priority": 101 },
                { "fwmark": 0x10, "fwmask": 0xf0, "table": table, "priority": 102 },
            ])
        };
        scene.start(declare(1000, from(1000)));
        let rules = |scene: &Scene, family: &str, table: u32| {
            let rules = scene.ip(&format!("{family} rule show table {table}"));
            rules.lines().map(|line| line.replace('\t', " ")).collect::<Vec<_>>()
        };
        let v4 = |table: u32| {
            vec![
                format!("100: from 192.0.2.7 lookup {table} proto 103"),
                format!("102: from all fwmark 0x10/0xf0 lookup {table} proto 103"),
            ]
        };
        let v6 = |table: u32| {
            vec![
                format!("101: from 2001:db8::/64 to 2001:db8:1::/48 lookup {table} proto 103"),
                format!("102: from all fwmark 0x10/0xf0 lookup {table} proto 103"),
            ]
        };
        let there = |scene: &Scene, table: u32| {
            rules(scene, "-4", table) == v4(table) && rules(scene, "-6", table) == v6(table)
        };
        scene.until("the rules", |scene| there(scene, 1000)).await;
        let led = |scene: &Scene, table: u32| {
            ["-4", "-6"].iter().all(|family| {
                scene.try_ip(&format!("{family} route show table {table}")).unwrap_or_default().contains("default via")
            })
        };
        assert!(led(&scene, 1000), "the routes come first");
        assert!(!scene.ip("route show").contains("default"), "the main table has none");
        let node = scene.wait("the addresses", |node| node.addresses.len() == 2 && node.problems.is_empty()).await;
        assert_eq!((node.link, node.waiting), (None, vec![]), "a table of its own has no default link");

        scene.ip("rule delete priority 100");
        scene.ip("-6 rule delete priority 101");
        scene.until("the rules again", |scene| there(scene, 1000)).await;
        scene.ip("-6 route delete default table 1000");
        scene.ip("-4 route delete default table 1000");
        scene.until("the routes again", |scene| led(scene, 1000)).await;
        scene.declare(declare(200, from(200)));
        scene.until("the other table", |scene| there(scene, 200) && led(scene, 200)).await;
        assert!(rules(&scene, "-4", 1000).is_empty() && !led(&scene, 1000));
        scene.declare(declare(200, json!([])));
        scene.until("no rules", |scene| rules(scene, "-4", 200).is_empty() && rules(scene, "-6", 200).is_empty()).await;
        assert_eq!(rules(&scene, "-4", 7), ["50: from 203.0.113.0/24 lookup 7"], "somebody else's");
    });
}

#[test]
fn a_link_is_found_by_its_driver() {
    Scene::run(|mut scene| async move {
        scene.add_link("eth1", "peer1");
        let by_driver = |address: &str| json!({ "match": { "driver": "veth" }, "addresses": [address] });
        scene.start(links(json!([
            by_driver("192.0.2.7/24"),
            { "match": { "driver": "e1000e" }, "dhcp4": false },
            by_driver("198.51.100.7/24"),
        ])));
        let node = scene.wait("both addresses", |node| node.addresses.len() == 2).await;
        assert_eq!(node.waiting, ["a link of the driver e1000e: there is no other"]);
        assert!(scene.ip("addr show dev eth0").contains("192.0.2.7/24"));
        assert!(scene.ip("addr show dev eth1").contains("198.51.100.7/24"));
        scene.declare(links(json!([by_driver("192.0.2.8/24"), plain("eth0")])));
        scene.until("the other link", |scene| scene.ip("addr show dev eth1").contains("192.0.2.8/24")).await;
        scene.until("no address", |scene| !scene.ip("-4 addr show dev eth0").contains("inet")).await;
    });
}

#[test]
fn advertisements_of_routers_count_where_they_are_declared_to() {
    Scene::run(|mut scene| async move {
        let parameter = "/proc/sys/net/ipv6/conf/eth0/accept_ra";
        let value = || fs::read_to_string(parameter).unwrap().trim().to_owned();
        let before = value();
        // As on a machine with pods, where the kernel does not take them by itself.
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        scene.outside("addr add 2001:db8:5::1/64 dev peer nodad");
        scene.serve(&["--enable-ra", "--dhcp-range=2001:db8:5::,ra-only"]);
        let declare = |accepts: Value| links(json!([{ "match": { "name": "eth0" }, "acceptRA": accepts }]));
        scene.start(declare(Value::Null));
        scene.wait("an address", |node| node.addresses.len() == 1).await;
        assert_eq!(value(), before, "it is the kernel's to decide");

        scene.declare(declare(true.into()));
        let advertised = |address: &IpAddr| address.to_string().starts_with("2001:db8:5::");
        let node = scene.wait("the advertised address", |node| node.addresses.iter().any(advertised)).await;
        assert!(!advertised(&node.addresses[0]), "it is the last: {node:?}");
        assert!(scene.ip("-6 route show default").contains("proto ra"));
        fs::write(parameter, "0").unwrap();
        scene.until("the parameter again", |_| value() == "2").await;

        scene.declare(declare(false.into()));
        scene.until("no advertisements", |_| value() == "0").await;
        scene.declare(declare(Value::Null));
        scene.until("what it was before", |_| value() == before).await;
        scene.wait("the other address alone", |node| !node.addresses.iter().any(advertised)).await;
    });
}
