//! Follows the other nodes as the pod network needs them. What they were last outlasts an outage in the ledger.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use garboard_api::Machine;
use garboard_catalog::Peer;
use garboard_plan::node as plan;
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::Ledger;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::served::{first, whenever_served};

/// Name of the ledger's file.
const FILE: &str = "peers";

/// The peers by name.
type Peers = BTreeMap<String, Peer>;

/// The task that follows them.
pub struct PeerWatch {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    ledger: Ledger,
    peers: watch::Sender<Arc<Vec<Peer>>>,
}

impl std::fmt::Debug for PeerWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerWatch").finish_non_exhaustive()
    }
}

impl PeerWatch {
    /// Prepares the task, and the channel on which it publishes: at first what the ledger has.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        ledger: Ledger,
    ) -> (Self, watch::Receiver<Arc<Vec<Peer>>>) {
        // What is lost is learned again.
        let recorded: Vec<Peer> = ledger.read(FILE).ok().flatten().unwrap_or_default();
        let (peers, receiver) = watch::channel(Arc::new(recorded));
        (Self { machine, api, ledger, peers }, receiver)
    }

    /// Follows them until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            let Some(machine) = first(&mut self.machine).await else { return };
            whenever_served(self.api.clone(), |client| self.follow(client, machine.node_name())).await;
        };
        stop.run_until_cancelled(work).await;
    }

    async fn follow(&self, client: Client, own: &str) {
        let watch = watcher::watcher(Api::<Node>::all(client), watcher::Config::default());
        let mut watch = pin!(garboard_api_client::uninterrupted("nodes", watch));
        let (mut peers, mut listed) = (Peers::new(), None::<Peers>);
        while let Some(event) = watch.next().await {
            match event {
                Event::Init => listed = Some(Peers::new()),
                Event::InitApply(node) => note(listed.get_or_insert_default(), &node, own),
                Event::InitDone => peers = listed.take().unwrap_or_default(),
                Event::Apply(node) => note(&mut peers, &node, own),
                Event::Delete(node) => {
                    peers.remove(&node.name_any());
                }
            }
            // A list that is not whole says nothing of those that are still to come.
            if listed.is_none() {
                self.publish(peers.values());
            }
        }
    }

    fn publish<'a>(&self, peers: impl Iterator<Item = &'a Peer>) {
        let peers: Vec<Peer> = peers.cloned().collect();
        if **self.peers.borrow() == peers {
            return;
        }
        info!(peers = peers.len(), "other nodes of the pod network");
        if let Err(error) = self.ledger.write(FILE, &peers) {
            warn!(error = chain(&error), "cannot record the other nodes");
        }
        self.peers.send_replace(Arc::new(peers));
    }
}

/// Notes what a node is as a peer; the machine's own is none.
fn note(peers: &mut Peers, node: &Node, own: &str) {
    let name = node.name_any();
    match plan::peer(node).filter(|_| name != own) {
        Some(peer) => peers.insert(name, peer),
        None => peers.remove(&name),
    };
}
