//! Where statuses go.
//!
//! Each status is a file below `/run/garboard/status`, so that it can be looked at whether or not there is an API server,
//! and the status subresource of its object once the API server has it. Both are written only when they change.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kind::Kind;

/// The name under which the agent owns fields of objects.
pub const FIELD_MANAGER: &str = "garboard-agent";

/// Longest time that the API server has to answer: one that hangs must not hold up what the machine does.
pub const ANSWER: Duration = Duration::from_secs(10);

/// The API server did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server has not answered within {} seconds", ANSWER.as_secs())]
pub struct NoAnswer;

/// What a question to the API server yields, if that takes no longer than [`ANSWER`].
///
/// # Errors
/// [`NoAnswer`].
pub async fn in_time<T>(question: impl Future<Output = T>) -> Result<T, NoAnswer> {
    tokio::time::timeout(ANSWER, question).await.map_err(|_| NoAnswer)
}

/// A status could not be published. Trying again later can help.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// It is no JSON.
    #[error("cannot write the status of {kind} {name} as JSON")]
    Encode {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file could not be written.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API server did not answer in time.
    #[error("the API server has not taken the status of {kind} {name} within {} seconds", ANSWER.as_secs())]
    Timeout {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
    },
    /// The API server did not take it.
    #[error("cannot apply the status of {kind} {name}")]
    Apply {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// The answer.
        #[source]
        source: Box<kube::Error>,
    },
}

/// An object whose status was published: kind, name, and the UID that the API server gave it.
type Published = (&'static str, String, Option<String>);

/// Applies what `manager` owns of the status of an object.
///
/// # Errors
/// The API server's answer.
pub async fn apply<K>(api: &Api<K>, name: &str, manager: &str, status: &Value) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name },
        "status": status,
    });
    api.patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(&body)).await
}

/// What an answer comes to where it is as good that the object is not there any more.
///
/// # Errors
/// Every other answer.
pub fn there<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        other => other.map(Some),
    }
}

/// Where statuses go.
pub struct StatusSink {
    folder: PathBuf,
    api: watch::Receiver<Option<Client>>,
    /// What the API server has, as far as this process told it.
    applied: Mutex<BTreeMap<Published, Value>>,
}

impl std::fmt::Debug for StatusSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusSink").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl StatusSink {
    /// Statuses go to files in `folder`, and to `api` whenever it holds a client.
    pub fn new(folder: impl Into<PathBuf>, api: watch::Receiver<Option<Client>>) -> Self {
        Self { folder: folder.into(), api, applied: Mutex::default() }
    }

    /// The status that an object had, also before this process was started.
    pub fn former<K: Kind>(&self, name: &str) -> K::Status
    where
        K::Status: Default,
    {
        read(&self.path::<K>(name)).unwrap_or_default()
    }

    /// Notes that the API server has another status of an object than this process told it: it is told again when it is published next.
    pub fn overwritten<K: Kind>(&self, name: &str) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        applied.retain(|(kind, object, _), _| *kind != K::FILE || object != name);
    }

    /// Publishes the status of an object.
    ///
    /// Cancelled, it may have written the file and not told the API server; the next call does.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn publish<K: Kind>(&self, object: &K, status: &K::Status) -> Result<(), StatusError> {
        let kind = K::FILE;
        let name = object.object_name().to_owned();
        let value =
            serde_json::to_value(status).map_err(|source| StatusError::Encode { kind, name: name.clone(), source })?;
        let path = self.path::<K>(&name);
        if read::<Value>(&path).as_ref() != Some(&value) {
            write(&path, &value).map_err(|source| StatusError::File { path, source })?;
        }
        let client = self.api.borrow().clone();
        // An object without UID is not in the API (yet).
        let (Some(client), Some(uid)) = (client, object.meta().uid.clone()) else { return Ok(()) };
        let key = (kind, name.clone(), Some(uid));
        if self.applied.lock().unwrap_or_else(PoisonError::into_inner).get(&key) == Some(&value) {
            return Ok(());
        }
        let Ok(applied) = in_time(apply(&Api::<K>::all(client), &name, FIELD_MANAGER, &value)).await else {
            return Err(StatusError::Timeout { kind, name });
        };
        // One that was deleted meanwhile is made again by whoever declares it, with another UID.
        let applied = there(applied).map_err(|source| StatusError::Apply { kind, name, source: Box::new(source) })?;
        if applied.is_some() {
            self.applied.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
        }
        Ok(())
    }

    fn path<K: Kind>(&self, name: &str) -> PathBuf {
        self.folder.join(K::FILE).join(format!("{name}.json"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn write(path: &Path, value: &Value) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // A reader sees the old or the new status. It lives in memory, so it is not synced.
    let new = path.with_extension("new");
    fs::write(&new, format!("{value:#}\n"))?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use garboard_api::{Machine, MachineStatus};

    use super::*;

    #[tokio::test]
    async fn without_an_api_server_a_status_is_a_file_that_survives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let (_sender, api) = watch::channel(None);
        let machine = Machine::new("node-1", Default::default());
        let status = MachineStatus { phase: Some("Starting".into()), ..MachineStatus::default() };
        StatusSink::new(folder.path(), api.clone()).publish(&machine, &status).await.unwrap();
        let sink = StatusSink::new(folder.path(), api);
        assert_eq!(sink.former::<Machine>("node-1"), status);
        assert_eq!(sink.former::<Machine>("other"), MachineStatus::default());
        assert!(folder.path().join("machine/node-1.json").exists());
    }
}
