//! Declares the machine's member, and follows what becomes of it.

use std::net::IpAddr;
use std::pin::pin;

use futures::StreamExt;
use garboard_api::{EtcdMember, EtcdRole, Machine};
use garboard_catalog::etcd::peer_url;
use garboard_runtime::applier::chain;
use garboard_runtime::status::FIELD_MANAGER;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use super::{Etcd, FILE, Membership, of};
use crate::machine::declare;

impl Etcd {
    pub(super) async fn follow(&self, client: &Client, machine: &Machine) {
        let api = Api::<EtcdMember>::all(client.clone());
        let mut writer = Writer::default();
        let members = writer.as_reader();
        let watch = watcher(api.clone(), watcher::Config::default());
        let mut watch = pin!(garboard_api_client::uninterrupted("etcdmember", watch));
        let (mut network, mut current, mut listed) = (self.network.clone(), self.machine.clone(), false);
        loop {
            // All arms are cancel-safe.
            tokio::select! {
                Some(event) = watch.next() => {
                    listed |= matches!(event, watcher::Event::InitDone);
                    writer.apply_watcher_event(&event);
                }
                Ok(()) = network.changed() => {}
                Ok(()) = current.changed() => {}
                else => return,
            }
            let address = network.borrow_and_update().primary();
            let uid = current.borrow_and_update().as_ref().and_then(|machine| machine.metadata.uid.clone());
            if listed {
                let all: Vec<_> = members.state().iter().map(|member| member.as_ref().clone()).collect();
                let own = of(&all, machine.node_name());
                self.learn(own, &all, machine);
                // Without a Machine in the API there is nothing that it could belong to.
                if let (Some(address), Some(uid)) = (address, uid) {
                    self.declare(&api, own, address, (machine.node_name(), &uid)).await;
                }
                declare(&self.declared, all);
            }
        }
    }

    /// Declares where the machine's member is to be reached, if that is not so already.
    async fn declare(
        &self,
        api: &Api<EtcdMember>,
        own: Option<&EtcdMember>,
        address: IpAddr,
        (name, uid): (&str, &str),
    ) {
        let url = peer_url(address);
        let membership = self.membership.borrow().clone();
        let joined = membership.votes || membership.initial_cluster.is_some();
        if membership.left || own.is_some_and(|own| own.spec.peer_url == url && own.spec.joined == joined) {
            return;
        }
        let object = json!({
            "apiVersion": garboard_api::API_VERSION,
            "kind": "EtcdMember",
            "metadata": {
                "name": name,
                "ownerReferences": [{
                    "apiVersion": garboard_api::API_VERSION, "kind": "Machine", "name": name, "uid": uid,
                }],
            },
            "spec": { "peerURL": url, "joined": joined },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(name, &parameters, &Patch::Apply(&object)).await {
            Ok(_) => info!(peer_url = url, "member of etcd declared"),
            Err(error) => warn!(error = chain(&error), "cannot declare the member of etcd"),
        }
    }

    /// Takes over what the cluster makes of the machine's member.
    fn learn(&self, own: Option<&EtcdMember>, all: &[EtcdMember], machine: &Machine) {
        let role = own.and_then(EtcdMember::role);
        let former = self.membership.borrow().clone();
        let begun =
            own.and_then(|own| own.status.clone()).map(|status| status.initial_cluster).filter(|all| !all.is_empty());
        let membership = Membership {
            // What it began with stays: with another beginning it would be started again.
            initial_cluster: former.initial_cluster.clone().or_else(|| begun.filter(|_| machine.joins())),
            votes: former.votes || role == Some(EtcdRole::Voter),
            left: former.left || role == Some(EtcdRole::Left),
            others: all.iter().any(|member| member.name_any() != machine.node_name() && member.is_taken_in()),
        };
        if membership == former {
            return;
        }
        info!(votes = membership.votes, left = membership.left, others = membership.others, "member of etcd");
        // What counts must outlast a power cut.
        match self.ledger.write(FILE, &membership) {
            Ok(()) => drop(self.membership.send_replace(membership)),
            Err(error) => warn!(error = chain(&error), "cannot record the membership of etcd"),
        }
    }
}
