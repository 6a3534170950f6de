//! Follows the MachinePool that picks this machine, as its rollout comes to the machine. What it was last outlasts an outage in the
//! ledger.

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use garboard_api::refusal::{self, About, Origin};
use garboard_api::{Machine, MachinePool, Refusals, field_error, validate};
use garboard_plan::{layers, pool as plan};
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::Ledger;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the ledger's file.
const FILE: &str = "machinepool";
/// What is said of pools that cannot be followed.
const ORIGIN: Origin = Origin::Object { about: About::MachinePool, holder: "API server" };

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Recorded {
    /// None: the machine belongs to no pool.
    pool: Option<MachinePool>,
}

/// The task that follows the pool.
pub struct PoolWatch {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    publisher: Publisher,
}

struct Publisher {
    ledger: Ledger,
    refusals: watch::Sender<Refusals>,
    pool: watch::Sender<Option<Arc<MachinePool>>>,
}

impl std::fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolWatch").finish_non_exhaustive()
    }
}

impl PoolWatch {
    /// Prepares the task, and the channel on which it publishes: at first what the ledger has.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        ledger: Ledger,
        refusals: watch::Sender<Refusals>,
    ) -> (Self, watch::Receiver<Option<Arc<MachinePool>>>) {
        let recorded = ledger.read::<Recorded>(FILE).unwrap_or_else(|error| {
            warn!(error = chain(&error), "the machine's pool is not known until the API server answers");
            None
        });
        let (pool, receiver) = watch::channel(recorded.unwrap_or_default().pool.map(Arc::new));
        (Self { machine, api, publisher: Publisher { ledger, refusals, pool } }, receiver)
    }

    /// Follows the pools until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { mut machine, mut api, publisher } = self;
        loop {
            let client = api.borrow_and_update().clone();
            let follow = async {
                match client {
                    Some(client) => publisher.follow(client, &mut machine).await,
                    None => std::future::pending().await,
                }
            };
            // Nothing is kept between rounds that the next does not read again.
            tokio::select! {
                () = follow => {}
                () = stop.cancelled() => return,
                Ok(()) = api.changed() => {}
            }
        }
    }
}

impl Publisher {
    async fn follow(&self, client: Client, machine: &mut watch::Receiver<Option<Arc<Machine>>>) {
        let mut writer = Writer::default();
        let pools = writer.as_reader();
        let watch = watcher(Api::<MachinePool>::all(client), watcher::Config::default());
        let mut watch = pin!(garboard_api_client::uninterrupted("machinepool", watch));
        let mut listed = false;
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                Some(event) = watch.next() => {
                    listed |= matches!(event, watcher::Event::InitDone);
                    writer.apply_watcher_event(&event);
                }
                Ok(()) = machine.changed() => {}
                else => return,
            }
            if let (Some(machine), true) = (machine.borrow_and_update().clone(), listed) {
                self.choose(&machine, &pools.state());
            }
        }
    }

    /// Takes the pool that picks the machine. When that cannot be said, the pool is not valid, or its rollout has not come to the
    /// machine, the one from before stays.
    fn choose(&self, machine: &Machine, pools: &[Arc<MachinePool>]) {
        let problem = match layers::pool_of(machine, pools.iter().map(Arc::as_ref)) {
            Err(names) => Some(format!("more than one picks the machine: {}", names.join(", "))),
            Ok(Some(pool)) => {
                let errors = validate::machine_pool(pool);
                let name = pool.metadata.name.as_deref().unwrap_or_default();
                let followed = self.pool.borrow().clone();
                match errors.is_empty() {
                    true if plan::may_follow(followed.as_deref(), pool, machine.node_name()) => {
                        self.accept(Some(pool)).err()
                    }
                    true => None,
                    false => Some(format!("{name}: {}", field_error::join(&errors))),
                }
            }
            Ok(None) => self.accept(None).err(),
        };
        self.refusals.send_if_modified(|refusals| refusal::note(refusals, ORIGIN, problem));
    }

    fn accept(&self, pool: Option<&MachinePool>) -> Result<(), String> {
        let pool = pool.map(|pool| {
            let mut pool = pool.clone();
            pool.status = None;
            (pool.metadata.managed_fields, pool.metadata.resource_version) = (None, None);
            pool
        });
        if self.pool.borrow().as_deref() == pool.as_ref() {
            return Ok(());
        }
        let name = pool.as_ref().and_then(|pool| pool.metadata.name.clone());
        // What counts must outlast a power cut.
        self.ledger.write(FILE, &Recorded { pool: pool.clone() }).map_err(|error| chain(&error))?;
        info!(pool = name, "the machine's pool");
        self.pool.send_replace(pool.map(Arc::new));
        Ok(())
    }
}
