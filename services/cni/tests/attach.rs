//! Attaching pods: the plugin and the daemon against this machine's kernel.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use support::{Machine, Netns, Pod};

#[test]
fn pods_reach_each_other_and_the_machine() {
    let machine = Machine::simple();
    let (a, b) = (Pod::new(), Pod::new());
    let (address_a, address_b) = (machine.add(&a).address(), machine.add(&b).address());
    assert_ne!(address_a, address_b);
    b.netns.tcp_mirror("0.0.0.0:80");
    machine.netns.tcp_mirror("0.0.0.0:81");
    assert!(a.netns.ping(&address_b));
    assert!(b.netns.ping(&address_a));
    assert!(a.netns.ping("10.244.0.1"));
    assert_eq!(a.netns.tcp(&format!("{address_b}:80")).unwrap(), address_a);
    assert_eq!(a.netns.tcp("10.244.0.1:81").unwrap(), address_a);
    assert_eq!(machine.netns.tcp(&format!("{address_b}:80")).unwrap(), "10.244.0.1");
}

#[test]
fn pods_have_both_ip_versions_when_the_machine_has_networks_of_both() {
    let machine = Machine::start(json!({"podCIDRs": ["10.244.0.0/24", "fd00:244::/64"]}));
    let (a, b) = (Pod::new(), Pod::new());
    machine.add(&a);
    let added = machine.add(&b).json();
    assert_eq!(added["ips"][1], json!({"interface": 1, "address": "fd00:244::3/128", "gateway": "fd00:244::1"}));
    b.netns.tcp_mirror("[::]:80");
    assert_eq!(a.netns.tcp("10.244.0.3:80").unwrap(), "10.244.0.2");
    assert_eq!(a.netns.tcp("[fd00:244::3]:80").unwrap(), "fd00:244::2");
    assert_eq!(machine.netns.tcp("[fd00:244::3]:80").unwrap(), "fd00:244::1");
}

#[test]
fn the_result_of_add_is_in_the_words_of_the_version_that_was_asked_for() {
    let machine = Machine::start(json!({"podCIDRs": ["10.244.0.0/24"], "mtu": 1400}));
    let pod = Pod::new();
    let added = machine.add(&pod).json();
    let host = added["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": host, "mtu": 1400},
            {"name": "eth0", "mac": "0a:58:0a:f4:00:02", "mtu": 1400, "sandbox": pod.netns.path()},
        ],
        "ips": [{"interface": 1, "address": "10.244.0.2/32", "gateway": "10.244.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}],
        "dns": {},
    });
    assert_eq!(added, expected);
    let old = Pod::new();
    let mut config = machine.config(&[]);
    config["cniVersion"] = json!("0.4.0");
    let added = machine.for_pod("ADD", &old, &config).ok().json();
    assert_eq!(added["ips"][0]["version"], "4");
    assert_eq!(added["interfaces"][1].get("mtu"), None);
    let mtu = pod.netns.netlink(async |netlink| netlink.link("eth0").await.unwrap().unwrap().mtu);
    assert_eq!(mtu, 1400);
}

#[test]
fn check_finds_each_change() {
    let machine = Machine::simple();
    type Change = fn(&Machine, &Pod, &Value);
    let changes: [(&str, Change); 4] = [
        ("address taken away", |_, pod, _| {
            pod.netns.netlink(async |netlink| {
                let index = support::index(netlink, "eth0").await;
                let addresses = netlink.addresses().await.unwrap();
                let address = addresses.iter().find(|address| address.index == index).unwrap().address;
                netlink.remove_address(index, address).await.unwrap();
            });
        }),
        ("link deleted", |machine, _, added| {
            machine.netns.netlink(async |netlink| {
                let index = support::index(netlink, added["interfaces"][0]["name"].as_str().unwrap()).await;
                netlink.remove_link(index).await.unwrap();
            });
        }),
        ("another namespace", |_, pod, _| {
            // The identifier is looked for in a namespace that has no such interface.
            let _ = pod;
        }),
        ("host port closed", |machine, _, _| {
            machine.netns.run(|| {
                use garboard_cni::netfilter::{Connection, nft};
                let connection = Connection::open().unwrap();
                let elements = nft::elements(&connection, "garboard-cni", "host-ports4").unwrap();
                let delete = nft::transaction(|b| nft::delete_elements(b, "garboard-cni", "host-ports4", &elements));
                connection.run(&delete).unwrap();
            });
        }),
    ];
    for (name, change) in changes {
        let mut pod = Pod::new();
        let added = machine.add_with_ports(&pod, &[json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})]);
        machine.check(&pod, &added).ok();
        change(&machine, &pod, &added.json());
        let real = (name == "another namespace").then(|| std::mem::replace(&mut pod.netns, Netns::new()));
        assert!([103, 104].contains(&machine.check(&pod, &added).code()), "{name}");
        machine.del(&pod).ok();
        drop(real);
    }
}

#[test]
fn del_may_be_repeated_and_needs_no_namespace() {
    let machine = Machine::simple();
    let (pod, stranger) = (Pod::new(), Pod::new());
    machine.add(&pod);
    assert_eq!((machine.reservations(), machine.host_links()), (1, 1));
    let variables = [("CNI_CONTAINERID", pod.id.as_str()), ("CNI_IFNAME", "eth0")];
    machine.plugin("DEL", &variables, &machine.config(&[])).ok();
    assert_eq!((machine.reservations(), machine.host_links()), (0, 0));
    assert_eq!(machine.del(&pod).ok().text, "");
    machine.del(&stranger).ok();
    assert_eq!(machine.check(&pod, &machine.add(&stranger)).code(), 3);
}

#[test]
fn del_frees_the_address_of_a_pod_whose_namespace_is_gone() {
    let machine = Machine::start(json!({"podCIDRs": ["10.244.0.0/30"]}));
    let Pod { netns, id } = Pod::new();
    let pod = Pod { netns, id: id.clone() };
    assert_eq!(machine.add(&pod).address(), "10.244.0.2");
    drop(pod);
    support::wait_for("the namespace to be gone", || machine.host_links() == 0);
    let gone = [("CNI_CONTAINERID", id.as_str()), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/nonexistent")];
    machine.plugin("DEL", &gone, &machine.config(&[])).ok();
    assert_eq!(machine.add(&Pod::new()).address(), "10.244.0.2");
}

#[test]
fn exhaustion_has_a_code_of_its_own_and_ends_with_a_del() {
    let machine = Machine::start(json!({"podCIDRs": ["10.244.0.0/29"]}));
    let pods: Vec<Pod> = (0..5).map(|_| Pod::new()).collect();
    pods.iter().for_each(|pod| drop(machine.add(pod)));
    let late = Pod::new();
    let refused = machine.for_pod("ADD", &late, &machine.config(&[]));
    assert_eq!(refused.code(), 100);
    assert!(refused.json()["msg"].as_str().unwrap().contains("all 5 addresses of 10.244.0.0/29"));
    assert_eq!(machine.reservations(), 5);
    machine.del(&pods[2]).ok();
    assert_eq!(machine.add(&late).address(), "10.244.0.4");
}

#[test]
fn fifty_pods_at_once_get_fifty_addresses() {
    let machine = Machine::simple();
    let pods: Vec<Pod> = (0..50).map(|_| Pod::new()).collect();
    let addresses: BTreeSet<IpAddr> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| machine.add(pod).address())).collect();
        adds.into_iter().map(|add| add.join().unwrap().parse().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 50);
    assert!(pods[0].netns.ping("10.244.0.51"));
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| machine.del(pod).ok());
        }
    });
    assert_eq!((machine.reservations(), machine.host_links()), (0, 0));
}

#[test]
fn a_failed_add_leaves_nothing() {
    let machine = Machine::simple();
    let pod = Pod::new();
    // The name is taken inside of the pod, which the kernel finds out after everything was reserved.
    let mut variables = vec![("CNI_CONTAINERID", pod.id.as_str()), ("CNI_IFNAME", "lo")];
    let path = pod.netns.path();
    variables.push(("CNI_NETNS", &path));
    assert_eq!(machine.plugin("ADD", &variables, &machine.config(&[])).code(), 104);
    assert_eq!((machine.reservations(), machine.host_links()), (0, 0));
    let file = machine.path("config/config.json").to_string_lossy().into_owned();
    variables[1].1 = "eth0";
    variables[2].1 = &file;
    assert!(!machine.plugin("ADD", &variables, &machine.config(&[])).success);
    assert_eq!((machine.reservations(), machine.host_links()), (0, 0));
    machine.add(&pod);
    assert_eq!(machine.for_pod("ADD", &pod, &machine.config(&[])).code(), 101);
}

#[test]
fn gc_detaches_what_the_runtime_no_longer_knows() {
    let machine = Machine::simple();
    let (known, forgotten) = (Pod::new(), Pod::new());
    machine.add(&known);
    machine.add(&forgotten);
    let mut config = machine.config(&[]);
    config["cni.dev/valid-attachments"] = json!([{"containerID": known.id, "ifname": "eth0"}]);
    for _ in 0..2 {
        machine.plugin("GC", &[], &config).ok();
        assert_eq!((machine.reservations(), machine.host_links()), (1, 1));
    }
    assert!(known.netns.ping("10.244.0.1"));
    config["name"] = json!("another");
    config["cni.dev/valid-attachments"] = json!([]);
    machine.plugin("GC", &[], &config).ok();
    assert_eq!(machine.reservations(), 1);
    assert_eq!(machine.plugin("GC", &[], &machine.config(&[])).code(), 7);
}

#[test]
fn the_loopback_plugin_switches_lo_on() {
    let machine = Machine::prepare();
    let pod = Pod::new();
    let mut config = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let added = machine.for_pod("ADD", &pod, &config).ok().json();
    assert_eq!(added["ips"][0], json!({"version": "4", "interface": 0, "address": "127.0.0.1/8"}));
    config["cniVersion"] = json!("1.1.0");
    machine.for_pod("CHECK", &pod, &config).ok();
    machine.for_pod("DEL", &pod, &config).ok();
}

#[test]
fn wrong_calls_get_the_codes_of_the_specification() {
    let machine = Machine::simple();
    let pod = Pod::new();
    let path = pod.netns.path();
    let all = [("CNI_CONTAINERID", pod.id.as_str()), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", path.as_str())];
    let with = |changes: Value| {
        let mut config = machine.config(&[]);
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config.to_string()
    };
    let good = with(json!({}));
    let port = |port: Value| with(json!({"runtimeConfig": {"portMappings": [port]}}));
    let elsewhere = [all[0], all[1], ("CNI_NETNS", "/nonexistent")];
    let outside = [("CNI_CONTAINERID", "../x"), all[1]];
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], String, u64);
    let cases: Vec<Case<'_>> = vec![
        ("a version of the future", "ADD", &all, with(json!({"cniVersion": "9.0.0"})), 1),
        ("STATUS before it existed", "STATUS", &all, with(json!({"cniVersion": "1.0.0"})), 1),
        ("no identifier", "ADD", &all[1..], good.clone(), 4),
        ("no namespace", "ADD", &all[..2], good.clone(), 4),
        ("a namespace that is not there", "ADD", &elsewhere, good.clone(), 8),
        ("an identifier with a slash", "DEL", &outside, good.clone(), 4),
        ("an operation that is none", "FROB", &all, good.clone(), 4),
        ("no JSON", "ADD", &all, "{".to_owned(), 6),
        ("no name", "ADD", &all, with(json!({"name": ""})), 7),
        ("another plugin's configuration", "ADD", &all, with(json!({"type": "bridge"})), 7),
        ("a port that is none", "ADD", &all, port(json!({"hostPort": 70000, "containerPort": 1})), 7),
        ("a protocol that is none", "ADD", &all, port(json!({"hostPort": 1, "containerPort": 1, "protocol": "x"})), 7),
        ("CHECK without a result", "CHECK", &all, good.clone(), 7),
    ];
    for (name, command, variables, input, code) in cases {
        let outcome = machine.plugin_with_input(command, variables, &input);
        assert_eq!(outcome.code(), code, "{name}: {outcome:?}");
    }
    let versions = machine.plugin("VERSION", &[], &json!({"cniVersion": "1.1.0"})).ok().json();
    assert_eq!(versions["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}
