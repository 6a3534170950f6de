//! Changes the membership, and tells what is so of each member: the duty of the machine that leads.

use std::time::Duration;

use garboard_api::condition;
use garboard_api::{EtcdMember, EtcdRole};
use garboard_etcd_client::EtcdError;
use garboard_plan::etcd::upkeep::{self, Observed};
use garboard_plan::etcd::{self as plan, Declared, Standing};
use garboard_runtime::applier::chain;
use garboard_runtime::status::{self, there};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Etcd, of, store};

/// The name under which the leading machine owns its part of statuses.
const FIELD_MANAGER: &str = "garboard-etcd";
/// The name under which it owns what it tells members to do: apart, because what stands of a member is told as a whole.
const UPKEEP_MANAGER: &str = "garboard-etcd-upkeep";
/// How soon a change that was not possible is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often the membership is looked at when nothing is to be changed.
const LOOK: Duration = Duration::from_secs(60);

impl Etcd {
    /// Ends when the machine's own etcd does not answer: whoever leads then must be another.
    pub(super) async fn tend(&self, client: &Client) {
        let api = Api::<EtcdMember>::all(client.clone());
        let mut declared = self.declared.subscribe();
        let mut told = String::new();
        loop {
            let all = declared.borrow_and_update().clone();
            match round(&api, &all).await {
                Ok(true) => sleep(RETRY).await,
                // What was told about a member changes it, and is looked at once more.
                Ok(false) => drop(timeout(LOOK, declared.changed()).await),
                Err(TendError::Store(error)) => {
                    warn!(error = chain(&error), "another machine is to tend the membership of etcd");
                    return;
                }
                Err(error) => {
                    let error = chain(&error);
                    if error != told {
                        warn!(error, "the membership of etcd is not tended");
                        told = error;
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// The membership was not tended.
#[derive(Debug, thiserror::Error)]
enum TendError {
    #[error(transparent)]
    Store(#[from] EtcdError),
    #[error("cannot tell how a member stands")]
    Api(#[from] kube::Error),
}

/// Makes the next change, and tells; says whether another may be due.
async fn round(api: &Api<EtcdMember>, all: &[EtcdMember]) -> Result<bool, TendError> {
    let mut declared: Vec<_> = all.iter().map(declaration).collect();
    declared.sort_by(|one, other| one.name.cmp(&other.name));
    let mut etcd = store::connect().await?;
    let mut members = store::members(&mut etcd).await?;
    let next = plan::next(&declared, &members);
    let mut failed = None;
    if let Some((name, step)) = &next {
        match store::apply(&mut etcd, step).await {
            Ok(()) => {
                info!(member = name, ?step, "membership of etcd changed");
                members = store::members(&mut etcd).await?;
            }
            Err(error) => failed = Some((name.as_str(), chain(&error))),
        }
    }
    let failed = failed.as_ref().map(|(name, why)| (*name, why.as_str()));
    for (declared, object) in declared.iter().filter_map(|declared| Some((declared, of(all, &declared.name)?))) {
        tell(api, object, &plan::standing(declared, &members, failed)).await?;
    }
    let more = next.is_some() || plan::next(&declared, &members).is_some();
    if !more {
        keep_small(api, all, members.len()).await?;
    }
    Ok(more)
}

fn declaration(member: &EtcdMember) -> Declared {
    Declared {
        name: member.name_any(),
        peer_url: member.spec.peer_url.clone(),
        leave: member.spec.leave || member.metadata.deletion_timestamp.is_some(),
        left: member.role() == Some(EtcdRole::Left),
        joined: member.spec.joined || member.is_taken_in(),
        id: member.status.as_ref().and_then(|status| u64::from_str_radix(status.id.as_deref()?, 16).ok()),
    }
}

/// What the machine of a member tells of it.
fn observation(member: &EtcdMember) -> Observed {
    let status = member.status.clone().unwrap_or_default();
    let healthy = status.conditions.iter().any(|found| found.type_ == condition::HEALTHY && found.status == "True");
    let bytes = |mebibytes: Option<i64>| mebibytes.unwrap_or_default() << 20;
    Observed {
        name: member.name_any(),
        healthy,
        leader: status.leader == Some(true),
        database_bytes: bytes(status.database_mebibytes),
        used_bytes: bytes(status.used_mebibytes),
        due: status.defragmentation_due.map(|due| due.0.as_second()),
        done: status.defragmented.map(|done| done.0.as_second()),
    }
}

/// Tells a member to defragment, if it is worth it and the time for it.
async fn keep_small(api: &Api<EtcdMember>, all: &[EtcdMember], members: usize) -> Result<(), kube::Error> {
    let observed: Vec<_> = all.iter().filter(|member| member.is_taken_in()).map(observation).collect();
    // One that nobody tells of may be doing it.
    if observed.len() != members {
        return Ok(());
    }
    let now = Timestamp::now();
    let Some(name) = upkeep::next(&observed, now.as_second()) else { return Ok(()) };
    // Whole seconds, as the API server keeps them.
    let due = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    info!(member = name, "a member of etcd is to defragment");
    status::apply(api, name, UPKEEP_MANAGER, &json!({ "defragmentationDue": due })).await.map(drop)
}

/// Tells how a member stands, if that is news.
async fn tell(api: &Api<EtcdMember>, member: &EtcdMember, standing: &Standing) -> Result<(), kube::Error> {
    let Standing { id, role, initial_cluster, condition } = standing;
    let former = member.status.clone().unwrap_or_default();
    let joined: Vec<_> = former.conditions.iter().filter(|found| found.type_ == condition::JOINED).cloned().collect();
    let conditions = condition::merge(&joined, [condition.clone()], None, &Time(Timestamp::now()));
    let id = id.map(|id| format!("{id:x}"));
    // What it began with is told once.
    let initial_cluster =
        if former.initial_cluster.is_empty() { initial_cluster.clone() } else { former.initial_cluster.clone() };
    if (conditions == joined, &id, role, &initial_cluster) == (true, &former.id, &former.role, &former.initial_cluster)
    {
        return Ok(());
    }
    let status = json!({ "id": id, "role": role, "initialCluster": initial_cluster, "conditions": conditions });
    // Its machine may have gone meanwhile.
    there(status::apply(api, &member.name_any(), FIELD_MANAGER, &status).await).map(drop)
}
