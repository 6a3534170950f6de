//! The cluster's objects, from the API server into the index. When the API server goes away the index stays as it is.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::{self as core, Namespace};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::index::{Endpoint, Index, NamedPort, Protocol, Service, ServiceKey, Slice, SliceKey};

/// The label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Objects in one answer of the API server while listing: few, because they are large until they are stripped.
const PAGE_SIZE: u32 = 100;
/// How often the identity's files are looked at, and how long a client that could not be made is waited for.
const IDENTITY_POLL: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// No client could be made of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file or one that it names cannot be read.
    #[error("read {}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// TLS or the address is unusable.
    #[error("make a client")]
    Client(#[source] kube::Error),
}

/// Keeps an index like the cluster.
#[derive(Debug)]
pub struct Follower {
    /// The index.
    pub index: Arc<RwLock<Index>>,
    /// How to reach the API server.
    pub kubeconfig: PathBuf,
    /// Told once, when everything has been listed.
    pub synced: watch::Sender<bool>,
}

impl Follower {
    /// Follows until it is told to stop. A renewed client certificate is used as soon as its files change.
    pub async fn run(self, stop: CancellationToken) {
        let mut reported = false;
        // Cancel-safe: dropping the watches loses nothing, the next ones list again.
        while let Some(()) = stop.run_until_cancelled(self.follow(&mut reported)).await {}
    }

    /// Follows with one client, until its identity changes or it cannot be made.
    async fn follow(&self, reported: &mut bool) {
        let before = identity(&self.kubeconfig);
        let client = match client(&self.kubeconfig).await {
            Ok(client) => client,
            Err(error) => {
                if !std::mem::replace(reported, true) {
                    warn!(error = %chain(&error), "waiting for the cluster's identity");
                }
                tokio::time::sleep(RETRY).await;
                return;
            }
        };
        *reported = false;
        tokio::select! {
            // None of these ends by itself; dropping them is safe.
            () = self.follow_kind::<Namespace>(&client) => {}
            () = self.follow_kind::<core::Service>(&client) => {}
            () = self.follow_kind::<EndpointSlice>(&client) => {}
            () = changed(&self.kubeconfig, before) => info!("the identity changed"),
        }
    }

    async fn follow_kind<K: Indexed>(&self, client: &Client) {
        let config = watcher::Config::default().page_size(PAGE_SIZE);
        let mut events = watcher(Api::<K>::all(client.clone()), config).default_backoff().boxed();
        let mut listed = HashSet::new();
        let mut failing = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(kind = K::NAME, error = %chain(&error), "watch broken; serving what is known");
                    }
                    continue;
                }
            };
            if std::mem::take(&mut failing) {
                info!(kind = K::NAME, "watch works again");
            }
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => listed.extend(object.put(&mut index)),
                watcher::Event::InitDone => {
                    K::keep(&mut index, &listed);
                    listed = HashSet::new();
                    if index.is_synced() {
                        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
                    }
                }
                watcher::Event::Apply(object) => drop(object.put(&mut index)),
                watcher::Event::Delete(object) => object.remove(&mut index),
            }
        }
    }
}

/// A kind of object that the index knows.
trait Indexed: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static {
    const NAME: &'static str;
    type Key: Eq + std::hash::Hash + Send;

    /// Adds what records need of the object, and returns its key.
    fn put(&self, index: &mut Index) -> Option<Self::Key>;
    fn remove(&self, index: &mut Index);
    fn keep(index: &mut Index, listed: &HashSet<Self::Key>);
}

impl Indexed for Namespace {
    const NAME: &'static str = "Namespace";
    type Key = Box<str>;

    fn put(&self, index: &mut Index) -> Option<Box<str>> {
        let name = self.metadata.name.as_deref()?;
        index.add_namespace(name);
        Some(name.into())
    }

    fn remove(&self, index: &mut Index) {
        index.remove_namespace(self.metadata.name.as_deref().unwrap_or_default());
    }

    fn keep(index: &mut Index, listed: &HashSet<Box<str>>) {
        index.keep_namespaces(listed);
    }
}

impl Indexed for core::Service {
    const NAME: &'static str = "Service";
    type Key = ServiceKey;

    fn put(&self, index: &mut Index) -> Option<ServiceKey> {
        let key = service_key(self)?;
        match service(self) {
            Some(service) => index.put_service(key.clone(), service),
            None => index.remove_service(&key),
        }
        Some(key)
    }

    fn remove(&self, index: &mut Index) {
        if let Some(key) = service_key(self) {
            index.remove_service(&key);
        }
    }

    fn keep(index: &mut Index, listed: &HashSet<ServiceKey>) {
        index.keep_services(listed);
    }
}

impl Indexed for EndpointSlice {
    const NAME: &'static str = "EndpointSlice";
    type Key = SliceKey;

    fn put(&self, index: &mut Index) -> Option<SliceKey> {
        let key = slice_key(self)?;
        let owner = self.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        match owner {
            Some(owner) => index.put_slice(key.clone(), ServiceKey::new(&key.0, owner), slice(self)),
            None => index.remove_slice(&key),
        }
        Some(key)
    }

    fn remove(&self, index: &mut Index) {
        if let Some(key) = slice_key(self) {
            index.remove_slice(&key);
        }
    }

    fn keep(index: &mut Index, listed: &HashSet<SliceKey>) {
        index.keep_slices(listed);
    }
}

fn service_key(service: &core::Service) -> Option<ServiceKey> {
    Some(ServiceKey::new(service.metadata.namespace.as_deref()?, service.metadata.name.as_deref()?))
}

fn slice_key(slice: &EndpointSlice) -> Option<SliceKey> {
    Some((slice.metadata.namespace.as_deref()?.into(), slice.metadata.name.as_deref()?.into()))
}

/// What the index keeps of a Service; `None` when it has no records (an external name that is no name).
fn service(service: &core::Service) -> Option<Service> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let mut name = Name::from_str(spec.external_name.as_deref()?).ok().filter(|name| name.num_labels() > 0)?;
        name.set_fqdn(true);
        return Some(Service::External(name));
    }
    let own = spec.cluster_ips.as_deref().filter(|own| !own.is_empty());
    let own = own.or(spec.cluster_ip.as_slice().first().map(std::slice::from_ref)).unwrap_or_default();
    if own.iter().any(|address| address == "None") {
        return Some(Service::Headless);
    }
    let addresses: Vec<IpAddr> = own.iter().filter_map(|address| address.parse().ok()).collect();
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| named_port(port.name.as_deref(), port.protocol.as_deref(), Some(port.port)));
    Some(Service::Cluster { addresses, ports: ports.collect() })
}

fn slice(slice: &EndpointSlice) -> Slice {
    let ports = slice.ports.iter().flatten();
    let ports = ports.filter_map(|port| named_port(port.name.as_deref(), port.protocol.as_deref(), port.port));
    // An unknown condition is to be taken as ready, says the API.
    let ready = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    let endpoints = ready.map(|endpoint| Endpoint {
        hostname: endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty()).map(Box::from),
        addresses: endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
    });
    let endpoints = endpoints.filter(|endpoint| !endpoint.addresses.is_empty());
    Slice { ports: ports.collect(), endpoints: endpoints.collect() }
}

fn named_port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<NamedPort> {
    let name = name.filter(|name| !name.is_empty())?;
    let protocol = protocol.map_or(Some(Protocol::Tcp), Protocol::parse)?;
    Some(NamedPort { name: name.into(), protocol, number: u16::try_from(number?).ok()? })
}

async fn client(path: &Path) -> Result<Client, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    Client::try_from(config).map_err(ClientError::Client)
}

/// The kubeconfig and the files that it names, each with the time of its last change.
fn identity(path: &Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let named = Kubeconfig::read_from(path).ok().into_iter().flat_map(|kubeconfig| {
        let users = kubeconfig.auth_infos.into_iter().filter_map(|user| user.auth_info);
        let users = users.flat_map(|user| [user.client_certificate, user.client_key]);
        let clusters = kubeconfig.clusters.into_iter().filter_map(|cluster| cluster.cluster);
        users.chain(clusters.map(|cluster| cluster.certificate_authority)).flatten().map(PathBuf::from)
    });
    std::iter::once(path.to_owned())
        .chain(named)
        .map(|path| {
            let changed = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
            (path, changed)
        })
        .collect()
}

async fn changed(path: &Path, before: Vec<(PathBuf, Option<SystemTime>)>) {
    loop {
        tokio::time::sleep(IDENTITY_POLL).await;
        if identity(path) != before {
            return;
        }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
