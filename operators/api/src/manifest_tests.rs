use proptest::prelude::*;

use super::*;
use crate::types::Token;

const GOOD: &str = "\
apiVersion: garboard.dev/v1alpha1
kind: Cluster
metadata: {name: cluster}
spec:
  endpoint: {host: kube.example.org}
---
---
apiVersion: garboard.dev/v1alpha1
kind: Machine
metadata: {name: node-1}
---
apiVersion: v1
kind: Secret
metadata: {name: node-1}
type: garboard.dev/machine-identity
stringData: {identity.key: '-----BEGIN PRIVATE KEY-----'}
";

const WORKER: &str = "\
apiVersion: garboard.dev/v1alpha1
kind: Machine
metadata: {name: node-2}
spec:
  role: Worker
  join:
    endpoints: [{host: 192.0.2.10}]
    caPin: sha256:7777777777777777777777777777777777777777777777777777777777777777
---
apiVersion: v1
kind: Secret
metadata: {name: node-2}
type: garboard.dev/join-token
stringData: {token: abcdef.0123456789abcdef}
";

fn machine(rest: &str) -> String {
    format!("apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {{name: node-1}}\n{rest}")
}

fn cluster(spec: &str) -> String {
    format!("apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: cluster}}\nspec: {spec}")
}

#[test]
fn documents_are_read_with_their_defaults() {
    let manifests = parse(GOOD).unwrap();
    let cluster = manifests.cluster.unwrap();
    assert_eq!(cluster.spec.endpoint.unwrap().port, 6443);
    assert_eq!(cluster.spec.pod_cidr.to_string(), "10.244.0.0/16");
    assert_eq!(manifests.machine.unwrap().hostname(), "node-1");
    assert_eq!(manifests.identity.unwrap().machine, "node-1");
}

#[test]
fn a_worker_is_read_with_its_token() {
    let manifests = parse(WORKER).unwrap();
    let join = manifests.machine.unwrap().spec.join.unwrap();
    assert_eq!(join.endpoints[0].to_string(), "192.0.2.10:6443");
    assert_eq!(manifests.join_token.unwrap().token, "abcdef.0123456789abcdef");
}

#[test]
fn what_the_api_server_made_of_withdrawn_settings_is_read() {
    let effective: crate::Effective = serde_json::from_value(serde_json::json!({
        "spec": { "network": null, "kubelet": { "maxPods": 7, "nodeLabels": null } }, "sources": {},
    }))
    .unwrap();
    assert_eq!((effective.spec.kubelet.max_pods, effective.spec.network), (Some(7), Default::default()));
}

#[test]
fn tokens_are_of_two_kinds() {
    let seal = "0f".repeat(32);
    let sealed = format!("abcdef.0123456789abcdef.{seal}");
    let token = Token::parse(&sealed).unwrap();
    assert_eq!((token.id, token.bearer, token.seal), ("abcdef", "abcdef.0123456789abcdef", Some(seal.as_str())));
    assert!(!format!("{token:?}").contains("0123456789abcdef"), "a secret is shown");
    assert_eq!(Token::parse("abcdef.0123456789abcdef").unwrap().seal, None);
    for wrong in [
        String::new(),
        "abcdef".into(),
        "abcdef.0123456789abcde".into(),
        "ABCDEF.0123456789abcdef".into(),
        "abcdefx.123456789abcdef".into(),
        "abcdef.0123456789abcdef.".into(),
        "abcdef.0123456789abcdef0".into(),
        format!("abcdef.0123456789abcdef.{}", "0g".repeat(32)),
        format!("{sealed}0"),
        "äbcdef.0123456789abcdef".into(),
    ] {
        assert_eq!(Token::parse(&wrong), None, "{wrong}");
    }
}

#[test]
fn every_field_is_read() {
    let text = machine(
        "spec:
  hostname: keel
  network:
    links:
    - match: {mac: '52:54:00:12:34:56'}
      dhcp4: true
      addresses: [192.0.2.10/24, '2001:db8::5/64']
      gateway: 192.0.2.1
      mtu: 1400
    - match: {name: eth1}
    nameservers: [192.0.2.53, '2001:db8::53']
    searchDomains: [example.org]
  kubelet:
    nodeLabels: {example.org/rack: a1}
    maxPods: 200
    shutdownGracePeriodSeconds: 60
    shutdownGracePeriodCriticalPodsSeconds: 20
",
    );
    let machine = parse(&text).unwrap().machine.unwrap();
    assert_eq!(machine.hostname(), "keel");
    assert_eq!(machine.node_name(), "node-1");
    let links = &machine.spec.network.links;
    assert_eq!(links.iter().map(|link| link.dhcp4()).collect::<Vec<_>>(), [true, true]);
    assert_eq!(links[0].addresses[1].to_string(), "2001:db8::5/64");
    let text = cluster(
        "
  endpoint: {host: 192.0.2.9, port: 443}
  certSANs: ['*.example.org', 'kube.example.org', '2001:db8::5', 192.0.2.4]
  podCIDR: 10.1.0.0/16
  serviceCIDR: 10.2.0.0/16
  dnsDomain: k8s.example.org
  proxyMode: ipvs
  access:
  - {name: me@example.org, role: operator, publicKey: 'sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'}
",
    );
    let cluster = parse(&text).unwrap().cluster.unwrap();
    assert_eq!(cluster.spec.cert_sans.len(), 4);
}

#[test]
fn what_the_api_server_writes_is_left_out() {
    let mut value = serde_json::to_value(parse(GOOD).unwrap().machine.unwrap()).unwrap();
    value["metadata"]["uid"] = "6c0f".into();
    value["metadata"]["resourceVersion"] = "7".into();
    value["status"] = serde_json::json!({ "phase": "Running" });
    let machine = parse(&value.to_string()).unwrap().machine.unwrap();
    assert_eq!((machine.metadata.uid, machine.status), (None, None));
}

#[test]
fn the_order_of_documents_is_irrelevant() {
    let mut documents: Vec<&str> = GOOD.split("---\n").collect();
    documents.reverse();
    assert_eq!(parse(&documents.join("---\n")).unwrap(), parse(GOOD).unwrap());
}

#[test]
fn what_is_wrong_is_named() {
    let link = |fields: &str| machine(&format!("spec: {{network: {{links: [{{{fields}}}]}}}}"));
    let cases: &[(&str, String, &[&str])] = &[
        ("no YAML", "kind: [Machine".into(), &["manifest", "document 1", "line 1"]),
        ("another kind", "apiVersion: v1\nkind: Pod".into(), &["\"Pod\"", "Machine and Cluster"]),
        ("no kind", "hello: there".into(), &["document 1"]),
        ("no mapping", "hello".into(), &["document 1"]),
        ("no name", "apiVersion: garboard.dev/v1alpha1\nkind: Machine".into(), &["metadata.name", "DNS label"]),
        ("an unknown field", machine("spec: {hostnam: x}"), &["node-1", "spec.hostnam:", "hostname"]),
        ("an unknown field at the top", machine("specs: {}"), &["specs"]),
        ("an unknown field of metadata", cluster("{}").replace("name:", "nam:"), &["metadata.nam:", "labels"]),
        ("a wrong type", machine("spec: {kubelet: {maxPods: many}}"), &["spec.kubelet.maxPods", "\"many\""]),
        ("a list for a mapping", machine("spec: []"), &["spec", "mapping"]),
        ("out of bounds", machine("spec: {kubelet: {maxPods: 0}}"), &["spec.kubelet.maxPods", "0", "1 to 250"]),
        (
            "no time server",
            machine("spec: {time: {servers: [a, '1:2']}}"),
            &["spec.time.servers[1]", "1:2", "DNS name"],
        ),
        ("twice", machine("spec: {time: {servers: [a, a]}}"), &["spec.time.servers[1]", "\"a\"", "once"]),
        ("soon", machine("spec: {watchdog: {timeoutSeconds: 5}}"), &["spec.watchdog.timeoutSeconds", "5", "30 to 600"]),
        ("one", machine("spec: {logs: {maxFiles: 1}}"), &["spec.logs.maxFiles", "1", "2 to 16"]),
        (
            "no such plugin",
            cluster("{controlPlane: {apiServer: {admissionPlugins: [AlwaysAdmit]}}}"),
            &["spec.controlPlane.apiServer.admissionPlugins[0]", "AlwaysAdmit", "AlwaysPullImages"],
        ),
        (
            "a type twice",
            cluster(
                "{controlPlane: {apiServer: {eventRateLimits: [{type: User, qps: 1, burst: 1}, {type: User, qps: 2, burst: 2}]}}}",
            ),
            &["spec.controlPlane.apiServer.eventRateLimits[1].type", "User", "once"],
        ),
        (
            "no name of a Secret",
            machine("spec: {registries: [{host: a, credentials: {secretName: A_b}}]}"),
            &["spec.registries[0].credentials.secretName", "A_b"],
        ),
        ("no host name", machine("spec: {hostname: A_b}"), &["spec.hostname", "A_b", "DNS label"]),
        (
            "both matches",
            link("match: {name: a, mac: '52:54:00:12:34:56'}"),
            &["links[0].match", "one of name, mac and driver"],
        ),
        ("no match", link("dhcp4: true"), &["spec.network.links[0].match", "one of vlan, bond, bridge and wireguard"]),
        ("a bad hardware address", link("match: {mac: '52:54:00:12:34'}"), &["links[0].match.mac", "52:54:00:12:34"]),
        ("a bad name server", machine("spec: {network: {nameservers: [one]}}"), &["network.nameservers[0]", "\"one\""]),
        (
            "a gateway out of reach",
            link("match: {name: eth0}, addresses: [192.0.2.2/24], gateway: 198.51.100.1"),
            &["spec.network.links[0].gateway", "198.51.100.1"],
        ),
        ("a range's first address", link("match: {name: a}, addresses: [192.0.2.0/24]"), &["links[0].addresses[0]"]),
        ("a bad label", machine("spec: {kubelet: {nodeLabels: {a/b/c: x}}}"), &["nodeLabels.a/b/c"]),
        ("no range", cluster("{podCIDR: 10.244.0.0/99}"), &["spec.podCIDR", "10.244.0.0/99"]),
        ("a range's middle", cluster("{podCIDR: 10.244.7.0/16}"), &["spec.podCIDR", "10.244.0.0/16"]),
        ("too small a range", cluster("{podCIDR: 10.244.7.0/25}"), &["spec.podCIDR", "8 to 24"]),
        ("ranges that overlap", cluster("{podCIDR: 10.0.0.0/8}"), &["spec.serviceCIDR", "apart"]),
        (
            "a virtual address of IPv6",
            cluster("{virtualAddress: {address: '2001:db8::5'}}"),
            &["spec.virtualAddress.address", "2001:db8::5", "IPv4"],
        ),
        (
            "a virtual address of loopback",
            cluster("{virtualAddress: {address: 127.0.0.2}}"),
            &["spec.virtualAddress.address", "127.0.0.2", "loopback"],
        ),
        (
            "a virtual address of a group",
            cluster("{virtualAddress: {address: 224.0.0.18}}"),
            &["spec.virtualAddress.address", "224.0.0.18", "multicast"],
        ),
        (
            "a virtual address of pods",
            cluster("{virtualAddress: {address: 10.244.3.2}}"),
            &["spec.virtualAddress.address", "10.244.3.2", "podCIDR"],
        ),
        (
            "a virtual address of Services",
            cluster("{virtualAddress: {address: 10.96.0.1}}"),
            &["spec.virtualAddress.address", "10.96.0.1", "serviceCIDR"],
        ),
        (
            "a virtual router without number",
            cluster("{virtualAddress: {address: 192.0.2.5, virtualRouterID: 0}}"),
            &["spec.virtualAddress.virtualRouterID", "0"],
        ),
        (
            "a virtual router of too large a number",
            cluster("{virtualAddress: {address: 192.0.2.5, virtualRouterID: 256}}"),
            &["spec.virtualAddress.virtualRouterID", "256", "255"],
        ),
        (
            "a machine with the cluster's virtual address",
            format!(
                "{}\n---\n{}",
                link("match: {name: a}, addresses: [192.0.2.5/24]"),
                cluster("{virtualAddress: {address: 192.0.2.5}}")
            ),
            &["addresses[0]", "192.0.2.5/24", "virtualAddress"],
        ),
        ("no mode", cluster("{proxyMode: userspace}"), &["spec.proxyMode", "userspace", "nftables, iptables, ipvs"]),
        (
            "no key",
            cluster("{access: [{name: me, role: admin, publicKey: abc}]}"),
            &["spec.access[0].publicKey", "abc"],
        ),
        (
            "no role",
            cluster("{access: [{name: me, role: king, publicKey: abc}]}"),
            &["access[0].role", "king", "admin"],
        ),
        ("another cluster", cluster("{}").replace("name: cluster", "name: x"), &["\"x\"", "its name is cluster"]),
        ("twice", format!("{}\n---\n{}", machine(""), machine("")), &["node-1", "another Machine"]),
        (
            "a machine within the cluster's ranges",
            format!("{}\n---\n{}", link("match: {name: a}, addresses: [10.244.3.2/24]"), cluster("{}")),
            &["addresses[0]", "10.244.3.2/24", "podCIDR"],
        ),
        (
            "another secret",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: Opaque\nstringData: {}".into(),
            &["Secret \"x\"", "type", IDENTITY_SECRET_TYPE],
        ),
        ("a worker of no cluster", machine("spec: {role: Worker}"), &["spec.join", "garboardctl join"]),
        ("a worker without endpoint", WORKER.replace("[{host: 192.0.2.10}]", "[]"), &["spec.join.endpoints"]),
        (
            "an audit rule of both kinds",
            cluster(
                "{controlPlane: {apiServer: {auditRules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]}}}",
            ),
            &["apiServer.auditRules[0].nonResourceURLs"],
        ),
        (
            "an audit rule of no path",
            cluster("{controlPlane: {apiServer: {auditRules: [{level: None, nonResourceURLs: ['/a*/b']}]}}}"),
            &["auditRules[0].nonResourceURLs", "/a*/b"],
        ),
        (
            "no level",
            cluster("{controlPlane: {apiServer: {auditRules: [{level: Some}]}}}"),
            &["auditRules[0].level", "Some", "RequestResponse"],
        ),
        ("no role", machine("spec: {role: Queen}"), &["spec.role", "Queen", "Worker"]),
        (
            "a role of all machines",
            cluster("{machines: {role: Worker}}"),
            &["spec.machines.role", "declare it in the Machine"],
        ),
        (
            "another machine's token",
            WORKER.replace("Secret\nmetadata: {name: node-2", "Secret\nmetadata: {name: b"),
            &["\"b\"", "the Machine beside it"],
        ),
        (
            "another machine's key",
            GOOD.replace("Secret\nmetadata: {name: node-1", "Secret\nmetadata: {name: b"),
            &["\"b\""],
        ),
    ];
    for (what, text, named) in cases {
        let error = parse(text).expect_err(what).to_string();
        for name in *named {
            assert!(error.contains(name), "{what}: {name:?} is not named in: {error}");
        }
    }
}

#[test]
fn what_is_wrong_with_links_to_make_and_rules_is_named() {
    let made = |links: &str| machine(&format!("spec: {{network: {{links: [{links}, {{match: {{name: eth0}}}}]}}}}"));
    let rule = |fields: &str| machine(&format!("spec: {{network: {{rules: [{{table: 7, priority: 9, {fields}}}]}}}}"));
    let bond = |fields: &str| made(&format!("{{name: bond0, bond: {{members: [eth0], {fields}}}}}"));
    let vlan = |name: &str, parent: &str| format!("{{name: {name}, vlan: {{parent: {parent}, id: 7}}}}");
    let bridge = |name: &str, port: &str| format!("{{name: {name}, bridge: {{ports: [{port}]}}}}");
    let cases: &[(&str, String, &[&str])] = &[
        ("two kinds", made("{name: a, bridge: {}, vlan: {parent: eth0, id: 7}}"), &["links[0].match", "one to make"]),
        ("a kind and a match", made("{match: {name: a}, bridge: {}}"), &["links[0].match", "either match"]),
        ("no name", made("{bridge: {}}"), &["links[0].name", "the link to make"]),
        ("a name of Garboard's", made("{name: gb0, bridge: {}}"), &["links[0].name", "gb0", "Garboard's own"]),
        ("a name of the kernel's", made("{name: all, bridge: {}}"), &["links[0].name", "\"all\""]),
        ("a name twice", made("{name: eth0, bridge: {}}"), &["links[1].match.name", "eth0", "each name once"]),
        ("no parent", made(&vlan("v7", "eth9")), &["links[0].vlan.parent", "eth9", "one of `links`"]),
        ("no tag", made("{name: a, vlan: {parent: eth0, id: 4095}}"), &["links[0].vlan.id", "4095", "4094"]),
        ("no protocol", made("{name: a, vlan: {parent: eth0, id: 7, protocol: ISL}}"), &["vlan.protocol", "802.1ad"]),
        ("on itself", made(&vlan("v7", "v7")), &["links[0].vlan.parent", "not made of v7"]),
        (
            "in a circle",
            made(&format!("{}, {}", bridge("br0", "v7"), vlan("v7", "br0"))),
            &["links[0].bridge.ports[0]", "links[1].vlan.parent", "not made of br0"],
        ),
        ("no member", bond("mode: broadcast").replace("[eth0]", "[eth9]"), &["links[0].bond.members[0]", "eth9"]),
        (
            "a member of two",
            made(&format!("{{name: bond0, bond: {{mode: broadcast, members: [eth0]}}}}, {}", bridge("br0", "eth0"))),
            &["links[1].bridge.ports[0]", "eth0", "a part of bond0"],
        ),
        ("a member twice", bond("mode: broadcast").replace("[eth0]", "[eth0, eth0]"), &["bond.members[1]", "eth0"]),
        ("no mode", bond("mode: fast"), &["links[0].bond.mode", "fast", "active-backup"]),
        ("a foreign primary", bond("mode: active-backup, primary: a"), &["links[0].bond.primary", "a member"]),
        ("a primary of all", bond("mode: 802.3ad, primary: eth0"), &["links[0].bond.primary", "balance-tlb"]),
        ("a rate of none", bond("mode: broadcast, lacpRate: fast"), &["links[0].bond.lacpRate", "802.3ad"]),
        (
            "a policy of none",
            bond("mode: balance-rr, transmitHashPolicy: layer3+4"),
            &["links[0].bond.transmitHashPolicy", "layer3+4", "balance-xor"],
        ),
        (
            "a member with addresses",
            bond("mode: broadcast").replace("match: {name: eth0}", "match: {name: eth0}, addresses: [192.0.2.7/24]"),
            &["links[1].addresses", "eth0 is a part of bond0"],
        ),
        (
            "a member with an MTU",
            bond("mode: broadcast").replace("match: {name: eth0}", "match: {name: eth0}, mtu: 9000"),
            &["links[1].mtu", "9000", "the MTU of its bond bond0"],
        ),
        (
            "a bridge in a bridge",
            made(&format!("{}, {}", bridge("br0", "br1"), bridge("br1", "eth0"))),
            &["links[1].bridge", "a part of br0"],
        ),
        (
            "a route of the kernel's table",
            made("{match: {name: a}, routes: [{to: '::/0', table: 255}]}"),
            &["table", "255"],
        ),
        ("a rule for all", rule(""), &["spec.network.rules[0]", "from, to and fwmark"]),
        ("a rule of two families", rule("from: 192.0.2.0/24, to: '::/0'"), &["rules[0].to", "same family"]),
        ("a range's middle", rule("from: 192.0.2.7/24"), &["rules[0].from", "192.0.2.0/24"]),
        ("a mask of nothing", rule("to: 192.0.2.0/24, fwmask: 7"), &["rules[0].fwmask", "fwmark"]),
        ("a late rule", rule("fwmark: 7").replace("9", "32766"), &["rules[0].priority", "32765"]),
        ("no table", rule("fwmark: 7").replace("table: 7", "table: 0"), &["rules[0].table", "0"]),
        (
            "a rule twice",
            rule("fwmark: 7}, {table: 7, priority: 9, fwmark: 7"),
            &["spec.network.rules[1]", "each rule once"],
        ),
    ];
    for (what, text, named) in cases {
        let error = parse(text).expect_err(what).to_string();
        for name in *named {
            assert!(error.contains(name), "{what}: {name:?} is not named in: {error}");
        }
    }
}

#[test]
fn what_is_wrong_with_wireguard_links_is_named() {
    let link = |fields: &str| machine(&format!("spec: {{network: {{links: [{{name: wg0, {fields}}}]}}}}"));
    let key = |last: char| format!("{}{last}=", "A".repeat(42));
    let peer = |fields: &str| link(&format!("wireguard: {{peers: [{{publicKey: {}, {fields}}}]}}", key('E')));
    let two = |first: &str, second: &str| {
        let (one, other) = (key('E'), key('I'));
        link(&format!("wireguard: {{peers: [{{publicKey: {one}, {first}}}, {{publicKey: {other}, {second}}}]}}"))
    };
    let whole = "endpoint: '[2001:db8::7]:51820', allowedIPs: [192.0.2.0/24, '::/0'], persistentKeepaliveSeconds: 25";
    let good = parse(&peer(whole)).unwrap().machine.unwrap();
    assert!(!good.spec.network.links[0].dhcp4(), "no server reaches it");
    let cases: &[(&str, String, &[&str])] = &[
        ("no port", link("wireguard: {listenPort: 65536}"), &["links[0].wireguard.listenPort", "65536", "65535"]),
        (
            "a port twice",
            link("wireguard: {listenPort: 7}}, {name: wg1, wireguard: {listenPort: 7}"),
            &["links[1].wireguard.listenPort", "7", "each port once"],
        ),
        ("no key", link("wireguard: {peers: [{publicKey: keel}]}"), &["peers[0].publicKey", "keel"]),
        (
            "a key of more bits",
            link(&format!("wireguard: {{peers: [{{publicKey: {}}}]}}", key('F'))),
            &["peers[0].publicKey", "44 characters of base64"],
        ),
        ("a peer twice", two("", "").replace(&key('I'), &key('E')), &["links[0].wireguard.peers[1]", "once"]),
        ("a name for an address", peer("endpoint: 'a.example:7'"), &["peers[0].endpoint", "a.example:7", "192.0.2.7:"]),
        ("no such address", peer("endpoint: '192.0.2.700:7'"), &["peers[0].endpoint", "192.0.2.700:7"]),
        ("port zero", peer("endpoint: '192.0.2.7:0'"), &["peers[0].endpoint", "192.0.2.7:0", "1 to 65535"]),
        ("anywhere", peer("endpoint: '0.0.0.0:7'"), &["peers[0].endpoint", "0.0.0.0:7"]),
        ("no range", peer("allowedIPs: [192.0.2.7]"), &["peers[0].allowedIPs[0]", "192.0.2.7"]),
        ("a range's middle", peer("allowedIPs: [192.0.2.7/24]"), &["peers[0].allowedIPs[0]", "192.0.2.0/24"]),
        (
            "a range of two",
            two("allowedIPs: [192.0.2.0/24]", "allowedIPs: [192.0.2.0/24]"),
            &["peers[1].allowedIPs[0]", "192.0.2.0/24", "one peer"],
        ),
        ("no interval", peer("persistentKeepaliveSeconds: 0"), &["peers[0].persistentKeepaliveSeconds", "0"]),
        ("a lease", link("wireguard: {}, dhcp4: true"), &["links[0].dhcp4", "WireGuard"]),
        ("advertisements", link("wireguard: {}, acceptRA: true"), &["links[0].acceptRA", "WireGuard"]),
        (
            "a part of a bridge",
            link("wireguard: {}}, {name: br0, bridge: {ports: [wg0]}"),
            &["links[1].bridge.ports[0]", "wg0", "an Ethernet"],
        ),
        (
            "tags on it",
            link("wireguard: {}}, {name: v7, vlan: {parent: wg0, id: 7}"),
            &["links[1].vlan.parent", "wg0", "an Ethernet"],
        ),
    ];
    for (what, text, named) in cases {
        let error = parse(text).expect_err(what).to_string();
        for name in *named {
            assert!(error.contains(name), "{what}: {name:?} is not named in: {error}");
        }
    }
}

#[test]
fn a_secret_is_never_shown() {
    for (text, secret) in [(GOOD, "PRIVATE KEY"), (WORKER, "0123456789abcdef")] {
        let shown = format!("{:?}", parse(text).unwrap());
        assert!(!shown.contains(secret), "{shown}");
    }
    let short = WORKER.replace("abcdef.0123456789abcdef", "hush");
    let error = parse(&short).unwrap_err().to_string();
    assert!(error.contains("stringData") && !error.contains("hush"), "{error}");
    for data in ["hush", "{identity.key: hush}", "{other: hush}"] {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: x}}\ntype: {IDENTITY_SECRET_TYPE}\nstringData: {data}"
        );
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains("stringData") && !error.contains("hush"), "{error}");
    }
}

#[test]
fn sizes_are_bounded() {
    assert!(matches!(parse(&"#".repeat(MAX_BYTES + 1)), Err(ManifestError::TooLarge(_))));
    assert!(matches!(parse(&"---\nnull\n".repeat(MAX_DOCUMENTS + 1)), Err(ManifestError::TooMany)));
}

#[test]
fn what_cannot_change_is_named() {
    let old = parse(&cluster("{}")).unwrap().cluster.unwrap().spec;
    for (field, spec) in [
        ("spec.podCIDR", "{podCIDR: 10.1.0.0/16}"),
        ("spec.serviceCIDR", "{serviceCIDR: 10.1.0.0/16}"),
        ("spec.dnsDomain", "{dnsDomain: example.org}"),
    ] {
        let new = parse(&cluster(spec)).unwrap().cluster.unwrap().spec;
        let errors = validate::cluster_change(&old, &new);
        assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), [field]);
    }
    assert_eq!(validate::cluster_change(&old, &old), []);
}

proptest! {
    #[test]
    fn any_text_is_answered(text in ".{0,400}") {
        let _ = parse(&text);
    }

    #[test]
    fn a_machine_survives_being_written(max_pods in 1u32..=250, grace in 0u32..=570, mtu in proptest::option::of(576u32..=65535)) {
        let text = machine(&format!(
            "spec: {{kubelet: {{maxPods: {max_pods}, shutdownGracePeriodSeconds: {grace}, shutdownGracePeriodCriticalPodsSeconds: 0}}, \
             network: {{links: [{{match: {{name: eth0}}, mtu: {}}}]}}}}",
            mtu.map_or("null".to_owned(), |mtu| mtu.to_string()),
        ));
        let first = parse(&text).unwrap();
        let written = serde_json::to_string(&first.machine).unwrap();
        prop_assert_eq!(parse(&written).unwrap(), first);
    }
}
