//! Records Events about the Machine: what happened, for whoever looks later with `kubectl describe machine`.

use std::sync::Arc;

use garboard_api::Machine;
use garboard_plan::events::{self as plan, Notable};
use garboard_runtime::applier::chain;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::context::Context;

/// Longest note that the API server takes, bytes (Kubernetes: events.k8s.io/v1, `note`).
const NOTE: usize = 1024;

/// Records until `stop`. What happens while there is no API server is in the log and in the status only.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(&context) => {}
    }
}

async fn follow(context: &Context) {
    let (mut services, mut refused) = (context.services.clone(), context.refusals.clone());
    let mut api = context.api.clone();
    let mut services_before = services.borrow_and_update().clone();
    let mut refused_before = Default::default();
    let mut recorder: Option<Recorder> = None;
    loop {
        let services_now = services.borrow_and_update().clone();
        let refused_now = refused.borrow_and_update().clone();
        if api.has_changed().unwrap_or(false) || recorder.is_none() {
            let reporter = Reporter { controller: "garboard-agent".to_owned(), instance: None };
            recorder = api.borrow_and_update().clone().map(|client| Recorder::new(client, reporter));
        }
        let machine = context.machine.current().filter(|machine| machine.metadata.uid.is_some());
        if let (Some(recorder), Some(machine)) = (&recorder, machine) {
            let notable = plan::services(&services_before, &services_now);
            for notable in notable.into_iter().chain(plan::refusals(&refused_before, &refused_now)) {
                record(recorder, &machine, notable).await;
            }
            refused_before = refused_now;
        }
        services_before = services_now;
        // Cancel-safe: each arm only waits; the sender of each lives as long as the agent.
        let changed = tokio::select! {
            changed = services.changed() => changed,
            changed = refused.changed() => changed,
            changed = api.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn record(recorder: &Recorder, machine: &Machine, notable: Notable) {
    let Notable { warning, reason, mut note } = notable;
    while note.len() > NOTE {
        note.pop();
    }
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: "Supervise".to_owned(),
        secondary: None,
    };
    // An event that is lost is in the log and in the status still.
    if let Err(error) = recorder.publish(&event, &machine.object_ref(&())).await {
        debug!(error = chain(&error), reason, "event not recorded");
    }
}
