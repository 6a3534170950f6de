use super::*;

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
stringData: {identity.key: secret-words}
";

#[test]
fn documents_are_read_with_their_defaults() {
    let manifests = parse(GOOD).unwrap();
    let cluster = manifests.cluster.unwrap();
    assert_eq!(cluster.spec.endpoint.unwrap().port, 6443);
    assert_eq!(cluster.spec.pod_cidr.to_string(), "10.244.0.0/16");
    assert_eq!(manifests.machine.unwrap().hostname(), "node-1");
    assert_eq!(manifests.identity.unwrap().key, "secret-words");
}

#[test]
fn the_order_of_documents_is_irrelevant() {
    let mut documents: Vec<&str> = GOOD.split("---\n").collect();
    documents.reverse();
    assert_eq!(parse(&documents.join("---\n")).unwrap(), parse(GOOD).unwrap());
}

#[test]
fn what_is_wrong_is_named() {
    let machine = |rest: &str| format!("apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {{name: node-1}}\n{rest}");
    let cluster = |spec: &str| format!("apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: cluster}}\nspec: {spec}");
    let cases: &[(&str, String, &[&str])] = &[
        ("no YAML", "kind: [Machine".into(), &["document 1", "line 1"]),
        ("another kind", "apiVersion: v1\nkind: Pod".into(), &["\"Pod\"", "Machine and Cluster"]),
        ("no kind", "hello: there".into(), &["document 1"]),
        ("an unknown field", machine("spec: {hostnam: x}"), &["node-1", "spec.hostnam", "hostname"]),
        ("an unknown field at the top", machine("specs: {}"), &["specs"]),
        ("a wrong type", machine("spec: {kubelet: {maxPods: many}}"), &["spec.kubelet.maxPods", "\"many\""]),
        ("out of bounds", machine("spec: {kubelet: {maxPods: 0}}"), &["spec.kubelet.maxPods", "\"0\"", "1 to 1000"]),
        ("no host name", machine("spec: {hostname: A_b}"), &["spec.hostname", "A_b", "lower-case"]),
        (
            "both selectors",
            machine("spec: {network: {links: [{name: eth0, mac: '52:54:00:12:34:56'}]}}"),
            &["spec.network.links[0]", "either name or mac"],
        ),
        (
            "a gateway out of reach",
            machine("spec: {network: {links: [{name: eth0, addresses: [192.0.2.1/24], gateway: 198.51.100.1}]}}"),
            &["spec.network.links[0].gateway", "198.51.100.1"],
        ),
        ("no range", cluster("{podCIDR: 10.244.0.0/99}"), &["spec.podCIDR", "10.244.0.0/99"]),
        ("a range's middle", cluster("{podCIDR: 10.244.7.0/16}"), &["spec.podCIDR", "10.244.0.0/16"]),
        ("ranges that overlap", cluster("{podCIDR: 10.0.0.0/8}"), &["spec.serviceCIDR", "apart"]),
        ("no key", cluster("{access: [{name: me, role: admin, publicKey: abc}]}"), &["spec.access[0].publicKey", "abc"]),
        ("no role", cluster("{access: [{name: me, role: king, publicKey: abc}]}"), &["spec.access[0].role", "king", "admin"]),
        ("another cluster", "apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {name: x}".into(), &["its name is cluster"]),
        ("twice", format!("{}\n---\n{}", machine(""), machine("")), &["node-1", "twice"]),
        ("another secret", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: Opaque\nstringData: {}".into(), &["Opaque"]),
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
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: garboard.dev/machine-identity\nstringData: {identity.key: hush}";
    assert!(!format!("{:?}", parse(text).unwrap()).contains("hush"));
    let error = parse("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ntype: T\nstringData: hush").unwrap_err();
    assert!(!error.to_string().contains(": \"hush\": "), "{error}");
}

#[test]
fn sizes_are_bounded() {
    assert!(matches!(parse(&"#".repeat(MAX_BYTES + 1)), Err(ManifestError::TooLarge(_))));
    assert!(matches!(parse(&"---\n{}\n".repeat(MAX_DOCUMENTS + 1)), Err(ManifestError::TooMany | ManifestError::Kind { .. })));
}

proptest::proptest! {
    #[test]
    fn any_text_is_answered(text in ".{0,400}") {
        let _ = parse(&text);
    }
}
