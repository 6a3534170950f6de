//! Connects the machine API with what is declared: shows it, and takes what is handed over.

use garboard_api::manifest::Manifests;
use garboard_api::{Cluster, Machine, Refusals, refusal};
use garboard_machine_api::proto::AppliedObject;
use garboard_runtime::applier::chain;
use garboard_runtime::kind::Kind;
use garboard_runtime::source::Declared;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::context::Published;
use crate::machine_api::{Declare, View};
use crate::problems::{self, Listed};

/// Keeps what the machine API shows, until `stop`.
pub async fn keep_view(
    view: watch::Sender<View>,
    mut published: watch::Receiver<Published>,
    mut refusals: watch::Receiver<Refusals>,
    mut problems: watch::Receiver<Listed>,
    stop: CancellationToken,
) {
    loop {
        let Published { machine, cluster } = published.borrow_and_update().clone();
        let refused = refusals.borrow_and_update().clone();
        let problems_now = refusal::lines(&refused).chain(problems::lines(&problems.borrow_and_update())).collect();
        view.send_replace(View { machine, cluster, problems: problems_now });
        // Cancel-safe: each arm only waits.
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = published.changed() => {}
            Ok(()) = refusals.changed() => {}
            Ok(()) = problems.changed() => {}
        }
    }
}

/// Declares what is handed over by the machine API, until `stop`.
pub async fn run(
    mut declares: mpsc::Receiver<Declare>,
    machine: Declared<Machine>,
    cluster: Declared<Cluster>,
    stop: CancellationToken,
) {
    loop {
        let Declare { manifests, dry_run, reply } = tokio::select! {
            () = stop.cancelled() => return,
            declare = declares.recv() => match declare {
                Some(declare) => declare,
                None => return stop.cancelled().await,
            },
        };
        // Whatever is wrong with either is found before anything is changed.
        let mut outcome = submit(&manifests, &cluster, &machine, true).await;
        if outcome.is_ok() && !dry_run {
            outcome = submit(&manifests, &cluster, &machine, false).await;
        }
        // Whoever asked may be gone.
        let _ = reply.send(outcome);
    }
}

async fn submit(
    manifests: &Manifests,
    cluster: &Declared<Cluster>,
    machine: &Declared<Machine>,
    dry_run: bool,
) -> Result<Vec<AppliedObject>, String> {
    let mut applied = Vec::new();
    submit_one(manifests.cluster.as_ref(), cluster, dry_run, &mut applied).await?;
    submit_one(manifests.machine.as_ref(), machine, dry_run, &mut applied).await?;
    Ok(applied)
}

async fn submit_one<K: Kind>(
    object: Option<&K>,
    declared: &Declared<K>,
    dry_run: bool,
    applied: &mut Vec<AppliedObject>,
) -> Result<(), String> {
    let Some(object) = object else { return Ok(()) };
    let created = declared.current().is_none();
    let (kind, name) = (K::kind(&()).into_owned(), object.object_name().to_owned());
    let differs = declared
        .submit(object.clone(), dry_run)
        .await
        .map_err(|error| format!("{kind} {name:?}: {}", chain(&error)))?;
    let outcome = match (created, differs) {
        (true, _) => "created",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    applied.push(AppliedObject { kind, name, outcome: outcome.to_owned() });
    Ok(())
}
