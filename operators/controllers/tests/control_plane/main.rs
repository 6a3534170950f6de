//! The real programs, started as the catalog says, with keys and certificates made by this crate.
//!
//! Needs root and the image's programs: `GARBOARD_UPSTREAM` names the folder of the upstream ones, `GARBOARD_INIT` the machine's own
//! executor, beside which Garboard's others lie.
//! Each test has mounts, network and processes of its own, so every path and port is the machine's.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod candidate;
mod joining;
mod restoring;
mod twins;
mod world;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use candidate::Candidate;
use containerd_client::services::v1::GetImageRequest;
use containerd_client::tonic;
use garboard_api::machine::{MachineRole, Taint, TaintEffect};
use garboard_api::refusal::Origin;
use garboard_api::{About, Cluster, Machine, MachinePool, Refusals};
use garboard_catalog::paths::CONTAINERD_SOCKET;
use garboard_catalog::pki::Leaf;
use garboard_catalog::users;
use garboard_controllers::leader::Standing;
use garboard_controllers::network::NodeAddresses;
use garboard_controllers::{addons, events, images, node, pools};
use garboard_plan::addons::NodeInput;
use garboard_plan::{events as plan_events, leader, pki};
use garboard_runtime::crds;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use world::World;

#[test]
fn control_plane_works_with_the_catalogs_flags_and_certificates() {
    world::inside("control_plane_works_with_the_catalogs_flags_and_certificates", || async {
        let mut world = World::new();
        for service in ["etcd", "kube-apiserver"] {
            world.start(service);
        }
        world.wait("etcd's notification", || world.notified()).await;
        let client = world.administrator();
        world.wait("the API server", || world.ready("https://127.0.0.1:6443/readyz")).await;
        world.start("balancer");
        world.wait("the balancer's notification", || world.notified()).await;
        for service in ["kube-controller-manager", "kube-scheduler"] {
            world.start(service);
        }

        anonymous_clients_see_health_and_nothing_else(&world);
        secrets_are_encrypted_in_the_store(&world, &client).await;
        the_audit_log_tells_who_wrote_and_never_what_is_secret(&world);
        roles_are_kept(&client).await;
        dns_is_reachable_as_a_service(&world, &client).await;
        own_clients_can_do_their_work_and_no_more(&world).await;
        a_node_gets_addresses_and_its_serving_certificate(&world, &client).await;
        labels_of_the_machine_come_and_go(&world, &client).await;
        taints_of_the_machine_come_and_go(&world, &client).await;
        events_tell_what_happened(&world, &client).await;
        pools_are_counted(&world, &client).await;
        pools_are_rolled_out_until_one_fails(&world, &client).await;
        joining::a_machine_joins_once_and_changes_only_what_is_its_own(&world, &client).await;
        the_cluster_operators_lead_one_at_a_time(&world, &client).await;
        pods_of_ordinary_namespaces_keep_to_the_baseline(&world, &client).await;
        for url in ["https://127.0.0.1:10257/healthz", "https://127.0.0.1:10259/readyz"] {
            world.wait(url, || world.ready(url)).await;
        }
        kube_proxy_makes_rules_from_its_configuration(&mut world).await;
        garboards_own_daemons_serve_as_confined_as_they_are(&mut world).await;
        renewed_certificates_are_served_without_a_restart(&mut world).await;
    });
}

fn anonymous_clients_see_health_and_nothing_else(world: &World) {
    for path in ["livez", "readyz", "healthz"] {
        assert_eq!(world.status(&format!("https://127.0.0.1:6443/{path}"), None), 200, "{path}");
    }
    for path in ["version", "api", "metrics", "openapi/v3", "api/v1/namespaces", "readyz/etcd"] {
        assert_eq!(world.status(&format!("https://127.0.0.1:6443/{path}"), None), 401, "{path}");
    }
    // etcd shows nothing at all without a certificate of its own authority.
    assert_eq!(world.status("https://127.0.0.1:2379/health", None), 0);
    assert_eq!(world.status("https://127.0.0.1:2379/health", Some(Leaf::Apiserver)), 0);
    assert_eq!(world.status("https://127.0.0.1:2379/livez", Some(Leaf::EtcdProbe)), 200);
    // Its socket is for its group.
    let socket = std::fs::metadata("/run/garboard/services/etcd/client.sock").unwrap();
    assert_eq!((socket.mode() & 0o777, socket.gid()), (0o770, users::ETCD.id));
}

async fn secrets_are_encrypted_in_the_store(world: &World, client: &kube::Client) {
    let secret = serde_json::from_value(
        json!({ "metadata": { "name": "probe" }, "stringData": { "key": "plain-text-of-a-secret" } }),
    )
    .unwrap();
    Api::<Secret>::namespaced(client.clone(), "default").create(&PostParams::default(), &secret).await.unwrap();
    let config =
        serde_json::from_value(json!({ "metadata": { "name": "probe" }, "data": { "key": "plain-text-of-a-map" } }))
            .unwrap();
    Api::<ConfigMap>::namespaced(client.clone(), "default").create(&PostParams::default(), &config).await.unwrap();
    let stored = world.etcd_files();
    let contains = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("plain-text-of-a-map"), "the store is where the test looks");
    assert!(contains("k8s:enc:secretbox:v1:key1:"));
    assert!(!contains("plain-text-of-a-secret"));
}

fn the_audit_log_tells_who_wrote_and_never_what_is_secret(world: &World) {
    world.kubectl(&["create", "namespace", "noted"]);
    let log = std::fs::read_to_string("/var/log/audit/kube-apiserver.log").unwrap();
    let entry = log.lines().find(|line| line.contains("\"secrets\"") && line.contains("probe")).unwrap();
    assert!(entry.contains("garboard:administrator"), "{entry}");
    assert!(!log.contains("plain-text-of-a-secret"));
    assert!(!log.contains("\"resource\":\"leases\""), "leases are noise");
    // What is declared to be noted is.
    let noted = |line: &&str| line.contains("\"noted\"") && line.contains("\"requestObject\"");
    assert!(log.lines().any(|line| noted(&line)), "the rule of the Cluster counts");
}

async fn roles_are_kept(client: &kube::Client) {
    assert!(addons::keep_roles(client).await.unwrap() > 0);
    assert_eq!(addons::keep_roles(client).await.unwrap(), 0, "nothing differs after the first time");
    assert!(addons::keep_policies(client).await.unwrap() > 0);
    assert_eq!(addons::keep_policies(client).await.unwrap(), 0, "nothing differs after the first time");
}

async fn dns_is_reachable_as_a_service(world: &World, client: &kube::Client) {
    // The agent itself does this, as soon as it has the right to.
    let agent = world.client(Leaf::Agent);
    addons::keep_dns(&agent, &world.input.cluster, MachineRole::ControlPlane, None).await.unwrap();
    assert_eq!(addons::keep_dns(&agent, &world.input.cluster, MachineRole::ControlPlane, None).await.unwrap(), 0);
    let service = Api::<Service>::namespaced(client.clone(), "kube-system").get("kube-dns").await.unwrap();
    assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.10"));
}

async fn own_clients_can_do_their_work_and_no_more(world: &World) {
    let everything = ListParams::default();
    let dns = world.client(Leaf::Dns);
    Api::<Service>::all(dns.clone()).list(&everything).await.unwrap();
    Api::<EndpointSlice>::all(dns.clone()).list(&everything).await.unwrap();
    Api::<Namespace>::all(dns.clone()).list(&everything).await.unwrap();
    let operators = world.client(Leaf::Operators);
    Api::<CertificateSigningRequest>::all(operators.clone()).list(&everything).await.unwrap();
    let proxy = world.client(Leaf::KubeProxy);
    Api::<Service>::all(proxy.clone()).list(&everything).await.unwrap();
    Api::<Node>::all(proxy.clone()).get_opt("node-1").await.unwrap();
    for (name, client) in
        [("dns", dns), ("operators", operators), ("agent", world.client(Leaf::Agent)), ("proxy", proxy)]
    {
        assert!(Api::<Secret>::all(client.clone()).list(&everything).await.is_err(), "{name} reads secrets");
        // The operators see to it that those of a machine that leaves go.
        let reads_pods = Api::<Pod>::all(client).list(&everything).await.is_ok();
        assert_eq!(reads_pods, name == "operators", "{name} reads pods");
    }
    // It tells whether pods can be made.
    let accounts = Api::<ServiceAccount>::namespaced(world.client(Leaf::Agent), "default");
    world.wait_for("the default account", || async { accounts.get_opt("default").await.unwrap() }).await;
}

async fn a_node_gets_addresses_and_its_serving_certificate(world: &World, client: &kube::Client) {
    // What kubelet does first, with kubelet's certificate.
    let kubelet = world.client(Leaf::Kubelet);
    let nodes = Api::<Node>::all(kubelet.clone());
    let node = serde_json::from_value(json!({ "metadata": { "name": "node-1" } })).unwrap();
    let node = nodes.create(&PostParams::default(), &node).await.unwrap();
    let addresses = json!({ "status": { "addresses": [
        { "type": "InternalIP", "address": "192.0.2.10" },
        { "type": "Hostname", "address": "node-1" },
    ] } });
    nodes.patch_status("node-1", &PatchParams::default(), &Patch::Merge(addresses)).await.unwrap();
    let other = serde_json::from_value(json!({ "metadata": { "name": "node-2" } })).unwrap();
    assert!(nodes.create(&PostParams::default(), &other).await.is_err(), "a kubelet makes its own node only");

    let all = Api::<Node>::all(client.clone());
    let range =
        world.wait_for("a part of the pod addresses", || async { all.get("node-1").await.ok()?.spec?.pod_cidr }).await;
    assert_eq!(range, "10.244.0.0/24");

    let input = NodeInput {
        name: "node-1".to_owned(),
        uid: node.metadata.uid.unwrap(),
        bridge_addresses: vec!["10.244.0.1".parse().unwrap()],
        dns_ready: true,
    };
    let agent = world.client(Leaf::Agent);
    assert_eq!(
        addons::keep_dns(&agent, &world.input.cluster, MachineRole::ControlPlane, Some(&input)).await.unwrap(),
        2
    );
    assert_eq!(
        addons::keep_dns(&agent, &world.input.cluster, MachineRole::ControlPlane, Some(&input)).await.unwrap(),
        0
    );
    let labels = all.get("node-1").await.unwrap().metadata.labels.unwrap();
    assert!(labels.contains_key("node-role.kubernetes.io/control-plane"));
    let gone = NodeInput { name: "node-9".to_owned(), ..input };
    assert!(addons::keep_dns(&agent, &world.input.cluster, MachineRole::ControlPlane, Some(&gone)).await.is_err());
    assert!(all.get_opt("node-9").await.unwrap().is_none(), "labels make no node");

    // The serving certificate: requested by kubelet, approved by the operators, signed by kube-controller-manager.
    let requests = Api::<CertificateSigningRequest>::all(kubelet);
    let request = world::serving_request("node-1", "192.0.2.10");
    let name = requests.create(&PostParams::default(), &request).await.unwrap().metadata.name.unwrap();
    let operators = Api::<CertificateSigningRequest>::all(world.client(Leaf::Operators));
    let approval = json!({ "status": { "conditions": [{
        "type": "Approved", "status": "True", "reason": "Test", "message": "approved",
    }] } });
    operators.patch_approval(&name, &PatchParams::default(), &Patch::Merge(approval)).await.unwrap();
    world.wait_for("the serving certificate", || async { requests.get(&name).await.ok()?.status?.certificate }).await;
}

async fn labels_of_the_machine_come_and_go(world: &World, client: &kube::Client) {
    let nodes = Api::<Node>::all(client.clone());
    let others = json!({ "metadata": { "labels": { "example.com/others": "1" } } });
    let uid =
        nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(others)).await.unwrap().metadata.uid.unwrap();
    let agent = world.client(Leaf::Agent);
    let declared =
        |labels: &[(&str, &str)]| labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    node::label(&agent, "node-1", &uid, &declared(&[("rack", "a"), ("zone", "1")])).await.unwrap();
    node::label(&agent, "node-1", &uid, &declared(&[("rack", "b")])).await.unwrap();
    let labels = nodes.get("node-1").await.unwrap().metadata.labels.unwrap();
    assert_eq!((labels.get("rack").map(String::as_str), labels.get("zone")), (Some("b"), None));
    assert!(labels.contains_key("example.com/others") && labels.contains_key("node-role.kubernetes.io/control-plane"));
    assert!(node::label(&agent, "node-9", &uid, &declared(&[("rack", "a")])).await.is_err(), "labels make no node");
}

async fn taints_of_the_machine_come_and_go(world: &World, client: &kube::Client) {
    let nodes = Api::<Node>::all(client.clone());
    let others = json!({ "spec": { "taints": [{ "key": "example.com/others", "effect": "NoSchedule" }] } });
    let uid =
        nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(others)).await.unwrap().metadata.uid.unwrap();
    let agent = world.client(Leaf::Agent);
    let taint = |value: &str| Taint {
        key: "example.org/gpu".to_owned(),
        value: Some(value.to_owned()),
        effect: TaintEffect::PreferNoSchedule,
    };
    let seen = async || {
        let taints = nodes.get("node-1").await.unwrap().spec.unwrap().taints.unwrap_or_default();
        let mut seen: Vec<_> = taints.into_iter().map(|taint| (taint.key, taint.value.unwrap_or_default())).collect();
        seen.retain(|(key, _)| key.starts_with("example."));
        seen
    };
    let others = ("example.com/others".to_owned(), String::new());
    for value in ["a", "b"] {
        node::taint(&agent, "node-1", &uid, &[taint(value)]).await.unwrap();
        assert_eq!(seen().await, [others.clone(), ("example.org/gpu".to_owned(), value.to_owned())]);
    }
    node::taint(&agent, "node-1", &uid, &[]).await.unwrap();
    assert_eq!(seen().await, [others]);
    let none = json!({ "spec": { "taints": null } });
    nodes.patch("node-1", &PatchParams::default(), &Patch::Merge(none)).await.unwrap();
}

async fn pools_are_counted(world: &World, client: &kube::Client) {
    let (machines, found) = (Api::<Machine>::all(client.clone()), Api::<MachinePool>::all(client.clone()));
    let label = json!({ "metadata": { "labels": { "role": "worker" } } });
    machines.patch("node-1", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    let mut pool = MachinePool::new("workers", Default::default());
    pool.spec.selector.match_labels = Some([("role".to_owned(), "worker".to_owned())].into());
    let generation = found.create(&PostParams::default(), &pool).await.unwrap().metadata.generation;

    let stop = CancellationToken::new();
    let duty = tokio::spawn(pools::run(world.client(Leaf::Operators), stop.clone()));
    let counts = async || {
        let status = found.get("workers").await.ok()?.status?;
        Some((status.observed_generation, status.machines, status.updated_machines))
    };
    let expect = async |what: &str, expected: (u32, u32)| {
        world
            .wait_for(what, || async {
                counts().await.filter(|counts| *counts == (generation, expected.0, expected.1))
            })
            .await;
    };
    expect("a machine that does not follow yet", (1, 0)).await;
    let follows = json!({ "status": { "fingerprint": "sha256:0", "pool": { "name": "workers", "observedGeneration": generation } } });
    machines.patch_status("node-1", &PatchParams::default(), &Patch::Merge(follows)).await.unwrap();
    expect("a machine that follows", (1, 1)).await;
    let label = json!({ "metadata": { "labels": { "role": null } } });
    machines.patch("node-1", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    expect("no machine", (0, 0)).await;
    stop.cancel();
    duty.await.unwrap();
}

async fn pools_are_rolled_out_until_one_fails(world: &World, client: &kube::Client) {
    let (machines, nodes) = (Api::<Machine>::all(client.clone()), Api::<Node>::all(client.clone()));
    let pools = Api::<MachinePool>::all(client.clone());
    let merge = PatchParams::default();
    let other = serde_json::from_value(json!({ "metadata": { "name": "node-5" } })).unwrap();
    nodes.create(&PostParams::default(), &other).await.unwrap();
    machines.create(&PostParams::default(), &Machine::new("node-5", Default::default())).await.unwrap();
    let generation = pools.get("workers").await.unwrap().metadata.generation.unwrap();
    for name in ["node-1", "node-5"] {
        let condition = json!({ "type": "Ready", "status": "True", "reason": "Test", "message": "" });
        let ready = json!({ "status": { "conditions": [condition] } });
        nodes.patch_status(name, &merge, &Patch::Merge(ready)).await.unwrap();
        let mut condition = condition.clone();
        condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
        let follows = json!({ "name": "workers", "observedGeneration": generation });
        let status = json!({ "status": { "fingerprint": "sha256:0", "pool": follows, "conditions": [condition] } });
        machines.patch_status(name, &merge, &Patch::Merge(status)).await.unwrap();
        let label = json!({ "metadata": { "labels": { "role": "worker" } } });
        machines.patch(name, &merge, &Patch::Merge(label)).await.unwrap();
    }

    let stop = CancellationToken::new();
    let duty = tokio::spawn(pools::run(world.client(Leaf::Operators), stop.clone()));
    let expect = async |reason: &str| {
        let found = || async {
            let status = pools.get("workers").await.ok()?.status?;
            status.conditions.iter().any(|ready| ready.reason == reason).then_some(status)
        };
        world.wait_for(&format!("the pool to be {reason}"), found).await
    };
    expect("Updated").await;
    let change = |rollout: serde_json::Value, max_pods: u32| {
        let template = json!({ "spec": { "kubelet": { "maxPods": max_pods } } });
        Patch::Merge(json!({ "spec": { "rollout": rollout, "template": template } }))
    };
    let edited = pools.patch("workers", &merge, &change(json!({}), 50)).await.unwrap().metadata.generation;
    let rollout = expect("Updating").await.rollout.unwrap();
    assert_eq!((Some(rollout.generation), rollout.machines), (edited, vec!["node-1".to_owned()]));

    let failing = json!([{ "probe": "service kubelet", "message": "unrecognized feature gate" }]);
    let tried = json!({ "name": "workers", "observedGeneration": edited });
    let failed = json!({ "status": { "trial": { "state": "Failed", "pool": tried, "failing": failing } } });
    machines.patch_status("node-1", &merge, &Patch::Merge(failed)).await.unwrap();
    let stopped = expect("Stopped").await;
    let message = &stopped.conditions[0].message;
    assert!(message.contains("node-1: service kubelet (unrecognized feature gate)"), "{message}");
    assert_eq!(stopped.rollout.unwrap().machines, Vec::<String>::new());
    let told = || async {
        let found = world.kubectl(&["get", "events.events.k8s.io", "-A", "-o", "jsonpath={.items[*].reason}"]);
        found.contains("RolloutStopped").then_some(())
    };
    world.wait_for("an event of the rollout", told).await;

    // Another generation with the same template is no other rollout, and with another it is one.
    pools.patch("workers", &merge, &change(json!({ "maxUnavailable": "50%" }), 50)).await.unwrap();
    let still = || async {
        let pool = pools.get("workers").await.ok()?;
        let status = pool.status.filter(|status| status.observed_generation == pool.metadata.generation)?;
        Some((Some(status.rollout?.generation), status.conditions[0].reason.clone()))
    };
    assert_eq!(world.wait_for("the new generation to be seen", still).await, (edited, "Stopped".to_owned()));
    pools.patch("workers", &merge, &change(json!({}), 60)).await.unwrap();
    assert_eq!(expect("Updating").await.rollout.unwrap().machines, ["node-1"]);

    stop.cancel();
    duty.await.unwrap();
    machines.delete("node-5", &Default::default()).await.unwrap();
    nodes.delete("node-5", &Default::default()).await.unwrap();
    pools.delete("workers", &Default::default()).await.unwrap();
}

async fn events_tell_what_happened(world: &World, client: &kube::Client) {
    crds::apply(client, &crds::due(client).await.unwrap()).await.unwrap();
    let (machines, clusters) = (Api::<Machine>::all(client.clone()), Api::<Cluster>::all(client.clone()));
    let mut machine =
        machines.create(&PostParams::default(), &Machine::new("node-1", Default::default())).await.unwrap();
    let mut cluster =
        clusters.create(&PostParams::default(), &Cluster::new("cluster", Default::default())).await.unwrap();
    let service = |crash_looping: bool| {
        let state = json!({ "name": "running", "ready": !crash_looping });
        let status = json!({
            "name": "etcd", "state": state, "ready": !crash_looping, "crashLooping": crash_looping, "message": "disk full",
            "sinceMs": 0, "restarts": 0, "specHash": "",
        });
        Arc::new(vec![serde_json::from_value(status).unwrap()])
    };
    let addresses = |last: u8| NodeAddresses { addresses: vec![[192, 0, 2, last].into()], ..NodeAddresses::default() };

    // What the agent watches, with the agent's own rights.
    let machine_object = watch::Sender::new(Some(Arc::new(machine.clone())));
    let cluster_object = watch::Sender::new(Some(Arc::new(cluster.clone())));
    let origin = Origin::Object { about: About::Machine, holder: "local manifest" };
    let refusals = watch::Sender::new(Refusals::from([(origin, "spec.hostname: no".to_owned())]));
    let (network, services) = (watch::Sender::new(addresses(7)), watch::Sender::new(service(false)));
    let api = watch::Sender::new(Some(world.client(Leaf::Agent)));
    let (handed, receiver) = mpsc::channel(events::HANDED);
    let watched = events::Watched {
        machine: machine_object.subscribe(),
        cluster: cluster_object.subscribe(),
        refusals: refusals.subscribe(),
        network: network.subscribe(),
        services: services.subscribe(),
        handed: receiver,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(events::run(watched, api.subscribe(), stop.clone()));
    let described = |kind: &'static str, name: &'static str, what: &'static [&'static str]| async move {
        world
            .wait(what[0], || {
                let text = world.kubectl(&["describe", kind, name]);
                what.iter().all(|line| text.contains(line))
            })
            .await;
    };
    described("machine", "node-1", &["DeclarationRefused", "Machine of the local manifest: spec.hostname: no"]).await;

    machine.metadata.generation = Some(2);
    cluster.metadata.generation = Some(2);
    machine_object.send_replace(Some(Arc::new(machine)));
    cluster_object.send_replace(Some(Arc::new(cluster)));
    network.send_replace(addresses(8));
    services.send_replace(service(true));
    let mut desired = pki::desired(&world.pki_input());
    desired.leaves.retain(|leaf, _| *leaf == Leaf::Kubelet);
    let steps = pki::plan(&desired, &pki::Observed::default(), SystemTime::now()).steps;
    handed.send(plan_events::certificates(&steps).unwrap()).await.unwrap();
    described(
        "machine",
        "node-1",
        &[
            "DeclarationAccepted",
            "generation 2 of the declaration is in force",
            "addresses: 192.0.2.8; before: 192.0.2.7",
            "etcd fails again and again: disk full",
            "new certificates: kubelet (there was none)",
        ],
    )
    .await;
    described("cluster", "cluster", &["DeclarationAccepted", "generation 2 of the declaration is in force"]).await;
    stop.cancel();
    task.await.unwrap();
}

async fn the_cluster_operators_lead_one_at_a_time(world: &World, client: &kube::Client) {
    let first = Candidate::new(world, "node-1");
    first.is(world, Standing::Leads).await;
    let second = Candidate::new(world, "node-2");
    second.is(world, Standing::StandsBy("node-1_run".to_owned())).await;
    assert_eq!((first.at_work(), second.at_work()), (true, false));

    // Whoever ends gives the lease back.
    first.end().await;
    second.is(world, Standing::Leads).await;
    let third = Candidate::new(world, "node-3");
    third.is(world, Standing::StandsBy("node-2_run".to_owned())).await;

    // Whoever loses it stops and stands by; a holder that does not renew it loses it.
    let taken = json!({ "spec": { "holderIdentity": "node-4_run" } });
    let leases = Api::<Lease>::namespaced(client.clone(), leader::NAMESPACE);
    leases.patch(leader::OPERATORS, &PatchParams::default(), &Patch::Merge(taken)).await.unwrap();
    for candidate in [&second, &third] {
        candidate.is(world, Standing::StandsBy("node-4_run".to_owned())).await;
        assert!(!candidate.at_work());
    }
    third.end().await;
    second.is(world, Standing::Leads).await;
    world.wait("work after a loss", || second.at_work()).await;
    second.end().await;
    let lease = leases.get(leader::OPERATORS).await.unwrap().spec.unwrap();
    assert_eq!((lease.holder_identity, lease.lease_transitions), (None, Some(2)));
}

async fn pods_of_ordinary_namespaces_keep_to_the_baseline(world: &World, client: &kube::Client) {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    world.wait_for("the default account", || async { accounts.get_opt("default").await.unwrap() }).await;
    let pod = |namespace: &str| {
        serde_json::from_value::<Pod>(json!({
            "metadata": { "name": "privileged", "namespace": namespace },
            "spec": { "hostNetwork": true, "containers": [{ "name": "main", "image": "example.com/none" }] },
        }))
        .unwrap()
    };
    let refused =
        Api::<Pod>::namespaced(client.clone(), "default").create(&PostParams::default(), &pod("default")).await;
    assert!(refused.unwrap_err().to_string().contains("PodSecurity \"baseline:latest\""));
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "kube-system");
    world.wait_for("the default account", || async { accounts.get_opt("default").await.unwrap() }).await;
    Api::<Pod>::namespaced(client.clone(), "kube-system")
        .create(&PostParams::default(), &pod("kube-system"))
        .await
        .unwrap();
}

async fn renewed_certificates_are_served_without_a_restart(world: &mut World) {
    let urls = ["https://127.0.0.1:6443/livez", "https://127.0.0.1:10257/healthz", "https://127.0.0.1:10259/livez"];
    let before = urls.map(|url| world.certificate(url).unwrap());
    world.reissue();
    for (url, before) in urls.into_iter().zip(before) {
        world.wait(url, || world.certificate(url).is_some_and(|now| now != before)).await;
    }
    world.wait("the API server", || world.ready("https://127.0.0.1:6443/readyz")).await;
    assert!(world.all_alive());
}

async fn kube_proxy_makes_rules_from_its_configuration(world: &mut World) {
    world.start("kube-proxy");
    world.wait("kube-proxy", || world.plain_status("127.0.0.1:10256", "/livez") == 200).await;
    let rules = || {
        String::from_utf8(Command::new("nft").args(["list", "table", "ip", "kube-proxy"]).output().unwrap().stdout)
            .unwrap()
    };
    world.wait("rules for Services", || rules().contains("10.96.0.1 . tcp . 443")).await;
    // Traffic from pods is known by the range of pods.
    assert!(rules().contains("10.244.0.0/16"), "{}", rules());
}

async fn garboards_own_daemons_serve_as_confined_as_they_are(world: &mut World) {
    world.notified();
    world.input.node.pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()];
    // The bus needs PID 1's socket, which is not here.
    for service in ["cni", "dns"] {
        world.start(service);
        world.wait(service, || world.notified()).await;
    }
    assert!(Path::new("/run/cni/net.d/10-garboard.conflist").exists());
    let answer = world::lookup("10.244.0.1:53", "kubernetes.default.svc.cluster.local");
    assert!(answer.windows(4).any(|bytes| bytes == [10, 96, 0, 1]), "{answer:?}");

    world.start("operators");
    world.wait("operators", || world.notified()).await;
    let requests = Api::<CertificateSigningRequest>::all(world.client(Leaf::Kubelet));
    let request = world::serving_request("node-1", "192.0.2.10");
    let name = requests.create(&PostParams::default(), &request).await.unwrap().metadata.name.unwrap();
    world.wait_for("an approved certificate", || async { requests.get(&name).await.ok()?.status?.certificate }).await;
}

#[test]
fn kubelet_takes_its_configuration() {
    world::inside("kubelet_takes_its_configuration", || async {
        let mut world = World::new();
        world.start("kubelet");
        // That is as far as it comes on a machine without cgroups of its own.
        world.wait("kubelet's settings", || world.log("kubelet").contains("Effective KubeletConfiguration")).await;
        let log = world.log("kubelet");
        for complaint in [
            "unknown flag",
            "strict decoding error",
            "failed to load kubelet config",
            "invalid configuration",
            "deprecated",
        ] {
            assert!(!log.contains(complaint), "{complaint}: {log}");
        }
    });
}

#[test]
fn images_of_the_release_are_imported_once_and_the_runtime_knows_them() {
    world::inside("images_of_the_release_are_imported_once_and_the_runtime_knows_them", || async {
        let mut world = World::new();
        let archives = world::archives();
        world.start("containerd");
        let socket = Path::new(CONTAINERD_SOCKET);
        world.wait("containerd's notification", || world.notified()).await;
        world.wait("containerd", || std::os::unix::net::UnixStream::connect(socket).is_ok()).await;
        let imported = world.wait_for("the import", || async { images::import(&archives, socket).await.ok() }).await;
        assert_eq!(imported, [archives.join("probe.tar")]);
        assert!(images::import(&archives, socket).await.unwrap().is_empty(), "once");

        let client = containerd_client::Client::from_path(socket).await.unwrap();
        let mut request = tonic::Request::new(GetImageRequest { name: "garboard.dev/probe:test".to_owned() });
        request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
        let image = client.images().get(request).await.unwrap().into_inner().image.unwrap();
        assert_eq!(image.labels["io.cri-containerd.pinned"], "pinned");
        assert!(!world.log("containerd").contains("level=error"), "{}", world.log("containerd"));

        // An archive of the next release replaces the image of the same name.
        world::change_archive(&archives);
        assert_eq!(images::import(&archives, socket).await.unwrap().len(), 1);
        assert!(world.all_alive());
    });
}
