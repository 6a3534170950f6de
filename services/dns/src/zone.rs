//! The cluster's records: Kubernetes DNS-based service discovery 1.1.0, as a pure function of the index.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::index::{Endpoint, Index, NamedPort, Protocol, Service, ServiceKey, Slice};

/// How long a record may be kept, seconds: endpoints come and go.
pub const TTL: u32 = 5;
/// The version of the specification.
const SCHEMA_VERSION: &str = "1.1.0";
/// Aliases that are followed inside of the cluster.
const MAX_ALIASES: usize = 8;
/// RFC 2782 leaves both to the server; equal ones spread clients evenly.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 100;
/// The serial is followed by refresh, retry and expire, seconds: for secondaries, which there are none of.
const SOA_TIMES: (i32, i32, i32) = (7200, 1800, 86_400);

/// What is answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The cluster's domain, in lower case.
    pub domain: Name,
    /// Networks whose reverse names are answered here.
    pub networks: Vec<IpNet>,
    /// The addresses of this server.
    pub servers: Vec<IpAddr>,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Records, and what a client will ask next.
    Records {
        /// The answer.
        answers: Vec<Record>,
        /// Addresses of the names in it.
        additionals: Vec<Record>,
    },
    /// Aliases that end outside of the cluster.
    Alias {
        /// The aliases.
        answers: Vec<Record>,
        /// The name to ask others about.
        target: Name,
    },
    /// The name exists, without records of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// The name is not the cluster's.
    NotOurs,
}

impl Answer {
    fn records(answers: Vec<Record>) -> Self {
        if answers.is_empty() { Self::NoData } else { Self::Records { answers, additionals: Vec::new() } }
    }
}

impl Zone {
    /// Whether a name is answered here.
    pub fn owns(&self, name: &Name) -> bool {
        self.domain.zone_of(name) || self.reverse(name).is_some()
    }

    /// The SOA record that negative answers carry; its last field bounds how long they may be kept.
    pub fn soa(&self, index: &Index) -> Record {
        let (refresh, retry, expire) = SOA_TIMES;
        let master = self.child(&["ns", "dns"]);
        let mailbox = self.child(&["hostmaster"]);
        let soa = SOA::new(master, mailbox, index.serial(), refresh, retry, expire, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// Answers a question.
    pub fn answer(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        let mut aliases = Vec::new();
        let mut current = name.clone();
        loop {
            let answer = self.answer_once(index, &current, kind);
            let Answer::Alias { answers, target } = answer else {
                return match answer {
                    _ if aliases.is_empty() => answer,
                    Answer::Records { answers, additionals } => {
                        aliases.extend(answers);
                        Answer::Records { answers: aliases, additionals }
                    }
                    Answer::NotOurs => Answer::Alias { answers: aliases, target: current },
                    // An alias to a name without records is all there is to say.
                    Answer::NoData | Answer::NoName | Answer::Alias { .. } => Answer::records(aliases),
                };
            };
            aliases.extend(answers);
            if kind == RecordType::CNAME || aliases.len() > MAX_ALIASES {
                return Answer::records(aliases);
            }
            current = target;
        }
    }

    fn answer_once(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        if let Some(address) = self.reverse(name) {
            return self.answer_reverse(index, name, address, kind);
        }
        if !self.domain.zone_of(name) {
            return Answer::NotOurs;
        }
        let below = usize::from(name.num_labels() - self.domain.num_labels());
        let labels: Option<Vec<String>> =
            name.iter().take(below).map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect();
        let Some(labels) = labels else { return Answer::NoName };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.answer_apex(index, name, kind),
            ["dns-version"] if kind == RecordType::TXT => {
                Answer::records(vec![record(name, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])))])
            }
            ["dns-version" | "dns" | "svc" | "pod"] => Answer::NoData,
            ["ns", "dns"] => Answer::records(addresses(name, &self.servers, kind)),
            [rest @ .., namespace, "svc"] => self.answer_service(index, name, rest, namespace, kind),
            [namespace, "pod"] => exists(index.has_namespace(namespace)),
            [pod, namespace, "pod"] if index.has_namespace(namespace) => match undashed(pod) {
                Some(address) => Answer::records(addresses(name, &[address], kind)),
                None => Answer::NoName,
            },
            _ => Answer::NoName,
        }
    }

    fn answer_apex(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::records(vec![self.soa(index)]),
            RecordType::NS => {
                let server = self.child(&["ns", "dns"]);
                let additionals = self.servers.iter().map(|&address| record(&server, address_data(address))).collect();
                Answer::Records { answers: vec![record(name, RData::NS(NS(server)))], additionals }
            }
            _ => Answer::NoData,
        }
    }

    /// `labels` is what stands before the namespace.
    fn answer_service(&self, index: &Index, name: &Name, labels: &[&str], namespace: &str, kind: RecordType) -> Answer {
        let [rest @ .., service_name] = labels else { return exists(index.has_namespace(namespace)) };
        let key = ServiceKey::new(namespace, service_name);
        let Some(service) = index.service(&key) else { return Answer::NoName };
        match (rest, service) {
            ([], Service::External(target)) => Answer::Alias {
                answers: vec![record(name, RData::CNAME(CNAME(target.clone())))],
                target: target.clone(),
            },
            ([], Service::Cluster { addresses: own, .. }) => Answer::records(addresses(name, own, kind)),
            ([], Service::Headless) => {
                found(name, endpoints(index, &key).flat_map(|(_, e)| e.addresses.iter().copied()), kind)
            }
            ([label], _) if label.starts_with('_') => {
                let protocol = Protocol::parse(&label[1..]);
                exists(
                    protocol.is_some_and(|protocol| self.ports(index, &key, service).any(|p| p.protocol == protocol)),
                )
            }
            ([label], Service::Headless) => {
                let matching = endpoints(index, &key)
                    .flat_map(|(_, endpoint)| endpoint.addresses.iter().map(move |&address| (endpoint, address)))
                    .filter(|(endpoint, address)| endpoint.label(*address).eq_ignore_ascii_case(label))
                    .map(|(_, address)| address);
                found(name, matching, kind)
            }
            ([port, protocol], _) => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Answer::NoName;
                };
                let Some(protocol) = Protocol::parse(protocol) else { return Answer::NoName };
                let wanted = |p: &NamedPort| p.protocol == protocol && p.name.eq_ignore_ascii_case(port);
                self.answer_port(index, name, &key, service, wanted, kind)
            }
            _ => Answer::NoName,
        }
    }

    fn ports<'a>(
        &self,
        index: &'a Index,
        key: &'a ServiceKey,
        service: &'a Service,
    ) -> Box<dyn Iterator<Item = &'a NamedPort> + 'a> {
        match service {
            Service::Cluster { ports, .. } => Box::new(ports.iter()),
            Service::Headless => {
                let ready = index.slices(key).filter(|slice| !slice.endpoints.is_empty());
                Box::new(ready.flat_map(|slice| slice.ports.iter()))
            }
            Service::External(_) => Box::new(std::iter::empty()),
        }
    }

    fn answer_port(
        &self,
        index: &Index,
        name: &Name,
        key: &ServiceKey,
        service: &Service,
        wanted: impl Fn(&NamedPort) -> bool,
        kind: RecordType,
    ) -> Answer {
        let host = self.child(&[&key.name, &key.namespace, "svc"]);
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        let srv = |number, target| record(name, RData::SRV(SRV::new(PRIORITY, WEIGHT, number, target)));
        match service {
            Service::Cluster { addresses, ports } => {
                answers.extend(ports.iter().filter(|port| wanted(port)).map(|port| srv(port.number, host.clone())));
                additionals.extend(addresses.iter().map(|&address| record(&host, address_data(address))));
            }
            Service::Headless => {
                let (mut targets, mut hosts) = (HashSet::new(), HashSet::new());
                for (slice, endpoint) in endpoints(index, key) {
                    for port in slice.ports.iter().filter(|port| wanted(port)) {
                        for &address in &endpoint.addresses {
                            let label = endpoint.label(address);
                            let Ok(target) = host.prepend_label(label.as_str()) else { continue };
                            if hosts.insert((label.clone(), address)) {
                                additionals.push(record(&target, address_data(address)));
                            }
                            if targets.insert((label, port.number)) {
                                answers.push(srv(port.number, target));
                            }
                        }
                    }
                }
            }
            Service::External(_) => {}
        }
        match (answers.is_empty(), kind) {
            (true, _) => Answer::NoName,
            (false, RecordType::SRV) => Answer::Records { answers, additionals },
            (false, _) => Answer::NoData,
        }
    }

    fn answer_reverse(&self, index: &Index, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let mut targets = Vec::new();
        if let Some(key) = index.service_of(address) {
            targets.push(self.child(&[&key.name, &key.namespace, "svc"]));
        }
        for (key, endpoint) in index.endpoints_of(address) {
            let host = self.child(&[&key.name, &key.namespace, "svc"]);
            let target = host.prepend_label(endpoint.label(address)).ok();
            targets.extend(target.filter(|target| !targets.contains(target)));
        }
        match (targets.is_empty(), kind) {
            (true, _) => Answer::NoName,
            (false, RecordType::PTR) => {
                Answer::records(targets.into_iter().map(|target| record(name, RData::PTR(PTR(target)))).collect())
            }
            (false, _) => Answer::NoData,
        }
    }

    /// The address that a reverse name stands for, when it is one of the cluster's.
    fn reverse(&self, name: &Name) -> Option<IpAddr> {
        let network = name.parse_arpa_name().ok()?;
        let address = network.addr();
        let whole = network.prefix_len() == network.max_prefix_len();
        (whole && self.networks.iter().any(|own| own.contains(&address))).then_some(address)
    }

    /// A name below the domain. The labels are names of objects, which are valid labels; a longer one gives the domain.
    fn child(&self, labels: &[&str]) -> Name {
        let mut name = self.domain.clone();
        for label in labels.iter().rev() {
            name = name.prepend_label(*label).unwrap_or(name);
        }
        name
    }
}

fn endpoints<'a>(index: &'a Index, key: &ServiceKey) -> impl Iterator<Item = (&'a Slice, &'a Endpoint)> {
    index.slices(key).flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (slice, endpoint)))
}

fn exists(yes: bool) -> Answer {
    if yes { Answer::NoData } else { Answer::NoName }
}

/// Addresses of endpoints, each once: two slices may name the same endpoint while one replaces the other. A name without
/// any does not exist.
fn found(name: &Name, all: impl Iterator<Item = IpAddr>, kind: RecordType) -> Answer {
    let mut seen = HashSet::new();
    let unique: Vec<IpAddr> = all.filter(|&address| seen.insert(address)).collect();
    if unique.is_empty() { Answer::NoName } else { Answer::records(addresses(name, &unique, kind)) }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// The addresses of the version that is asked for.
fn addresses(name: &Name, all: &[IpAddr], kind: RecordType) -> Vec<Record> {
    let data = all.iter().map(|&address| address_data(address));
    data.filter(|data| data.record_type() == kind).map(|data| record(name, data)).collect()
}

/// The address that a pod's label stands for: `10-244-0-5`, `fd00--5`.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = Ipv4Addr::from_str(&label.replace('-', ".")).map(IpAddr::V4);
    v4.or_else(|_| Ipv6Addr::from_str(&label.replace('-', ":")).map(IpAddr::V6)).ok()
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
