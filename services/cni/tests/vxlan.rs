//! Tunnels between machines: pods, Services and the machines themselves reach pods of other machines.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod support;

use std::io::{Read, Write};

use nix::sys::signal::Signal;
use serde_json::json;
use support::underlay::{Underlay, direct, encapsulate, send, tunnels};
use support::{Machine, Netns, Pod, wait_for};

/// Bytes of a long transfer: many segments, and more than a socket's buffer.
const MUCH: usize = 700_000;
/// The longest UDP payload in one packet of a pod: 1500 without tunnel, IP and UDP.
const FULL: usize = 1500 - 50 - 28;

fn pod(machine: &Machine) -> (Pod, String) {
    let pod = Pod::new();
    let address = machine.add(&pod).address();
    (pod, address)
}

/// The strictest check of where packets come from that an administrator may ask for.
fn strict(machines: &[&Machine]) {
    for machine in machines {
        machine.netns.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    }
}

#[test]
fn pods_and_machines_reach_pods_of_other_machines() {
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    strict(&[&one, &two]);
    let ((a, address_a), (b, address_b)) = (pod(&one), pod(&two));
    assert_eq!((address_a.as_str(), address_b.as_str()), ("10.244.11.2", "10.244.12.2"));
    for pod in [&a, &b] {
        pod.netns.tcp_mirror("0.0.0.0:80");
        pod.netns.tcp_echo("0.0.0.0:81");
        pod.netns.udp_echo("0.0.0.0:82");
    }
    let tap = underlay.tap();
    assert!(a.netns.ping(&address_b) && b.netns.ping(&address_a));
    assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), address_a, "not masqueraded");
    assert_eq!(b.netns.tcp("10.244.11.2:80").unwrap(), address_b);
    assert_eq!(one.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.0");
    assert_eq!(two.netns.tcp("10.244.11.2:80").unwrap(), "10.244.12.0");
    assert!(a.netns.transfers("10.244.12.2:81", MUCH) && b.netns.transfers("10.244.11.2:81", MUCH));
    assert!(one.netns.transfers("10.244.12.2:81", MUCH));
    tap.seen();
    assert!(a.netns.udp_transfers("10.244.12.2:82", FULL), "a full packet");
    let seen = tap.seen();
    assert!(seen.encapsulated >= 2 && seen.fragments == 0 && seen.longest == 1500, "{seen:?}");
    assert!(a.netns.udp_transfers("10.244.12.2:82", 20_000), "fragments");
    // Pods of one machine go on as before, and the machine is reached by its own addresses.
    let (c, _) = pod(&one);
    assert_eq!(c.netns.tcp("10.244.11.2:80").unwrap(), "10.244.11.3");
    assert!(b.netns.ping("10.244.11.0") && b.netns.ping("10.244.11.1") && b.netns.ping("192.0.2.11"));
}

/// What kube-proxy makes of a node port whose pod is at 10.244.12.2:81.
const NODE_PORT: &str = "
table ip kube-proxy {
    chain prerouting {
        type nat hook prerouting priority -100
        ip daddr 192.0.2.11 tcp dport 30080 meta mark set meta mark or 0x4000 dnat to 10.244.12.2:80
        ip daddr 192.0.2.11 tcp dport 30081 meta mark set meta mark or 0x4000 dnat to 10.244.12.2:81
    }
    chain output {
        type nat hook output priority -100
        ip daddr 10.96.0.1 tcp dport 80 meta mark set meta mark or 0x4000 dnat to 10.244.12.2:80
    }
    chain postrouting {
        type nat hook postrouting priority 100
        meta mark and 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }
    chain outer {
        type nat hook postrouting priority 101
    }
}";

#[test]
fn a_node_port_leads_to_a_pod_of_another_machine() {
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    strict(&[&one, &two]);
    let client = underlay.stranger(99);
    let (b, _) = pod(&two);
    b.netns.tcp_mirror("0.0.0.0:80");
    b.netns.tcp_echo("0.0.0.0:81");
    let rules = one.path("kube-proxy.nft");
    std::fs::write(&rules, NODE_PORT).unwrap();
    one.netns.command(&format!("nft -f {}", rules.display()));
    assert_eq!(client.tcp("192.0.2.11:30080").unwrap(), "10.244.11.0", "the answer comes through the tunnel");
    // Checksums: at first the receiver trusts the sender, which is the same kernel; then it verifies them.
    let tap = underlay.tap();
    assert!(client.transfers("192.0.2.11:30081", MUCH));
    assert!(tap.seen().unfinished > 0);
    for machine in [&one, &two] {
        machine.netns.switch_checksums_off("eth0");
    }
    assert!(client.transfers("192.0.2.11:30081", MUCH));
    // Also when somebody has everything masqueraded: the packet around it is spared.
    one.netns.command("nft add rule ip kube-proxy outer oifname eth0 masquerade fully-random");
    assert!(client.transfers("192.0.2.11:30081", MUCH));
    let seen = tap.seen();
    assert!(seen.encapsulated > 100 && seen.unfinished == 0, "{seen:?}");
    one.netns.command("ip route add 10.96.0.0/12 dev eth0");
    assert_eq!(one.netns.tcp("10.96.0.1:80").unwrap(), "10.244.11.0", "the machine itself, by a Service");
}

#[test]
fn machines_on_one_link_need_no_tunnel_and_others_have_one() {
    let (near, far) = (Underlay::new(), Underlay::new());
    let router = near.stranger(1);
    far.connect(&router, "eth1", [198, 51, 100, 1], &["198.51.100.1/24".to_owned()]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let remote = json!({"name": "node-13", "address": "198.51.100.13", "podCIDRs": ["10.244.13.0/24"]});
    let with_remote = |number: u8, peers: &[u8]| {
        let mut config = direct(number, peers);
        config["peers"].as_array_mut().unwrap().push(remote.clone());
        config
    };
    let one = near.machine(11, &with_remote(11, &[12]));
    let two = near.machine(12, &with_remote(12, &[11]));
    for machine in [&one, &two] {
        machine.netns.command("ip route add default via 192.0.2.1");
    }
    let mut three = Machine::prepare();
    far.connect(&three.netns, "eth0", [198, 51, 100, 13], &["198.51.100.13/24".to_owned()]);
    three.netns.command("ip route add default via 198.51.100.1");
    let mut config = direct(13, &[11, 12]);
    config["vxlan"]["address"] = json!("198.51.100.13");
    three.configure(&config);
    three.run_daemon();
    three.wait_ready();

    let ((a, _), (b, _), (c, _)) = (pod(&one), pod(&two), pod(&three));
    for pod in [&a, &b, &c] {
        pod.netns.tcp_mirror("0.0.0.0:80");
        pod.netns.tcp_echo("0.0.0.0:81");
    }
    let tap = near.tap();
    assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.2");
    assert_eq!(b.netns.tcp("10.244.11.2:80").unwrap(), "10.244.12.2");
    assert!(a.netns.transfers("10.244.12.2:81", MUCH));
    assert_eq!(one.netns.tcp("10.244.12.2:80").unwrap(), "192.0.2.11");
    assert_eq!(tap.seen().encapsulated, 0);
    let routes = one.netns.command("ip route show proto 104");
    assert!(routes.contains("10.244.12.0/24 via 192.0.2.12 dev eth0"), "{routes}");
    let neighbours = one.netns.command("ip neighbour show dev gb-vxlan nud permanent");
    assert!(!neighbours.contains("10.244.12.0") && neighbours.contains("10.244.13.0"), "{neighbours}");
    assert!(!one.netns.command("bridge fdb show dev gb-vxlan").contains("192.0.2.12"));

    // The way to the third machine has a gateway.
    assert_eq!(a.netns.tcp("10.244.13.2:80").unwrap(), "10.244.11.2");
    assert!(c.netns.transfers("10.244.12.2:81", MUCH));
    assert!(tap.seen().encapsulated > 0);
    // So has that to a neighbour, when somebody says so.
    one.netns.command("ip route add 192.0.2.12/32 via 192.0.2.1");
    one.netns.wait_until("ip route show proto 104", true, "10.244.12.0/24 via 10.244.12.0 dev gb-vxlan");
    assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.2", "there by the tunnel, back without");
    one.netns.command("ip route del 192.0.2.12/32");
    one.netns.wait_until("ip route show proto 104", true, "10.244.12.0/24 via 192.0.2.12 dev eth0");
    // The kernel tells nobody of the routes that it drops with a link.
    one.netns.command("ip link set eth0 down");
    one.netns.wait_until("ip route show proto 104", false, "eth0");
    one.netns.command("ip link set eth0 up");
    one.netns.wait_until("ip route show proto 104", true, "10.244.12.0/24 via 192.0.2.12 dev eth0");
    assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.2");
}

#[test]
fn a_peer_that_is_removed_leaves_nothing_and_disturbs_nobody() {
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12, 13]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    let three = underlay.machine(13, &tunnels(13, &[11]));
    let ((a, _), (b, _), (c, _)) = (pod(&one), pod(&two), pod(&three));
    b.netns.tcp_echo("0.0.0.0:81");
    c.netns.tcp_mirror("0.0.0.0:80");
    assert_eq!(a.netns.tcp("10.244.13.2:80").unwrap(), "10.244.11.2");
    let mut connection = a.netns.tcp_connect("10.244.12.2:81");
    let link = one.netns.command("ip -o link show gb-vxlan");

    one.configure(&tunnels(11, &[12]));
    let peers = "nft list set inet garboard-cni tunnel-peers";
    for (line, left) in [
        ("ip route show proto 104", "10.244.13.0"),
        ("ip neighbour show dev gb-vxlan", "10.244.13.0"),
        ("bridge fdb show dev gb-vxlan", "192.0.2.13"),
        (peers, "192.0.2.13"),
    ] {
        one.netns.wait_until(line, false, left);
    }
    assert!(a.netns.tcp("10.244.13.2:80").is_err());
    one.configure(&tunnels(11, &[12, 13]));
    wait_for("the peer to be back", || a.netns.tcp("10.244.13.2:80").is_ok());

    echoes(&mut connection);
    assert_eq!(one.netns.command("ip -o link show gb-vxlan"), link, "the same link");
    assert!(one.netns.command(peers).contains("192.0.2.13"));
}

fn echoes(connection: &mut std::net::TcpStream) {
    connection.write_all(b"still there?").unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
}

#[test]
fn what_others_change_is_repaired_and_told() {
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    let ((a, _), (b, _)) = (pod(&one), pod(&two));
    b.netns.tcp_mirror("0.0.0.0:80");
    let (route, neighbour, forward) = (
        ("ip route show proto 104", "10.244.12.0/24 via 10.244.12.0 dev gb-vxlan onlink"),
        ("ip neighbour show dev gb-vxlan", "10.244.12.0 lladdr 0a:76:c0:00:02:0c PERMANENT"),
        ("bridge fdb show dev gb-vxlan", "0a:76:c0:00:02:0c dst 192.0.2.12 self permanent"),
    );
    let address = ("ip address show dev gb-vxlan", "inet 10.244.11.0/32 scope global");
    let link = ("ip -d link show gb-vxlan", "vxlan id 1 local 192.0.2.11 ");
    let up = ("ip -o link show gb-vxlan", "mtu 1450");
    one.netns.command("ip route add 10.250.0.0/16 dev eth0");
    let cases = [
        ("ip route del 10.244.12.0/24", route, "add route to 10.244.12.0/24"),
        ("ip route replace 10.244.12.0/24 via 192.0.2.99 dev eth0 proto 104", route, "lead route to 10.244.12.0/24"),
        ("ip route replace blackhole 10.244.12.0/24 proto 104", route, "lead route to 10.244.12.0/24"),
        ("ip neighbour del 10.244.12.0 dev gb-vxlan", neighbour, "set neighbour 10.244.12.0"),
        (
            "ip neighbour replace 10.244.12.0 lladdr 02:00:00:00:00:01 dev gb-vxlan",
            neighbour,
            "set neighbour 10.244.12.0",
        ),
        ("bridge fdb del 0a:76:c0:00:02:0c dev gb-vxlan", forward, "add forward of 0a:76:c0:00:02:0c"),
        (
            "bridge fdb replace 0a:76:c0:00:02:0c dev gb-vxlan dst 192.0.2.99",
            forward,
            "remove forward of 0a:76:c0:00:02:0c",
        ),
        ("ip address del 10.244.11.0/32 dev gb-vxlan", address, "add address 10.244.11.0/32"),
        ("ip link set gb-vxlan mtu 1300", up, "configure link gb-vxlan"),
        ("ip link set gb-vxlan down", route, "configure link gb-vxlan"),
        ("ip link set gb-vxlan address 02:00:00:00:00:01", neighbour, "configure link gb-vxlan"),
        ("ip link del gb-vxlan", link, "add link gb-vxlan"),
    ];
    for (change, (look, expected), told) in cases {
        let before = one.log().matches(told).count();
        one.netns.command(change);
        wait_for(change, || one.log().matches(told).count() > before);
        one.netns.wait_until(look, true, expected);
        for (look, expected) in [route, neighbour, forward, address, link, up] {
            one.netns.wait_until(look, true, expected);
        }
        assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.2", "{change}");
    }
    // What was added under our mark goes.
    let stray = [
        ("ip route add 10.244.77.0/24 dev eth0 proto 104", "ip route show proto 104", "10.244.77.0"),
        ("ip neighbour add 10.244.77.0 lladdr 02:00:00:00:00:01 dev gb-vxlan", neighbour.0, "10.244.77.0"),
        ("bridge fdb append 00:00:00:00:00:00 dev gb-vxlan dst 192.0.2.77", forward.0, "192.0.2.77"),
        ("ip address add 10.244.77.1/32 dev gb-vxlan", address.0, "10.244.77.1"),
    ];
    for (change, look, left) in stray {
        one.netns.command(change);
        one.netns.wait_until(look, false, left);
    }
    assert!(one.netns.command("ip route show").contains("10.250.0.0/16 dev eth0"), "not ours");
}

#[test]
fn a_daemon_that_starts_again_disturbs_no_connection() {
    let underlay = Underlay::new();
    let mut one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    let ((a, _), (b, _)) = (pod(&one), pod(&two));
    b.netns.tcp_echo("0.0.0.0:81");
    let mut connection = a.netns.tcp_connect("10.244.12.2:81");
    let link = one.netns.command("ip -o link show gb-vxlan");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        one.stop(signal);
        echoes(&mut connection);
        one.netns.command("ip route add 10.244.77.0/24 dev eth0 proto 104");
        one.run_daemon();
        one.wait_ready();
        echoes(&mut connection);
        assert_eq!(one.netns.command("ip -o link show gb-vxlan"), link, "the same link");
        assert!(!one.netns.command("ip route show").contains("10.244.77.0"), "what a crash left is removed");
    }
}

#[test]
fn the_mtu_follows_the_underlay() {
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    let ((a, _), (b, _)) = (pod(&one), pod(&two));
    b.netns.tcp_echo("0.0.0.0:81");
    b.netns.udp_echo("0.0.0.0:82");
    let mtu = |netns: &Netns, link: &str| netns.netlink(async |netlink| netlink.link(link).await.unwrap().unwrap().mtu);
    assert_eq!((mtu(&one.netns, "gb-vxlan"), mtu(&one.netns, "gb0"), mtu(&a.netns, "eth0")), (1450, 1450, 1450));
    one.netns.command("ip link set eth0 mtu 1400");
    wait_for("a smaller MTU", || (mtu(&one.netns, "gb-vxlan"), mtu(&one.netns, "gb0")) == (1350, 1350));
    let (later, _) = pod(&one);
    assert_eq!((mtu(&a.netns, "eth0"), mtu(&later.netns, "eth0")), (1450, 1350));
    // The kernel tells the pod that was there before.
    assert!(a.netns.transfers("10.244.12.2:81", MUCH) && later.netns.transfers("10.244.12.2:81", MUCH));

    one.netns.command("ip link set eth0 mtu 1500");
    wait_for("the MTU from before", || mtu(&one.netns, "gb-vxlan") == 1450);
    assert_eq!(mtu(&one.netns, "gb0"), 1350, "no more than every pod on it takes");
    later.netns.udp_echo("0.0.0.0:82");
    wait_for("pieces for the pod with the smaller one", || b.netns.udp_transfers("10.244.11.3:82", FULL));
}

#[test]
fn without_tunnels_nothing_of_them_is_left() {
    let underlay = Underlay::new();
    let mut one = underlay.machine(11, &tunnels(11, &[12]));
    let (a, _) = pod(&one);
    let bridge = json!({"podCIDRs": ["10.244.11.0/24"], "clusterCIDRs": ["10.244.0.0/16"]});
    let nothing = |one: &Machine| {
        one.netns.wait_until("ip link show", false, "gb-vxlan");
        assert_eq!(one.netns.command("ip route show proto 104"), "");
        one.netns.wait_until("nft list ruleset", false, "tunnel");
        assert!(a.netns.ping("10.244.11.1"));
    };
    one.configure(&bridge);
    nothing(&one);
    one.configure(&tunnels(11, &[12]));
    one.netns.wait_until("ip route show proto 104", true, "10.244.12.0/24");
    one.stop(Signal::SIGKILL);
    one.configure(&bridge);
    one.run_daemon();
    one.wait_ready();
    nothing(&one);
}

#[test]
fn what_is_somebody_elses_is_left_alone_and_named() {
    let underlay = Underlay::new();
    let mut one = Machine::prepare();
    one.netns.command("ip link add gb-vxlan type bridge");
    one.configure(&tunnels(11, &[12, 13]));
    one.run_daemon();
    let status = |one: &Machine| one.plugin("STATUS", &[], &one.config(&[])).text;
    wait_for("the address to be missed", || {
        status(&one).contains("vxlan.address: no link of this machine has 192.0.2.11")
    });
    // No waiting for the next try: the address is told.
    underlay.connect(&one.netns, "eth0", [192, 0, 2, 11], &["192.0.2.11/24".to_owned()]);
    wait_for("the link to be refused", || status(&one).contains("link gb-vxlan exists and is not marked as ours"));
    assert!(one.netns.command("ip -d link show gb-vxlan").contains("bridge"));
    one.netns.command("ip route add 10.244.12.0/24 via 192.0.2.99");
    one.netns.command("ip link del gb-vxlan");
    // It keeps one peer from being reached, and no pod from being attached.
    one.wait_ready();
    wait_for("the route to be named", || {
        one.log().contains("a route to 10.244.12.0/24 exists and is not marked as ours")
    });
    let routes = one.netns.command("ip route show");
    assert!(
        routes.contains("10.244.12.0/24 via 192.0.2.99 dev eth0") && routes.contains("10.244.13.0/24 via"),
        "{routes}"
    );
    one.netns.command("ip route del 10.244.12.0/24");
    one.netns.wait_until("ip route show", true, "10.244.12.0/24 via 10.244.12.0 dev gb-vxlan");
}

#[test]
fn encapsulated_packets_are_taken_from_peers_only() {
    use garboard_cni::backend::vxlan::address::hardware_address;
    let underlay = Underlay::new();
    let one = underlay.machine(11, &tunnels(11, &[12]));
    let two = underlay.machine(12, &tunnels(12, &[11]));
    let stranger = underlay.stranger(99);
    let ((a, _), (b, _)) = (pod(&one), pod(&two));
    let inbox = a.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:9000").unwrap());
    inbox.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let to_one = hardware_address([192, 0, 2, 11].into()).0;
    let forged = |text: &str| encapsulate(1, to_one, [10, 244, 12, 2], [10, 244, 11, 2], 9000, text.as_bytes());
    let received = || {
        let mut buffer = [0; 64];
        inbox.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let own = [192, 0, 2, 11];
    let peers = || {
        send(&two.netns, own.into(), &forged("from a peer"));
        assert_eq!(received().as_deref(), Some("from a peer"));
    };
    // A Service that leads to a machine makes no peer of its client, and a machine is a peer's at one address only.
    two.netns.command("nft add table ip services");
    two.netns.command("nft add chain ip services prerouting { type nat hook prerouting priority -100 ; }");
    two.netns.command("nft add chain ip services postrouting { type nat hook postrouting priority 100 ; }");
    two.netns.command("nft add rule ip services prerouting ip daddr 192.0.2.112 dnat to 192.0.2.11");
    two.netns.command("nft add rule ip services postrouting ip daddr 192.0.2.11 masquerade");
    two.netns.command("ip address add 192.0.2.112/24 dev eth0");
    one.netns.command("ip address add 192.0.2.111/24 dev eth0");
    let others = [
        ("from a stranger", &stranger, own),
        ("from a stranger by a Service", &stranger, [192, 0, 2, 112]),
        ("from a pod of the machine", &a.netns, own),
        ("from a pod to the bridge", &a.netns, [10, 244, 11, 1]),
        ("from a pod to the link", &a.netns, [10, 244, 11, 0]),
        ("from a pod of a peer", &b.netns, own),
        ("from a pod of a peer to another address", &b.netns, [192, 0, 2, 111]),
        ("from a pod of a peer through the tunnel", &b.netns, [10, 244, 11, 0]),
        ("from the machine itself", &one.netns, own),
    ];
    let taken = || {
        others.each_ref().map(|(name, from, to)| {
            send(from, (*to).into(), &forged(name));
            received().as_deref() == Some(name)
        })
    };
    peers();
    assert_eq!(taken(), [false; 9]);
    peers();
    // What lies in a tunnel comes from where that leads to.
    let spoofed = encapsulate(1, to_one, [10, 244, 11, 3], [10, 244, 11, 2], 9000, b"spoofed");
    send(&two.netns, own.into(), &spoofed);
    assert_eq!(received(), None);
    // A pod may use the port elsewhere.
    stranger.udp_echo("0.0.0.0:4789");
    assert!(a.netns.udp_transfers("192.0.2.99:4789", 10));
    // It is these rules that keep them out.
    for machine in [&one, &two] {
        machine.netns.command("nft flush chain inet garboard-cni tunnel-input");
        machine.netns.command("nft flush chain inet garboard-cni tunnel-forward");
    }
    assert_eq!(taken(), [true; 9]);
}

#[test]
fn tunnels_over_ipv6_carry_pods_with_both_versions() {
    let underlay = Underlay::new();
    let config = |number: u8, peer: u8, direct: bool| {
        json!({
            "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")],
            "clusterCIDRs": ["10.244.0.0/16", "fd00:244::/48"], "backend": "vxlan",
            "vxlan": {"address": format!("2001:db8::{number}"), "directRoutes": direct},
            "peers": [{"name": "peer", "address": format!("2001:db8::{peer}"),
                       "podCIDRs": [format!("10.244.{peer}.0/24"), format!("fd00:244:0:{peer}::/64")]}],
        })
    };
    let machine = |number: u8, peer: u8| {
        let mut machine = Machine::prepare();
        let address = format!("2001:db8::{number}/64");
        underlay.connect(&machine.netns, "eth0", [192, 0, 2, number], &[address]);
        machine.configure(&config(number, peer, false));
        machine.run_daemon();
        machine.wait_ready();
        machine
    };
    let (one, two) = (machine(11, 12), machine(12, 11));
    let ((a, _), (b, _)) = (pod(&one), pod(&two));
    for pod in [&a, &b] {
        pod.netns.tcp_mirror("[::]:80");
        pod.netns.tcp_echo("[::]:81");
        pod.netns.udp_echo("[::]:82");
    }
    let reach = |machine_seen_as: &str| {
        assert_eq!(a.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.2");
        assert_eq!(b.netns.tcp("10.244.11.2:80").unwrap(), "10.244.12.2");
        assert_eq!(a.netns.tcp("[fd00:244:0:12::2]:80").unwrap(), "fd00:244:0:11::2");
        assert_eq!(b.netns.tcp("[fd00:244:0:11::2]:80").unwrap(), "fd00:244:0:12::2");
        assert_eq!(one.netns.tcp("10.244.12.2:80").unwrap(), "10.244.11.0");
        assert_eq!(one.netns.tcp("[fd00:244:0:12::2]:80").unwrap(), machine_seen_as);
        assert!(a.netns.transfers("10.244.12.2:81", MUCH) && a.netns.transfers("[fd00:244:0:12::2]:81", MUCH));
        assert!(one.netns.transfers("[fd00:244:0:12::2]:81", MUCH));
    };
    reach("fd00:244:0:11::");
    let mtu = a.netns.netlink(async |netlink| netlink.link("eth0").await.unwrap().unwrap().mtu);
    assert_eq!(mtu, 1430);
    assert!(
        a.netns.udp_transfers("[fd00:244:0:12::2]:82", 1430 - 48) && b.netns.udp_transfers("10.244.11.2:82", 1430 - 28)
    );

    // A node port.
    let client = Netns::new();
    underlay.connect(&client, "eth0", [192, 0, 2, 99], &["2001:db8::99/64".to_owned()]);
    one.netns.command("nft add table ip6 services");
    one.netns.command("nft add chain ip6 services prerouting { type nat hook prerouting priority -100 ; }");
    one.netns.command("nft add chain ip6 services postrouting { type nat hook postrouting priority 100 ; }");
    one.netns.command("nft add rule ip6 services prerouting tcp dport 30080 dnat to [fd00:244:0:12::2]:80");
    one.netns.command("nft add rule ip6 services postrouting ct status dnat masquerade fully-random");
    assert_eq!(client.tcp("[2001:db8::11]:30080").unwrap(), "fd00:244:0:11::");

    // Without tunnel, where the next hop can be of the route's own version.
    one.configure(&config(11, 12, true));
    two.configure(&config(12, 11, true));
    for machine in [&one, &two] {
        machine.netns.wait_until("ip -6 route show proto 104", true, "dev eth0");
    }
    reach("2001:db8::11");
    assert!(
        one.netns.command("ip route show proto 104").contains("10.244.12.0/24 via 10.244.12.0 dev gb-vxlan onlink")
    );
}

#[test]
fn a_thousand_peers_come_at_once_and_change_one_by_one() {
    let underlay = Underlay::new();
    let many = |count: u16, first: u16| {
        let mut config = tunnels(11, &[]);
        config["clusterCIDRs"] = json!(["10.0.0.0/8"]);
        let peers = (first..first + count).map(|number| {
            let [high, low] = number.to_be_bytes();
            json!({"name": format!("node-{number}"), "address": format!("198.18.{high}.{low}"),
                   "podCIDRs": [format!("10.{}.{low}.0/24", 128 + high)]})
        });
        config["peers"] = peers.collect();
        config
    };
    let one = underlay.machine(11, &many(1000, 0));
    one.netns.command("ip route add default via 192.0.2.1");
    let count = |line: &str| one.netns.command(line).lines().count();
    let all = || {
        let neighbours = count("ip neighbour show dev gb-vxlan nud permanent");
        (count("ip route show proto 104"), neighbours, count("bridge fdb show dev gb-vxlan"))
    };
    assert_eq!(all(), (1000, 1000, 1000));
    // Pods come and go while peers do.
    std::thread::scope(|scope| {
        let pods = scope.spawn(|| {
            let slowest = (0..20).map(|_| {
                let started = std::time::Instant::now();
                drop(pod(&one));
                started.elapsed()
            });
            slowest.max().unwrap()
        });
        for first in 1..20 {
            one.configure(&many(1000, first));
            let [high, low] = (999 + first).to_be_bytes();
            one.netns.wait_until("ip route show proto 104", true, &format!("10.{}.{low}.0/24", 128 + high));
        }
        let slowest = pods.join().unwrap();
        assert!(slowest < std::time::Duration::from_secs(2), "an attachment took {slowest:?}");
    });
    wait_for("all to be there", || all() == (1000, 1000, 1000));
    let changes: Vec<String> =
        one.log().lines().filter(|line| line.contains("connections")).map(str::to_owned).collect();
    assert!(
        changes.iter().skip(1).all(|line| line.contains("steps=6")),
        "three for the old, three for the new: {changes:#?}"
    );
    one.netns.command("ip link del gb-vxlan");
    wait_for("all to be there again", || count("ip route show proto 104") == 1000 && all() == (1000, 1000, 1000));
    assert!(one.log().lines().count() < 150, "told in short");
}
