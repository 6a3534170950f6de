//! What is wrong with a resource, beyond what its types refuse.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{self, Cluster};
use crate::machine::{Link, Machine};

/// One field with a value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.network.links[0].gateway`.
    pub field: String,
    /// The value that was given.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} is not allowed: {}", self.field, self.value, self.allowed)
    }
}

/// Collects errors with less to write at each check.
struct Errors(Vec<FieldError>);

impl Errors {
    fn require(&mut self, holds: bool, field: impl Into<String>, value: impl fmt::Display, allowed: &str) {
        if !holds {
            self.0.push(FieldError { field: field.into(), value: value.to_string(), allowed: allowed.to_owned() });
        }
    }
}

const LABEL: &str = "a DNS label: lower-case letters, digits and hyphens, 1 to 63, not at its ends a hyphen";
const DOMAIN: &str = "a DNS name: labels of lower-case letters, digits and hyphens, joined by dots, at most 253 characters";

/// What is wrong with a Machine; empty when it is valid.
pub fn machine(machine: &Machine) -> Vec<FieldError> {
    let mut errors = Errors(Vec::new());
    let name = machine.metadata.name.as_deref().unwrap_or_default();
    errors.require(is_label(name), "metadata.name", name, LABEL);
    if let Some(hostname) = &machine.spec.hostname {
        errors.require(is_label(hostname), "spec.hostname", hostname, LABEL);
    }
    let network = &machine.spec.network;
    errors.require(network.links.len() <= 32, "spec.network.links", network.links.len(), "at most 32 links");
    errors.require(network.nameservers.len() <= 8, "spec.network.nameservers", network.nameservers.len(), "at most 8");
    errors.require(network.search_domains.len() <= 8, "spec.network.searchDomains", network.search_domains.len(), "at most 8");
    for (i, domain) in network.search_domains.iter().enumerate() {
        errors.require(is_domain(domain), format!("spec.network.searchDomains[{i}]"), domain, DOMAIN);
    }
    let mut known = BTreeSet::new();
    for (i, each) in network.links.iter().enumerate() {
        let field = format!("spec.network.links[{i}]");
        link(&mut errors, &field, each);
        let selector = each.name.clone().or_else(|| each.mac.as_ref().map(|mac| mac.to_lowercase()));
        if let Some(selector) = selector {
            let first = known.insert(selector.clone());
            errors.require(first, field, selector, "each link once");
        }
    }
    let kubelet = &machine.spec.kubelet;
    errors.require((1..=1000).contains(&kubelet.max_pods), "spec.kubelet.maxPods", kubelet.max_pods, "1 to 1000");
    let (grace, critical) = (kubelet.shutdown_grace_period_seconds, kubelet.shutdown_grace_period_critical_pods_seconds);
    errors.require(grace <= 540, "spec.kubelet.shutdownGracePeriodSeconds", grace, "0 to 540");
    errors.require(
        critical <= grace,
        "spec.kubelet.shutdownGracePeriodCriticalPodsSeconds",
        critical,
        "at most shutdownGracePeriodSeconds, of which it is a part",
    );
    errors.0
}

fn link(errors: &mut Errors, field: &str, link: &Link) {
    let selected = format!("name {:?}, mac {:?}", link.name, link.mac);
    errors.require(link.name.is_some() != link.mac.is_some(), field, selected, "either name or mac");
    if let Some(name) = &link.name {
        let valid = (1..=15).contains(&name.len()) && !name.contains(['/', ' ']) && name != "." && name != "..";
        errors.require(valid, format!("{field}.name"), name, "a name of 1 to 15 characters without slash and space");
    }
    if let Some(mac) = &link.mac {
        errors.require(is_mac(mac), format!("{field}.mac"), mac, "six pairs of hexadecimal digits, such as 52:54:00:12:34:56");
    }
    errors.require(link.addresses.len() <= 16, format!("{field}.addresses"), link.addresses.len(), "at most 16");
    for (i, address) in link.addresses.iter().enumerate() {
        let usable = !address.addr().is_unspecified() && !address.addr().is_multicast() && !address.addr().is_loopback();
        errors.require(usable, format!("{field}.addresses[{i}]"), address, "an address of a machine with the length of its prefix");
    }
    if let Some(gateway) = link.gateway {
        let reached = link.addresses.iter().any(|address| address.contains(&gateway) && address.addr() != gateway);
        errors.require(reached, format!("{field}.gateway"), gateway, "another address within the prefix of one of this link's addresses");
    }
    if let Some(mtu) = link.mtu {
        errors.require((576..=65535).contains(&mtu), format!("{field}.mtu"), mtu, "576 to 65535");
    }
}

/// What is wrong with a Cluster; empty when it is valid.
pub fn cluster(cluster: &Cluster) -> Vec<FieldError> {
    let mut errors = Errors(Vec::new());
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    errors.require(name == cluster::NAME, "metadata.name", name, "there is one Cluster, and its name is cluster");
    let spec = &cluster.spec;
    if let Some(endpoint) = &spec.endpoint {
        let host = &endpoint.host;
        errors.require(is_host(host), "spec.endpoint.host", host, "a DNS name or an IP address");
        errors.require(endpoint.port > 0, "spec.endpoint.port", endpoint.port, "1 to 65535");
    }
    errors.require(spec.cert_sans.len() <= 64, "spec.certSANs", spec.cert_sans.len(), "at most 64");
    for (i, san) in spec.cert_sans.iter().enumerate() {
        errors.require(is_host(san), format!("spec.certSANs[{i}]"), san, "a DNS name or an IP address");
    }
    range(&mut errors, "spec.podCIDR", &spec.pod_cidr, 8..=23);
    range(&mut errors, "spec.serviceCIDR", &spec.service_cidr, 12..=24);
    let apart = !spec.pod_cidr.contains(&spec.service_cidr) && !spec.service_cidr.contains(&spec.pod_cidr);
    errors.require(apart, "spec.serviceCIDR", spec.service_cidr, "a range apart from podCIDR");
    errors.require(is_domain(&spec.dns_domain), "spec.dnsDomain", &spec.dns_domain, DOMAIN);
    errors.require(spec.access.len() <= 256, "spec.access", spec.access.len(), "at most 256");
    let mut names = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for (i, access) in spec.access.iter().enumerate() {
        let field = format!("spec.access[{i}]");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = (1..=63).contains(&access.name.len())
            && access.name.starts_with(plain)
            && access.name.ends_with(plain)
            && access.name.chars().all(|c| plain(c) || "-.@".contains(c));
        errors.require(valid, format!("{field}.name"), &access.name, "lower-case letters, digits, and - . @ between them, at most 63");
        let hex = access.public_key.strip_prefix("sha256:").unwrap_or_default();
        let valid = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        errors.require(valid, format!("{field}.publicKey"), &access.public_key, "sha256: and 64 lower-case hexadecimal digits");
        errors.require(names.insert(&access.name), format!("{field}.name"), &access.name, "each name once");
        errors.require(keys.insert(&access.public_key), format!("{field}.publicKey"), &access.public_key, "each key once");
    }
    errors.0
}

/// What a change from `old` would break; empty when it may be made.
pub fn cluster_change(old: &Cluster, new: &Cluster) -> Vec<FieldError> {
    let mut errors = Errors(Vec::new());
    let (old, new) = (&old.spec, &new.spec);
    let fixed = "what it was: it cannot change once the cluster has been made";
    errors.require(old.pod_cidr == new.pod_cidr, "spec.podCIDR", new.pod_cidr, fixed);
    errors.require(old.service_cidr == new.service_cidr, "spec.serviceCIDR", new.service_cidr, fixed);
    errors.require(old.dns_domain == new.dns_domain, "spec.dnsDomain", &new.dns_domain, fixed);
    errors.0
}

fn range(errors: &mut Errors, field: &str, range: &IpNet, lengths: std::ops::RangeInclusive<u8>) {
    let allowed = format!("an IPv4 range with a prefix of {} to {}", lengths.start(), lengths.end());
    errors.require(range.addr().is_ipv4() && lengths.contains(&range.prefix_len()), field, range, &allowed);
    errors.require(range.network() == range.addr(), field, range, &format!("the start of the range, {}", range.trunc()));
}

fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || c == '-')
}

fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.split('.').all(is_label)
}

fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_domain(text)
}

fn is_mac(text: &str) -> bool {
    let mut pairs = 0;
    text.split(':').all(|pair| {
        pairs += 1;
        pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit())
    }) && pairs == 6
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
