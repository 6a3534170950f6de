//! What DNS knows of the cluster: as little of each object as its records need.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use hickory_proto::rr::Name;

/// A Service: namespace and name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
}

impl ServiceKey {
    /// A key of these two.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_ascii_lowercase().into(), name: name.to_ascii_lowercase().into() }
    }
}

/// A transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// By its label in a name or its value in an object, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        [(Self::Tcp, "tcp"), (Self::Udp, "udp"), (Self::Sctp, "sctp")]
            .into_iter()
            .find_map(|(protocol, name)| name.eq_ignore_ascii_case(text).then_some(protocol))
    }
}

/// A port that has a name; others have no records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// With addresses of its own.
    Cluster {
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Its named ports.
        ports: Vec<NamedPort>,
    },
    /// Without: its endpoints stand for it.
    Headless,
    /// Another name.
    External(Name),
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its hostname, when it has one.
    pub hostname: Option<Box<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Endpoint {
    /// The label that an address of this endpoint has below its Service: the hostname, or the address with dashes.
    pub fn label(&self, address: IpAddr) -> String {
        self.hostname.as_deref().map_or_else(|| dashed(address), str::to_owned)
    }
}

/// An address as a label: `10-244-0-5`, `fd00--5`.
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// Its ready endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// The name of an EndpointSlice: namespace and name.
pub type SliceKey = (Box<str>, Box<str>);

/// Everything.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: HashSet<Box<str>>,
    services: HashMap<Arc<ServiceKey>, Service>,
    cluster_addresses: HashMap<IpAddr, Arc<ServiceKey>>,
    slices: HashMap<Arc<ServiceKey>, BTreeMap<Box<str>, Slice>>,
    slice_owners: HashMap<SliceKey, Arc<ServiceKey>>,
    /// Which Services' endpoints an address is, each with the slice that says so.
    endpoint_addresses: BTreeSet<(IpAddr, Arc<ServiceKey>, Box<str>)>,
    /// Changes until now: the serial number of the zone.
    serial: u32,
    synced: Synced,
}

/// Which kinds of objects have been listed once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Synced {
    namespaces: bool,
    services: bool,
    slices: bool,
}

impl Index {
    /// Whether all kinds have been listed once: before that the index does not know what does not exist.
    pub fn is_synced(&self) -> bool {
        let Synced { namespaces, services, slices } = self.synced;
        namespaces && services && slices
    }

    /// The number of changes, modulo 2^32.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether a namespace exists.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// A Service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The slices of a Service.
    pub fn slices(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values)
    }

    /// The Service that has this address.
    pub fn service_of(&self, address: IpAddr) -> Option<&ServiceKey> {
        self.cluster_addresses.get(&address).map(Arc::as_ref)
    }

    /// The headless Services that have an endpoint with this address, each with the endpoint.
    pub fn endpoints_of(&self, address: IpAddr) -> impl Iterator<Item = (&ServiceKey, &Endpoint)> {
        let start = (address, Arc::new(ServiceKey::new("", "")), Box::from(""));
        self.endpoint_addresses
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(move |(other, _, _)| *other == address)
            .filter(|(_, key, _)| matches!(self.services.get(key), Some(Service::Headless)))
            .filter_map(move |(_, key, slice)| {
                let slice = self.slices.get(key)?.get(slice)?;
                let endpoint = slice.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&address))?;
                Some((key.as_ref(), endpoint))
            })
    }

    /// Adds a namespace.
    pub fn add_namespace(&mut self, namespace: &str) {
        self.namespaces.insert(namespace.to_ascii_lowercase().into());
        self.serial = self.serial.wrapping_add(1);
    }

    /// Removes a namespace.
    pub fn remove_namespace(&mut self, namespace: &str) {
        self.namespaces.remove(namespace.to_ascii_lowercase().as_str());
        self.serial = self.serial.wrapping_add(1);
    }

    /// Adds or replaces a Service.
    pub fn put_service(&mut self, key: ServiceKey, service: Service) {
        self.remove_service(&key);
        let key = Arc::new(key);
        if let Service::Cluster { addresses, .. } = &service {
            self.cluster_addresses.extend(addresses.iter().map(|&address| (address, key.clone())));
        }
        self.services.insert(key, service);
        self.serial = self.serial.wrapping_add(1);
    }

    /// Removes a Service; its slices are objects of their own.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(Service::Cluster { addresses, .. }) = self.services.remove(key) {
            for address in addresses {
                // Another Service may have the address by now.
                if self.cluster_addresses.get(&address).is_some_and(|owner| owner.as_ref() == key) {
                    self.cluster_addresses.remove(&address);
                }
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// Adds or replaces a slice of a Service.
    pub fn put_slice(&mut self, name: SliceKey, service: ServiceKey, slice: Slice) {
        self.remove_slice(&name);
        let service = self.slices.get_key_value(&service).map_or_else(|| Arc::new(service), |(known, _)| known.clone());
        for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
            self.endpoint_addresses.insert((*address, service.clone(), name.1.clone()));
        }
        self.slices.entry(service.clone()).or_default().insert(name.1.clone(), slice);
        self.slice_owners.insert(name, service);
        self.serial = self.serial.wrapping_add(1);
    }

    /// Removes a slice.
    pub fn remove_slice(&mut self, name: &SliceKey) {
        let Some(service) = self.slice_owners.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            let slice = slices.remove(&name.1);
            for address in slice.iter().flat_map(|slice| &slice.endpoints).flat_map(|endpoint| &endpoint.addresses) {
                self.endpoint_addresses.remove(&(*address, service.clone(), name.1.clone()));
            }
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// Ends a listing of namespaces: those that were not in it are gone.
    pub fn keep_namespaces(&mut self, listed: &HashSet<Box<str>>) {
        self.namespaces.retain(|namespace| listed.contains(namespace));
        self.synced.namespaces = true;
    }

    /// Ends a listing of Services: those that were not in it are gone.
    pub fn keep_services(&mut self, listed: &HashSet<ServiceKey>) {
        let gone: Vec<_> = self.services.keys().filter(|key| !listed.contains(key.as_ref())).cloned().collect();
        gone.iter().for_each(|key| self.remove_service(key));
        self.synced.services = true;
    }

    /// Ends a listing of slices: those that were not in it are gone.
    pub fn keep_slices(&mut self, listed: &HashSet<SliceKey>) {
        let gone: Vec<_> = self.slice_owners.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_slice(name));
        self.synced.slices = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slice(addresses: &[u8]) -> Slice {
        let endpoint = |&last: &u8| Endpoint { hostname: None, addresses: vec![[10, 0, 0, last].into()] };
        Slice { ports: Vec::new(), endpoints: addresses.iter().map(endpoint).collect() }
    }

    fn slice_key(name: u8) -> SliceKey {
        ("default".into(), format!("s{name}").into())
    }

    fn service_key(name: u8) -> ServiceKey {
        ServiceKey::new("default", &format!("svc{name}"))
    }

    proptest! {
        /// However slices come, move between Services and go, the reverse table says just what the slices say.
        #[test]
        fn the_reverse_table_follows_the_slices(
            steps in prop::collection::vec((0u8..4, 0u8..3, prop::option::of(prop::collection::vec(0u8..6, 0..4))), 0..60)
        ) {
            let mut index = Index::default();
            let mut model: BTreeMap<u8, (u8, Vec<u8>)> = BTreeMap::new();
            (0..3).for_each(|name| index.put_service(service_key(name), Service::Headless));
            for (name, service, change) in steps {
                match change {
                    Some(addresses) => {
                        index.put_slice(slice_key(name), service_key(service), slice(&addresses));
                        model.insert(name, (service, addresses));
                    }
                    None => {
                        index.remove_slice(&slice_key(name));
                        model.remove(&name);
                    }
                }
                for last in 0..6u8 {
                    let found: BTreeSet<_> =
                        index.endpoints_of([10, 0, 0, last].into()).map(|(key, _)| key.clone()).collect();
                    let expected: BTreeSet<_> = model
                        .values()
                        .filter(|(_, addresses)| addresses.contains(&last))
                        .map(|(service, _)| service_key(*service))
                        .collect();
                    prop_assert_eq!(found, expected);
                }
            }
            index.keep_slices(&HashSet::new());
            prop_assert!(index.slices.is_empty() && index.endpoint_addresses.is_empty());
        }
    }

    #[test]
    fn an_address_that_went_to_another_service_stays_with_it() {
        let cluster = || Service::Cluster { addresses: vec![[10, 96, 0, 1].into()], ports: Vec::new() };
        let mut index = Index::default();
        index.put_service(service_key(1), cluster());
        index.put_service(service_key(2), cluster());
        index.remove_service(&service_key(1));
        assert_eq!(index.service_of([10, 96, 0, 1].into()), Some(&service_key(2)));
    }

    #[test]
    fn synced_means_that_all_kinds_were_listed() {
        let mut index = Index::default();
        index.keep_services(&HashSet::new());
        index.keep_slices(&HashSet::new());
        assert!(!index.is_synced());
        index.keep_namespaces(&HashSet::new());
        assert!(index.is_synced());
    }
}
