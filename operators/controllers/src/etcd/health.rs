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

use super::{Etcd, store, upkeep};
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
            let health = etcd.health().await?;
            if asked {
                upkeep::defragment(&mut etcd).await?;
            } else if !upkeep::make_space(&mut etcd, &health).await? {
                return Ok(health);
            }
            etcd.health().await
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
        // Whether it is declared; and when it was told to defragment, and what it has done.
        let own = |all: &Vec<EtcdMember>| {
            let own = all.iter().find(|member| member.metadata.name.as_deref() == Some(name))?;
            let status = own.status.clone().unwrap_or_default();
            Some((status.defragmentation_due, status.defragmented))
        };
        let mut told = None;
        loop {
            let (there, serves) = (own(&declared.borrow_and_update()), readiness(&services.borrow_and_update(), NAME));
            if let (Some((due, done)), Some(serves)) = (&there, serves) {
                let asked = due.as_ref().filter(|due| serves && done.as_ref() < Some(*due));
                let (answer, done) = self.keep_up(asked.is_some()).await;
                let defragmented = asked.filter(|_| done).or(done_before(there.as_ref()));
                let report = Report::new(serves, answer, defragmented.cloned());
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
                    found = declared.wait_for(|now| due_of(own(now)) != due_of(there.clone())) => found.is_ok(),
                }
            };
            if tokio::time::timeout(LOOK, change).await == Ok(false) {
                return;
            }
        }
    }
}

/// Whether it is declared, and when it was told to defragment: what it tells of itself is no news to it.
fn due_of(own: Option<(Option<Time>, Option<Time>)>) -> Option<Option<Time>> {
    own.map(|(due, _)| due)
}

fn done_before(own: Option<&(Option<Time>, Option<Time>)>) -> Option<&Time> {
    own.and_then(|(_, done)| done.as_ref())
}

/// Full MiB, and what is left.
fn mebibytes(bytes: i64) -> i64 {
    (bytes + MEBIBYTE - 1) / MEBIBYTE
}
