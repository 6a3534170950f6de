use super::*;

fn node() -> NodeInput {
    NodeInput {
        name: "node-1".to_owned(),
        uid: "0b5c".to_owned(),
        bridge_addresses: vec!["10.244.0.1".parse().unwrap()],
        dns_ready: true,
    }
}

fn all_roles() -> Vec<Value> {
    roles().into_iter().chain(worker_roles()).collect()
}

fn all() -> Vec<Value> {
    let mut objects = namespaces();
    objects.extend(all_roles());
    objects.extend(dns_service(&ClusterSpec::default()));
    objects.extend(dns_endpoint(&node()));
    objects.push(node_labels(&node()));
    objects
}

fn live(objects: Vec<Value>) -> BTreeMap<ObjectKey, Value> {
    objects.into_iter().map(|object| (ObjectKey::of(&object), object)).collect()
}

#[test]
fn nothing_is_due_when_everything_is_there() {
    assert!(due(all(), &live(all())).is_empty());
}

#[test]
fn every_object_is_one_of_its_own() {
    assert_eq!(live(all()).len(), all().len());
}

#[test]
fn what_others_add_stays() {
    let mut found = live(all());
    for object in found.values_mut() {
        object["metadata"]["annotations"] = json!({ "example.com/note": "mine" });
        object["metadata"]["resourceVersion"] = json!("17");
    }
    assert!(due(all(), &found).is_empty());
}

#[test]
fn a_right_that_somebody_added_or_took_is_put_back() {
    for change in [json!([]), json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }])] {
        let mut found = live(all());
        let key = found.keys().find(|key| key.kind == "ClusterRole" && key.name == "garboard:dns").unwrap().clone();
        found.get_mut(&key).unwrap()["rules"] = change;
        let due = due(all(), &found);
        assert_eq!(due.iter().map(ObjectKey::of).collect::<Vec<_>>(), [key]);
    }
}

#[test]
fn only_administrators_get_everything() {
    for object in all_roles() {
        let everything = object["rules"].as_array().is_some_and(|rules| {
            rules.iter().any(|rule| {
                ["apiGroups", "resources", "verbs"].iter().any(|field| rule[*field].to_string().contains('*'))
            })
        });
        assert!(!everything, "{object}");
        if object["roleRef"]["name"] == "cluster-admin" {
            assert_eq!(
                object["subjects"],
                json!([{ "apiGroup": RBAC, "kind": "Group", "name": identity::ADMINS_GROUP }])
            );
        }
    }
}

#[test]
fn nobody_but_an_administrator_reads_secrets_or_gives_rights_away() {
    for object in all_roles() {
        let mut object = object;
        let namespace = object["metadata"]["namespace"].clone();
        // Those of one namespace are for machines.
        if let Some(rules) = object["rules"].as_array_mut() {
            rules.retain(|rule| {
                namespace != REGISTRIES_NAMESPACE || *rule != self::rule("", &["secrets"], &["list", "watch"])
            });
        }
        let rules = object["rules"].to_string();
        for word in ["secrets", "escalate", "impersonate", "\"bind\"", "clusterroles", "pods/exec"] {
            assert!(!rules.contains(word), "{word}: {object}");
        }
    }
}

#[test]
fn a_node_without_pod_addresses_has_no_endpoint() {
    assert_eq!(dns_endpoint(&NodeInput { bridge_addresses: Vec::new(), ..node() }), None);
}

#[test]
fn dns_that_does_not_serve_is_not_ready() {
    let slice = dns_endpoint(&NodeInput { dns_ready: false, ..node() }).unwrap();
    assert_eq!(slice["endpoints"][0]["conditions"]["ready"], json!(false));
}
