//! What is kept of objects as the API server sends them.

use serde_json::json;

use super::*;

fn put<K: Indexed>(index: &mut Index, object: serde_json::Value) -> Option<K::Key> {
    serde_json::from_value::<K>(object).unwrap().put(index)
}

#[test]
fn services_of_each_kind() {
    let mut index = Index::default();
    let mut service = |name: &str, spec: serde_json::Value| {
        put::<core::Service>(&mut index, json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}));
        index.service(&ServiceKey::new("ns", name)).cloned()
    };
    let dual = service(
        "dual",
        json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "ports": [{"name": "https", "port": 443}, {"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }),
    );
    let Some(Service::Cluster { addresses, ports }) = dual else { panic!("{dual:?}") };
    assert_eq!(addresses.len(), 2);
    let ports: Vec<_> = ports.iter().map(|port| (port.name.as_ref(), port.protocol, port.number)).collect();
    assert_eq!(ports, [("https", Protocol::Tcp, 443), ("dns", Protocol::Udp, 53)]);
    assert_eq!(service("headless", json!({"clusterIP": "None"})), Some(Service::Headless));
    let external = json!({"type": "ExternalName", "externalName": "www.example.com"});
    assert_eq!(service("external", external), Some(Service::External(Name::from_str("www.example.com.").unwrap())));
    assert_eq!(service("wrong", json!({"type": "ExternalName", "externalName": ""})), None);
    assert!(matches!(service("pending", json!({"ports": []})), Some(Service::Cluster { .. })));
}

#[test]
fn only_ready_endpoints_are_kept() {
    let mut index = Index::default();
    put::<EndpointSlice>(
        &mut index,
        json!({
            "metadata": {"name": "s", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "hostname": "web-0"},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]},
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 1}],
        }),
    );
    let slices: Vec<&Slice> = index.slices(&ServiceKey::new("ns", "web")).collect();
    let addresses: Vec<String> =
        slices[0].endpoints.iter().flat_map(|e| &e.addresses).map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.3"]);
    assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("web-0"));
    assert_eq!(slices[0].ports.len(), 1);
}

#[test]
fn a_slice_without_a_service_has_no_records() {
    let mut index = Index::default();
    let object = json!({"metadata": {"name": "s", "namespace": "ns"}, "addressType": "IPv4", "endpoints": []});
    assert!(put::<EndpointSlice>(&mut index, object).is_some());
    assert_eq!(index.slices(&ServiceKey::new("ns", "")).count(), 0);
}
