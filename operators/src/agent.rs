//! The node agent: its tasks and what connects them.
//!
//! It may end at any moment and be started again: what it must remember is in the ledger, on STATE, and in PID 1, and
//! what it finds running it leaves running.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use futures::{Stream, stream};
use garboard_api::refusal::Origin;
use garboard_api::{Cluster, Machine, PublicKeyPin, Refusals};
use garboard_control::Client as Control;
use garboard_controllers::api_servers::ApiServers;
use garboard_controllers::certificates::{Certificates, Due};
use garboard_controllers::claim::Claims;
use garboard_controllers::connect::Connect;
use garboard_controllers::context::{Context, Paths, Published};
use garboard_controllers::declare::{self, Declarations};
use garboard_controllers::etcd::Etcd;
use garboard_controllers::etcd::restore::{Folders, Restores};
use garboard_controllers::join::{Introduction, Join, TokenFile};
use garboard_controllers::kernel::{Kernel, KernelPaths};
use garboard_controllers::leave::Leave;
use garboard_controllers::machine_api::{self, Admission, Restoring, View};
use garboard_controllers::network::{Network, NetworkConfig, NetworkPaths};
use garboard_controllers::node::NodeWatch;
use garboard_controllers::peers::PeerWatch;
use garboard_controllers::pki::PkiStore;
use garboard_controllers::pool::PoolWatch;
use garboard_controllers::probes::{self, Watched};
use garboard_controllers::problems::Problems;
use garboard_controllers::registries::{self, Registries, RegistryPaths};
use garboard_controllers::revocations::Revocations;
use garboard_controllers::services::Services;
use garboard_controllers::time::{self, KernelClock, Timekeeper};
use garboard_controllers::trial::{self, Trials};
use garboard_controllers::twin::{Pace, TwinWatch};
use garboard_controllers::virtual_address::{self, VirtualAddress};
use garboard_controllers::{announce, cluster, console, events, handover, machine, preload, release, upkeep};
use garboard_runtime::applier;
use garboard_runtime::ledger::Ledger;
use garboard_runtime::source::Source;
use garboard_runtime::status::StatusSink;
use garboard_sys::clock::boot_time;
use garboard_tpm::Tpm;
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::manifests::{self, Found};
use crate::notify;

/// Longest time that tasks have to end.
const GRACE: Duration = Duration::from_secs(5);
/// A file as old as the image.
const IMAGE_FILE: &str = "/usr/lib/os-release";
/// Requests to declare something are answered one after the other.
const DECLARES: usize = 4;
/// One restore is done at a time, and nobody else asks meanwhile.
const RESTORES: usize = 1;

/// Keeps this machine as it is declared until `stop`.
pub async fn run(stop: CancellationToken) -> anyhow::Result<()> {
    let paths = Paths::default();
    let control = Control::new().context("prepare the connection to PID 1")?;
    let info = control.get_machine().await.context("ask PID 1 about the machine")?;
    info!(version = info.version, boot = info.boot_id, "agent");

    let mut tasks = Tasks { set: JoinSet::new(), stop: stop.clone() };
    tasks.spawn("watchdog", notify::watchdog(stop.clone()));
    let (services, (statuses, phase)) = Services::new(control.clone());
    tasks.spawn("services", services.run(stop.clone()));
    notify::tell(NotifyState::Ready);

    let Found { manifests, errors } = manifests::find(&control).await;
    let ledger = Ledger::new(&paths.ledger);
    let was_declared = ledger.holds::<Machine>() || ledger.holds::<Cluster>();
    let identity = machine_api::identity(&paths.identity, manifests.identity.as_ref(), was_declared)
        .context("read the machine's key")?;
    let identity = Arc::new(identity);
    let refused = errors.iter().map(|error| (Origin::Text(error.origin.clone()), error.problem.to_string())).collect();
    let (refusals, refusals_seen) = watch::channel::<Refusals>(refused);
    let (api, api_seen) = watch::channel(None);
    let start = |kind| format!("begin with the declared {kind}");
    let (machine_source, machine, machine_events) =
        Source::start(ledger.clone(), manifests.machine.as_ref(), refusals.clone(), api_seen.clone())
            .with_context(|| start("Machine"))?;
    let (cluster_source, cluster, cluster_events) =
        Source::start(ledger.clone(), manifests.cluster.as_ref(), refusals.clone(), api_seen.clone())
            .with_context(|| start("Cluster"))?;

    let (is_machine, is_cluster) = (machine.current().is_some(), cluster.current().is_some());
    // Where something was to say what the machine should be, that is to be mended and not a stranger to be asked.
    let waits = !is_machine && !is_cluster && errors.is_empty();
    let (claims, claimants) = Claims::new(&paths.claimant, waits, !is_cluster);
    let joins = machine.current().is_some_and(|machine| machine.joins());
    let declared = [(is_machine, "Machine"), (is_cluster || joins, "Cluster")];
    for (_, kind) in declared.iter().filter(|(declared, _)| !declared) {
        warn!(kind, "not declared: give the machine its manifests");
        notify::tell(NotifyState::Status(&format!("no {kind} is declared")));
    }
    let (pool_watch, pool) = PoolWatch::new(machine.object.clone(), api_seen.clone(), ledger.clone(), refusals);
    let (notables, handed) = mpsc::channel(events::HANDED);
    let (problems, problems_seen) = Problems::new();
    let configured = machine
        .current()
        .map(|machine| machine::configuration(&machine, pool.borrow().as_deref(), cluster.current().as_deref()));
    let (declared, declared_seen) = watch::channel(configured);
    let (trials, in_force) =
        Trials::new(ledger.clone(), &info.boot_id, boot_time, declared_seen, notables.clone(), problems.clone());
    // A machine without a declaration has a network too: its address is what one needs to know to declare it.
    let network_declared = in_force
        .borrow()
        .configuration
        .as_ref()
        .zip(machine.current())
        .map(|(in_force, machine)| NetworkConfig::from(&machine::configured(&machine, &in_force.machine)));
    let (network_config, config) = watch::channel(network_declared.clone().unwrap_or_default());
    let (network, addresses) = Network::new(config, NetworkPaths::default()).context("watch the network")?;
    if let Some(declared) = network_declared {
        // It counts before what an earlier run of the agent was told.
        network_config.send_replace(declared);
    }
    let network_stop = stop.clone();
    tasks.spawn("network", async move {
        if let Err(error) = network.run(network_stop).await {
            error!(error = applier::chain(&error), "network");
        }
    });
    let (kernel_config, config) = watch::channel(None);
    let (kernel, kernel_problems) = Kernel::new(config, notables.clone(), KernelPaths::default());
    tasks.spawn("kernel", kernel.run(stop.clone()));
    // Before kubelet is started, so that it finds what was kept.
    let in_force_now = in_force.borrow().configuration.as_ref().map(|in_force| registries::declared(&in_force.machine));
    let (registries_config, config) = watch::channel(in_force_now);
    let (registries, registry_problems) = Registries::new(
        config,
        api_seen.clone(),
        statuses.clone(),
        control.clone(),
        RegistryPaths::new(&paths.registries),
    );
    tasks.spawn("registries", registries.run(stop.clone()));
    let (time_config, config) = watch::channel(None);
    let clock_watched = time::Watched { config, network: addresses.clone(), services: statuses.clone() };
    let made = std::fs::metadata(IMAGE_FILE).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let (timekeeper, time_view) = Timekeeper::new(clock_watched, KernelClock, made, notables.clone());
    tasks.spawn("time", timekeeper.run(stop.clone()));
    let (upkeep, upkeep_declared) = watch::channel(None);
    tasks.spawn("upkeep", upkeep::run(control.clone(), upkeep_declared, problems.clone(), stop.clone()));
    // As with the network, what is in force counts from the start: a restarted agent goes on where the former was.
    let shared = in_force
        .borrow()
        .configuration
        .as_ref()
        .and_then(|in_force| virtual_address::declared(&in_force.machine, in_force.cluster.as_ref()));
    let (virtual_address, shared) = watch::channel(shared);
    let (own_server, standing) = virtual_address::Watch::new(statuses.clone(), phase.clone(), shared.clone());
    tasks.spawn("own API server", own_server.run(stop.clone()));
    let (election, holding) = VirtualAddress::new(shared, standing, notables.clone(), problems.clone());
    tasks.spawn("virtual address", election.run(stop.clone()));
    let tpm = Tpm::find();
    let pki = PkiStore::new(&paths.pki_state, &paths.pki).with_tpm(tpm.clone());
    let (node, node_view) = NodeWatch::new(machine.object.clone(), api_seen.clone(), ledger.clone());
    let (peers, peers_seen) = PeerWatch::new(machine.object.clone(), api_seen.clone(), ledger.clone());
    let (servers, api_servers) = ApiServers::new(machine.object.clone(), api_seen.clone(), ledger.clone());
    let (etcd, (membership, leads)) = Etcd::new(
        machine.object.clone(),
        api_seen.clone(),
        addresses.clone(),
        statuses.clone(),
        ledger.clone(),
        problems.clone(),
        &info.boot_id,
    );
    let introduction = Introduction {
        machine_id: info.machine_id.clone(),
        fingerprint: PublicKeyPin::new(*identity.pin().digest()),
        network: addresses.clone(),
    };
    let join_token = Arc::new(TokenFile::new(&paths.join_token));
    let (join, joined) = Join::new(
        machine.object.clone(),
        introduction,
        pki.clone(),
        join_token.clone(),
        manifests.join_token.as_ref(),
        problems.clone(),
    );
    let (due_certificates, due) = watch::channel(Due::default());
    let (certificates, asked_certificates) = Certificates::new(pki.clone(), due);
    let (specs, specs_seen) = watch::channel(Arc::default());
    let folders = Folders { data: paths.etcd.clone(), restore: paths.etcd_restore.clone() };
    let (restores, restore) = Restores::new(&etcd, specs_seen.clone(), folders.clone());
    let (asks, asked) = mpsc::channel(RESTORES);
    let (decisions, decided) = mpsc::channel(DECLARES);
    let trial_probes = trial::probes::Probes {
        network: addresses.clone(),
        api: api_seen.clone(),
        specs: specs_seen.clone(),
        services: statuses.clone(),
        peers: peers_seen.clone(),
        time: time_view.clone(),
    };
    tasks.spawn("trials", trials.run(trial_probes, decided, stop.clone()));
    let (published, published_seen) = watch::channel(Published::default());
    let sink = Arc::new(StatusSink::new(&paths.status, api_seen.clone()));
    let (twins, twin) = TwinWatch::new(machine.clone(), sink.clone(), &info.boot_id, Pace::default(), notables.clone());
    tasks.spawn("twin", twins.run(stop.clone()));
    let versions = release::versions(&info.version, Path::new(release::UPSTREAM)).unwrap_or_else(|error| {
        let error = applier::chain(&error);
        warn!(error, "release");
        problems.set("release", Some(error));
        release::own(&info.version)
    });
    let context = Arc::new(Context {
        control: control.clone(),
        info,
        versions,
        fingerprint: identity.pin().to_string(),
        pki: pki.clone(),
        ledger: ledger.clone(),
        statuses: sink,
        machine: machine.clone(),
        cluster: cluster.clone(),
        twin: twin.clone(),
        pool: pool.clone(),
        declared,
        in_force: in_force.clone(),
        claimants: claimants.clone(),
        refusals: refusals_seen.clone(),
        network_config,
        network: addresses.clone(),
        virtual_address,
        holding: holding.clone(),
        kernel_config,
        kernel: kernel_problems.clone(),
        registries_config,
        registries: registry_problems.clone(),
        time_config,
        time: time_view.clone(),
        upkeep,
        specs,
        services: statuses.clone(),
        phase: phase.clone(),
        node: node_view.clone(),
        api: api_seen.clone(),
        api_servers: api_servers.clone(),
        peers: peers_seen.clone(),
        membership: membership.clone(),
        restore: restore.clone(),
        leads: leads.clone(),
        due_certificates,
        asked_certificates: asked_certificates.clone(),
        published,
        problems: problems_seen.clone(),
        notables,
        applied_labels: Mutex::default(),
    });

    tasks.spawn("machine source", machine_source.run(stop.clone()));
    tasks.spawn("cluster source", cluster_source.run(stop.clone()));
    tasks.spawn("node", node.run(stop.clone()));
    tasks.spawn("pool", pool_watch.run(stop.clone()));
    tasks.spawn("peers", peers.run(stop.clone()));
    tasks.spawn("API servers", servers.run(stop.clone()));
    tasks.spawn("etcd", etcd.run(stop.clone()));
    tasks.spawn("etcd restore", restores.run(asked, stop.clone()));
    tasks.spawn("join", join.run(stop.clone()));
    let leave = Leave {
        ended: machine.ended.clone(),
        control: control.clone(),
        ledger: ledger.clone(),
        paths: paths.clone(),
        problems: problems.clone(),
    };
    let revocations = Revocations::new(machine.object.clone(), api_seen.clone(), ledger.clone())
        .context("write the API server's authorizers")?;
    tasks.spawn("revocations", revocations.run(stop.clone()));
    tasks.spawn("leave", leave.run(stop.clone()));
    tasks.spawn("certificates", certificates.run(api_seen.clone(), stop.clone()));
    let connect = Connect::new(
        machine.object.clone(),
        joined.clone(),
        membership.clone(),
        statuses.clone(),
        pki.clone(),
        api,
        problems.clone(),
    );
    tasks.spawn("connect", connect.run(stop.clone()));
    tasks.spawn(
        "probes",
        probes::run(control.clone(), Watched { specs: specs_seen, states: statuses.clone() }, stop.clone()),
    );
    let watched = events::Watched {
        machine: machine.object.clone(),
        cluster: cluster.object.clone(),
        refusals: refusals_seen.clone(),
        network: addresses.clone(),
        services: statuses.clone(),
        handed,
    };
    tasks.spawn("events", events::run(watched, api_seen.clone(), stop.clone()));
    tasks.spawn("images", preload::run(statuses.clone(), api_seen.clone(), problems, stop.clone()));
    let machine_again = stream::select_all([
        changes(addresses),
        changes(kernel_problems),
        changes(registry_problems),
        changes(time_view),
        changes(twin),
        changes(holding.clone()),
        changes(statuses.clone()),
        changes(phase),
        changes(node_view.clone()),
        changes(api_seen.clone()),
        changes(api_servers),
        changes(peers_seen),
        changes(membership.clone()),
        changes(restore),
        changes(asked_certificates),
        changes(cluster.object.clone()),
        changes(pool),
        changes(in_force),
        changes(refusals_seen.clone()),
    ]);
    tasks.spawn(
        "machine",
        applier::run(received(machine_events), machine_again, context.clone(), machine::reconcile, stop.clone()),
    );
    let cluster_again = stream::select_all([
        distinct(statuses, |statuses| (cluster::dns_is_ready(statuses), cluster::api_is_ready(statuses))),
        distinct(node_view, |view| (view.uid.clone(), view.pod_cidrs.clone())),
        changes(api_seen),
        changes(membership),
        changes(leads),
        changes(holding),
        changes(refusals_seen.clone()),
    ]);
    tasks.spawn(
        "cluster",
        applier::run(received(cluster_events), cluster_again, context.clone(), cluster::reconcile, stop.clone()),
    );

    tasks.spawn("console", console::run(context.clone(), stop.clone()));
    tasks.spawn("handover", handover::run(context.clone(), identity.clone(), stop.clone()));
    let version = context.info.version.clone();
    tasks.spawn("announce", announce::run(identity.pin(), version, tpm.clone(), claimants.clone(), stop.clone()));
    let (view, view_seen) = watch::channel(View::default());
    tasks.spawn("view", declare::keep_view(view, published_seen, refusals_seen, problems_seen, stop.clone()));
    let (declares, declared) = mpsc::channel(DECLARES);
    let declarations = Declarations { machine, cluster, claims, join_token, joined };
    tasks.spawn("declare", declarations.run(declared, stop.clone()));
    let restoring = Restoring::new(asks, folders);
    let service =
        machine_api::Service::new(control, view_seen.clone(), pki, declares, decisions, restoring, identity.pin())
            .with_tpm(tpm);
    let (admission, api_stop) = (Admission { view: view_seen, claimants }, stop.clone());
    tasks.spawn("machine API", async move {
        if let Err(error) = machine_api::run(&identity, service, admission, api_stop).await {
            error!(error = applier::chain(&error), "machine API");
        }
    });
    tasks.wait().await
}

/// The agent's tasks. Each runs until it is told to stop; one that ends before ends the agent, which PID 1 starts again.
struct Tasks {
    set: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    async fn wait(mut self) -> anyhow::Result<()> {
        let early = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = self.set.join_next() => Some(match ended {
                Some(Ok(name)) => anyhow!("the task {name} has ended"),
                Some(Err(error)) => anyhow!(error).context("a task has failed"),
                None => anyhow!("there is no task"),
            }),
        };
        self.stop.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            warn!(remaining = self.set.len(), "tasks have not ended in time");
        }
        early.map_or(Ok(()), Err)
    }
}

type Changes = stream::BoxStream<'static, ()>;

/// An item after each change.
fn changes<T: Send + Sync + 'static>(receiver: watch::Receiver<T>) -> Changes {
    Box::pin(stream::unfold(receiver, async |mut receiver| receiver.changed().await.ok().map(|()| ((), receiver))))
}

/// An item after each change of a part.
fn distinct<T: Send + Sync + 'static, P: PartialEq + Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
    part: impl Fn(&T) -> P + Send + Sync + Copy + 'static,
) -> Changes {
    let first = part(&receiver.borrow());
    Box::pin(stream::unfold((receiver, first), move |(mut receiver, former)| async move {
        let now = receiver.wait_for(|value| part(value) != former).await.map(|value| part(&value)).ok()?;
        Some(((), (receiver, now)))
    }))
}

fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|event| (event, receiver)))
}
