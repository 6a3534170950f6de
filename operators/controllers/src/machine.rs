//! Keeps this machine as its Machine declares it: network, time, certificates, services.
//!
//! Nothing waits here: each call does what is possible now, says in the status what is not and why, and is made again
//! when any of what it looked at changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use garboard_api::cluster::ClusterSpec;
use garboard_api::condition;
use garboard_api::machine::{Effective, MachineSpec, MachineStatus, PoolReference};
use garboard_api::{About, Cluster, Machine, MachinePool, validate};
use garboard_catalog::input::apiserver_service_address;
use garboard_catalog::pki::Leaf;
use garboard_catalog::{CatalogError, CatalogInput, NodeFacts};
use garboard_control::{ControlError, MachinePhase};
use garboard_plan::events as events_plan;
use garboard_plan::layers;
use garboard_plan::machine::{self as plan, Observed};
use garboard_plan::node as node_plan;
use garboard_plan::pki::{self as pki_plan, PkiInput, Problem, Reason, Step};
use garboard_plan::registries;
use garboard_plan::time::State;
use garboard_plan::trial::Configuration;
use garboard_plan::virtual_address;
use garboard_runtime::applier::chain;
use garboard_runtime::status::{StatusError, in_time};
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::Change;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::certificates::Due;
use crate::cluster::api_is_ready;
use crate::context::Context;
use crate::network::NetworkConfig;
use crate::pki::PkiError;
use crate::time::TimeView;
use crate::trial::InForce;
use crate::upkeep::upkeep;
use crate::{events, node};

/// Everything is looked at again after this time even if nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(600);

/// Why the API server did not do something.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What could not be done for a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Its keys and certificates.
    #[error("cannot keep the certificates")]
    Pki(#[from] PkiError),
    /// Its services have no specification.
    #[error("cannot specify the services")]
    Catalog(#[from] CatalogError),
    /// PID 1 did not take the services.
    #[error("cannot declare the services")]
    Control(#[from] ControlError),
    /// Its node's part of the pod addresses.
    #[error("cannot claim the node's pod addresses")]
    PodAddresses(#[source] Cause),
    /// Its node's labels.
    #[error("cannot label the node")]
    Labels(#[source] Cause),
    /// Its node's taints.
    #[error("cannot taint the node")]
    Taints(#[source] Cause),
    /// Its status.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// Makes the machine what it should be, as far as that is possible now.
///
/// # Errors
/// [`MachineError`] of what failed; the status tells it too, and everything is tried again.
pub async fn reconcile(machine: Arc<Machine>, context: Arc<Context>) -> Result<Action, MachineError> {
    let (pool, cluster) = (context.pool.borrow().clone(), context.cluster.current());
    declare(&context.declared, Some(configuration(&machine, pool.as_deref(), cluster.as_deref())));
    let in_force = context.in_force.borrow().clone();
    // What was declared just now is in force in a moment, and everything is looked at again then.
    let Some(Configuration { machine: spec, sources, cluster, pool }) = &in_force.configuration else {
        return Ok(Action::await_change());
    };
    let configured = configured(&machine, spec);
    declare(&context.network_config, NetworkConfig::from(&configured));
    declare(&context.kernel_config, Some(spec.kernel.clone()));
    declare(&context.registries_config, Some(registries::declared(spec)));
    declare(&context.time_config, Some(spec.time.clone()));
    declare(&context.upkeep, Some(upkeep(&spec.watchdog, &spec.logs)));
    declare(&context.virtual_address, virtual_address::declared(spec, cluster.as_ref()));
    let mut observed = observe(&context, configured.joins(), cluster.is_some());
    let converged = match cluster {
        Some(cluster) => converge(&configured, cluster, &context, &mut observed).await,
        None => join(&configured, &context, &mut observed).await.map(|()| RESYNC),
    };
    let claimed = match cluster {
        Some(cluster) if !configured.joins() => claim_block(&configured, cluster, &context).await,
        _ => Ok(()),
    };
    let labelled = label(&configured, &context).await;
    let tainted = taint(&configured, &context).await;
    let effective = Effective { spec: spec.clone(), sources: sources.clone() };
    publish(&machine, effective, pool.clone(), &in_force, &context, &observed).await?;
    claimed?;
    labelled?;
    tainted?;
    converged.map(Action::requeue)
}

impl From<&Machine> for NetworkConfig {
    fn from(machine: &Machine) -> Self {
        Self { hostname: machine.hostname().to_owned(), network: (&machine.spec.network).into() }
    }
}

/// A machine with the settings that are in force.
pub fn configured(machine: &Machine, spec: &MachineSpec) -> Machine {
    Machine { spec: spec.clone(), ..machine.clone() }
}

/// What the layers of a machine's configuration declare.
pub fn configuration(machine: &Machine, pool: Option<&MachinePool>, cluster: Option<&Cluster>) -> Configuration {
    let Effective { spec, sources } = layers::merge(machine, pool, cluster);
    let cluster = cluster.map(|cluster| cluster.spec.clone());
    Configuration { machine: spec, sources, cluster, pool: pool.map(pool_reference) }
}

/// Tells a task what is declared for it, if that is new.
pub(crate) fn declare<T: PartialEq>(channel: &watch::Sender<T>, config: T) {
    channel.send_if_modified(|current| {
        let differs = *current != config;
        *current = config;
        differs
    });
}

fn observe(context: &Context, joins: bool, cluster_declared: bool) -> Observed {
    let network = context.network.borrow().clone();
    let specs = context.specs.borrow().clone();
    let TimeView { servers, state } = context.time.borrow().clone();
    Observed {
        cluster_declared,
        joins,
        addresses: network.addresses,
        network_waiting: network.waiting,
        network_problems: network.problems,
        time_servers: servers,
        time: state,
        kernel_problems: context.kernel.borrow().clone(),
        registry_problems: context.registries.borrow().clone(),
        certificate_problems: None,
        certificates_awaited: Vec::new(),
        desired_services: (!specs.is_empty()).then(|| names(&specs)),
        services_problem: None,
        services: context.services.borrow().to_vec(),
        refusals: context.refusals_of(&[About::Machine, About::MachinePool]),
        twin: context.twin.borrow().twin.clone(),
    }
}

fn names(specs: &[ServiceSpec]) -> Vec<String> {
    specs.iter().map(|spec| spec.name.to_string()).collect()
}

/// Runs what a machine needs to find the cluster that it joins.
async fn join(machine: &Machine, context: &Context, observed: &mut Observed) -> Result<(), MachineError> {
    let servers = context.api_servers.borrow().clone();
    if !machine.joins() || servers.is_empty() {
        return Ok(());
    }
    let specs = garboard_catalog::joining(&servers)?;
    observed.desired_services = Some(names(&specs));
    run(context, specs, observed).await
}

/// Has PID 1 run exactly these services.
async fn run(context: &Context, specs: Vec<ServiceSpec>, observed: &mut Observed) -> Result<(), MachineError> {
    if let Err(error) = declare_services(context, specs).await {
        observed.services_problem = Some(chain(&error));
        return Err(error.into());
    }
    Ok(())
}

/// Certificates and services. Returns when to look again.
async fn converge(
    machine: &Machine,
    cluster: &ClusterSpec,
    context: &Context,
    observed: &mut Observed,
) -> Result<Duration, MachineError> {
    if observed.addresses.is_empty() {
        return Ok(RESYNC);
    }
    // Certificates and parts of the cluster that start by a wrong date live through a step of the clock, but better without one.
    let asked = context.time.borrow().has_asked(&machine.spec.time, &context.network.borrow());
    if context.specs.borrow().is_empty() && !asked {
        return Ok(RESYNC);
    }
    let apart = validate::together(&machine.spec, cluster);
    if let Some(error) = apart.first() {
        observed.services_problem = Some(error.to_string());
        return Ok(RESYNC);
    }
    let input = pki_input(machine, cluster, &observed.addresses);
    let kept = keep_certificates(context, input).await;
    let Kept { problems, awaited, renewal } =
        kept.inspect_err(|error| observed.certificate_problems = Some(vec![chain(error)]))?;
    observed.certificate_problems = Some(problems);
    observed.certificates_awaited = awaited.iter().map(|leaf| leaf.name()).collect();
    let specs = garboard_catalog::services(&catalog_input(machine, cluster, context, &observed.addresses))?;
    observed.desired_services = Some(names(&specs));
    let specs = startable(specs, &awaited, &context.specs.borrow());
    run(context, specs, observed).await?;
    Ok(renewal.clamp(Duration::from_secs(1), RESYNC))
}

fn pki_input(machine: &Machine, cluster: &ClusterSpec, addresses: &[IpAddr]) -> PkiInput {
    let endpoint = cluster.endpoint.iter().map(|endpoint| endpoint.host.clone());
    let shared = cluster.virtual_address.iter().map(|shared| shared.address.to_string());
    PkiInput {
        role: machine.role(),
        joins: machine.joins(),
        node_name: machine.node_name().to_owned(),
        node_addresses: addresses.to_owned(),
        service_addresses: apiserver_service_address(cluster).into_iter().collect(),
        dns_domain: cluster.dns_domain.clone(),
        apiserver_names: endpoint.chain(shared).chain(cluster.cert_sans.iter().cloned()).collect(),
    }
}

/// What became of certificates.
#[derive(Debug, Default)]
struct Kept {
    /// What is wrong with them, in words.
    problems: Vec<String>,
    /// Those that were never there, and that the cluster is asked for.
    awaited: BTreeSet<Leaf>,
    /// Time until the next is due.
    renewal: Duration,
}

/// Services without those that would not start because their certificate is not there yet. One that was declared `before` stays.
fn startable(mut specs: Vec<ServiceSpec>, awaited: &BTreeSet<Leaf>, before: &[ServiceSpec]) -> Vec<ServiceSpec> {
    let waits = |spec: &ServiceSpec| awaited.iter().any(|leaf| spec.name.as_str() == leaf.name());
    specs.retain(|spec| !waits(spec) || before.iter().any(|former| former.name == spec.name));
    specs
}

/// Keeps the certificates.
async fn keep_certificates(context: &Context, input: PkiInput) -> Result<Kept, PkiError> {
    let (pki, now) = (context.pki.clone(), context.now());
    let machine = input.node_name.clone();
    // Keys are computed and files synced: neither belongs on the agent's only thread.
    let kept = tokio::task::spawn_blocking(move || {
        let plan = pki.reconcile(&pki_plan::desired(&input), now)?;
        let renewal = pki_plan::next_renewal(&pki.observe()?);
        let wait = renewal.map_or(RESYNC, |renewal| renewal.duration_since(now).unwrap_or_default());
        Ok::<_, PkiError>((plan, wait))
    });
    // The task neither panics nor is it cancelled while the agent lives; when the agent ends this is not seen.
    let Ok(kept) = kept.await else { return Ok(Kept { renewal: RESYNC, ..Kept::default() }) };
    let (plan, renewal) = kept?;
    plan.steps.iter().for_each(report);
    let leaves = plan.steps.iter().filter_map(|step| match step {
        Step::Request { leaf, profile, reason: _ } => Some((*leaf, profile.clone())),
        _ => None,
    });
    declare(&context.due_certificates, Due { machine, leaves: leaves.collect() });
    let refused = context.asked_certificates.borrow().clone();
    if let Some(notable) = events_plan::certificates(&plan.steps) {
        events::hand_over(&context.notables, notable);
    }
    let refused = refused.into_iter().map(|(leaf, problem)| format!("{leaf}: {problem}"));
    let awaited = plan.steps.iter().filter_map(|step| match step {
        Step::Request { leaf, profile: _, reason: Reason::Missing } => Some(*leaf),
        _ => None,
    });
    Ok(Kept {
        problems: plan.problems.iter().map(describe).chain(refused).collect(),
        awaited: awaited.collect(),
        renewal,
    })
}

fn report(step: &Step) {
    match step {
        Step::CreateAuthority { authority, validity: _ } => info!(authority = authority.name(), "authority made"),
        Step::CreateKey(key) => info!(key = key.name(), "key made"),
        Step::Issue { leaf, profile: _, validity: _, reason } => {
            info!(certificate = leaf.name(), ?reason, "certificate issued");
        }
        Step::Request { leaf, profile: _, reason } => {
            debug!(certificate = leaf.name(), ?reason, "the cluster is to be asked for a certificate");
        }
        // It follows from what was issued.
        Step::Deploy(deployment) => debug!(?deployment, "certificates deployed"),
    }
}

fn describe(problem: &Problem) -> String {
    match problem {
        Problem::AuthorityExpiring(authority, _) => format!("{} ends within a year", authority.name()),
        Problem::AuthorityNotValid(authority, _) => {
            format!("{} is not valid now: it has ended, or the clock is wrong", authority.name())
        }
        Problem::AuthorityWithoutKey(authority) => format!("the key of {} is missing", authority.name()),
    }
}

fn catalog_input(machine: &Machine, cluster: &ClusterSpec, context: &Context, addresses: &[IpAddr]) -> CatalogInput {
    CatalogInput {
        cluster: cluster.clone(),
        machine: machine.spec.clone(),
        node: NodeFacts {
            name: machine.node_name().to_owned(),
            addresses: addresses.to_owned(),
            memory_bytes: memory_bytes(),
            pod_cidrs: pod_cidrs(machine, cluster, context),
            api_servers: other_api_servers(&context.api_servers.borrow(), addresses),
            peers: context.peers.borrow().to_vec(),
            etcd: context.etcd_facts(machine, api_is_ready(&context.services.borrow())),
        },
        pause_image: format!("garboard.dev/pause:{}", env!("CARGO_PKG_VERSION")),
    }
}

/// The node's part of the pod addresses. A machine that founds its cluster takes the first part before the API server knows of the
/// node, and the pod network need not wait.
fn pod_cidrs(machine: &Machine, cluster: &ClusterSpec, context: &Context) -> Vec<IpNet> {
    let known = context.node.borrow().pod_cidrs.clone();
    match known.is_empty() && !machine.joins() {
        true => node_plan::first_block(cluster.pod_cidr.net()).into_iter().collect(),
        false => known,
    }
}

/// The API servers of other machines than the one with these addresses.
fn other_api_servers(servers: &[SocketAddr], own: &[IpAddr]) -> Vec<SocketAddr> {
    servers.iter().filter(|server| !own.contains(&server.ip())).copied().collect()
}

/// Memory of the machine, bytes (proc_meminfo(5)).
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    kibibytes.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// Tells PID 1 what should run, if that is not what it was told last.
async fn declare_services(context: &Context, specs: Vec<ServiceSpec>) -> Result<(), ControlError> {
    if **context.specs.borrow() == specs {
        return Ok(());
    }
    for result in context.control.set_services(&specs).await? {
        if result.change != Change::Unchanged {
            info!(service = %result.name, change = ?result.change, "service declared");
        }
    }
    context.specs.send_replace(Arc::new(specs));
    Ok(())
}

/// Gives the first node of a new cluster its part of the pod addresses in the API.
async fn claim_block(machine: &Machine, cluster: &ClusterSpec, context: &Context) -> Result<(), MachineError> {
    let node = context.node.borrow().clone();
    let client = context.api.borrow().clone();
    let (Some(client), Some(uid), true) = (client, node.uid, node.pod_cidrs.is_empty()) else { return Ok(()) };
    let (api, name) = (Api::<Node>::all(client), machine.node_name());
    let claim = async {
        let alone = api.list_metadata(&ListParams::default().limit(2)).await?.items.len() == 1;
        let block = node_plan::first_block(cluster.pod_cidr.net()).filter(|_| alone);
        let Some(block) = block else { return Ok(()) };
        let patch = json!({ "metadata": { "uid": uid }, "spec": { "podCIDR": block, "podCIDRs": [block] } });
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    };
    asked(claim, MachineError::PodAddresses).await
}

/// The API server's answer, if it comes in time; else what `failed` makes of the reason.
async fn asked<T>(
    question: impl Future<Output = Result<T, kube::Error>>,
    failed: fn(Cause) -> MachineError,
) -> Result<T, MachineError> {
    let answer = in_time(question).await.map_err(|silent| failed(Box::new(silent)))?;
    answer.map_err(|error| failed(Box::new(error)))
}

/// Puts the Machine's labels on the Node. Others' labels stay; those that the Machine no longer declares go.
async fn label(machine: &Machine, context: &Context) -> Result<(), MachineError> {
    let view = context.node.borrow().clone();
    let client = context.api.borrow().clone();
    let (Some(client), Some(uid)) = (client, view.uid) else { return Ok(()) };
    let labels = &machine.spec.kubelet.node_labels;
    let lacking = labels.iter().any(|(key, value)| view.labels.get(key) != Some(value));
    if !lacking && !context.labels_differ(labels) {
        return Ok(());
    }
    asked(node::label(&client, machine.node_name(), &uid, labels), MachineError::Labels).await?;
    context.labels_applied(labels.clone());
    Ok(())
}

/// Keeps the Machine's taints on the Node. Others' taints stay; those that the Machine no longer declares go.
async fn taint(machine: &Machine, context: &Context) -> Result<(), MachineError> {
    let view = context.node.borrow().clone();
    let client = context.api.borrow().clone();
    let (Some(client), Some(uid)) = (client, view.uid) else { return Ok(()) };
    let declared = &machine.spec.kubelet.taints;
    if node_plan::taints(declared, &view.declared_taints, &view.taints).is_none() {
        return Ok(());
    }
    asked(node::taint(&client, machine.node_name(), &uid, declared), MachineError::Taints).await
}

fn pool_reference(pool: &MachinePool) -> PoolReference {
    PoolReference {
        name: pool.metadata.name.clone().unwrap_or_default(),
        observed_generation: pool.metadata.generation,
    }
}

async fn publish(
    machine: &Machine,
    effective: Effective,
    pool: Option<PoolReference>,
    in_force: &InForce,
    context: &Context,
    observed: &Observed,
) -> Result<(), StatusError> {
    let former = context.statuses.former::<Machine>(machine.node_name());
    let stopping = *context.phase.borrow() != MachinePhase::Running;
    let conditions = condition::merge(
        &plan::lasting(former.conditions, observed),
        plan::conditions(observed).into_iter().chain([in_force.condition()]),
        machine.metadata.generation,
        &context.condition_time(),
    );
    // What was before this start of the machine says nothing about it.
    let same_run = former.boot_id.as_deref() == Some(context.info.boot_id.as_str());
    let before = former.phase.as_deref().filter(|_| same_run);
    let status = MachineStatus {
        observed_generation: machine.metadata.generation,
        phase: Some(plan::phase(&conditions, before, stopping).to_owned()),
        conditions,
        role: Some(machine.role()),
        services: observed.services.iter().map(plan::summary).collect(),
        addresses: observed.addresses.clone(),
        wireguard: context.network.borrow().wireguard.clone(),
        time: match &observed.time {
            State::Following(status) => Some(status.clone()),
            State::Unasked | State::Lost(_) => None,
        },
        virtual_address: context.holding.borrow().held(),
        versions: Some(context.versions.clone()),
        pool,
        effective: Some(effective),
        trial: in_force.status(),
        boot_id: Some(context.info.boot_id.clone()),
        machine_id: Some(context.info.machine_id.clone()),
        fingerprint: Some(context.fingerprint.clone()),
        // What cannot be read is told among the certificates' problems.
        identity_key: context.pki.identity_key().ok().flatten(),
    };
    let mut published = machine.clone();
    published.status = Some(status.clone());
    context.published.send_if_modified(|current| {
        let differs = current.machine.as_ref() != Some(&published);
        current.machine = Some(published);
        differs
    });
    context.statuses.publish(machine, &status).await
}

#[cfg(test)]
mod tests {
    use garboard_api::{Endpoint, VirtualAddress};
    use garboard_catalog::{dns, kube_proxy, kubelet};

    use super::*;

    #[test]
    fn a_service_is_not_started_before_its_certificate_is_there() {
        let spec = |name: &str| -> ServiceSpec {
            serde_json::from_value(json!({ "name": name, "argv": ["/bin/it"], "cgroup": { "slice": "node" } })).unwrap()
        };
        let wanted = || ["containerd", "kubelet", "dns"].map(spec).to_vec();
        let awaited = BTreeSet::from([Leaf::Kubelet, Leaf::KubeProxy]);
        assert_eq!(names(&startable(wanted(), &awaited, &[])), ["containerd", "dns"]);
        // What runs goes on: its certificate is renewed, or was lost.
        assert_eq!(names(&startable(wanted(), &awaited, &[spec("kubelet")])), ["containerd", "kubelet", "dns"]);
        assert_eq!(startable(wanted(), &BTreeSet::new(), &[]), wanted());
        for leaf in Leaf::OF_WORKERS.into_iter().filter(|leaf| *leaf != Leaf::Agent) {
            let names = [kubelet::NAME, kube_proxy::NAME, dns::NAME];
            assert!(names.contains(&leaf.name()), "{leaf:?} is of no service");
        }
    }

    #[test]
    fn the_api_servers_certificate_is_for_every_declared_way_to_it() {
        let machine = Machine::new("node-1", MachineSpec::default());
        let cluster = ClusterSpec {
            endpoint: Some(Endpoint { host: "api.example.org".to_owned(), port: 443 }),
            virtual_address: Some(VirtualAddress { address: [192, 0, 2, 5].into(), virtual_router_id: None }),
            cert_sans: vec!["*.example.org".to_owned()],
            ..ClusterSpec::default()
        };
        let input = pki_input(&machine, &cluster, &[[192, 0, 2, 7].into()]);
        assert_eq!(input.apiserver_names, ["api.example.org", "192.0.2.5", "*.example.org"]);
    }
}
