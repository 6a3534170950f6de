//! Tells how the machine's member is.

use std::time::Duration;

use garboard_api::condition::{self, Observation};
use garboard_api::{EtcdMember, Machine};
use garboard_catalog::etcd::NAME;
use garboard_etcd_client::{EtcdError, Health};
use garboard_runtime::applier::chain;
use garboard_runtime::status::FIELD_MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tracing::debug;

use super::{Etcd, store};

/// Sizes are told so often; a start or an end of etcd at once.
const LOOK: Duration = Duration::from_secs(60);
const MEBIBYTE: i64 = 1 << 20;

impl Etcd {
    pub(super) async fn report(&self, client: &Client, machine: &Machine) {
        let api = Api::<EtcdMember>::all(client.clone());
        let mut services = self.services.clone();
        let mut declared = self.declared.subscribe();
        let (mut told, mut served) = (Value::Null, None);
        loop {
            let name = machine.node_name();
            let is_there =
                declared.borrow_and_update().iter().any(|member| member.metadata.name.as_deref() == Some(name));
            let serves = services
                .borrow_and_update()
                .iter()
                .find(|service| service.name.to_string() == NAME)
                .map(|service| service.ready);
            if let (true, Some(serves)) = (is_there, serves) {
                let status = status(serves, store::health().await);
                if status != told {
                    match tell(&api, name, &status).await {
                        Ok(()) => told = status,
                        Err(error) => debug!(error = chain(&error), "cannot tell how etcd is"),
                    }
                }
            }
            served = serves.or(served);
            let change = async {
                let differs = |now: Option<bool>| now != served;
                tokio::select! {
                    found = services.wait_for(|services| {
                        differs(services.iter().find(|service| service.name.to_string() == NAME).map(|service| service.ready))
                    }) => found.is_ok(),
                    found = declared.wait_for(|declared| {
                        is_there != declared.iter().any(|member| member.metadata.name.as_deref() == Some(name))
                    }) => found.is_ok(),
                }
            };
            // What changes so often that it is missed is seen at the next look.
            if tokio::time::timeout(LOOK, change).await == Ok(false) {
                return;
            }
        }
    }
}

/// The part of the status that the machine itself tells, without a time.
fn status(serves: bool, health: Result<Health, EtcdError>) -> Value {
    let (health, problem) = match health {
        Ok(health) => (health, None),
        Err(error) => (Health::default(), Some(chain(&error))),
    };
    let Health { leader, version, database_bytes, used_bytes, alarms, errors } = health;
    let problem =
        problem.or_else(|| alarms.first().map(|alarm| format!("alarm {alarm}"))).or_else(|| errors.first().cloned());
    let healthy = serves && problem.is_none();
    json!({
        "leader": leader,
        "version": Some(version).filter(|version| !version.is_empty()),
        "databaseMebibytes": (database_bytes + MEBIBYTE - 1) / MEBIBYTE,
        "usedMebibytes": (used_bytes + MEBIBYTE - 1) / MEBIBYTE,
        "alarms": alarms,
        "healthy": healthy,
        "problem": problem.unwrap_or_else(|| if serves { String::new() } else { "etcd does not serve yet".to_owned() }),
    })
}

async fn tell(api: &Api<EtcdMember>, name: &str, status: &Value) -> Result<(), kube::Error> {
    let mut status = status.clone();
    let healthy = status["healthy"] == json!(true);
    let message = match status["problem"].as_str() {
        Some(problem) if !healthy => problem.to_owned(),
        _ => "it answers, and has no alarm".to_owned(),
    };
    let observation =
        Observation::new(condition::HEALTHY, healthy, if healthy { "Serving" } else { "NotServing" }, message);
    let former = api.get(name).await?.status.unwrap_or_default().conditions;
    let former: Vec<_> = former.into_iter().filter(|found| found.type_ == condition::HEALTHY).collect();
    if let Some(fields) = status.as_object_mut() {
        fields.remove("healthy");
        fields.remove("problem");
        fields.retain(|_, value| !value.is_null());
        fields.insert(
            "conditions".into(),
            json!(condition::merge(&former, [observation], None, &Time(Timestamp::now()))),
        );
    }
    let patch = json!({
        "apiVersion": garboard_api::API_VERSION,
        "kind": "EtcdMember",
        "metadata": { "name": name },
        "status": status,
    });
    api.patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch)).await.map(drop)
}
