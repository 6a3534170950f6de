//! Keeps the status screen on the machine's consoles: gathers what the agent knows, has it rendered, and hands it to PID 1
//! when it differs from what is there.

use std::sync::Arc;
use std::time::Duration;

use garboard_api::machine::MachineStatus;
use garboard_api::{Machine, condition, refusal};
use garboard_control::MachinePhase;
use garboard_machine_api::DEFAULT_PORT;
use garboard_plan::console::{Size, View, render};
use garboard_plan::machine::phase;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::claim::Claimants;
use crate::context::Context;
use crate::problems;

/// Shortest time between two screens: a serial line takes a second for a few of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the screen until `stop`; the last one stays.
#[tracing::instrument(name = "console", skip_all)]
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut network = context.network.clone();
    let mut services = context.services.clone();
    let mut refusals = context.refusals.clone();
    let mut problems = context.problems.clone();
    let mut phases = context.phase.clone();
    let mut machine = context.machine.object.clone();
    let mut cluster = context.cluster.object.clone();
    let mut claimants = context.claimants.clone();
    let mut published = context.published.subscribe();
    let mut shown = String::new();
    let mut failing = false;
    loop {
        let text = render(&view(&context), Size::default());
        if text != shown {
            match context.control.console(&text).await {
                Ok(()) => {
                    shown = text;
                    failing = false;
                }
                // Without a console the machine works as well; the next change tries again.
                Err(error) if failing => debug!(%error, "still no screen"),
                Err(error) => {
                    warn!(%error, "cannot draw the screen");
                    failing = true;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        // All arms are cancel-safe: a change that is not taken now is taken in the next round.
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = network.changed() => changed,
            changed = services.changed() => changed,
            changed = refusals.changed() => changed,
            changed = problems.changed() => changed,
            changed = phases.changed() => changed,
            changed = machine.changed() => changed,
            changed = cluster.changed() => changed,
            Ok(()) = claimants.changed() => Ok(()),
            changed = published.changed() => changed,
        };
        if changed.is_err() {
            // The agent is ending: whoever published is gone.
            return stop.cancelled().await;
        }
    }
}

fn view(context: &Context) -> View {
    let network = context.network.borrow().clone();
    let machine = context.machine.current();
    let cluster = context.cluster.current();
    let published = context.published.borrow().clone();
    let status = published.machine.and_then(|machine| machine.status).unwrap_or_default();

    let mut problems: Vec<String> = refusal::lines(&context.refusals.borrow()).collect();
    problems.extend(problems::lines(&context.problems.borrow()));
    problems.extend(context.info.problems.iter().cloned());
    problems.extend(network.problems);
    for type_ in [condition::TIME_SYNCHRONIZED, condition::UNIQUE] {
        let told = condition::find(&status.conditions, type_).filter(|told| told.status == condition::FALSE);
        problems.extend(told.map(|told| told.message.clone()));
    }
    let network_waiting = network.waiting.clone();
    let mut waiting = network.waiting;
    match (&machine, &cluster) {
        (Some(_), Some(_)) => {}
        (Some(machine), None) if machine.joins() => {
            waiting.push("the cluster that the machine joins".to_owned());
        }
        _ if *context.claimants.borrow() == Claimants::Anybody => waiting.push(
            "somebody to say what it should be: with `garboardctl new` (a new cluster) or `garboardctl join`, each with the address and the \
             key above, and then `garboardctl claim`"
                .to_owned(),
        ),
        _ => waiting.push("a Machine and a Cluster to be declared (garboardctl new makes them)".to_owned()),
    }
    let declared = machine.as_ref().zip(cluster.as_ref());
    let endpoint =
        declared.and_then(|(machine, cluster)| cluster.endpoint_of(machine, network.addresses.first().copied()));
    let endpoint = endpoint.map(|endpoint| endpoint.to_string());
    View {
        name: machine.as_deref().map(Machine::node_name).map(str::to_owned),
        version: context.info.version.clone(),
        phase: match *context.phase.borrow() {
            MachinePhase::Running => status.phase.clone().unwrap_or_else(|| phase::STARTING.to_owned()),
            MachinePhase::PreparingShutdown { .. } | MachinePhase::Stopping { .. } => phase::STOPPING.to_owned(),
        },
        reason: reason(&status, &[&problems, &network_waiting]),
        addresses: network.addresses,
        link: network.link,
        endpoint,
        kubernetes: published.cluster.and_then(|cluster| cluster.status?.kubernetes_version),
        machine_api_port: DEFAULT_PORT,
        fingerprint: context.fingerprint.clone(),
        problems: garboard_plan::network::distinct(problems),
        waiting,
        services: context.services.borrow().to_vec(),
    }
}

/// Why the machine is not ready, unless the lines below say it themselves.
fn reason(status: &MachineStatus, said: &[&[String]]) -> Option<String> {
    let ready = condition::find(&status.conditions, condition::READY)?;
    let said_below = matches!(ready.reason.as_str(), "NotServing" | "CrashLooping" | "NoCluster" | "NotJoined")
        || said.iter().any(|texts| texts.contains(&ready.message) || texts.join("; ") == ready.message);
    (ready.status != condition::TRUE && !said_below).then(|| ready.message.clone())
}
