//! The record of removed machines in the status of the Cluster, by which their certificates count no longer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use garboard_api::Cluster;
use garboard_api::cluster::{self, RemovedMachine};
use garboard_plan::revocation as plan;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

/// What becomes of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is removed.
    Removed,
    /// It is let in again.
    Readmitted,
}

/// Changes the record. It is one object, which would refuse all but one of many changes at a time: those that come while one is written
/// are written together by the next.
pub struct RemovedMachines {
    clusters: Api<Cluster>,
    /// What is not written yet.
    due: Mutex<BTreeMap<String, Change>>,
    writing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for RemovedMachines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemovedMachines").finish_non_exhaustive()
    }
}

impl RemovedMachines {
    /// The record in the cluster of this client.
    pub fn new(client: Client) -> Self {
        Self { clusters: Api::all(client), due: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    /// Records what becomes of a machine, and returns when that is written. Cancelled, it may have written it or not.
    ///
    /// # Errors
    /// The API server's answer; also when somebody else changes the Cluster at the same moment. Repeating it can help.
    pub async fn record(&self, machine: &str, change: Change) -> Result<(), kube::Error> {
        self.due().insert(machine.to_owned(), change);
        let _writing = self.writing.lock().await;
        if !self.due().contains_key(machine) {
            // Whoever wrote before has written it too.
            return Ok(());
        }
        let changes = self.due().clone();
        self.write(&changes).await?;
        // What has become something else meanwhile stays due.
        self.due().retain(|machine, change| changes.get(machine) != Some(change));
        Ok(())
    }

    /// Whether a machine is recorded as removed.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn has(&self, machine: &str) -> Result<bool, kube::Error> {
        let status = self.clusters.get_opt(cluster::NAME).await?.and_then(|cluster| cluster.status);
        Ok(status.is_some_and(|status| status.removed_machines.iter().any(|removed| removed.machine == machine)))
    }

    async fn write(&self, changes: &BTreeMap<String, Change>) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let changed = |before: &[RemovedMachine]| {
            changes.iter().fold(before.to_vec(), |removed, (machine, change)| match change {
                Change::Removed => plan::with(&removed, machine, now),
                Change::Readmitted => plan::without(&removed, machine, now),
            })
        };
        let found = match self.clusters.get(cluster::NAME).await {
            // Where nothing is recorded, nothing is to be taken back.
            Err(kube::Error::Api(status)) if status.code == 404 && changed(&[]).is_empty() => return Ok(()),
            found => found?,
        };
        let before = found.status.unwrap_or_default().removed_machines;
        let after = changed(&before);
        if after == before {
            return Ok(());
        }
        let patch = json!({
            "metadata": { "resourceVersion": found.metadata.resource_version },
            "status": { "removedMachines": after },
        });
        self.clusters.patch_status(cluster::NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<String, Change>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::join_all;
    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server that has a Cluster and counts how often it is written.
    #[derive(Default)]
    struct Server {
        cluster: Mutex<Value>,
        writes: Mutex<usize>,
        refuses: Mutex<bool>,
    }

    impl Server {
        fn new() -> Arc<Self> {
            let cluster = Cluster::new(cluster::NAME, Default::default());
            Arc::new(Self { cluster: Mutex::new(serde_json::to_value(cluster).unwrap()), ..Self::default() })
        }

        fn records(self: &Arc<Self>) -> RemovedMachines {
            let server = self.clone();
            let service = tower::service_fn(move |request| server.clone().answer(request));
            RemovedMachines::new(Client::new(service, "default"))
        }

        async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
            // As long as an answer takes, others come.
            tokio::task::yield_now().await;
            let write = request.method() == Method::PATCH;
            let body = request.into_body().collect_bytes().await?;
            if write && *self.refuses.lock().unwrap() {
                let refusal = json!({ "kind": "Status", "code": 409, "status": "Failure", "message": "no", "reason": "Conflict" });
                let refused =
                    Response::builder().status(StatusCode::CONFLICT).body(Body::from(refusal.to_string().into_bytes()));
                return Ok(refused.unwrap());
            }
            let mut cluster = self.cluster.lock().unwrap();
            if write {
                *self.writes.lock().unwrap() += 1;
                cluster["status"] = serde_json::from_slice::<Value>(&body).unwrap()["status"].take();
            }
            Ok(Response::new(Body::from(cluster.to_string().into_bytes())))
        }

        fn removed(&self) -> Vec<String> {
            let cluster: Cluster = serde_json::from_value(self.cluster.lock().unwrap().clone()).unwrap();
            let removed = cluster.status.unwrap_or_default().removed_machines;
            removed.into_iter().map(|removed| removed.machine).collect()
        }
    }

    #[tokio::test]
    async fn machines_that_leave_together_are_recorded_together() {
        let (server, names) = (Server::new(), (0..100).map(|number| format!("{number:03}")).collect::<Vec<_>>());
        let records = server.records();
        let written = join_all(names.iter().map(|name| records.record(name, Change::Removed))).await;
        assert!(written.iter().all(Result::is_ok));
        // The first one, and all that came while it was written.
        assert_eq!((server.removed(), *server.writes.lock().unwrap()), (names, 2));
        records.record("007", Change::Readmitted).await.unwrap();
        assert_eq!(server.removed().len(), 99);
    }

    #[tokio::test]
    async fn nobody_is_told_of_a_record_that_was_not_written() {
        let server = Server::new();
        let records = server.records();
        *server.refuses.lock().unwrap() = true;
        let written = join_all(["a", "b"].map(|name| records.record(name, Change::Removed))).await;
        assert!(written.iter().all(Result::is_err));
        *server.refuses.lock().unwrap() = false;
        // What is tried again takes the other along.
        records.record("a", Change::Removed).await.unwrap();
        assert_eq!(server.removed(), ["a", "b"]);
    }
}
