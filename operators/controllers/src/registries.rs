//! Brings the credentials of registries to kubelet: from the Secrets that are declared, which it follows in the API.
//!
//! What is used of them is kept on the state partition for when no API server answers. What is made of them is in memory, where kubelet
//! looks for it ([`garboard_catalog::logins`]). Nothing of a Secret's values is logged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use garboard_api::{REGISTRIES_NAMESPACE, REGISTRY_SECRET_KEY};
use garboard_catalog::logins::{self, Logins};
use garboard_catalog::{kubelet, users};
use garboard_control::Client as Control;
use garboard_plan::registries::{self as plan, Declared, Known, Seen};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::after;
use garboard_supervisor::spec::ServiceName;
use garboard_supervisor::status::ServiceStatus;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pki::FileError;
use crate::pki::files::{self, make_folder, replace};
use crate::services::readiness;

pub use garboard_plan::registries::declared;

/// Time until a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Only root reads credentials.
const MODE: u32 = 0o600;

/// Where credentials are.
#[derive(Clone, Debug)]
pub struct RegistryPaths {
    /// What is kept of Secrets, on the state partition.
    pub kept: PathBuf,
    /// What kubelet reads.
    pub config: PathBuf,
}

impl RegistryPaths {
    /// What is kept is at this place, and what kubelet reads where it looks.
    pub fn new(kept: &Path) -> Self {
        Self { kept: kept.to_owned(), config: logins::FILE.into() }
    }
}

/// The task that brings credentials to kubelet.
pub struct Registries {
    config: watch::Receiver<Option<Declared>>,
    api: watch::Receiver<Option<Client>>,
    services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    control: Control,
    paths: RegistryPaths,
    known: Known,
    problems: watch::Sender<Vec<String>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

/// The Secrets of a declaration, as they are seen one by one.
type Watch = BoxStream<'static, (String, Seen)>;

impl Registries {
    /// Prepares the task, and the channel on which it publishes the credentials that are lacking. It begins with what was kept.
    pub fn new(
        config: watch::Receiver<Option<Declared>>,
        api: watch::Receiver<Option<Client>>,
        services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
        control: Control,
        paths: RegistryPaths,
    ) -> (Self, watch::Receiver<Vec<String>>) {
        let known = Known::kept(kept(&paths.kept).unwrap_or_else(|error| {
            warn!(error = chain(&error), "credentials of registries are not known until the API server answers");
            BTreeMap::new()
        }));
        let (problems, receiver) = watch::channel(Vec::new());
        (Self { config, api, services, control, paths, known, problems }, receiver)
    }

    /// Keeps the credentials until `stop`. Until a Machine is declared, nothing that was kept is known to be superfluous.
    pub async fn run(mut self, stop: CancellationToken) {
        let declared = async { self.config.wait_for(Option::is_some).await.map(drop) };
        let Some(Ok(())) = stop.run_until_cancelled(declared).await else { return };
        loop {
            let declared = self.config.borrow_and_update().clone().unwrap_or_default();
            let client = self.api.borrow_and_update().clone();
            let mut watch = client.map_or_else(|| stream::pending().boxed(), |client| follow(&client, &declared));
            self.known.forget_others(&declared);
            loop {
                let again = self.keep(&declared).await;
                // Cancel-safe: each arm only waits, or takes what it handles.
                tokio::select! {
                    () = stop.cancelled() => return,
                    Ok(()) = self.config.changed() => break,
                    Ok(()) = self.api.changed() => break,
                    Some((secret, seen)) = watch.next() => self.known.see(&secret, seen),
                    () = after(again) => {}
                }
            }
        }
    }

    /// Writes what is known, tells what is lacking, and returns when to try again.
    async fn keep(&mut self, declared: &Declared) -> Option<Duration> {
        let mut problems = self.known.problems(declared);
        let written = write(&self.paths, &self.known.logins, &self.known.logins(declared));
        let again = match written {
            Ok(true) => {
                self.tell_kubelet().await;
                None
            }
            Ok(false) => None,
            Err(error) => {
                problems.push(chain(&error));
                Some(RETRY)
            }
        };
        self.problems.send_if_modified(|current| {
            let differs = *current != problems;
            problems
                .iter()
                .filter(|problem| !current.contains(problem))
                .for_each(|problem| warn!(problem, "registries"));
            *current = problems;
            differs
        });
        again
    }

    /// Starts kubelet again, if it was started before: it keeps what it has read for minutes.
    async fn tell_kubelet(&self) {
        info!("credentials of registries have changed");
        let runs = readiness(&self.services.borrow(), kubelet::NAME).is_some();
        if let (true, Ok(kubelet)) = (runs, ServiceName::try_from(kubelet::NAME))
            && let Err(error) = self.control.restart_service(&kubelet).await
        {
            warn!(error = chain(&error), "kubelet goes by the former credentials for some minutes");
        }
    }
}

/// Follows the Secrets that are declared.
fn follow(client: &Client, declared: &Declared) -> Watch {
    let mut names: Vec<_> = declared.values().cloned().collect();
    names.sort();
    names.dedup();
    let secrets = Api::<Secret>::namespaced(client.clone(), REGISTRIES_NAMESPACE);
    let watches = names.into_iter().map(|name| {
        let watch = watcher::watch_object(secrets.clone(), &name);
        let seen = garboard_api_client::or_refused("registry credentials", watch).map(move |event| {
            let seen = match event {
                Ok(Some(secret)) => see(&secret),
                Ok(None) => Seen::Absent,
                Err(refused) => Seen::Refused(refused.to_string()),
            };
            (name.clone(), seen)
        });
        seen.boxed()
    });
    // Without any there is no end to be seen either.
    stream::select_all(watches).chain(stream::pending()).boxed()
}

fn see(secret: &Secret) -> Seen {
    let entry = secret.data.as_ref().and_then(|data| data.get(REGISTRY_SECRET_KEY));
    Seen::Present(plan::read(secret.type_.as_deref().unwrap_or_default(), entry.map(|entry| &*entry.0)))
}

/// What is kept cannot be used.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error(transparent)]
    File(#[from] FileError),
    /// What the parser says may hold values.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

fn kept(path: &Path) -> Result<BTreeMap<String, Logins>, KeptError> {
    let Some(text) = files::read(path)? else { return Ok(BTreeMap::new()) };
    serde_json::from_str(&text).map_err(|_| KeptError::Damaged(path.to_owned()))
}

/// Writes what differs. Returns whether kubelet has something else to read.
fn write(paths: &RegistryPaths, kept: &BTreeMap<String, Logins>, used: &Logins) -> Result<bool, FileError> {
    let text = serde_json::to_string(kept).unwrap_or_default();
    put(&paths.kept, (!kept.is_empty()).then_some(text))?;
    make_folder(folder(&paths.config), users::ROOT, 0o700)?;
    put(&paths.config, (!used.is_empty()).then(|| logins::config(used)))
}

/// Has a file hold a text, or not be there. Returns whether that is a change.
fn put(path: &Path, text: Option<String>) -> Result<bool, FileError> {
    if files::read(path)? == text {
        return Ok(false);
    }
    match text {
        Some(text) => replace(path, &text, users::ROOT, MODE)?,
        None => files::remove(path)?,
    }
    Ok(true)
}

fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use garboard_catalog::logins::Login;

    use super::*;

    fn logins() -> Logins {
        let login = Login { username: "keel".to_owned(), password: "s3cret".to_owned() };
        Logins::from([("registry.example".to_owned(), login)])
    }

    fn paths(root: &Path) -> RegistryPaths {
        RegistryPaths { kept: root.join("registries"), config: root.join("home/.docker/config.json") }
    }

    #[test]
    fn credentials_outlast_the_agent_and_leave_no_file_when_they_are_withdrawn() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let known = BTreeMap::from([("a".to_owned(), logins())]);
        assert!(write(&paths, &known, &logins()).unwrap());
        assert!(!write(&paths, &known, &logins()).unwrap(), "nothing differs");
        for path in [&paths.kept, &paths.config] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
        assert_eq!(kept(&paths.kept).unwrap(), known);
        let config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&paths.config).unwrap()).unwrap();
        assert_eq!(config["auths"]["registry.example"]["password"], "s3cret");

        assert!(write(&paths, &BTreeMap::new(), &Logins::new()).unwrap());
        assert!(!paths.kept.exists() && !paths.config.exists());
        assert!(!write(&paths, &BTreeMap::new(), &Logins::new()).unwrap());
    }

    #[test]
    fn what_is_damaged_is_told_without_what_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        fs::write(&paths.kept, "{\"a\": \"s3cret\"}").unwrap();
        let told = chain(&kept(&paths.kept).unwrap_err());
        assert!(told.ends_with("registries is damaged"), "{told}");
    }
}
