//! Follows this machine's Node in the API: its part of the pod addresses, which outlasts an outage in the ledger; and labels it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use garboard_api::Machine;
use garboard_api::machine::Taint;
use garboard_plan::node as plan;
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::{Ledger, LedgerError};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, Node};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the ledger's file.
const FILE: &str = "node";
/// The Node's annotation that tells which of its taints the Machine declared.
const TAINTS: &str = "garboard.dev/taints";
/// The name under which the Machine's labels are owned on the Node.
const LABEL_MANAGER: &str = "garboard-machine";

/// What is known of this machine's node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// UID of the Node; none while it is not seen in the API.
    pub uid: Option<String>,
    /// The node's part of the pod addresses, as the API has it or had it last; empty when it never had one.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether the Node says that it is ready; none when it says nothing.
    pub ready: Option<bool>,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<core::Taint>,
    /// Those of them that were declared last.
    pub declared_taints: Vec<Taint>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Recorded {
    name: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
}

/// The task that follows the Node.
pub struct NodeWatch {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    publisher: Publisher,
}

struct Publisher {
    ledger: Ledger,
    view: watch::Sender<NodeView>,
}

impl std::fmt::Debug for NodeWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeWatch").finish_non_exhaustive()
    }
}

impl NodeWatch {
    /// Prepares the task, and the channel on which it publishes: at first what the ledger has.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        ledger: Ledger,
    ) -> (Self, watch::Receiver<NodeView>) {
        // Without it the node asks the API server, so a damaged file costs nothing but time.
        let recorded = ledger.read::<Recorded>(FILE).ok().flatten().unwrap_or_default();
        let declared = node_name(&machine.borrow());
        let pod_cidrs = if declared.as_ref() == Some(&recorded.name) { recorded.pod_cidrs } else { Vec::new() };
        let (view, receiver) = watch::channel(NodeView { pod_cidrs, ..NodeView::default() });
        (Self { machine, api, publisher: Publisher { ledger, view } }, receiver)
    }

    /// Follows the Node until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { mut machine, mut api, publisher } = self;
        loop {
            let name = node_name(&machine.borrow_and_update());
            let client = api.borrow_and_update().clone();
            let follow = async {
                if let (Some(name), Some(client)) = (&name, client) {
                    let watch = watcher::watch_object(Api::<Node>::all(client), name);
                    let mut watch = pin!(garboard_api_client::uninterrupted("node", watch));
                    while let Some(node) = watch.next().await {
                        publisher.publish(name, node);
                    }
                }
                std::future::pending().await
            };
            // The last two arms are cancel-safe; the first keeps nothing that the next round does not read again.
            tokio::select! {
                () = follow => {}
                () = stop.cancelled() => return,
                // The name never changes; what matters is that there is one.
                Ok(_) = machine.wait_for(Option::is_some), if name.is_none() => {}
                Ok(()) = api.changed() => {}
            }
        }
    }
}

impl Publisher {
    fn publish(&self, name: &str, node: Option<Node>) {
        let mut view = match node {
            Some(node) => view(node),
            // Its addresses stay its own until it has others.
            None => NodeView::default(),
        };
        if view.pod_cidrs.is_empty() {
            view.pod_cidrs.clone_from(&self.view.borrow().pod_cidrs);
        }
        if view.pod_cidrs != self.view.borrow().pod_cidrs
            && let Err(error) = self.record(name, &view.pod_cidrs)
        {
            warn!(error = chain(&error), "cannot record the node's pod addresses");
        }
        self.view.send_if_modified(|current| {
            let differs = *current != view;
            if current.ready != view.ready || current.pod_cidrs != view.pod_cidrs {
                info!(ready = view.ready, pod_cidrs = ?view.pod_cidrs, "node");
            }
            *current = view;
            differs
        });
    }

    fn record(&self, name: &str, pod_cidrs: &[IpNet]) -> Result<(), LedgerError> {
        self.ledger.write(FILE, &Recorded { name: name.to_owned(), pod_cidrs: pod_cidrs.to_owned() })
    }
}

/// Gives a Node the labels that its Machine declares; those that were given before and are no longer declared go, others'
/// stay. The UID keeps it from making a Node that is not there.
///
/// # Errors
/// The API server's answer.
pub async fn label(
    client: &Client,
    name: &str,
    uid: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), kube::Error> {
    let patch = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "uid": uid, "labels": labels },
    });
    let parameters = PatchParams::apply(LABEL_MANAGER).force();
    Api::<Node>::all(client.clone()).patch(name, &parameters, &Patch::Apply(&patch)).await.map(drop)
}

/// Gives a Node the taints that its Machine declares; those that were declared before and are no longer go, others' stay.
///
/// # Errors
/// The API server's answer: a refusal when somebody else changes the Node at the same moment.
pub async fn taint(client: &Client, name: &str, uid: &str, declared: &[Taint]) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    let Some(node) = nodes.get_opt(name).await?.filter(|node| node.metadata.uid.as_deref() == Some(uid)) else {
        return Ok(());
    };
    let version = node.metadata.resource_version.clone();
    let seen = view(node);
    let Some(taints) = plan::taints(declared, &seen.declared_taints, &seen.taints) else { return Ok(()) };
    let note = BTreeMap::from([(TAINTS, json!(declared).to_string())]);
    let patch =
        json!({ "metadata": { "resourceVersion": version, "annotations": note }, "spec": { "taints": taints } });
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

fn node_name(machine: &Option<Arc<Machine>>) -> Option<String> {
    machine.as_ref().map(|machine| machine.node_name().to_owned())
}

fn view(node: Node) -> NodeView {
    let spec = node.spec.unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let conditions = node.status.unwrap_or_default().conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let declared = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TAINTS));
    NodeView {
        uid: node.metadata.uid,
        pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        ready: ready.map(|condition| condition.status == "True"),
        labels: node.metadata.labels.unwrap_or_default(),
        taints: spec.taints.unwrap_or_default(),
        declared_taints: declared.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
    }
}
