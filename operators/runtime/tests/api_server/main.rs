//! Declarations and statuses with a real API server: before it answers, when it does, and while it is away.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::sync::Arc;
use std::time::Duration;

use garboard_api::Refusals;
use garboard_api::condition::{self, Observation};
use garboard_api::{Cluster, Machine, MachineStatus, manifest};
use garboard_runtime::crds;
use garboard_runtime::kind::Kind;
use garboard_runtime::ledger::Ledger;
use garboard_runtime::source::{Declared, Source, SubmitError};
use garboard_runtime::status::StatusSink;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use server::Server;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);
/// A public key of WireGuard.
const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=";
/// What a cluster may be known by.
const PIN: &str = "sha256:7777777777777777777777777777777777777777777777777777777777777777";

#[tokio::test]
async fn declarations_and_statuses_follow_the_api_server() {
    let Some(mut server) = Server::start().await else { return };
    let client = server.client();
    the_definitions_are_applied_when_they_are_due(&client).await;
    the_api_server_refuses_what_local_manifests_refuse(&client).await;
    the_api_server_refuses_pools_that_cannot_be_rolled_out(&client).await;
    people_are_shown_what_matters(&server);
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(folder.path());
    a_declaration_moves_to_the_api_server(&client, &ledger).await;
    a_status_that_is_written_meanwhile_is_in_nobodys_way(&client, &ledger).await;
    a_manifest_that_changed_is_an_edit(&client, &ledger).await;
    an_outage_changes_nothing_and_edits_during_it_arrive(&mut server, &ledger).await;
    statuses_are_written_on_change_only(&client).await;
}

async fn the_definitions_are_applied_when_they_are_due(client: &Client) {
    let due = async || crds::due(client).await.unwrap();
    let names = |definitions: &[DynamicObject]| -> Vec<_> {
        definitions.iter().map(|definition| definition.metadata.name.clone().unwrap()).collect()
    };
    let all = due().await;
    assert_eq!(all.len(), 4, "{:?}", names(&all));
    crds::apply(client, &all).await.unwrap();
    assert!(due().await.is_empty(), "{:?}", names(&due().await));

    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let versions = async || -> Vec<_> {
        let list = api.list(&Default::default()).await.unwrap();
        list.items.into_iter().map(|item| item.metadata.resource_version).collect()
    };
    let before = versions().await;
    crds::apply(client, &all).await.unwrap();
    assert_eq!(versions().await, before, "applying again changes nothing");

    // Somebody has another opinion of how many pods a machine takes.
    let bound = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/kubelet/properties/maxPods/maximum";
    let edit = json!([{ "op": "replace", "path": bound, "value": 7 }]);
    let edit = Patch::<()>::Json(serde_json::from_value(edit).unwrap());
    api.patch("machines.garboard.dev", &PatchParams::default(), &edit).await.unwrap();
    let edited = due().await;
    assert_eq!(names(&edited), ["machines.garboard.dev"]);
    crds::apply(client, &edited).await.unwrap();
    assert!(due().await.is_empty());
}

fn machine(spec: &str) -> String {
    format!("apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {{name: other}}\nspec: {spec}\n")
}

fn cluster(spec: &str) -> String {
    format!("apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: cluster}}\nspec: {spec}\n")
}

fn pool(spec: &str) -> String {
    format!("apiVersion: garboard.dev/v1alpha1\nkind: MachinePool\nmetadata: {{name: workers}}\nspec: {spec}\n")
}

async fn the_api_server_refuses_what_local_manifests_refuse(client: &Client) {
    let link = |fields: &str| machine(&format!("{{network: {{links: [{{{fields}}}]}}}}"));
    let peer = |fields: &str| link(&format!("name: wg0, wireguard: {{peers: [{{publicKey: '{KEY}', {fields}}}]}}"));
    for good in [
        machine("{}"),
        machine("{hostname: keel, network: {nameservers: ['2001:db8::53'], searchDomains: [example.org]}}"),
        link("match: {name: eth0}, addresses: [192.0.2.7/24, '2001:db8::7/64'], gateway: 192.0.2.1, mtu: 1400"),
        link("match: {mac: '52:54:00:12:34:56'}, dhcp4: true"),
        link("match: {name: eth0}, routes: [{to: 198.51.100.0/24, via: 192.0.2.1, metric: 50}, {to: '2001:db8::/64'}]"),
        machine(
            "{network: {links: [{match: {driver: igb}, name: left}, {match: {driver: igb}, name: right}, \
             {match: {name: eth0}, acceptRA: true, routes: [{to: 0.0.0.0/0, via: 192.0.2.1, table: 4294967295}]}, \
             {name: bond0, bond: {mode: 802.3ad, members: [left], miimon: 50, lacpRate: fast, transmitHashPolicy: layer3+4}}, \
             {name: bond1, bond: {mode: active-backup, members: [right], primary: right}}, \
             {name: v7, vlan: {parent: bond0, id: 7, protocol: 802.1ad}, mtu: 1400}, \
             {name: br0, bridge: {ports: [v7], stp: true}}, {name: br1, bridge: {}}], \
             rules: [{from: 192.0.2.0/24, table: 7, priority: 9}, {to: '2001:db8::/32', fwmark: 4294967295, fwmask: 255, table: 7, priority: 9}]}}",
        ),
        link(&format!(
            "name: wg0, addresses: [192.0.2.1/24], routes: [{{to: 198.51.100.0/24}}], wireguard: {{listenPort: 51820, peers: [\
             {{publicKey: '{KEY}', endpoint: '192.0.2.7:51820', allowedIPs: [192.0.2.7/32, 198.51.100.0/24, '::/0'], \
             persistentKeepaliveSeconds: 25}}, {{publicKey: '{}', endpoint: '[2001:db8::7]:51820'}}]}}",
            KEY.replace('A', "B"),
        )),
        link("name: wg1, wireguard: {}"),
        machine(&format!(
            "{{role: Worker, join: {{endpoints: [{{host: kube.example.org, port: 443}}], caPin: '{PIN}'}}}}"
        )),
        machine("{time: {servers: [ntp.example.org, 192.0.2.1, '2001:db8::1']}}"),
        machine("{watchdog: {enabled: false, timeoutSeconds: 600}, logs: {maxSizeMebibytes: 256, maxFiles: 2}}"),
        machine("{kubelet: {maxPods: 200, nodeLabels: {example.org/a: b}}}"),
        machine(
            "{kernel: {sysctls: {net.core.somaxconn: '4096'}, modules: [nbd]}, \
             kubelet: {taints: [{key: example.org/gpu, value: a, effect: NoExecute}], featureGates: {A: true}, \
                       systemReserved: {memory: 1Gi}, evictionHard: {nodefs.available: 5%}}, \
             network: {hosts: [{address: 192.0.2.9, names: [nas]}]}, \
             registries: [{host: 'registry.example:5000', mirrors: ['http://mirror.example'], credentials: {secretName: keel}}]}",
        ),
        pool("{selector: {matchLabels: {role: worker}}, template: {spec: {kubelet: {maxPods: 50}}}}"),
        pool("{selector: {matchExpressions: [{key: role, operator: Exists}]}}"),
        pool("{selector: {}, rollout: {maxUnavailable: 3, maxFailures: 2, paused: true}}"),
        pool("{selector: {}, rollout: {maxUnavailable: 25%}}"),
        // What is null is not given.
        pool("{selector: {}, rollout: {maxUnavailable: null}}"),
        cluster("{}"),
        cluster("{machines: {kernel: {sysctls: {vm.swappiness: '10'}}}}"),
        cluster(
            "{controlPlane: {featureGates: {A: true}, scheduler: {extraArgs: {v: '3'}}, apiServer: {extraArgs: {event-ttl: 2h}, \
             oidc: [{issuerURL: 'https://issuer.example', audiences: [a], usernamePrefix: 'oidc:'}], \
             podSecurity: {enforce: privileged, exemptNamespaces: [storage]}, \
             admissionPlugins: [AlwaysPullImages], eventRateLimits: [{type: Server, qps: 50, burst: 100}]}}}",
        ),
        cluster("{endpoint: {host: kube.example.org}, certSANs: ['*.example.org', 192.0.2.9], proxyMode: ipvs}"),
        cluster("{virtualAddress: {address: 192.0.2.5}}"),
        cluster("{virtualAddress: null}"),
        cluster("{virtualAddress: {address: 192.0.2.5, virtualRouterID: 255}}"),
    ] {
        if !good.contains("kind: MachinePool") {
            manifest::parse(&good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        create(client, &good).await.unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for (bad, field) in [
        (machine("{hostname: A_b}"), "spec.hostname"),
        (machine("{watchdog: {timeoutSeconds: 601}}"), "spec.watchdog.timeoutSeconds"),
        (machine("{logs: {maxSizeMebibytes: 0}}"), "spec.logs.maxSizeMebibytes"),
        (machine("{time: {servers: [NTP]}}"), "spec.time.servers[0]"),
        (machine("{time: {servers: [a, a]}}"), "spec.time.servers[1]"),
        (machine("{time: {servers: ['2001:db8']}}"), "spec.time"),
        (machine("{kubelet: {maxPods: 0}}"), "spec.kubelet.maxPods"),
        (machine("{kubelet: {maxPods: many}}"), "spec.kubelet.maxPods"),
        (
            machine("{kubelet: {shutdownGracePeriodSeconds: 5, shutdownGracePeriodCriticalPodsSeconds: 9}}"),
            "shutdownGracePeriodCriticalPodsSeconds",
        ),
        (machine("{kubelet: {taints: [{key: a, effect: Never}]}}"), "spec.kubelet.taints[0].effect"),
        (machine("{kubelet: {kubeReserved: {memory: much}}}"), "spec.kubelet.kubeReserved.memory"),
        (machine("{kubelet: {evictionHard: {disk: 5%}}}"), "evictionHard"),
        (machine("{kernel: {sysctls: {kernel.core_pattern: '|/bin/sh'}}}"), "sysctls"),
        (machine("{kernel: {modules: [../x]}}"), "spec.kernel.modules[0]"),
        (machine("{network: {hosts: [{address: here, names: [a]}]}}"), "spec.network.hosts[0].address"),
        (machine("{registries: [{host: 'https://x'}]}"), "spec.registries[0].host"),
        (machine("{registries: [{host: x, mirrors: [mirror]}]}"), "spec.registries[0].mirrors[0]"),
        (
            machine("{registries: [{host: x, credentials: {secretName: A_b}}]}"),
            "spec.registries[0].credentials.secretName",
        ),
        (machine("{registries: [{host: x, credentials: {}}]}"), "spec.registries[0].credentials.secretName"),
        (cluster("{machines: {hostname: keel}}"), "hostname"),
        (cluster("{machines: {role: Worker}}"), "role"),
        (machine("{role: Worker}"), "join"),
        (machine("{role: Queen}"), "role"),
        (machine(&format!("{{role: Worker, join: {{endpoints: [], caPin: '{PIN}'}}}}")), "endpoints"),
        (machine("{role: Worker, join: {endpoints: [{host: a}], caPin: 'md5:7'}}"), "caPin"),
        (cluster("{controlPlane: {apiServer: {extraArgs: {anonymous-auth: 'true'}}}}"), "extraArgs"),
        (cluster("{controlPlane: {apiServer: {podSecurity: {enforce: none}}}}"), "podSecurity.enforce"),
        (
            cluster(
                "{controlPlane: {apiServer: {oidc: [{issuerURL: 'http://x', audiences: [a], usernamePrefix: 'o:'}]}}}",
            ),
            "issuerURL",
        ),
        (cluster("{controlPlane: {apiServer: {admissionPlugins: [AlwaysAdmit]}}}"), "admissionPlugins[0]"),
        (
            cluster("{controlPlane: {apiServer: {eventRateLimits: [{type: User, qps: 0, burst: 1}]}}}"),
            "eventRateLimits[0].qps",
        ),
        (machine("{network: {nameservers: [one]}}"), "spec.network.nameservers[0]"),
        (machine("{network: {searchDomains: ['-']}}"), "spec.network.searchDomains[0]"),
        (link("dhcp4: true"), "spec.network.links[0].match"),
        (link("match: {}"), "spec.network.links[0].match"),
        (link("match: {name: a, mac: '52:54:00:12:34:56'}"), "spec.network.links[0].match"),
        (link("match: {mac: '52:54'}"), "spec.network.links[0].match.mac"),
        (link("match: {name: a}, addresses: [192.0.2.7]"), "spec.network.links[0].addresses[0]"),
        (link("match: {name: a}, addresses: [192.0.2.7/24], gateway: 198.51.100.1"), "gateway"),
        (link("match: {name: a}, gateway: 192.0.2.1"), "gateway"),
        (link("match: {name: a}, routes: [{to: 198.51.100.0/24, via: '2001:db8::1'}]"), "via"),
        (link("match: {name: a}, routes: [{to: everywhere}]"), "spec.network.links[0].routes[0].to"),
        (link("match: {name: a}, mtu: 70000"), "spec.network.links[0].mtu"),
        (link("match: {name: a, driver: b}"), "spec.network.links[0].match"),
        (link("match: {name: a}, bridge: {}, name: b"), "spec.network.links[0].match"),
        (link("bridge: {}, vlan: {parent: a, id: 7}, name: b"), "spec.network.links[0].match"),
        (link("bridge: {}"), "name"),
        (link("name: v7, vlan: {parent: eth0, id: 7}"), "parent"),
        (link("name: v7, vlan: {parent: eth0, id: 0}"), "spec.network.links[0].vlan.id"),
        (link("name: br0, bridge: {ports: [eth0]}"), "ports"),
        (link("name: b, bond: {mode: broadcast, members: [eth0]}"), "members"),
        (link("name: b, bond: {mode: broadcast, members: []}"), "members"),
        (link("match: {name: a}}, {name: b, bond: {mode: fast, members: [a]}"), "mode"),
        (link("match: {name: a}}, {name: b, bond: {mode: broadcast, members: [a], lacpRate: slow}"), "lacpRate"),
        (link("match: {name: a}}, {name: b, bond: {mode: broadcast, members: [a], primary: a}"), "primary"),
        (link("match: {name: a}}, {name: b, bond: {mode: active-backup, members: [a], primary: b}"), "primary"),
        (
            link("match: {name: a}}, {name: b, bond: {mode: broadcast, members: [a], transmitHashPolicy: layer2}"),
            "transmitHashPolicy",
        ),
        (link("wireguard: {}"), "name"),
        (link("name: wg0, wireguard: {listenPort: 0}"), "spec.network.links[0].wireguard.listenPort"),
        (link("name: wg0, wireguard: {peers: [{publicKey: keel}]}"), "links[0].wireguard.peers[0].publicKey"),
        (peer("endpoint: 'peer.example:51820'"), "links[0].wireguard.peers[0].endpoint"),
        (peer("endpoint: '192.0.2.7'"), "links[0].wireguard.peers[0].endpoint"),
        (peer("allowedIPs: [192.0.2.7]"), "links[0].wireguard.peers[0].allowedIPs[0]"),
        (peer("persistentKeepaliveSeconds: 0"), "links[0].wireguard.peers[0].persistentKeepaliveSeconds"),
        (
            link(&format!("name: wg0, wireguard: {{peers: [{{publicKey: '{KEY}'}}, {{publicKey: '{KEY}'}}]}}")),
            "links[0].wireguard.peers[1]",
        ),
        (link("match: {name: a}, routes: [{to: '::/0', table: 255}]"), "table"),
        (machine("{network: {rules: [{table: 7, priority: 9}]}}"), "fwmark"),
        (machine("{network: {rules: [{fwmark: 7, table: 0, priority: 9}]}}"), "spec.network.rules[0].table"),
        (machine("{network: {rules: [{to: '::/0', fwmask: 7, table: 7, priority: 9}]}}"), "fwmask"),
        (machine("{network: {rules: [{fwmark: 7, table: 7, priority: 32766}]}}"), "spec.network.rules[0].priority"),
        (machine("{network: {rules: [{from: 10.0.0.0/8, to: '::/0', table: 7, priority: 9}]}}"), "to"),
        (machine("{}").replace("name: other", "name: a.b"), "metadata.name"),
        (cluster("{podCIDR: 10.244.0.0/99}"), "spec.podCIDR"),
        (cluster("{podCIDR: 10.244.7.0/16}"), "spec.podCIDR"),
        (cluster("{podCIDR: 10.244.7.0/25}"), "spec.podCIDR"),
        (cluster("{podCIDR: '2001:db8::/48'}"), "spec.podCIDR"),
        (cluster("{serviceCIDR: 10.0.0.0/8, podCIDR: 192.168.0.0/16}"), "spec.serviceCIDR"),
        (cluster("{podCIDR: 10.96.0.0/16}"), "podCIDR"),
        (cluster("{dnsDomain: '*'}"), "spec.dnsDomain"),
        (cluster("{proxyMode: userspace}"), "spec.proxyMode"),
        (cluster("{endpoint: {host: 'https://x'}}"), "spec.endpoint.host"),
        (cluster("{endpoint: {host: x, port: 0}}"), "spec.endpoint.port"),
        (cluster("{virtualAddress: {address: '2001:db8::5'}}"), "spec.virtualAddress.address"),
        (cluster("{virtualAddress: {address: 169.254.0.5}}"), "spec.virtualAddress.address"),
        (cluster("{virtualAddress: {address: 10.244.0.5}}"), "spec.virtualAddress.address"),
        (cluster("{virtualAddress: {address: 192.0.2.5, virtualRouterID: 0}}"), "virtualRouterID"),
        (cluster("{access: [{name: me, role: king, publicKey: x}]}"), "spec.access[0]"),
        (cluster("{}").replace("name: cluster", "name: x"), "its name is cluster"),
    ] {
        let local = manifest::parse(&bad).expect_err(&bad).to_string();
        let remote = create(client, &bad).await.expect_err(&bad).to_string();
        let leaf = field.rsplit('.').next().unwrap();
        assert!(local.contains(leaf), "{bad}: {local}");
        assert!(remote.contains(leaf), "{bad}: {remote}");
    }
}

/// Pools are declared to the API server alone.
async fn the_api_server_refuses_pools_that_cannot_be_rolled_out(client: &Client) {
    for (rollout, words) in [
        ("{maxUnavailable: 0}", "a number of machines from 1"),
        ("{maxUnavailable: 101%}", "a number of machines from 1"),
        ("{maxUnavailable: some}", "a number of machines from 1"),
        ("{maxFailures: 0}", "maxFailures"),
    ] {
        let bad = pool(&format!("{{selector: {{}}, rollout: {rollout}}}"));
        let refused = create(client, &bad).await.expect_err(&bad).to_string();
        assert!(refused.contains(words), "{bad}: {refused}");
    }
}

/// Asks the API server what it would do, unknown fields refused, as kubectl does.
async fn create(client: &Client, text: &str) -> Result<(), kube::Error> {
    let value: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
    let plural = format!("{}s", value["kind"].as_str().unwrap().to_lowercase());
    let url = format!("/apis/garboard.dev/v1alpha1/{plural}?dryRun=All&fieldValidation=Strict");
    let request = http::Request::post(url)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&value).unwrap())
        .unwrap();
    client.request::<serde_json::Value>(request).await.map(|_| ())
}

fn people_are_shown_what_matters(server: &Server) {
    let explained = server.kubectl(&["explain", "machine.spec.network.links.dhcp4"]);
    assert!(explained.contains("Whether a DHCPv4 server configures the link"), "{explained}");
    assert!(server.kubectl(&["get", "gm"]).contains("No resources found"));
    assert!(server.kubectl(&["get", "garboard"]).contains("No resources found"));
}

/// A source that runs.
struct Running<K: Kind> {
    declared: Declared<K>,
    refusals: watch::Receiver<Refusals>,
    api: watch::Sender<Option<Client>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl<K: Kind> Running<K> {
    fn start(ledger: &Ledger, local: Option<&K>, client: Option<Client>) -> Self {
        let (api, api_seen) = watch::channel(client);
        let (refusals, refusals_seen) = watch::channel(Refusals::new());
        let (source, declared, mut events) = Source::start(ledger.clone(), local, refusals, api_seen).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                tokio::join!(source.run(stop), async { while events.recv().await.is_some() {} });
            }
        });
        Self { declared, refusals: refusals_seen, api, stop, task }
    }

    async fn until(&self, what: &str, holds: impl Fn(&K) -> bool) -> Arc<K> {
        let mut object = self.declared.object.clone();
        let wanted = object.wait_for(|object| object.as_ref().is_some_and(|object| holds(object)));
        let found = tokio::time::timeout(LIMIT, wanted).await;
        let found = found.unwrap_or_else(|_| panic!("{what}: {:?}", self.declared.current())).unwrap();
        found.clone().unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn local(max_pods: u32) -> Machine {
    let mut machine = Machine::new("node-1", Default::default());
    machine.spec.kubelet.max_pods = Some(max_pods);
    machine
}

async fn a_declaration_moves_to_the_api_server(client: &Client, ledger: &Ledger) {
    let machines: Api<Machine> = Api::all(client.clone());
    let source = Running::start(ledger, Some(&local(50)), None);
    assert_eq!(
        source.declared.current().unwrap().spec.kubelet.max_pods,
        Some(50),
        "it counts before there is an API server"
    );
    assert_eq!(source.declared.current().unwrap().metadata.generation, Some(1));
    source.api.send_replace(Some(client.clone()));
    let created = source.until("created", |machine| machine.metadata.uid.is_some()).await;
    assert_eq!(machines.get("node-1").await.unwrap().uid(), created.uid());

    set_max_pods(&machines, 60).await;
    let edited = source.until("edited", |machine| machine.spec.kubelet.max_pods == Some(60)).await;
    assert_eq!(edited.metadata.generation, Some(2));
    assert!(edited.metadata.managed_fields.is_none(), "nobody needs it");

    // What the API server lets pass and the agent does not: the key of a label.
    let bad = json!({ "spec": { "kubelet": { "nodeLabels": { "a/b/c": "d" } } } });
    machines.patch("node-1", &PatchParams::default(), &Patch::Merge(&bad)).await.unwrap();
    let mut refusals = source.refusals.clone();
    let refused = tokio::time::timeout(LIMIT, refusals.wait_for(|refusals| !refusals.is_empty())).await.unwrap();
    let problem = refused.unwrap().values().next().unwrap().clone();
    assert!(problem.contains("spec.kubelet.nodeLabels.a/b/c"), "{problem}");
    assert!(source.declared.current().unwrap().spec.kubelet.node_labels.is_empty(), "what was accepted stays");
    let good = json!({ "spec": { "kubelet": { "nodeLabels": null } } });
    machines.patch("node-1", &PatchParams::default(), &Patch::Merge(&good)).await.unwrap();
    tokio::time::timeout(LIMIT, refusals.wait_for(Refusals::is_empty)).await.unwrap().unwrap();

    let former = source.declared.current().unwrap().uid();
    machines.delete("node-1", &DeleteParams::default()).await.unwrap();
    source.until("made again", |machine| machine.uid() != former).await;
    assert_eq!(machines.get("node-1").await.unwrap().spec.kubelet.max_pods, Some(60));

    assert!(source.declared.submit(local(70), true).await.unwrap(), "a dry run tells that it would change something");
    assert_eq!(machines.get("node-1").await.unwrap().spec.kubelet.max_pods, Some(60), "and changes nothing");
    source.declared.submit(local(70), false).await.unwrap();
    assert_eq!(machines.get("node-1").await.unwrap().spec.kubelet.max_pods, Some(70));
    source.until("submitted", |machine| machine.spec.kubelet.max_pods == Some(70)).await;
    assert!(!source.declared.submit(local(70), false).await.unwrap());
    let mut other = local(70);
    other.metadata.name = Some("node-2".into());
    assert!(matches!(source.declared.submit(other, false).await, Err(SubmitError::Invalid(_))));
    source.end().await;
}

async fn a_status_that_is_written_meanwhile_is_in_nobodys_way(client: &Client, ledger: &Ledger) {
    let machines: Api<Machine> = Api::all(client.clone());
    let source = Running::start(ledger, Some(&local(50)), Some(client.clone()));
    let write = async {
        for number in 0.. {
            let status = json!({ "status": { "phase": format!("Phase{number}") } });
            machines.patch_status("node-1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let hand_over = async {
        for max_pods in (100..150).chain([70]) {
            source.declared.submit(local(max_pods), false).await.unwrap();
            assert_eq!(machines.get("node-1").await.unwrap().spec.kubelet.max_pods, Some(max_pods));
        }
    };
    tokio::select! {
        () = write => {}
        () = hand_over => {}
    }
    source.end().await;
}

async fn set_max_pods(machines: &Api<Machine>, max_pods: u32) {
    let patch = json!({ "spec": { "kubelet": { "maxPods": max_pods } } });
    machines.patch("node-1", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

async fn a_manifest_that_changed_is_an_edit(client: &Client, ledger: &Ledger) {
    let machines: Api<Machine> = Api::all(client.clone());
    // The machine starts again with the manifest that it had: what the API server was told since counts.
    let source = Running::start(ledger, Some(&local(50)), None);
    assert_eq!(source.declared.current().unwrap().spec.kubelet.max_pods, Some(70));
    source.end().await;
    // And with another one: that counts, at once and in the API.
    let mut changed = local(80);
    changed.spec.hostname = Some("keel".into());
    let source = Running::start(ledger, Some(&changed), None);
    assert_eq!(source.declared.current().unwrap().spec.kubelet.max_pods, Some(80));
    source.api.send_replace(Some(client.clone()));
    wait("pushed", || async { machines.get("node-1").await.unwrap().spec.kubelet.max_pods == Some(80) }).await;
    assert_eq!(machines.get("node-1").await.unwrap().spec.hostname.as_deref(), Some("keel"));
    set_max_pods(&machines, 90).await;
    source.until("edited later", |machine| machine.spec.kubelet.max_pods == Some(90)).await;
    source.end().await;
    // It counts once.
    let source = Running::start(ledger, Some(&changed), Some(client.clone()));
    assert_eq!(source.declared.current().unwrap().spec.kubelet.max_pods, Some(90));
    source.end().await;
    // What cannot change is refused and named, and everything stays.
    let cluster = Cluster::new("cluster", Default::default());
    Running::start(ledger, Some(&cluster), None).end().await;
    let mut moved = cluster.clone();
    moved.spec.pod_cidr = "10.1.0.0/16".parse().unwrap();
    let source = Running::start(ledger, Some(&moved), None);
    assert_eq!(source.declared.current().unwrap().spec, cluster.spec);
    let refused = source.refusals.borrow().values().next().unwrap().clone();
    assert!(refused.contains("spec.podCIDR") && refused.contains("10.1.0.0/16"), "{refused}");
    source.end().await;
}

async fn an_outage_changes_nothing_and_edits_during_it_arrive(server: &mut Server, ledger: &Ledger) {
    let client = server.client();
    let machines: Api<Machine> = Api::all(client.clone());
    let source = Running::<Machine>::start(ledger, None, Some(client.clone()));
    source.until("followed", |machine| machine.metadata.uid.is_some()).await;
    server.stop_apiserver();
    let error = source.declared.submit(local(91), false).await.unwrap_err();
    assert!(matches!(error, SubmitError::Api(_)), "{error}");
    assert_eq!(source.declared.current().unwrap().spec.kubelet.max_pods, Some(90));
    source.end().await;
    // The agent starts again during the outage, with an edit.
    let source = Running::start(ledger, Some(&local(92)), None);
    assert_eq!(source.declared.current().unwrap().spec.kubelet.max_pods, Some(92));
    source.end().await;
    let source = Running::start(ledger, Some(&local(92)), Some(client));
    server.start_apiserver().await;
    wait("pushed", || async {
        machines.get("node-1").await.is_ok_and(|machine| machine.spec.kubelet.max_pods == Some(92))
    })
    .await;
    set_max_pods(&machines, 93).await;
    source.until("followed again", |machine| machine.spec.kubelet.max_pods == Some(93)).await;
    source.end().await;
}

async fn statuses_are_written_on_change_only(client: &Client) {
    let machines: Api<Machine> = Api::all(client.clone());
    let folder = tempfile::tempdir().unwrap();
    let (_sender, api) = watch::channel(Some(client.clone()));
    let sink = StatusSink::new(folder.path(), api);
    let machine = machines.get("node-1").await.unwrap();
    let conditions = |holds: bool| {
        let observed = [Observation::new(condition::READY, holds, "Because", "it is so")];
        condition::merge(&[], observed, machine.metadata.generation, &Time(Timestamp::from_second(7).unwrap()))
    };
    let status = MachineStatus {
        phase: Some("Running".into()),
        conditions: conditions(true),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        ..MachineStatus::default()
    };
    sink.publish(&machine, &status).await.unwrap();
    let first = machines.get("node-1").await.unwrap();
    assert_eq!(first.status.as_ref(), Some(&status));
    assert_eq!(first.metadata.generation, machine.metadata.generation, "a status is no change of the declaration");
    for _ in 0..3 {
        sink.publish(&machine, &status).await.unwrap();
    }
    // Another process of the agent does not know what was written; the API server then sees that it is the same.
    let (_sender, api) = watch::channel(Some(client.clone()));
    StatusSink::new(folder.path(), api).publish(&machine, &status).await.unwrap();
    let again = machines.get("node-1").await.unwrap();
    assert_eq!(again.resource_version(), first.resource_version());
    let changed = MachineStatus { conditions: conditions(false), ..status };
    sink.publish(&machine, &changed).await.unwrap();
    assert_eq!(machines.get("node-1").await.unwrap().status, Some(changed));
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let gone = machines.create(&dry_run, &Machine::new("gone", Default::default())).await.unwrap();
    sink.publish(&gone, &MachineStatus::default()).await.unwrap();
}

async fn wait<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let limit = tokio::time::Instant::now() + LIMIT;
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
