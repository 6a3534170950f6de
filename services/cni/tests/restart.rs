//! The daemon's life: readiness, changes of its configuration, restarts.

mod support;

use std::os::unix::net::UnixDatagram;

use garboard_cni::attachment::mac_of;
use garboard_cni::netfilter::{Connection, nft};
use nix::sys::signal::Signal;
use serde_json::json;
use support::{Machine, Pod, wait_for};

#[test]
fn readiness_follows_the_configuration() {
    let mut machine = Machine::prepare();
    let supervisor = UnixDatagram::bind(machine.path("notify")).unwrap();
    supervisor.set_read_timeout(Some(support::LIMIT)).unwrap();
    assert_eq!(machine.plugin("STATUS", &[], &machine.config(&[])).code(), 50, "no daemon");
    machine.run_daemon();
    let refused = |machine: &Machine, reason: &str| {
        wait_for(reason, || {
            let status = machine.plugin("STATUS", &[], &machine.config(&[]));
            !status.success && status.code() == 50 && status.text.contains(reason)
        });
        assert!(!machine.path("net.d/10-garboard.conflist").exists());
    };
    refused(&machine, "no configuration yet");
    assert_eq!(machine.for_pod("ADD", &Pod::new(), &machine.config(&[])).code(), 11);
    machine.configure(&json!({"podCIDRs": []}));
    refused(&machine, "podCIDRs is empty");
    // The bridge is there for DNS to bind to as soon as there is an address.
    machine.configure(&json!({"podCIDRs": ["10.244.7.0/24"]}));
    machine.wait_ready();
    let mut buffer = [0; 64];
    let length = supervisor.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\n");
    let conflist = std::fs::read_to_string(machine.path("net.d/10-garboard.conflist")).unwrap();
    let conflist: serde_json::Value = serde_json::from_str(&conflist).unwrap();
    assert_eq!(conflist["plugins"][0]["type"], "garboard");
    assert_eq!(machine.add(&Pod::new()).address(), "10.244.7.2");
    assert!(machine.stop(Signal::SIGTERM), "ends by itself");
    assert!(machine.path("net.d/10-garboard.conflist").exists());
    assert_eq!(machine.plugin("STATUS", &[], &machine.config(&[])).code(), 50);
}

#[test]
fn a_configuration_that_is_refused_leaves_the_last_good_one_in_use() {
    let machine = Machine::simple();
    for wrong in [json!({"podCIDRs": ["x"]}), json!({"podCIDRs": ["10.9.0.0/24"], "bridge": "other0"})] {
        machine.configure(&wrong);
        assert_eq!(machine.add(&Pod::new()).address().split('.').next(), Some("10"));
    }
    machine.configure(&json!({"podCIDRs": ["10.244.0.0/24", "fd00::/64"]}));
    let pods = std::cell::Cell::new(Vec::new());
    wait_for("pods with both IP versions", || {
        let pod = Pod::new();
        let both = machine.add(&pod).json()["ips"].as_array().unwrap().len() == 2;
        let mut all = pods.take();
        all.push(pod);
        pods.set(all);
        both
    });
}

#[test]
fn reservations_survive_the_daemon_and_connections_do_too() {
    let mut machine = Machine::simple();
    let outside = machine.outside();
    let (a, b) = (Pod::new(), Pod::new());
    machine.add_with_ports(&a, &[json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp"})]);
    machine.add(&b);
    a.netns.tcp_mirror("0.0.0.0:80");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        machine.stop(signal);
        // The network needs no daemon.
        assert!(a.netns.ping("10.244.0.3"));
        assert_eq!(outside.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
        machine.run_daemon();
        machine.wait_ready();
        assert_eq!(machine.reservations(), 2);
        assert_eq!(outside.tcp("192.0.2.1:80").unwrap(), "192.0.2.2");
    }
    assert_eq!(machine.add(&Pod::new()).address(), "10.244.0.4");
    machine.del(&a).ok();
    assert!(outside.tcp("192.0.2.1:80").is_err());
}

#[test]
fn what_a_crash_left_is_cleaned_at_start() {
    let mut machine = Machine::simple();
    let (kept, unreserved, unlinked) = (Pod::new(), Pod::new(), Pod::new());
    let results = [machine.add(&kept), machine.add(&unreserved), machine.add(&unlinked)];
    machine.stop(Signal::SIGKILL);
    std::fs::remove_file(machine.path(&format!("state/{}@eth0", unreserved.id))).unwrap();
    std::fs::write(machine.path("state/.new-x@eth0"), "half").unwrap();
    machine.netns.netlink(async |netlink| {
        let index = support::index(netlink, results[2].json()["interfaces"][0]["name"].as_str().unwrap()).await;
        netlink.remove_link(index).await.unwrap();
    });
    // Somebody emptied the firewall, and took the bridge's address.
    machine.netns.run(|| {
        let connection = Connection::open().unwrap();
        connection.run(&nft::transaction(|batch| nft::delete_table(batch, "garboard-cni"))).unwrap();
    });
    machine.netns.netlink(async |netlink| {
        let bridge = netlink.link("gb0").await.unwrap().unwrap();
        assert_eq!(bridge.mac, Some(mac_of([10, 244, 0, 1].into())));
        netlink.remove_address(bridge.index, "10.244.0.1/24".parse().unwrap()).await.unwrap();
    });
    machine.run_daemon();
    machine.wait_ready();
    assert_eq!((machine.reservations(), machine.host_links()), (1, 1));
    assert!(kept.netns.ping("10.244.0.1"));
    machine.check(&kept, &results[0]).ok();
    machine.del(&unreserved).ok();
    machine.del(&unlinked).ok();
}

#[test]
fn a_plugin_waits_for_a_daemon_that_is_being_restarted() {
    let mut machine = Machine::simple();
    let pod = Pod::new();
    machine.stop(Signal::SIGKILL);
    let added = std::thread::scope(|scope| {
        let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_garboard-cni"));
        let path = pod.netns.path();
        process.env_clear().env("CNI_COMMAND", "ADD").env("GARBOARD_CNI_SOCKET", machine.path("cni.sock"));
        process.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", path);
        process.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = process.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, machine.config(&[]).to_string().as_bytes()).unwrap();
        drop(input);
        let waiting = scope.spawn(move || child.wait_with_output().unwrap());
        machine.run_daemon();
        waiting.join().unwrap()
    });
    // Until the configuration is read the daemon answers that it may work later, which the runtime does.
    let text = String::from_utf8(added.stdout).unwrap();
    assert!(added.status.success() || text.contains("\"code\":11"), "{text}");
}
