//! Tells how the machine's member is.

use std::time::Duration;

use garboard_api::condition::{self, Observation};
use garboard_api::{EtcdMember, Machine};
use garboard_catalog::etcd::NAME;
use garboard_etcd_client::{EtcdError, Health};
use garboard_runtime::applier::chain;
use garboard_runtime::status::{self, FIELD_MANAGER};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::json;
use tracing::debug;

use super::{Etcd, of, store, upkeep};
use crate::services::readiness;

/// Sizes are told so often; a start or an end of etcd at once.
const LOOK: Duration = Duration::from_secs(60);
const MEBIBYTE: i64 = 1 << 20;

/// How the member is, as far as it is told: in the form of its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    leader: bool,
    version: String,
    database_mebibytes: i64,
    used_mebibytes: i64,
    alarms: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    defragmented: Option<Time>,
    /// What is wrong, in words.
    #[serde(skip)]
    problem: Option<String>,
}

impl Report {
    fn new(serves: bool, answer: Result<Health, EtcdError>, defragmented: Option<Time>) -> Self {
        let (health, silence) = match answer {
            Ok(health) => (health, None),
            Err(error) => (Health::default(), Some(chain(&error))),
        };
        let (leader, full) = (health.leads(), upkeep::no_space(&health));
        let Health { version, database_bytes, used_bytes, alarms, errors, .. } = health;
        let alarm = full.or_else(|| alarms.first().map(|alarm| format!("alarm {alarm}")));
        let early = (!serves).then(|| "etcd does not serve".to_owned());
        let problem = silence.or(alarm).or_else(|| errors.into_iter().next()).or(early);
        let (database_mebibytes, used_mebibytes) = (mebibytes(database_bytes), mebibytes(used_bytes));
        Self { leader, version, database_mebibytes, used_mebibytes, alarms, defragmented, problem }
    }

    async fn tell(&self, api: &Api<EtcdMember>, name: &str) -> Result<(), kube::Error> {
        let observation = match &self.problem {
            None => Observation::new(condition::HEALTHY, true, "Serving", "it answers, and has no alarm"),
            Some(problem) => Observation::new(condition::HEALTHY, false, "NotServing", problem),
        };
        let mut former = api.get(name).await?.status.unwrap_or_default().conditions;
        former.retain(|found| found.type_ == condition::HEALTHY);
        let mut status = json!(self);
        status["conditions"] = json!(condition::merge(&former, [observation], None, &Time(Timestamp::now())));
        status::apply(api, name, FIELD_MANAGER, &status).await.map(drop)
    }
}

impl Etcd {
    /// How the member is, after it has defragmented if it was asked to, or had to make space; and whether it has done what it was asked.
    async fn keep_up(&self, asked: bool) -> (Result<Health, EtcdError>, bool) {
        let kept = async {
            let mut etcd = store::connect().await?;
            if asked {
                return upkeep::defragment(&mut etcd).await.map(|(_, after)| after);
            }
            let health = etcd.health().await?;
            upkeep::make_space(&mut etcd, health).await
        };
        let answer = kept.await;
        // Where the store takes no changes no status can tell it.
        self.problems.set(NAME, answer.as_ref().ok().and_then(upkeep::no_space));
        let done = asked && answer.is_ok();
        (answer, done)
    }

    /// Tells how the member is, whenever that changes, until nobody publishes any more what it depends on.
    pub(super) async fn report(&self, client: &Client, machine: &Machine) {
        let (api, name) = (Api::<EtcdMember>::all(client.clone()), machine.node_name());
        let (mut services, mut declared) = (self.services.clone(), self.declared.subscribe());
        // What it is told; what it tells of itself is no news to it.
        let due = |own: &EtcdMember| own.status.as_ref().and_then(|status| status.defragmentation_due.clone());
        let mut told = None;
        loop {
            let own = of(&declared.borrow_and_update(), name).cloned();
            let (told_due, serves) = (own.as_ref().map(due), readiness(&services.borrow_and_update(), NAME));
            if let (Some(own), Some(serves)) = (own, serves) {
                let done_before = own.status.as_ref().and_then(|status| status.defragmented.clone());
                let asked = due(&own).filter(|due| serves && done_before.as_ref() < Some(due));
                let (answer, done) = self.keep_up(asked.is_some()).await;
                let report = Report::new(serves, answer, asked.filter(|_| done).or(done_before));
                if told.as_ref() != Some(&report) {
                    match report.tell(&api, name).await {
                        Ok(()) => told = Some(report),
                        Err(error) => debug!(error = chain(&error), "cannot tell how etcd is"),
                    }
                }
            }
            let change = async {
                // Cancel-safe: each arm only waits.
                tokio::select! {
                    found = services.wait_for(|now| readiness(now, NAME) != serves) => found.is_ok(),
                    found = declared.wait_for(|now| of(now, name).map(due) != told_due) => found.is_ok(),
                }
            };
            if tokio::time::timeout(LOOK, change).await == Ok(false) {
                return;
            }
        }
    }
}

/// Full MiB, and what is left.
fn mebibytes(bytes: i64) -> i64 {
    (bytes + MEBIBYTE - 1) / MEBIBYTE
}
