//! Questions and answers over real sockets on loopback: the handler behind the server, and the daemon as a process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::thread;

use garboard_dns::forward::Forwarder;
use garboard_dns::handler::Handler;
use garboard_dns::index::{Endpoint, Index, NamedPort, Protocol, Service, ServiceKey, Slice};
use garboard_dns::zone::Zone;
use hickory_proto::op::{Edns, OpCode, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use hickory_server::Server;
use support::{
    CLIENT, PATIENCE, Upstream, addresses, ask, ask_tcp, exchange_udp, free_port, name, question, start, upstream,
    wait_for,
};

fn index(endpoints: u8) -> Index {
    let mut index = Index::default();
    index.add_namespace("default");
    let port = NamedPort { name: "https".into(), protocol: Protocol::Tcp, number: 443 };
    let addresses = vec![[10, 96, 0, 1].into()];
    index.put_service(
        ServiceKey::new("default", "kubernetes"),
        Service::Cluster { addresses, ports: vec![port.clone()] },
    );
    index.put_service(ServiceKey::new("default", "big"), Service::Headless);
    index.put_service(ServiceKey::new("default", "out"), Service::External(name("www.example.com.")));
    let endpoint = |last| Endpoint { hostname: None, addresses: vec![[10, 244, 0, last].into()] };
    let slice = Slice { ports: vec![port], endpoints: (1..=endpoints).map(endpoint).collect() };
    index.put_slice(("default".into(), "big-1".into()), ServiceKey::new("default", "big"), slice);
    index
}

fn synced(mut index: Index) -> Index {
    let keys = ["kubernetes", "big", "out"].map(|name| ServiceKey::new("default", name));
    index.keep_namespaces(&["default".into()].into());
    index.keep_services(&keys.into());
    index.keep_slices(&[("default".into(), "big-1".into())].into());
    index
}

/// A server with this index on a port of its own; it ends with the test's process.
fn serve(index: Index, upstreams: &[SocketAddr]) -> SocketAddr {
    let (address, sockets) = free_port();
    let zone = Zone {
        domain: name("cluster.local."),
        networks: vec!["10.96.0.0/12".parse().unwrap(), "10.244.0.0/16".parse().unwrap()],
        servers: vec![address.ip()],
    };
    let upstreams = upstreams.to_vec();
    let handler = move || Handler {
        index: Arc::new(RwLock::new(index)),
        zone: Arc::new(RwLock::new(Arc::new(zone))),
        forwarder: Arc::new(RwLock::new(Arc::new(Forwarder::new(&upstreams, &[], &[])))),
    };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut server = Server::new(handler());
            server.register_socket(tokio::net::UdpSocket::from_std(sockets.0).unwrap());
            server.register_listener(tokio::net::TcpListener::from_std(sockets.1).unwrap(), PATIENCE, 16);
            server.block_until_done().await.unwrap();
        });
    });
    address
}

#[test]
fn the_clusters_names_are_answered_with_authority() {
    let server = serve(synced(index(3)), &[]);
    let answer = ask(server, "kubernetes.default.svc.cluster.local.", RecordType::A);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(addresses(&answer), ["10.96.0.1"]);
    let answer = ask(server, "_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!(answer.additionals.len(), 1);
    let answer = ask(server, "1.0.96.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(addresses(&answer), ["kubernetes.default.svc.cluster.local."]);
    let tcp = ask_tcp(server, &question("kubernetes.default.svc.cluster.local.", RecordType::A));
    assert_eq!(addresses(&tcp), ["10.96.0.1"]);
}

#[test]
fn negative_answers_carry_the_zone_and_how_long_they_may_be_kept() {
    let server = serve(synced(index(3)), &[]);
    for (owner, code) in [
        ("nothing.default.svc.cluster.local.", ResponseCode::NXDomain),
        ("default.svc.cluster.local.", ResponseCode::NoError),
        ("9.9.244.10.in-addr.arpa.", ResponseCode::NXDomain),
    ] {
        let answer = ask(server, owner, RecordType::A);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{owner}");
        let RData::SOA(soa) = &answer.authorities[0].data else { panic!("{answer}") };
        assert_eq!((answer.authorities[0].ttl, soa.minimum), (5, 5));
    }
}

#[test]
fn until_the_cluster_is_known_its_names_fail_and_others_are_answered() {
    let upstream = upstream();
    let server = serve(index(3), &[upstream.address]);
    for owner in ["kubernetes.default.svc.cluster.local.", "1.0.96.10.in-addr.arpa."] {
        assert_eq!(ask(server, owner, RecordType::A).metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(addresses(&ask(server, "www.example.com.", RecordType::A)), ["192.0.2.53"]);
}

#[test]
fn a_large_answer_is_cut_by_udp_and_whole_by_tcp_and_edns_makes_room() {
    let server = serve(synced(index(60)), &[]);
    let owner = "big.default.svc.cluster.local.";
    let cut = ask(server, owner, RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.len() < 60);
    assert!(cut.to_vec().unwrap().len() <= 512);
    let whole = ask_tcp(server, &question(owner, RecordType::A));
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 60);
    let mut message = question(owner, RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.edns = Some(edns);
    let roomy = exchange_udp(server, &message).unwrap();
    assert!(!roomy.metadata.truncation);
    assert_eq!(roomy.answers.len(), 60);
    assert_eq!(roomy.edns.unwrap().max_payload(), 1232);
}

#[test]
fn clients_get_the_addresses_in_different_orders() {
    let server = serve(synced(index(3)), &[]);
    let first = |id| {
        let mut message = question("big.default.svc.cluster.local.", RecordType::A);
        message.metadata.id = id;
        addresses(&exchange_udp(server, &message).unwrap())[0].clone()
    };
    let firsts: std::collections::BTreeSet<String> = (1..4).map(first).collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn other_names_are_forwarded_once_and_kept() {
    let upstream = upstream();
    let server = serve(synced(index(3)), &[upstream.address]);
    for _ in 0..3 {
        let answer = ask(server, "www.example.com.", RecordType::A);
        assert_eq!(addresses(&answer), ["192.0.2.53"]);
        assert!(!answer.metadata.authoritative);
        let none = ask(server, "nothing.example.", RecordType::A);
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(none.authorities[0].record_type(), RecordType::SOA);
    }
    assert_eq!(upstream.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn an_external_name_is_followed_to_its_addresses() {
    let upstream = upstream();
    let server = serve(synced(index(3)), &[upstream.address]);
    let answer = ask(server, "out.default.svc.cluster.local.", RecordType::A);
    assert_eq!(addresses(&answer), ["www.example.com.", "192.0.2.53"]);
    assert_eq!(answer.answers[1].name, name("www.example.com."));
}

#[test]
fn what_an_upstream_server_asks_is_refused_instead_of_asked_again() {
    // The upstream server has the address of this test, as it would if it forwarded to us.
    let server = serve(synced(index(3)), &["127.0.0.2:9".parse().unwrap()]);
    assert_eq!(ask(server, "www.example.com.", RecordType::A).metadata.response_code, ResponseCode::Refused);
    assert_eq!(addresses(&ask(server, "kubernetes.default.svc.cluster.local.", RecordType::A)), ["10.96.0.1"]);
}

#[test]
fn questions_that_make_no_sense_are_refused_and_the_server_lives() {
    let server = serve(synced(index(3)), &[]);
    let any = ask(server, "kubernetes.default.svc.cluster.local.", RecordType::ANY);
    assert_eq!(any.metadata.response_code, ResponseCode::NotImp);
    let mut update = question("cluster.local.", RecordType::SOA);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(exchange_udp(server, &update).unwrap().metadata.response_code, ResponseCode::NotImp);
    let socket = UdpSocket::bind(CLIENT).unwrap();
    for garbage in [&b""[..], b"\0", &[0xff; 12], &[0xff; 600]] {
        socket.send_to(garbage, server).unwrap();
    }
    assert_eq!(addresses(&ask(server, "kubernetes.default.svc.cluster.local.", RecordType::A)), ["10.96.0.1"]);
}

#[test]
fn the_daemon_follows_its_configuration_and_resolv_conf() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::create_dir(file("etc")).unwrap();
    let (first, second) = (upstream(), upstream());
    let (address, _) = free_port();
    let write = |name: &str, text: String| {
        std::fs::write(file("etc/new"), text).unwrap();
        std::fs::rename(file("etc/new"), file(name)).unwrap();
    };
    let config = |listen: &[SocketAddr], upstreams: &str| {
        let listen: Vec<String> = listen.iter().map(|address| format!("{:?}", address.to_string())).collect();
        let listen = listen.join(",");
        let server = r#""server": "https://127.0.0.1:1", "identity": "/nowhere""#;
        format!(r#"{{"listen": [{listen}], "domain": "cluster.local", {server}, {upstreams}}}"#)
    };
    let servers = |upstream: &Upstream| format!(r#""upstreams": ["{}"]"#, upstream.address);
    let _daemon = start(&file("etc/config.json"));
    let seen = |upstream: &Upstream| {
        let before = upstream.asked.load(Ordering::SeqCst);
        let mut number = 0;
        wait_for("the upstream server to be asked", || {
            number += 1;
            // Each question is a new one, so that no cache answers it.
            let owner = format!("n{number}.{before}.example.");
            let _ = exchange_udp(address, &question(&owner, RecordType::A));
            upstream.asked.load(Ordering::SeqCst) > before
        });
    };
    // The address of the bridge may exist later than the daemon.
    write("etc/config.json", config(&[], &servers(&first)));
    write("etc/config.json", config(&["203.0.113.7:5353".parse().unwrap()], &servers(&first)));
    write("etc/config.json", config(&[address], &servers(&first)));
    seen(&first);
    write("etc/config.json", "{".to_owned());
    seen(&first);
    write("etc/config.json", config(&[address], &servers(&second)));
    seen(&second);
    let resolv_conf = format!(r#""resolvConf": {:?}"#, file("etc/resolv.conf"));
    write("etc/config.json", config(&[address], &resolv_conf));
    // No server yet: a failure at once instead of silence.
    wait_for("the failure without servers", || {
        let answer = exchange_udp(address, &question("a.example.", RecordType::A));
        answer.is_ok_and(|answer| answer.metadata.response_code == ResponseCode::ServFail)
    });
    // An upstream server that is where the test asks from: the questions are refused, so the file was read.
    write("etc/resolv.conf", "search x\nnameserver 127.0.0.2\n".to_owned());
    wait_for("the new resolv.conf", || {
        let answer = exchange_udp(address, &question("b.example.", RecordType::A));
        answer.is_ok_and(|answer| answer.metadata.response_code == ResponseCode::Refused)
    });
}
