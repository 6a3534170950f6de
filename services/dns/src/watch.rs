//! The cluster's objects, from the API server into the index. When the API server goes away the index stays as it is.

use std::collections::HashSet;
use std::net::IpAddr;
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::{self as core, Namespace};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::index::{Endpoint, Index, NamedPort, Protocol, Service, ServiceKey, Slice, SliceKey};

/// The label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Objects in one answer of the API server while listing: few, because they are large until they are stripped.
const PAGE_SIZE: u32 = 100;

/// Keeps an index like the cluster.
pub struct Follower {
    /// The index.
    pub index: Arc<RwLock<Index>>,
    /// The API server.
    pub client: Client,
    /// Told once, when everything has been listed.
    pub synced: watch::Sender<bool>,
}

impl Follower {
    /// Follows until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            // None of these ends by itself; dropping them is safe.
            () = self.follow::<Namespace>() => {}
            () = self.follow::<core::Service>() => {}
            () = self.follow::<EndpointSlice>() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow<K: Indexed>(&self) {
        let config = watcher::Config::default().page_size(PAGE_SIZE);
        let events = watcher(Api::<K>::all(self.client.clone()), config);
        let mut events = pin!(garboard_api_client::uninterrupted(K::NAME, events));
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
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

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
