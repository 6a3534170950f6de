//! Tells, on the Machine whose name it is, of machines that wanted to join under a name that another has and were refused: one of the
//! cluster's duties. What there is to tell is [`plan::dispute`](garboard_plan::dispute).

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use garboard_api::Machine;
use garboard_api::condition::{self, UNDISPUTED};
pub use garboard_plan::dispute::KEPT;
use garboard_plan::dispute::{self as plan, Dispute};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::after;
use garboard_runtime::status::{self, there};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{duty, events};

/// The name under which the condition is owned.
const FIELD_MANAGER: &str = "garboard-disputes";
/// How soon what has failed is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);
/// Requests that change within this time are looked at together.
const GATHER: Duration = Duration::from_millis(500);
/// Machines that are read at a time: there may be a thousand.
const PAGE: u32 = 100;

struct Disputes {
    machines: Api<Machine>,
    recorder: Recorder,
    requests: Store<CertificateSigningRequest>,
    /// The machines that have the condition; none before they were looked for.
    told: Option<BTreeSet<String>>,
}

/// Tells until `stop`; that a machine was refused is told for as long as `kept`.
pub async fn run(client: Client, kept: Duration, stop: CancellationToken) {
    let (requests, changes) = duty::all(&client, "certificatesigningrequest", strip);
    let mut changes = pin!(duty::gathered(changes, GATHER));
    let recorder = events::recorder_of(client.clone(), events::OPERATORS);
    let mut disputes = Disputes { machines: Api::all(client), recorder, requests: requests.clone(), told: None };
    let work = async {
        let listed = async { while changes.next().await.is_some() {} };
        // What changes meanwhile is in the store.
        tokio::select! {
            Ok(()) = requests.wait_until_ready() => {}
            () = listed => return,
        }
        loop {
            let next = disputes.tell_all(kept).await.unwrap_or_else(|error| {
                warn!(error = chain(&error), "it is not told which machines were refused");
                Some(ERROR_RETRY)
            });
            // Cancel-safe: both arms only wait.
            tokio::select! {
                () = after(next) => {}
                Some(()) = changes.next() => {}
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Leaves of a request who asks and what was decided.
fn strip(request: &mut CertificateSigningRequest) {
    request.metadata.managed_fields = None;
    request.spec.request = ByteString::default();
    if let Some(status) = &mut request.status {
        status.certificate = None;
    }
}

impl Disputes {
    /// Tells of all disputes; returns when the first of them ends.
    async fn tell_all(&mut self, kept: Duration) -> Result<Option<Duration>, kube::Error> {
        let told = match self.told.take() {
            Some(told) => told,
            None => self.find_told().await?,
        };
        let told = self.told.insert(told);
        let refused: Vec<_> = self.requests.state().iter().filter_map(|request| plan::refused(request)).collect();
        let disputes = plan::disputes(&refused, Timestamp::now(), kept);
        let over: Vec<_> = told.iter().filter(|name| !disputes.contains_key(name.as_str())).cloned().collect();
        for name in over {
            there(status::apply(&self.machines, &name, FIELD_MANAGER, &json!({})).await)?;
            told.remove(&name);
        }
        for (name, dispute) in &disputes {
            if tell(&self.machines, &self.recorder, name, dispute).await? {
                told.insert((*name).to_owned());
            }
        }
        Ok(disputes.values().map(|dispute| dispute.remaining).min())
    }

    /// The machines of which a dispute was told by whoever led before.
    async fn find_told(&self) -> Result<BTreeSet<String>, kube::Error> {
        let mut told = BTreeSet::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let machines = self.machines.list(&page).await?;
            page.continue_token = machines.metadata.continue_.filter(|token| !token.is_empty());
            let disputed =
                machines.items.iter().filter(|machine| condition::find(machine.conditions(), UNDISPUTED).is_some());
            told.extend(disputed.map(|machine| machine.name_any()));
            if page.continue_token.is_none() {
                return Ok(told);
            }
        }
    }
}

/// Tells of one dispute, if that is news; says whether its Machine is there.
async fn tell(
    machines: &Api<Machine>,
    recorder: &Recorder,
    name: &str,
    dispute: &Dispute,
) -> Result<bool, kube::Error> {
    let Some(machine) = machines.get_opt(name).await? else { return Ok(false) };
    let observation = plan::observation(dispute);
    let notable = plan::notable(&observation);
    let now = Time(Timestamp::now());
    if let Some(conditions) = condition::news(machine.conditions(), observation, machine.metadata.generation, &now) {
        warn!(machine = name, note = notable.note, "another machine was refused");
        let applied = status::apply(machines, name, FIELD_MANAGER, &json!({ "conditions": conditions })).await;
        if there(applied)?.is_some() {
            // One that is not taken is in the log and in the status still.
            events::record(recorder, &machine.object_ref(&()), &notable).await;
        }
    }
    Ok(true)
}
