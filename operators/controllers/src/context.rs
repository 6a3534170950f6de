//! What reconcilers share: handles on the rest of the machine, and what its tasks publish.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use garboard_api::machine::{MachineKernel, MachineRole, MachineTime, Versions};
use garboard_api::{About, Cluster, Machine, MachinePool, Refusals};
use garboard_catalog::{EtcdFacts, EtcdRestore, Peer};
use garboard_control::{Client as Control, MachineInfo, MachinePhase, Upkeep};
use garboard_plan::events::Notable;
use garboard_plan::registries;
use garboard_plan::trial::Configuration;
use garboard_plan::virtual_address::{Declared as VirtualAddress, Holding};
use garboard_runtime::ledger::Ledger;
use garboard_runtime::source::Declared;
use garboard_runtime::status::StatusSink;
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::ServiceStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch};

use crate::certificates::{Due, Outcome};
use crate::claim::Claimants;
use crate::etcd::Membership;
use crate::network::{NetworkConfig, NodeAddresses};
use crate::node::NodeView;
use crate::pki::PkiStore;
use crate::problems::Listed;
use crate::time::TimeView;
use crate::trial::InForce;
use crate::twin::TwinView;

/// Where things lie, so that tests can have them elsewhere.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The state partition's part for keys.
    pub pki_state: PathBuf,
    /// Where services read their keys.
    pub pki: PathBuf,
    /// What was accepted last.
    pub ledger: PathBuf,
    /// Statuses as files.
    pub status: PathBuf,
    /// The machine's own key.
    pub identity: PathBuf,
    /// The token by which the machine joins a cluster, until it has.
    pub join_token: PathBuf,
    /// The credentials of registries that the machine uses.
    pub registries: PathBuf,
    /// The private keys of WireGuard links.
    pub wireguard: PathBuf,
    /// By whom the machine was claimed.
    pub claimant: PathBuf,
    /// What the machine has of the cluster's store.
    pub etcd: PathBuf,
    /// What it has of it from before, and what it makes a new one of.
    pub etcd_restore: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            pki_state: "/state/pki".into(),
            pki: garboard_catalog::paths::PKI_DIR.into(),
            ledger: "/state/ledger".into(),
            status: "/run/garboard/status".into(),
            identity: crate::machine_api::IDENTITY_FILE.into(),
            join_token: "/state/join-token".into(),
            registries: "/state/registries".into(),
            wireguard: crate::network::WIREGUARD_KEYS.into(),
            claimant: "/state/claimant".into(),
            etcd: garboard_catalog::etcd::DATA_DIR.into(),
            etcd_restore: garboard_catalog::etcd_restore::DIR.into(),
        }
    }
}

/// What reconcilers share.
pub struct Context {
    /// PID 1.
    pub control: Control,
    /// What PID 1 said of the machine when the agent started.
    pub info: MachineInfo,
    /// What runs in which version.
    pub versions: Versions,
    /// SHA-256 of the machine's public key.
    pub fingerprint: String,
    /// Keys and certificates.
    pub pki: PkiStore,
    /// What must outlast a power cut.
    pub ledger: Ledger,
    /// Where statuses go.
    pub statuses: Arc<StatusSink>,
    /// The declared machine.
    pub machine: Declared<Machine>,
    /// The declared cluster.
    pub cluster: Declared<Cluster>,
    /// Another machine that runs as this one, if there is one.
    pub twin: watch::Receiver<TwinView>,
    /// The machine's pool.
    pub pool: watch::Receiver<Option<Arc<MachinePool>>>,
    /// What all layers declare: written by the machine's reconciler.
    pub declared: watch::Sender<Option<Configuration>>,
    /// What of that is in force.
    pub in_force: watch::Receiver<InForce>,
    /// Who may claim the machine.
    pub claimants: watch::Receiver<Claimants>,
    /// Declarations that were refused.
    pub refusals: watch::Receiver<Refusals>,
    /// What the network should be: written by the machine's reconciler.
    pub network_config: watch::Sender<NetworkConfig>,
    /// What the network has reached.
    pub network: watch::Receiver<NodeAddresses>,
    /// The virtual address that the machine does its part for: written by the machine's reconciler.
    pub virtual_address: watch::Sender<Option<VirtualAddress>>,
    /// What has become of it.
    pub holding: watch::Receiver<Holding>,
    /// What the kernel's settings should be, once a Machine is declared: written by its reconciler.
    pub kernel_config: watch::Sender<Option<MachineKernel>>,
    /// Settings of the kernel that are not as declared, in words.
    pub kernel: watch::Receiver<Vec<String>>,
    /// The credentials of registries that are declared, once a Machine is: written by its reconciler.
    pub registries_config: watch::Sender<Option<registries::Declared>>,
    /// Those that the machine lacks, in words.
    pub registries: watch::Receiver<Vec<String>>,
    /// Where the time of day comes from, once a Machine is declared: written by its reconciler.
    pub time_config: watch::Sender<Option<MachineTime>>,
    /// What the machine has of its time servers.
    pub time: watch::Receiver<TimeView>,
    /// How the machine is watched over and what it keeps of logs, once a Machine is declared: written by its reconciler.
    pub upkeep: watch::Sender<Option<Upkeep>>,
    /// The services that PID 1 was told: written by the machine's reconciler.
    pub specs: watch::Sender<Arc<Vec<ServiceSpec>>>,
    /// What the services are.
    pub services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    /// What the machine as a whole is doing.
    pub phase: watch::Receiver<MachinePhase>,
    /// The machine's node in the API.
    pub node: watch::Receiver<NodeView>,
    /// The API server, once it answers.
    pub api: watch::Receiver<Option<Client>>,
    /// The addresses of all API servers.
    pub api_servers: watch::Receiver<Vec<SocketAddr>>,
    /// The other nodes of the pod network.
    pub peers: watch::Receiver<Arc<Vec<Peer>>>,
    /// The machine's part in the cluster's store.
    pub membership: watch::Receiver<Membership>,
    /// What is being done to make the store anew.
    pub restore: watch::Receiver<Option<EtcdRestore>>,
    /// Whether the machine leads those who change the membership of the store.
    pub leads: watch::Receiver<bool>,
    /// Certificates that a worker has to ask the cluster for: written by the machine's reconciler.
    pub due_certificates: watch::Sender<Due>,
    /// What came of that.
    pub asked_certificates: watch::Receiver<Outcome>,
    /// The statuses that were published last, for the machine API and the console.
    pub published: watch::Sender<Published>,
    /// What is wrong with parts of the machine that no resource is about.
    pub problems: watch::Receiver<Listed>,
    /// What is worth an Event and is not seen in what others publish.
    pub notables: mpsc::Sender<Notable>,
    /// Node labels that were applied last.
    pub applied_labels: Mutex<Option<BTreeMap<String, String>>>,
}

/// The declared objects with the statuses that were published last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The machine.
    pub machine: Option<Machine>,
    /// The cluster.
    pub cluster: Option<Cluster>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    /// What the machine is for.
    pub fn role(&self) -> MachineRole {
        self.machine.current().map(|machine| machine.role()).unwrap_or_default()
    }

    /// The machine's part in the cluster's store, and what is being done with it.
    pub fn etcd_facts(&self, machine: &Machine, serves: bool) -> Option<EtcdFacts> {
        let facts = self.membership.borrow().facts(machine, serves)?;
        Some(EtcdFacts { restore: self.restore.borrow().clone(), ..facts })
    }

    /// Whether it is for this machine to tell how the cluster is: for one of those that serve it.
    pub fn speaks_for_cluster(&self) -> bool {
        let membership = self.membership.borrow().clone();
        let counts = self.machine.current().is_some_and(|machine| membership.counts(&machine));
        counts && (!membership.others || *self.leads.borrow())
    }

    /// The time of day, for plans.
    pub fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// The time of day, for conditions: whole seconds, as the API server keeps them.
    pub fn condition_time(&self) -> Time {
        let seconds = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Time(Timestamp::from_second(i64::try_from(seconds).unwrap_or_default()).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Declarations of some kinds of resources that were refused, and those that may be of any.
    pub fn refusals_of(&self, kinds: &[About]) -> Refusals {
        let mut refusals = self.refusals.borrow().clone();
        refusals.retain(|origin, _| origin.about().is_none_or(|about| kinds.contains(&about)));
        refusals
    }

    /// Takes the labels that were applied last, to compare and replace them.
    pub(crate) fn labels_differ(&self, labels: &BTreeMap<String, String>) -> bool {
        self.applied_labels.lock().unwrap_or_else(PoisonError::into_inner).as_ref() != Some(labels)
    }

    pub(crate) fn labels_applied(&self, labels: BTreeMap<String, String>) {
        *self.applied_labels.lock().unwrap_or_else(PoisonError::into_inner) = Some(labels);
    }
}
