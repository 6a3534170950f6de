//! The daemon beside an API server: it becomes ready, follows changes, and outlives the API server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use support::{LIMIT, addresses, ask, exchange_udp, free_port, question, start, wait_for};

const KINDS: [(&str, &str, &str); 3] = [
    ("/api/v1/namespaces", "v1", "Namespace"),
    ("/api/v1/services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
];

/// As much of an API server as a watch needs: lists, and streams of what happens after.
#[derive(Clone)]
struct ApiServer {
    address: SocketAddr,
    lists: Arc<Mutex<BTreeMap<&'static str, Vec<Value>>>>,
    connections: Arc<Mutex<Vec<(&'static str, TcpStream)>>>,
    away: Arc<AtomicBool>,
    /// The resource version of lists; watches from before it are too old.
    version: Arc<AtomicU64>,
}

impl ApiServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            lists: Arc::default(),
            connections: Arc::default(),
            away: Arc::default(),
            version: Arc::new(AtomicU64::new(1)),
        };
        let accepting = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = accepting.clone();
                thread::spawn(move || server.converse(stream));
            }
        });
        server
    }

    fn converse(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request).unwrap_or(0) == 0 || self.away.load(Ordering::SeqCst) {
                return;
            }
            let mut header = String::new();
            while header != "\r\n" {
                header.clear();
                if reader.read_line(&mut header).unwrap_or(0) == 0 {
                    return;
                }
            }
            let target = request.split_whitespace().nth(1).unwrap();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let Some(&(path, version, kind)) = KINDS.iter().find(|(known, _, _)| *known == path) else {
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                continue;
            };
            if query.contains("watch=true") {
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head).unwrap();
                let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")?.parse().ok());
                if from.unwrap_or(0) < self.version.load(Ordering::SeqCst) {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                        "reason": "Expired", "message": "too old resource version"});
                    send(&mut stream, "ERROR", &status);
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
                self.connections.lock().unwrap().push((path, stream));
                return;
            }
            let items = self.lists.lock().unwrap().get(path).cloned().unwrap_or_default();
            let list = json!({
                "apiVersion": version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": self.version.load(Ordering::SeqCst).to_string()},
                "items": items,
            })
            .to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", list.len());
            stream.write_all(format!("{head}{list}").as_bytes()).unwrap();
        }
    }

    fn put(&self, path: &'static str, object: Value) {
        self.lists.lock().unwrap().entry(path).or_default().push(object);
    }

    /// Sends an event to whoever watches.
    fn send(&self, path: &'static str, kind: &str, object: Value) {
        for (_, stream) in self.connections.lock().unwrap().iter_mut().filter(|(watched, _)| *watched == path) {
            send(stream, kind, &object);
        }
    }

    fn watches(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// Ends all connections and answers no more.
    fn go_away(&self) {
        self.away.store(true, Ordering::SeqCst);
        for (_, stream) in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn send(stream: &mut TcpStream, kind: &str, object: &Value) {
    let event = format!("{}\n", json!({"type": kind, "object": object}));
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).unwrap();
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "2"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "http", "port": 80}]},
    })
}

#[test]
fn the_daemon_follows_the_cluster_and_outlives_the_api_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let supervisor = UnixDatagram::bind(file("notify")).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let api = ApiServer::start();
    let [namespaces, services, slices] = KINDS.map(|(path, _, _)| path);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    api.put(namespaces, namespace);
    api.put(services, service("web", "10.96.0.7"));
    let (address, _) = free_port();
    let config = json!({
        "listen": [address], "domain": "cluster.local", "upstreams": [],
        "server": format!("http://{}", api.address), "identity": directory.path(), "serviceCIDRs": ["10.96.0.0/12"],
    });
    std::fs::write(file("config.json"), config.to_string()).unwrap();
    let _daemon = start(&file("config.json"));
    let owner = "web.default.svc.cluster.local.";
    wait_for("the daemon to answer", || exchange_udp(address, &question(owner, RecordType::A)).is_ok());
    assert_eq!(ask(address, owner, RecordType::A).metadata.response_code, ResponseCode::ServFail);
    let mut buffer = [0; 64];
    assert!(supervisor.recv(&mut buffer).is_err(), "not ready without the cluster");
    // The server speaks no TLS, but there is no request without an identity.
    let key = rcgen::generate_simple_self_signed(["test".to_owned()]).unwrap();
    std::fs::write(file("tls.key"), key.signing_key.serialize_pem()).unwrap();
    std::fs::write(file("ca.crt"), key.cert.pem()).unwrap();
    std::fs::write(file("tls.crt"), key.cert.pem()).unwrap();
    supervisor.set_read_timeout(Some(LIMIT)).unwrap();
    let length = supervisor.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\n");
    assert_eq!(addresses(&ask(address, owner, RecordType::A)), ["10.96.0.7"]);

    wait_for("the watches", || api.watches() == 3);
    api.send(services, "ADDED", service("more", "10.96.0.8"));
    let more = "more.default.svc.cluster.local.";
    wait_for("the new Service", || addresses(&ask(address, more, RecordType::A)) == ["10.96.0.8"]);
    api.send(
        services,
        "MODIFIED",
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "more", "namespace": "default", "resourceVersion": "3"}, "spec": {"clusterIP": "None"},
        }),
    );
    api.send(
        slices,
        "ADDED",
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "more-1", "namespace": "default", "resourceVersion": "4",
                "labels": {"kubernetes.io/service-name": "more"},
            },
            "endpoints": [{"addresses": ["10.244.0.9"], "conditions": {"ready": true}, "hostname": "more-0"}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }),
    );
    let member = "more-0.more.default.svc.cluster.local.";
    wait_for("the endpoint", || addresses(&ask(address, member, RecordType::A)) == ["10.244.0.9"]);
    api.send(services, "DELETED", service("web", "10.96.0.7"));
    wait_for("the Service to be gone", || {
        ask(address, owner, RecordType::A).metadata.response_code == ResponseCode::NXDomain
    });

    api.go_away();
    assert_eq!(addresses(&ask(address, member, RecordType::A)), ["10.244.0.9"], "what was known stays");
    // What happened meanwhile is seen when it is back: one Service came, all slices went.
    api.lists.lock().unwrap().insert(services, vec![service("new", "10.96.0.9")]);
    api.version.store(100, Ordering::SeqCst);
    api.away.store(false, Ordering::SeqCst);
    let new = "new.default.svc.cluster.local.";
    wait_for("the Service that came meanwhile", || addresses(&ask(address, new, RecordType::A)) == ["10.96.0.9"]);
    wait_for("the endpoint to be gone", || {
        ask(address, member, RecordType::A).metadata.response_code == ResponseCode::NXDomain
    });
}
