//! Hands Machines to machines that wait without manifests: one of the cluster's duties, done by the node agent that speaks for the cluster,
//! because a token for a control-plane machine seals the cluster's keys, which only those agents have. What is due is
//! [`plan::handover`](garboard_plan::handover).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use garboard_api::condition::{self, Observation};
use garboard_api::machine::WaitingMachine;
use garboard_api::types::PublicKeyPin;
use garboard_api::{Cluster, Endpoint as ApiEndpoint, Machine};
use garboard_machine_api::client::{Client as MachineClient, ClientError};
use garboard_machine_api::endpoint::InvalidEndpoint;
use garboard_machine_api::waiting::{Browser, Found};
use garboard_machine_api::{DEFAULT_PORT, Endpoint, Identity, Pin};
use garboard_plan::handover::{self as plan, Announced, Due};
use garboard_plan::machine::phase;
use garboard_plan::pki::Authority;
use garboard_runtime::applier::chain;
use garboard_runtime::status::{self, there};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Context;
use crate::endorsement::{self, ProofError};
use crate::join::{TokenError, issue_token};
use crate::served::whenever_served;

/// The name under which the handing over owns its condition.
const FIELD_MANAGER: &str = "garboard-handover";
/// How soon machines that could not be told are tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Time in which what was told of a machine comes back by the watch; until then it is not told again.
const ECHO: Duration = Duration::from_secs(30);
/// Machines that are asked to prove which TPM they have: of several that name the same, all but one lie.
const MAX_ASKED: usize = 8;

/// A machine was not told what it should be.
#[derive(Debug, thiserror::Error)]
enum HandOverError {
    /// Nobody announces himself as it.
    #[error("no machine that waits and is this one is on the links of the control plane")]
    NotFound,
    /// Several do.
    #[error("several machines say that they are this one: {0}")]
    Ambiguous(String),
    /// Where it should be is no such thing.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// It is not there, or does not take it.
    #[error(transparent)]
    Machine(#[from] ClientError),
    /// It does not prove which TPM it has.
    #[error("the machine at {at} does not prove that its TPM has the endorsement key {expected}")]
    NotProved {
        /// Where it was asked.
        at: Endpoint,
        /// SHA-256 of the key that its TPM should have.
        expected: PublicKeyPin,
        /// Why not.
        #[source]
        source: ProofError,
    },
    /// There is no token.
    #[error("cannot make a token")]
    Token(#[from] TokenError),
    /// The Machine could not be changed.
    #[error("cannot say in the Machine where the cluster is")]
    Api(#[from] kube::Error),
}

impl HandOverError {
    /// The reason in the condition.
    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::Ambiguous(_) => "Ambiguous",
            Self::Machine(ClientError::UnknownKey { .. }) => "NotWaiting",
            Self::Machine(ClientError::OtherMachine { .. }) => "OtherMachine",
            Self::Machine(ClientError::Invalid { .. }) => "Refused",
            Self::NotProved { .. } => "NotProved",
            Self::Endpoint(_) | Self::Machine(_) => "Unreachable",
            Self::Token(_) | Self::Api(_) => "NotPossible",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Machine(ClientError::UnknownKey { endpoint, .. }) => {
                format!(
                    "the machine at {endpoint} does not wait: it belongs to a cluster, has manifests, or was claimed by somebody else"
                )
            }
            other => chain(other),
        }
    }
}

/// What handing over takes: what is known here, the key that machines see, and the API.
struct HandOver<'a> {
    context: &'a Context,
    identity: &'a Identity,
    api: Api<Machine>,
}

/// Hands Machines over while this machine speaks for the cluster, until `stop`. The machines that wait see this machine's `identity`.
pub async fn run(context: Arc<Context>, identity: Arc<Identity>, stop: CancellationToken) {
    let work = whenever_served(context.api.clone(), async |client| {
        let hand_over = HandOver { context: &context, identity: &identity, api: Api::all(client) };
        loop {
            speaks(&context, true).await;
            tokio::select! {
                () = hand_over.follow() => {}
                // What was begun is found out by who speaks next.
                () = speaks(&context, false) => {}
            }
        }
    });
    stop.run_until_cancelled(work).await;
}

/// Waits until this machine speaks for the cluster, or does no longer.
async fn speaks(context: &Context, wanted: bool) {
    let (mut membership, mut leads, mut machine) =
        (context.membership.clone(), context.leads.clone(), context.machine.object.clone());
    while context.speaks_for_cluster() != wanted {
        // Cancel-safe: each arm only waits.
        tokio::select! {
            Ok(()) = membership.changed() => {}
            Ok(()) = leads.changed() => {}
            Ok(()) = machine.changed() => {}
            else => std::future::pending().await,
        }
    }
}

impl HandOver<'_> {
    /// Never ends by itself.
    async fn follow(&self) {
        let watch = watcher::watcher(self.api.clone(), watcher::Config::default());
        let mut watch = pin!(garboard_api_client::uninterrupted("machine", watch));
        let mut waiting = BTreeMap::<String, Machine>::new();
        let mut told = BTreeMap::<String, Instant>::new();
        let (mut browser, mut again) = (None, Instant::now());
        loop {
            if !waiting.values().any(is_looked_for) {
                browser = None;
            } else if browser.is_none() {
                browser = look(self.context);
            }
            // Cancel-safe: an event is kept before anything is awaited.
            tokio::select! {
                Some(event) = watch.next() => {
                    if !keep(&mut waiting, event) {
                        continue;
                    }
                }
                () = changed(&mut browser) => {}
                () = sleep_until(again), if !waiting.is_empty() => {}
            }
            told.retain(|_, at| at.elapsed() < ECHO);
            let due = waiting.iter().filter(|(name, _)| !told.contains_key(*name));
            let attempts = due.map(|(name, machine)| {
                let attempt = self.attempt(machine, browser.as_ref());
                async move { attempt.await.then(|| name.clone()) }
            });
            let handed_over: Vec<_> = join_all(attempts).await.into_iter().flatten().collect();
            again = Instant::now() + RETRY;
            told.extend(handed_over.into_iter().map(|name| (name, Instant::now())));
        }
    }

    /// Does what is due for a Machine, and tells; says whether its machine was told.
    async fn attempt(&self, machine: &Machine, browser: Option<&Browser>) -> bool {
        let (handed_over, observation) = match self.hand_over(machine, browser).await {
            Ok(None) => return false,
            Ok(Some(told)) => (true, told),
            Err(error) => (false, plan::not_told(error.reason(), error.message())),
        };
        if let Err(error) = self.tell(machine, observation).await {
            warn!(error = chain(&error), machine = machine.name_any(), "cannot tell whether a machine was told");
        }
        handed_over
    }

    /// Does what is due; none if there is nothing to tell of it.
    async fn hand_over(
        &self,
        machine: &Machine,
        browser: Option<&Browser>,
    ) -> Result<Option<Observation>, HandOverError> {
        let context = self.context;
        let (own, cluster) = (context.machine.current(), context.cluster.current());
        let address = context.network.borrow().primary();
        let endpoint = own.zip(cluster.clone()).and_then(|(own, cluster)| cluster.endpoint_of(&own, address));
        let ca_pin = context.pki.authority_pin(Authority::Kubernetes).ok().flatten();
        let (Some(cluster), Some(endpoint), Some(ca_pin)) = (cluster, endpoint, ca_pin) else { return Ok(None) };
        let name = machine.name_any();
        let told = plan::Told { endpoint: &endpoint, ca_pin, access: &cluster.spec.access };
        match plan::due(machine, told, context.now()) {
            Due::Nothing => Ok(None),
            Due::Complete(patch) => {
                // It is handed over when this comes back.
                self.api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                Ok(None)
            }
            Due::HandOver => {
                let Some(waiting) = machine.waiting() else { return Ok(None) };
                let (at, key, mut client) = self.reach(&cluster, waiting, browser).await?;
                // A token is made only for one that would take it.
                client.claim(plan::manifests(machine, None), true).await?;
                let (token, _) =
                    issue_token(&context.pki, &name, machine.role(), plan::LIFETIME, context.now()).await?;
                client.claim(plan::manifests(machine, Some(&token)), false).await?;
                info!(machine = name, %at, fingerprint = %key, "handed over");
                Ok(Some(plan::told(&key.to_string(), &at.to_string())))
            }
        }
    }

    /// The machine: where it is, its key, and a connection to it.
    async fn reach(
        &self,
        cluster: &Cluster,
        waiting: &WaitingMachine,
        browser: Option<&Browser>,
    ) -> Result<(Endpoint, Pin, MachineClient), HandOverError> {
        let mut candidates = self.candidates(cluster, waiting, browser)?;
        if candidates.len() > 1 && waiting.endorsement_key.is_none() {
            let all: Vec<_> = candidates.iter().map(|(_, key)| key.to_string()).collect();
            return Err(HandOverError::Ambiguous(all.join(", ")));
        }
        candidates.truncate(MAX_ASKED);
        let mut outcome = Err(HandOverError::NotFound);
        for (at, key) in candidates {
            outcome = self.connect(at, key, waiting.endorsement_key).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Connects to a machine, which proves its key and, where one is asked for, its TPM.
    async fn connect(
        &self,
        at: Endpoint,
        key: Pin,
        endorsement_key: Option<PublicKeyPin>,
    ) -> Result<(Endpoint, Pin, MachineClient), HandOverError> {
        let mut client = MachineClient::connect(&at, key, self.identity).await?;
        if let Some(expected) = endorsement_key
            && let Err(source) = endorsement::verify(&mut client, key, expected).await
        {
            return Err(HandOverError::NotProved { at, expected, source });
        }
        Ok((at, key, client))
    }

    /// Where the machine may be, and its key.
    fn candidates(
        &self,
        cluster: &Cluster,
        waiting: &WaitingMachine,
        browser: Option<&Browser>,
    ) -> Result<Vec<(Endpoint, Pin)>, InvalidEndpoint> {
        if let (Some(host), Some(fingerprint)) = (&waiting.host, waiting.fingerprint) {
            let at = ApiEndpoint { host: host.clone(), port: waiting.port.unwrap_or(DEFAULT_PORT) };
            return Ok(vec![(at.to_string().parse()?, Pin::of_digest(*fingerprint.digest()))]);
        }
        // By their keys: a machine may be found at several places.
        let mut candidates = BTreeMap::new();
        for found in browser.iter().flat_map(|browser| browser.found()) {
            if plan::is_meant(waiting, &announced(found))
                && let Some(address) = found.addresses.iter().find(|address| may_be(self.context, cluster, **address))
                && found.port == DEFAULT_PORT
            {
                candidates.insert(found.announcement.pin, *address);
            }
        }
        let endpoint = |(key, address): (Pin, IpAddr)| {
            let at = ApiEndpoint { host: address.to_string(), port: DEFAULT_PORT };
            Ok((at.to_string().parse()?, key))
        };
        candidates.into_iter().map(endpoint).collect()
    }

    /// Tells how it stands, if that is news.
    async fn tell(&self, machine: &Machine, observation: Observation) -> Result<(), kube::Error> {
        // Its own agent tells the phase from when it has joined.
        let phase = if observation.holds == Some(true) { phase::JOINING } else { phase::WAITING };
        let now = self.context.condition_time();
        let Some(conditions) = condition::news(machine.conditions(), observation, machine.metadata.generation, &now)
        else {
            return Ok(());
        };
        let status = json!({ "phase": phase, "conditions": conditions });
        there(status::apply(&self.api, &machine.name_any(), FIELD_MANAGER, &status).await).map(drop)
    }
}

/// Keeps the Machines whose machines wait; says whether there is news of one.
fn keep(waiting: &mut BTreeMap<String, Machine>, event: Event<Machine>) -> bool {
    let mut put = |machine: Machine| {
        let (name, generation) = (machine.name_any(), machine.metadata.generation);
        if !plan::waits(&machine) {
            waiting.remove(&name);
            return false;
        }
        waiting.insert(name, machine).is_none_or(|former| former.metadata.generation != generation)
    };
    match event {
        Event::Apply(machine) => put(machine),
        Event::InitApply(machine) => {
            put(machine);
            false
        }
        Event::Delete(machine) => {
            waiting.remove(&machine.name_any());
            false
        }
        Event::Init => {
            waiting.clear();
            false
        }
        Event::InitDone => !waiting.is_empty(),
    }
}

/// Whether it is not said where the machine is.
fn is_looked_for(machine: &Machine) -> bool {
    machine.waiting().is_some_and(|waiting| waiting.host.is_none())
}

/// Looks on the machine's own link alone: pods, which are on others, must not be able to pose as machines.
fn look(context: &Context) -> Option<Browser> {
    let link = context.network.borrow().link.clone()?;
    Browser::start(Some(&[link]))
        .inspect_err(|error| warn!(error = chain(error), "machines that wait are not found"))
        .ok()
}

/// Waits until other machines are found.
async fn changed(browser: &mut Option<Browser>) {
    match browser {
        Some(looking) => {
            if let Err(error) = looking.changed().await {
                warn!(error = chain(&error), "machines that wait are not found any more");
                *browser = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// Whether a machine that waits may have this address: none that pods or other machines of the cluster have.
fn may_be(context: &Context, cluster: &Cluster, address: IpAddr) -> bool {
    let spec = &cluster.spec;
    let taken = context.peers.borrow().iter().any(|peer| peer.address == address);
    !taken
        && address.is_ipv4()
        && !address.is_loopback()
        && !spec.pod_cidr.net().contains(&address)
        && !spec.service_cidr.net().contains(&address)
        && !context.network.borrow().addresses.contains(&address)
}

fn announced(found: &Found) -> Announced {
    let said = &found.announcement;
    Announced {
        fingerprint: PublicKeyPin::new(*said.pin.digest()),
        endorsement_key: said.endorsement_key.map(|key| PublicKeyPin::new(*key.digest())),
        mac_addresses: said.mac_addresses.iter().filter_map(|mac| mac.parse().ok()).collect(),
        serial_number: said.serial_number.clone(),
        system_uuid: said.system_uuid.clone(),
    }
}
