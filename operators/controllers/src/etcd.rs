//! The machine's part in the cluster's store: declares it, follows what the cluster makes of it, tells how it is, and, on the machine that
//! leads, changes the membership.
//!
//! The node agents do this themselves and not the cluster operators: access to etcd is access to everything, and the agents of
//! control-plane machines have that anyway. What a machine was last outlasts an outage in the ledger.

mod health;
mod membership;
pub mod restore;
pub(crate) mod store;
mod tend;
pub(crate) mod upkeep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::machine::MachineRole;
use garboard_api::{EtcdMember, Machine};
use garboard_catalog::EtcdFacts;
use garboard_catalog::etcd::NAME;
use garboard_runtime::ledger::Ledger;
use garboard_supervisor::status::ServiceStatus;
use kube::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::leader::{ETCD, Identity, Standing, lead};
use crate::network::NodeAddresses;
use crate::problems::Problems;
use crate::served::{first, whenever_served};
use crate::services::readiness;

/// Time that others have to take the lease from a machine that could not make use of it: more than they let pass between two looks.
const AWAY: Duration = Duration::from_secs(10);
/// Name of the ledger's file.
const FILE: &str = "etcd";

/// The machine's part in the cluster's store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Membership {
    /// The members by name with which the machine joined, and where they were reached; none while it has not, and on the machine that
    /// founds the cluster.
    pub initial_cluster: Option<BTreeMap<String, String>>,
    /// Whether it counts, on a machine that joined.
    pub votes: bool,
    /// Whether it has left.
    pub left: bool,
    /// Whether there are other members.
    pub others: bool,
}

impl Membership {
    /// What the catalog needs to know of it, and of whether the machine's own API server `serves`.
    pub fn facts(&self, machine: &Machine, serves: bool) -> Option<EtcdFacts> {
        if machine.role() != MachineRole::ControlPlane || self.left {
            return None;
        }
        let Self { initial_cluster, votes, left: _, others } = self.clone();
        match machine.joins() {
            true if initial_cluster.is_none() => None,
            true => Some(EtcdFacts { initial_cluster, votes, others, serves, restore: None }),
            false => Some(EtcdFacts { initial_cluster: None, votes: true, others, serves, restore: None }),
        }
    }

    /// Whether the machine runs the whole control plane.
    pub fn counts(&self, machine: &Machine) -> bool {
        self.facts(machine, false).is_some_and(|facts| facts.votes)
    }
}

/// The task.
pub struct Etcd {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    network: watch::Receiver<NodeAddresses>,
    services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    ledger: Ledger,
    boot_id: String,
    membership: watch::Sender<Membership>,
    declared: watch::Sender<Vec<EtcdMember>>,
    leads: watch::Sender<bool>,
    problems: Problems,
}

/// What [`Etcd`] publishes: the machine's membership, and whether it leads those who change the membership.
pub type Followed = (watch::Receiver<Membership>, watch::Receiver<bool>);

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

impl Etcd {
    /// Prepares the task, and the channels on which it publishes: at first what the ledger has.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        network: watch::Receiver<NodeAddresses>,
        services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
        ledger: Ledger,
        problems: Problems,
        boot_id: &str,
    ) -> (Self, Followed) {
        // What is lost is learned again.
        let recorded = ledger.read(FILE).ok().flatten().unwrap_or_default();
        let (membership, membership_seen) = watch::channel(recorded);
        let (declared, _) = watch::channel(Vec::new());
        let (leads, leads_seen) = watch::channel(false);
        let boot_id = boot_id.to_owned();
        (
            Self { machine, api, network, services, ledger, boot_id, membership, declared, leads, problems },
            (membership_seen, leads_seen),
        )
    }

    /// Does all of it until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            let Some(machine) = first(&mut self.machine).await else { return };
            if machine.role() != MachineRole::ControlPlane {
                return std::future::pending().await;
            }
            let (this, machine) = (&self, &machine);
            whenever_served(self.api.clone(), |client| async move {
                tokio::join!(this.follow(&client, machine), this.report(&client, machine), this.lead(&client, machine));
            })
            .await;
        };
        stop.run_until_cancelled(work).await;
    }

    /// Does something whenever the machine's etcd serves, and after it has ended leaves others time to do it.
    async fn while_served<Duty: Future<Output = ()>>(&self, duty: impl Fn() -> Duty) {
        let mut services = self.services.clone();
        while services.wait_for(|services| readiness(services, NAME) == Some(true)).await.is_ok() {
            duty().await;
            sleep(AWAY).await;
        }
    }

    /// Waits until it is for this machine to change the membership, and does so whenever it leads. One whose etcd does not serve, as after
    /// it has taken out itself, leaves that to others.
    async fn lead(&self, client: &Client, machine: &Machine) {
        let (mut declared, mut membership) = (self.declared.subscribe(), self.membership.subscribe());
        if membership.wait_for(|membership| membership.counts(machine)).await.is_err() {
            return;
        }
        // Alone there is nobody to agree with.
        tokio::select! {
            others = declared.wait_for(|declared| declared.len() > 1) => if others.is_err() { return },
            () = self.while_served(|| self.tend(client)) => return,
        }
        let tell = |standing| {
            info!(%standing, "membership of etcd");
            self.leads.send_replace(standing == Standing::Leads);
        };
        self.while_served(|| async move {
            let identity = Identity::new(machine.node_name(), &self.boot_id);
            lead(client.clone(), ETCD, identity, tell, |_| self.tend(client), CancellationToken::new()).await;
            self.leads.send_replace(false);
        })
        .await;
    }
}

/// The member of a machine among all.
fn of<'a>(all: &'a [EtcdMember], name: &str) -> Option<&'a EtcdMember> {
    all.iter().find(|member| member.metadata.name.as_deref() == Some(name))
}
