//! Host ports, masquerading, and what pods must not reach.

mod support;

use std::net::UdpSocket;

use garboard_cni::netfilter::{Connection, nft};
use garboard_sys::netlink::MacAddress;
use serde_json::{Value, json};
use support::{Machine, Netns, Pod};

/// The hardware address of somebody else's bridge.
const FOREIGN: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

fn port(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

#[test]
fn a_host_port_is_reached_from_everywhere() {
    let machine = Machine::simple();
    let outside = machine.outside();
    let (pod, neighbour) = (Pod::new(), Pod::new());
    let address = machine.add_with_ports(&pod, &[port(8080, 80, "TCP"), port(5353, 53, "udp")]).address();
    let neighbour_address = machine.add(&neighbour).address();
    pod.netns.tcp_mirror("0.0.0.0:80");
    pod.netns.udp_mirror("0.0.0.0:53");
    // The client's address is kept wherever an answer finds its way back.
    assert_eq!(outside.tcp("192.0.2.1:8080").unwrap(), "192.0.2.2");
    assert_eq!(outside.udp("192.0.2.1:5353").unwrap(), "192.0.2.2");
    assert_eq!(neighbour.netns.tcp("192.0.2.1:8080").unwrap(), neighbour_address);
    assert_eq!(neighbour.netns.tcp("10.244.0.1:8080").unwrap(), neighbour_address);
    assert_eq!(machine.netns.tcp("192.0.2.1:8080").unwrap(), "192.0.2.1");
    assert_eq!(machine.netns.tcp("127.0.0.1:8080").unwrap(), "10.244.0.1");
    assert_eq!(machine.netns.udp("127.0.0.1:5353").unwrap(), "10.244.0.1");
    // A pod that reaches itself.
    assert_eq!(pod.netns.tcp("192.0.2.1:8080").unwrap(), "10.244.0.1");
    assert_ne!(address, neighbour_address);
    machine.del(&pod).ok();
    assert!(outside.tcp("192.0.2.1:8080").is_err());
}

#[test]
fn a_udp_client_that_never_pauses_follows_its_host_port_from_pod_to_pod() {
    let machine = Machine::simple();
    let outside = machine.outside();
    let client = outside.udp_client("192.0.2.1:5353");
    let asked = |client: &UdpSocket| {
        // Refusals of before come as errors.
        let _ = client.send(b"?");
        let mut buffer = [0; 64];
        client.recv(&mut buffer).is_ok()
    };
    assert!(!asked(&client), "nobody is there yet");
    for _ in 0..2 {
        let pod = Pod::new();
        pod.netns.udp_mirror("0.0.0.0:53");
        machine.add_with_ports(&pod, &[port(5353, 53, "udp")]);
        support::wait_for("the pod to answer", || asked(&client));
        machine.del(&pod).ok();
        assert!(!asked(&client), "the pod is gone");
    }
}

#[test]
fn a_host_port_of_one_address_is_not_one_of_another() {
    let machine = Machine::simple();
    let outside = machine.outside();
    let (only, any) = (Pod::new(), Pod::new());
    let with_ip = |ip: &str| json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": ip});
    machine.add_with_ports(&only, &[with_ip("192.0.2.1")]);
    only.netns.tcp_mirror("0.0.0.0:80");
    assert_eq!(outside.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
    assert!(machine.netns.tcp("127.0.0.1:80").is_err());
    // Another pod may have the same port on all other addresses; the exact one wins.
    machine.add_with_ports(&any, &[with_ip("0.0.0.0")]);
    any.netns.udp_mirror("0.0.0.0:80");
    any.netns.tcp_mirror("0.0.0.0:80");
    assert_eq!(machine.netns.tcp("127.0.0.1:80").unwrap(), "10.244.0.1");
    machine.del(&any).ok();
    assert_eq!(outside.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
}

#[test]
fn a_host_port_that_is_taken_is_refused_by_name() {
    let machine = Machine::simple();
    let (first, second) = (Pod::new(), Pod::new());
    machine.add_with_ports(&first, &[port(80, 80, "tcp"), port(80, 80, "udp"), port(9, 9, "sctp")]);
    let refused = machine.for_pod("ADD", &second, &machine.config(&[port(80, 1, "tcp")]));
    assert_eq!(refused.code(), 102);
    assert!(refused.json()["msg"].as_str().unwrap().contains(&format!("default/{}", first.id)));
    assert_eq!(machine.reservations(), 1);
    machine.del(&first).ok();
    machine.add_with_ports(&second, &[port(80, 1, "tcp")]);
}

#[test]
fn portmap_as_a_plugin_of_its_own_opens_the_same_ports() {
    let machine = Machine::simple();
    let pod = Pod::new();
    let added = machine.add(&pod);
    pod.netns.tcp_mirror("0.0.0.0:80");
    let mut config = machine.config(&[port(8080, 80, "tcp")]);
    config["type"] = json!("portmap");
    config["prevResult"] = added.json();
    assert_eq!(machine.for_pod("ADD", &pod, &config).ok().json(), added.json());
    assert_eq!(machine.netns.tcp("127.0.0.1:8080").unwrap(), "10.244.0.1");
    machine.check(&pod, &added).ok();
    machine.for_pod("DEL", &pod, &config).ok();
    machine.del(&pod).ok();
    assert!(machine.netns.tcp("127.0.0.1:8080").is_err());
}

#[test]
fn pods_leave_the_cluster_with_the_machines_address_and_stay_in_it_with_their_own() {
    let machine = Machine::start(json!({
        "podCIDRs": ["10.244.0.0/24"], "clusterCIDRs": ["10.244.0.0/16", "198.51.100.0/24"],
    }));
    let outside = machine.outside();
    let pod = Pod::new();
    let address = machine.add(&pod).address();
    // The neighbour is a machine of the cluster by its second address and knows the way back for that one.
    outside.netlink(async |netlink| {
        let index = support::index(netlink, "eth0").await;
        netlink.add_address(&support::address(index, "198.51.100.2/32")).await.unwrap();
        netlink.add_route(&support::route(index, "10.244.0.0/24", [192, 0, 2, 1])).await.unwrap();
    });
    outside.tcp_mirror("0.0.0.0:80");
    outside.udp_mirror("0.0.0.0:80");
    assert_eq!(pod.netns.tcp("192.0.2.2:80").unwrap(), "192.0.2.1");
    assert_eq!(pod.netns.udp("192.0.2.2:80").unwrap(), "192.0.2.1");
    assert_eq!(pod.netns.tcp("198.51.100.2:80").unwrap(), address);
    assert!(pod.netns.ping("192.0.2.2"));
}

#[test]
fn a_pod_does_not_reach_the_machines_loopback() {
    let machine = Machine::simple();
    let pod = Pod::new();
    machine.add(&pod);
    machine.netns.tcp_mirror("127.0.0.1:10250");
    assert_eq!(machine.netns.tcp("127.0.0.1:10250").unwrap(), "127.0.0.1");
    // A pod that is allowed to may send loopback's packets by its own interface.
    pod.netns.netlink(async |netlink| {
        let index = support::index(netlink, "eth0").await;
        netlink.remove_address(support::LOOPBACK, "127.0.0.1/8".parse().unwrap()).await.unwrap();
        netlink.add_route(&support::route(index, "127.0.0.1/32", [10, 244, 0, 1])).await.unwrap();
    });
    pod.netns.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
    assert!(pod.netns.tcp("127.0.0.1:10250").is_err());
}

#[test]
fn tables_and_links_of_others_are_not_touched() {
    let mut machine = Machine::prepare();
    let foreign = nft::Table {
        name: "foreign",
        sets: Vec::new(),
        chains: vec![nft::Chain { name: "kept", hook: None, rules: vec![vec![]] }],
    };
    let exists = |netns: &Netns| {
        netns.run(|| {
            // Adding the table with the exclusive flag is refused as long as it is there.
            let mut again = foreign.clone();
            again.chains[0].name = "another";
            Connection::open().unwrap().run(&nft::transaction(|b| nft::delete_table(b, "foreign")))
        })
    };
    machine.netns.run(|| {
        let connection = Connection::open().unwrap();
        connection.run(&nft::transaction(|batch| nft::replace(batch, &foreign))).unwrap();
    });
    machine.netns.netlink(async |netlink| netlink.add_bridge("gb1", FOREIGN, 1500).await.unwrap());
    machine.configure(&json!({"podCIDRs": ["10.244.0.0/24"]}));
    machine.run_daemon();
    machine.wait_ready();
    let pod = Pod::new();
    machine.add_with_ports(&pod, &[port(80, 80, "tcp")]);
    machine.del(&pod).ok();
    assert!(machine.netns.netlink(async |netlink| netlink.link("gb1").await.unwrap()).is_some());
    // Deleting succeeds only when it is still there.
    exists(&machine.netns).unwrap();
    assert!(exists(&machine.netns).unwrap_err().is_missing());
}

#[test]
fn a_bridge_of_somebody_else_is_refused() {
    let mut machine = Machine::prepare();
    machine.netns.netlink(async |netlink| netlink.add_bridge("gb0", FOREIGN, 1500).await.unwrap());
    machine.configure(&json!({"podCIDRs": ["10.244.0.0/24"]}));
    machine.run_daemon();
    support::wait_for("the reason in STATUS", || {
        let status = machine.plugin("STATUS", &[], &machine.config(&[]));
        !status.success && status.text.contains("link gb0 exists and is not marked as ours")
    });
}
