//! Rules that no schema expresses. The same hold for local manifests and for objects of the API server, where most of
//! them are CEL rules too.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::cluster::{self, Access, Cluster, ClusterSpec, Endpoint};
use crate::control_plane::{self, ApiServer, ControlPlane, EventRateLimit, OidcIssuer};
use crate::field_error::FieldError;
use crate::machine::{
    self, Machine, MachineJoin, MachineKernel, MachineKubelet, MachineRole, MachineSpec, MachineTime, Registry,
    RegistryCredentials, Taint, TrialProbe,
};
use crate::machine_pool::{MachinePool, MachinePoolSpec, MachineTemplate};
use crate::types::{self, Cidr, PublicKeyPin};
use crate::virtual_address::{VIRTUAL_ADDRESS_WORDS, VirtualAddress};

/// Collects what is wrong.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn require(&mut self, holds: bool, field: impl Into<String>, value: impl Into<Value>, allowed: &str) {
        if !holds {
            self.0.push(FieldError::new(field, &value.into(), allowed));
        }
    }
}

/// What is wrong with a Machine; empty when it is valid.
pub fn machine(machine: &Machine) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = machine.metadata.name.as_deref().unwrap_or_default();
    errors.require(types::is_label(name), "metadata.name", name, types::LABEL_WORDS);
    check_settings(&mut errors, "spec", &machine.spec);
    check_join(&mut errors, &machine.spec);
    errors.0
}

/// What the machine is for, and the cluster that it joins.
fn check_join(errors: &mut Errors, spec: &MachineSpec) {
    let shown = serde_json::to_value(&spec.join).unwrap_or_default();
    match (spec.role(), &spec.join) {
        (MachineRole::Worker, None) => {
            errors.require(
                false,
                "spec.join",
                shown,
                "the cluster that the worker joins: `garboardctl join` writes it",
            );
        }
        // What the cluster fills in is there when a machine sees it.
        (_, Some(MachineJoin { endpoints, ca_pin, access, waiting: _ })) => {
            errors.require(!endpoints.is_empty(), "spec.join.endpoints", Vec::<Value>::new(), "at least one");
            errors.require(ca_pin.is_some(), "spec.join.caPin", Value::Null, PublicKeyPin::ALLOWED);
            for (index, Endpoint { host, port: _ }) in endpoints.iter().enumerate() {
                let field = format!("spec.join.endpoints[{index}].host");
                errors.require(is_host(host), field, host.as_str(), types::HOST_WORDS);
            }
            check_access(errors, "spec.join.access", access);
        }
        (MachineRole::ControlPlane, None) => {}
    }
}

/// What a change from `old` to `new` would break; empty when it may be made.
pub fn machine_change(old: &MachineSpec, new: &MachineSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let shown = |spec: &MachineSpec| serde_json::to_value(spec.role()).unwrap_or_default();
    let allowed = format!("it cannot be changed from {}", shown(old).as_str().unwrap_or_default());
    errors.require(old.role() == new.role(), "spec.role", shown(new), &allowed);
    let join = serde_json::to_value(&new.join).unwrap_or_default();
    let allowed = if old.join.is_some() {
        "a machine that joins a cluster keeps it"
    } else {
        "a machine that founds its cluster has none"
    };
    errors.require(old.join.is_some() == new.join.is_some(), "spec.join", join, allowed);
    errors.0
}

/// What is wrong with a MachinePool; empty when it is valid.
pub fn machine_pool(pool: &MachinePool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    // How it is rolled out is of any form that the schema lets pass.
    let MachinePoolSpec { selector, template: MachineTemplate { spec }, rollout: _ } = &pool.spec;
    if let Err(error) = pool.selector() {
        let shown = serde_json::to_value(selector).unwrap_or_default();
        errors.0.push(FieldError::new("spec.selector", &shown, error.to_string()));
    }
    check_shared(&mut errors, "spec.template.spec", spec);
    errors.0
}

/// Settings of more than one machine.
fn check_shared(errors: &mut Errors, field: &str, spec: &MachineSpec) {
    let given = [
        ("hostname", spec.hostname.as_ref().map(serde_json::to_value)),
        ("role", spec.role.as_ref().map(serde_json::to_value)),
        ("join", spec.join.as_ref().map(serde_json::to_value)),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            let allowed = "it belongs to one machine: declare it in the Machine";
            errors.require(false, format!("{field}.{name}"), value.unwrap_or_default(), allowed);
        }
    }
    check_settings(errors, field, spec);
}

/// Settings of machines, those of `base`, whichever layer they belong to.
fn check_settings(errors: &mut Errors, base: &str, spec: &MachineSpec) {
    // What a machine is for and what it joins are matters of the Machine alone. What the schema says of the watchdog and of logs is all.
    let MachineSpec {
        role: _,
        join: _,
        hostname,
        network,
        time,
        kubelet,
        kernel,
        registries,
        watchdog: _,
        logs: _,
        trial,
    } = spec;
    if let Some(hostname) = hostname {
        errors.require(types::is_label(hostname), format!("{base}.hostname"), hostname.as_str(), types::LABEL_WORDS);
    }
    network::check(errors, &format!("{base}.network"), network);
    check_time(errors, base, time);
    check_kubelet(errors, base, kubelet);
    check_kernel(errors, base, kernel);
    check_registries(errors, base, registries);
    let mut names = BTreeSet::new();
    for (index, TrialProbe { name, tcp: _ }) in trial.probes.iter().enumerate() {
        errors.require(
            names.insert(name),
            format!("{base}.trial.probes[{index}].name"),
            name.as_str(),
            "each name once",
        );
    }
}

fn check_registries(errors: &mut Errors, base: &str, registries: &[Registry]) {
    let mut hosts = BTreeSet::new();
    for (index, Registry { host, mirrors: _, ca, credentials }) in registries.iter().enumerate() {
        let field = format!("{base}.registries[{index}]");
        errors.require(hosts.insert(host), format!("{field}.host"), host.as_str(), "each registry once");
        check_pem(errors, &format!("{field}.ca"), ca.as_deref());
        if let Some(RegistryCredentials { secret_name }) = credentials {
            let named = types::is_domain(secret_name);
            let field = format!("{field}.credentials.secretName");
            errors.require(
                named,
                field,
                secret_name.as_str(),
                "the name of a Secret: labels of a-z, 0-9 and -, joined by dots",
            );
        }
    }
}

fn check_kernel(errors: &mut Errors, base: &str, kernel: &MachineKernel) {
    // Names of modules are of any form that the schema lets pass.
    let MachineKernel { sysctls, modules: _ } = kernel;
    for (name, value) in sysctls {
        let field = format!("{base}.kernel.sysctls.{name}");
        errors.require(types::is_sysctl(name), &field, name.as_str(), types::SYSCTL_WORDS);
        let plain = !value.chars().any(|c| c.is_control() && c != '\t');
        errors.require(plain, &field, value.as_str(), "one line");
        if let Some((_, reason)) = machine::KEPT_SYSCTLS.iter().find(|(kept, _)| kept == name) {
            errors.require(false, &field, value.as_str(), &format!("it is not to be changed: {reason}"));
        }
    }
}

fn check_kubelet(errors: &mut Errors, base: &str, kubelet: &MachineKubelet) {
    let MachineKubelet {
        node_labels,
        taints,
        kube_reserved,
        system_reserved,
        eviction_hard,
        feature_gates,
        max_pods: _,
        shutdown_grace_period_seconds: grace,
        shutdown_grace_period_critical_pods_seconds: critical,
    } = kubelet;
    for (key, value) in node_labels {
        let field = format!("{base}.kubelet.nodeLabels.{key}");
        errors.require(types::is_label_key(key), &field, key.as_str(), types::LABEL_KEY_WORDS);
        errors.require(types::is_label_value(value), &field, value.as_str(), types::LABEL_VALUE_WORDS);
    }
    let mut unique = BTreeSet::new();
    for (index, Taint { key, value, effect }) in taints.iter().enumerate() {
        let field = format!("{base}.kubelet.taints[{index}]");
        errors.require(types::is_label_key(key), format!("{field}.key"), key.as_str(), types::LABEL_KEY_WORDS);
        let value = value.as_deref().unwrap_or_default();
        errors.require(types::is_label_value(value), format!("{field}.value"), value, types::LABEL_VALUE_WORDS);
        errors.require(
            unique.insert((key, effect)),
            format!("{field}.key"),
            key.as_str(),
            "each key once with an effect",
        );
    }
    let amounts = [
        ("kubeReserved", kube_reserved, &machine::RESERVABLE[..]),
        ("systemReserved", system_reserved, &machine::RESERVABLE[..]),
        ("evictionHard", eviction_hard, &machine::EVICTION_SIGNALS[..]),
    ];
    for (name, given, allowed) in amounts {
        for key in given.keys() {
            let words = format!("there are {}", allowed.join(", "));
            errors.require(
                allowed.contains(&key.as_str()),
                format!("{base}.kubelet.{name}.{key}"),
                key.as_str(),
                &words,
            );
        }
    }
    check_gates(errors, &format!("{base}.kubelet.featureGates"), feature_gates);
    if let (Some(critical), Some(grace)) = (critical, grace) {
        errors.require(
            critical <= grace,
            format!("{base}.kubelet.shutdownGracePeriodCriticalPodsSeconds"),
            *critical,
            "at most shutdownGracePeriodSeconds, of which it is a part",
        );
    }
}

fn check_time(errors: &mut Errors, base: &str, MachineTime { servers }: &MachineTime) {
    let mut unique = BTreeSet::new();
    for (index, server) in servers.iter().enumerate() {
        let field = format!("{base}.time.servers[{index}]");
        errors.require(is_host(server), &field, server.as_str(), types::HOST_WORDS);
        errors.require(unique.insert(server), &field, server.as_str(), "each server once");
    }
}

/// Kubernetes' own programs end when they do not know a gate; that its name is one at least is seen here.
fn check_gates(errors: &mut Errors, field: &str, gates: &BTreeMap<String, bool>) {
    for name in gates.keys() {
        let plain =
            name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric());
        let words = "a feature gate's name: letters and digits, the first in upper case";
        errors.require(plain && name.len() <= 128, format!("{field}.{name}"), name.as_str(), words);
    }
}

/// What is wrong with a Cluster; empty when it is valid.
pub fn cluster(cluster: &Cluster) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    errors.require(name == cluster::NAME, "metadata.name", name, "there is one Cluster, and its name is cluster");
    let ClusterSpec {
        endpoint,
        virtual_address,
        cert_sans,
        pod_cidr,
        service_cidr,
        dns_domain,
        pod_network: _,
        proxy_mode: _,
        control_plane,
        access,
        machines,
    } = &cluster.spec;
    if let Some(Endpoint { host, port: _ }) = endpoint {
        errors.require(is_host(host), "spec.endpoint.host", host.as_str(), types::HOST_WORDS);
    }
    for (index, san) in cert_sans.iter().enumerate() {
        let domain = san.strip_prefix("*.").unwrap_or(san);
        errors.require(is_host(domain), format!("spec.certSANs[{index}]"), san.as_str(), types::HOST_WORDS);
    }
    check_range(&mut errors, "spec.podCIDR", *pod_cidr, 8..=24);
    // The API server takes no larger range of IPv4 addresses, and cluster DNS has the tenth address.
    check_range(&mut errors, "spec.serviceCIDR", *service_cidr, 12..=28);
    let (pods, services) = (pod_cidr.net(), service_cidr.net());
    let apart = !pods.contains(&services) && !services.contains(&pods);
    errors.require(apart, "spec.serviceCIDR", service_cidr.to_string(), "a range apart from podCIDR");
    errors.require(types::is_domain(dns_domain), "spec.dnsDomain", dns_domain.as_str(), types::DOMAIN_WORDS);
    check_access(&mut errors, "spec.access", access);
    if let Some(virtual_address) = virtual_address {
        let ranges = [("podCIDR", *pod_cidr), ("serviceCIDR", *service_cidr)];
        check_virtual_address(&mut errors, virtual_address, ranges);
    }
    check_control_plane(&mut errors, control_plane);
    check_shared(&mut errors, "spec.machines", machines);
    errors.0
}

/// Who may use the machine API.
fn check_access(errors: &mut Errors, field: &str, access: &[Access]) {
    let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for (index, entry) in access.iter().enumerate() {
        let field = format!("{field}[{index}]");
        errors.require(names.insert(&entry.name), format!("{field}.name"), entry.name.as_str(), "each name once");
        let key = entry.public_key;
        errors.require(keys.insert(key), format!("{field}.publicKey"), key.to_string(), "each key once");
    }
}

fn check_virtual_address(errors: &mut Errors, virtual_address: &VirtualAddress, ranges: [(&str, Cidr); 2]) {
    let (field, value) = ("spec.virtualAddress.address", virtual_address.address.to_string());
    errors.require(virtual_address.is_usable(), field, value.as_str(), VIRTUAL_ADDRESS_WORDS);
    for (name, range) in ranges {
        let allowed = format!("an address outside of {name}, {range}");
        errors.require(!virtual_address.is_in(range.net()), field, value.as_str(), &allowed);
    }
}

fn check_control_plane(errors: &mut Errors, control_plane: &ControlPlane) {
    let ControlPlane { feature_gates, api_server, controller_manager, scheduler } = control_plane;
    check_gates(errors, "spec.controlPlane.featureGates", feature_gates);
    let ApiServer { extra_args, oidc, pod_security: _, admission_plugins, event_rate_limits, audit_rules } = api_server;
    for (component, flags) in [
        ("apiServer", extra_args),
        ("controllerManager", &controller_manager.extra_args),
        ("scheduler", &scheduler.extra_args),
    ] {
        for (name, value) in flags {
            let field = format!("spec.controlPlane.{component}.extraArgs.{name}");
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            let words = "the name of a flag without its dashes: a-z, 0-9 and - between them";
            errors.require(plain && types::is_label(name), &field, name.as_str(), words);
            let own = control_plane::OWN_FLAGS.contains(&name.as_str());
            errors.require(
                !own,
                &field,
                value.as_str(),
                "Garboard gives this flag itself, so that the cluster works and is safe",
            );
            errors.require(!value.contains(['\n', '\0']), &field, value.as_str(), "one line");
        }
    }
    let mut plugins = BTreeSet::new();
    for (index, plugin) in admission_plugins.iter().enumerate() {
        let field = format!("spec.controlPlane.apiServer.admissionPlugins[{index}]");
        let shown = serde_json::to_value(plugin).unwrap_or_default();
        errors.require(plugins.insert(plugin), field, shown, "each plugin once");
    }
    let mut types = BTreeSet::new();
    for (index, EventRateLimit { type_, .. }) in event_rate_limits.iter().enumerate() {
        let field = format!("spec.controlPlane.apiServer.eventRateLimits[{index}].type");
        let shown = serde_json::to_value(type_).unwrap_or_default();
        errors.require(types.insert(type_), field, shown, "each type once");
    }
    for (index, rule) in audit_rules.iter().enumerate() {
        // kube-apiserver refuses a policy with such a rule, and would not start.
        let apart = rule.non_resource_urls.is_empty() || (rule.resources.is_empty() && rule.namespaces.is_empty());
        let field = format!("spec.controlPlane.apiServer.auditRules[{index}].nonResourceURLs");
        errors.require(apart, &field, rule.non_resource_urls.clone(), "either these or resources and namespaces");
        for url in &rule.non_resource_urls {
            let star = url.find('*').is_none_or(|at| at + 1 == url.len());
            let plain = url == "*" || (url.starts_with('/') && star);
            errors.require(plain, &field, url.as_str(), "a path that begins with / and may end with *");
        }
    }
    let mut issuers = BTreeSet::new();
    for (index, OidcIssuer { issuer_url, ca, .. }) in oidc.iter().enumerate() {
        let field = format!("spec.controlPlane.apiServer.oidc[{index}]");
        errors.require(
            issuers.insert(issuer_url),
            format!("{field}.issuerURL"),
            issuer_url.as_str(),
            "each issuer once",
        );
        check_pem(errors, &format!("{field}.ca"), ca.as_deref());
    }
}

fn check_pem(errors: &mut Errors, field: &str, pem: Option<&str>) {
    if let Some(pem) = pem {
        let is_pem = pem.contains("-----BEGIN CERTIFICATE-----") && pem.contains("-----END CERTIFICATE-----");
        errors.require(is_pem, field, pem, "certificates in PEM");
    }
}

fn check_range(errors: &mut Errors, field: &str, range: Cidr, lengths: RangeInclusive<u8>) {
    let net = range.net();
    let allowed = format!("an IPv4 range with a prefix of {} to {}", lengths.start(), lengths.end());
    let valid = net.addr().is_ipv4() && lengths.contains(&net.prefix_len());
    errors.require(valid, field, range.to_string(), &allowed);
    errors.require(range.is_range(), field, range.to_string(), &format!("the start of the range, {}", net.trunc()));
}

/// What a change from `old` to `new` would break; empty when it may be made.
pub fn cluster_change(old: &ClusterSpec, new: &ClusterSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let fixed = |value: &dyn std::fmt::Display| format!("it cannot be changed from {value}");
    let (old_value, value) = (old.pod_cidr, new.pod_cidr);
    errors.require(old_value == value, "spec.podCIDR", value.to_string(), &fixed(&old_value));
    let (old_value, value) = (old.service_cidr, new.service_cidr);
    errors.require(old_value == value, "spec.serviceCIDR", value.to_string(), &fixed(&old_value));
    let (old_value, value) = (&old.dns_domain, &new.dns_domain);
    errors.require(old_value == value, "spec.dnsDomain", value.as_str(), &fixed(old_value));
    errors.0
}

/// What keeps a machine from being part of a cluster; empty when nothing does.
pub fn together(machine: &MachineSpec, cluster: &ClusterSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (index, link) in machine.network.links.iter().enumerate() {
        for (number, address) in link.addresses.iter().enumerate() {
            let shared = cluster.virtual_address.as_ref().map(|shared| IpAddr::V4(shared.address));
            errors.require(
                shared != Some(address.net().addr()),
                format!("spec.network.links[{index}].addresses[{number}]"),
                address.to_string(),
                "an address of this machine alone, not the cluster's virtualAddress",
            );
            for (name, range) in [("podCIDR", cluster.pod_cidr), ("serviceCIDR", cluster.service_cidr)] {
                errors.require(
                    !range.net().contains(&address.net().addr()),
                    format!("spec.network.links[{index}].addresses[{number}]"),
                    address.to_string(),
                    &format!("an address outside of the cluster's {name}, {range}"),
                );
            }
        }
    }
    errors.0
}

fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || types::is_domain(text)
}
