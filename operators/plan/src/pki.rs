//! Which keys and certificates are due on this machine, from those that exist.
//!
//! Authorities and keys are made once and kept: a new one would cut off everything that trusts the old one. Certificates
//! ([`Leaf`]) are issued again when they are missing, when two thirds of their life are over, when the clock lies before
//! their beginning, and when what they should say has changed. What services read is a copy, made again when it differs.
//!
//! A control-plane machine signs its certificates itself: the one that founds the cluster makes the authorities and keys, the others are
//! given them when they join. A worker has no authority's key: it asks the cluster for its certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use garboard_api::machine::MachineRole;
use garboard_catalog::identity;
use garboard_catalog::kube_apiserver::FRONT_PROXY_USER;
use garboard_catalog::pki::Leaf;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Life of a certificate.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Life of an authority.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
/// Time before its making from which a certificate is valid, because other machines' clocks may be late.
pub const BACKDATE: Duration = DAY;
/// Time before its end at which an authority is reported.
const AUTHORITY_WARNING: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authority {
    /// Of the API server, its clients and kubelets.
    Kubernetes,
    /// Of etcd and its clients; apart, because access to etcd is access to everything.
    Etcd,
    /// Of the client with which the API server vouches for others; apart, so that no other client can.
    FrontProxy,
}

impl Authority {
    /// Every authority.
    pub const ALL: [Self; 3] = [Self::Kubernetes, Self::Etcd, Self::FrontProxy];

    /// Its common name and the name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes-ca",
            Self::Etcd => "etcd-ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
}

/// A name that a certificate is valid for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SubjectName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl SubjectName {
    /// An address where `name` is one, else a DNS name.
    pub fn parse(name: &str) -> Self {
        name.parse().map_or_else(|_| Self::Dns(name.to_ascii_lowercase()), Self::Ip)
    }
}

/// What a certificate says.
///
/// One organization is enough: a client here is in one group besides those that the API server adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Common name: the user, for clients.
    pub common_name: String,
    /// Organization: the group, for clients.
    pub organization: Option<String>,
    /// What it is valid for as a server's; empty for pure clients.
    pub names: BTreeSet<SubjectName>,
    /// Whether it identifies a server.
    pub server: bool,
    /// Whether it identifies a client.
    pub client: bool,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

impl Validity {
    /// When two thirds of it are over.
    pub fn renewal(self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }

    /// Whether it holds at `now`.
    pub fn contains(self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// An authority that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedAuthority {
    /// Its validity.
    pub validity: Validity,
    /// Whether its key is here too.
    pub signs: bool,
}

/// A certificate that exists and has its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLeaf {
    /// What it says.
    pub profile: Profile,
    /// Its validity.
    pub validity: Validity,
    /// Whether the authority that exists now signed it.
    pub signed_by_authority: bool,
}

/// Keys that are no certificate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Signs service account tokens.
    ServiceAccount,
    /// Encrypts Secrets in etcd.
    Secrets,
}

impl Key {
    /// Every such key.
    pub const ALL: [Self; 2] = [Self::ServiceAccount, Self::Secrets];

    /// The name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceAccount => "service-account.key",
            Self::Secrets => "secrets.key",
        }
    }
}

/// A folder of files that one service's user reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deployment {
    /// A certificate, its key and the authority that its bearer trusts.
    Leaf(Leaf),
    /// Service account keys, the encryption configuration and the front proxy's authority, for kube-apiserver.
    ApiserverKeys,
    /// The service account key and the key of the cluster's authority, for kube-controller-manager.
    ControllerManagerKeys,
}

/// What exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The authorities.
    pub authorities: BTreeMap<Authority, ObservedAuthority>,
    /// The keys.
    pub keys: BTreeSet<Key>,
    /// The certificates; one that cannot be read is as good as none.
    pub leaves: BTreeMap<Leaf, ObservedLeaf>,
    /// Deployments whose files are what they should be.
    pub deployed: BTreeSet<Deployment>,
}

/// What this machine's certificates depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiInput {
    /// What the machine is for.
    pub role: MachineRole,
    /// Whether it joins a cluster, whose authorities there are already.
    pub joins: bool,
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The API server's own Service addresses: the first of each Service range.
    pub service_addresses: Vec<IpAddr>,
    /// The cluster's DNS domain.
    pub dns_domain: String,
    /// Further names and addresses of the API server: the endpoint's, the virtual one and the declared ones.
    pub apiserver_names: Vec<String>,
}

/// What this machine should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Whether it makes the authorities and keys that are not there.
    pub creates: bool,
    /// Whether it signs for itself.
    pub signs: bool,
    /// Its certificates.
    pub leaves: BTreeMap<Leaf, Profile>,
}

/// Why a certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    Missing,
    /// Another authority signed it.
    Authority,
    /// It should say something else.
    Changed,
    /// Two thirds of its life are over.
    Renewal,
    /// It begins in the future: it was made while the clock was ahead.
    NotYetValid,
}

/// A thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make an authority.
    CreateAuthority {
        /// Which one.
        authority: Authority,
        /// Its validity.
        validity: Validity,
    },
    /// Make a key.
    CreateKey(Key),
    /// Issue a certificate with a new key.
    Issue {
        /// Which one.
        leaf: Leaf,
        /// What it says.
        profile: Profile,
        /// Its validity.
        validity: Validity,
        /// Why.
        reason: Reason,
    },
    /// Ask the cluster for a certificate with a new key.
    Request {
        /// Which one.
        leaf: Leaf,
        /// What it says.
        profile: Profile,
        /// Why.
        reason: Reason,
    },
    /// Write the files of a deployment.
    Deploy(Deployment),
}

/// What a person must know or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The authority ends within a year. Certificates that it signs end with it.
    AuthorityExpiring(Authority, SystemTime),
    /// The authority is not valid now: it ended, or the clock is wrong. Nothing is signed by it.
    AuthorityNotValid(Authority, SystemTime),
    /// The authority's key is not here, and this machine should sign with it.
    AuthorityWithoutKey(Authority),
}

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they must be done.
    pub steps: Vec<Step>,
    /// What cannot be done.
    pub problems: Vec<Problem>,
}

/// Who signs a certificate, and whom its bearer trusts.
pub fn authority(leaf: Leaf) -> Authority {
    match leaf {
        Leaf::EtcdServer | Leaf::EtcdPeer | Leaf::EtcdProbe => Authority::Etcd,
        Leaf::FrontProxyClient => Authority::FrontProxy,
        Leaf::Apiserver
        | Leaf::ApiserverKubeletClient
        | Leaf::ControllerManager
        | Leaf::Scheduler
        | Leaf::Kubelet
        | Leaf::KubeProxy
        | Leaf::Dns
        | Leaf::Operators
        | Leaf::Agent => Authority::Kubernetes,
    }
}

/// What this machine should have.
pub fn desired(input: &PkiInput) -> Desired {
    match input.role {
        MachineRole::ControlPlane => Desired {
            creates: !input.joins,
            signs: true,
            leaves: Leaf::ALL.into_iter().map(|leaf| (leaf, profile(leaf, input))).collect(),
        },
        MachineRole::Worker => Desired { creates: false, signs: false, leaves: of_worker(&input.node_name) },
    }
}

/// The certificates of the worker of this name: what it may ask the cluster for.
pub fn of_worker(name: &str) -> BTreeMap<Leaf, Profile> {
    Leaf::OF_WORKERS.into_iter().filter_map(|leaf| Some((leaf, client_of_worker(leaf, name)?))).collect()
}

/// The certificate of the node agent of a control-plane machine.
pub fn control_plane_agent(name: &str) -> Profile {
    client(&format!("{}{name}", identity::AGENT_PREFIX), Some(identity::AGENT_GROUP))
}

/// The certificate of the node agent of a worker.
pub fn worker_agent(name: &str) -> Profile {
    client(&format!("{}{name}", identity::WORKER_PREFIX), Some(identity::WORKERS_GROUP))
}

fn client_of_worker(leaf: Leaf, name: &str) -> Option<Profile> {
    match leaf {
        Leaf::Kubelet => Some(kubelet(name)),
        Leaf::KubeProxy => Some(kube_proxy(name)),
        Leaf::Dns => Some(dns(name)),
        Leaf::Agent => Some(worker_agent(name)),
        _ => None,
    }
}

fn profile(leaf: Leaf, input: &PkiInput) -> Profile {
    let node = &input.node_name;
    match leaf {
        // etcd is a client of itself (its own health) and of its peers.
        Leaf::EtcdServer => server_and_client(node, etcd_names(input)),
        // Members look at the address that a peer comes from.
        Leaf::EtcdPeer => {
            let addresses = input.node_addresses.iter().copied().map(SubjectName::Ip);
            server_and_client(node, etcd_names(input).into_iter().chain(addresses).collect())
        }
        Leaf::EtcdProbe => client("garboard:probe", None),
        Leaf::Apiserver => Profile { client: false, ..server_and_client("kube-apiserver", apiserver_names(input)) },
        Leaf::ApiserverKubeletClient => client(identity::APISERVER_KUBELET_CLIENT, None),
        Leaf::FrontProxyClient => client(FRONT_PROXY_USER, None),
        // Controllers show on their own loopback port the certificate with which they are clients.
        Leaf::ControllerManager => server_and_client("system:kube-controller-manager", loopback_names().collect()),
        Leaf::Scheduler => server_and_client("system:kube-scheduler", loopback_names().collect()),
        Leaf::Kubelet => kubelet(node),
        Leaf::KubeProxy => kube_proxy(node),
        Leaf::Dns => dns(node),
        Leaf::Operators => client(&format!("garboard:operators:{node}"), Some(identity::OPERATORS_GROUP)),
        Leaf::Agent => control_plane_agent(node),
    }
}

fn kubelet(node: &str) -> Profile {
    client(&format!("system:node:{node}"), Some("system:nodes"))
}

fn kube_proxy(node: &str) -> Profile {
    client(&format!("garboard:kube-proxy:{node}"), Some(identity::KUBE_PROXIES_GROUP))
}

fn dns(node: &str) -> Profile {
    client(&format!("garboard:dns:{node}"), Some(identity::DNS_GROUP))
}

fn server_and_client(common_name: &str, names: BTreeSet<SubjectName>) -> Profile {
    Profile { common_name: common_name.to_owned(), organization: None, names, server: true, client: true }
}

fn client(common_name: &str, organization: Option<&str>) -> Profile {
    Profile {
        common_name: common_name.to_owned(),
        organization: organization.map(str::to_owned),
        names: BTreeSet::new(),
        server: false,
        client: true,
    }
}

fn loopback_names() -> impl Iterator<Item = SubjectName> {
    ["localhost", "127.0.0.1", "::1"].into_iter().map(SubjectName::parse)
}

fn etcd_names(input: &PkiInput) -> BTreeSet<SubjectName> {
    loopback_names().chain([SubjectName::parse(&input.node_name)]).collect()
}

fn apiserver_names(input: &PkiInput) -> BTreeSet<SubjectName> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(SubjectName::parse);
    loopback_names()
        .chain(service)
        .chain([
            SubjectName::parse(&format!("kubernetes.default.svc.{}", input.dns_domain)),
            SubjectName::parse(&input.node_name),
        ])
        .chain(input.node_addresses.iter().chain(&input.service_addresses).copied().map(SubjectName::Ip))
        .chain(input.apiserver_names.iter().map(|name| SubjectName::parse(name)))
        .collect()
}

/// What is due at `now`, so that `desired` holds.
pub fn plan(desired: &Desired, observed: &Observed, now: SystemTime) -> Plan {
    let mut plan = Plan::default();
    let mut signers = BTreeMap::new();
    let mut fresh = BTreeSet::new();
    for authority in Authority::ALL {
        match observed.authorities.get(&authority) {
            None if desired.creates => {
                let validity = Validity { not_before: now - BACKDATE, not_after: now + AUTHORITY_LIFETIME };
                plan.steps.push(Step::CreateAuthority { authority, validity });
                signers.insert(authority, validity);
                fresh.insert(authority);
            }
            None if desired.signs => plan.problems.push(Problem::AuthorityWithoutKey(authority)),
            None => {}
            Some(ObservedAuthority { validity, .. }) if !validity.contains(now) => {
                plan.problems.push(Problem::AuthorityNotValid(authority, validity.not_after));
            }
            Some(ObservedAuthority { signs: false, .. }) if desired.signs => {
                plan.problems.push(Problem::AuthorityWithoutKey(authority));
            }
            Some(ObservedAuthority { validity, .. }) => {
                if validity.not_after < now + AUTHORITY_WARNING {
                    plan.problems.push(Problem::AuthorityExpiring(authority, validity.not_after));
                }
                signers.insert(authority, *validity);
            }
        }
    }
    let mut stale = BTreeSet::new();
    if desired.signs {
        let lacking = Key::ALL.into_iter().filter(|key| desired.creates && !observed.keys.contains(key));
        let new_keys: BTreeSet<Key> = lacking.collect();
        plan.steps.extend(new_keys.iter().copied().map(Step::CreateKey));
        stale = stale_deployments(observed, &new_keys, &fresh);
    }
    for (&leaf, profile) in &desired.leaves {
        let authority = authority(leaf);
        let reason = reason(profile, observed.leaves.get(&leaf), fresh.contains(&authority), now);
        match (reason, signers.get(&authority)) {
            (Some(reason), Some(signer)) if desired.signs => {
                let validity =
                    Validity { not_before: now - BACKDATE, not_after: (now + LEAF_LIFETIME).min(signer.not_after) };
                plan.steps.push(Step::Issue { leaf, profile: profile.clone(), validity, reason });
                stale.insert(Deployment::Leaf(leaf));
                continue;
            }
            (Some(reason), Some(_)) => plan.steps.push(Step::Request { leaf, profile: profile.clone(), reason }),
            _ => {}
        }
        // What is to be replaced serves until it is.
        if observed.leaves.contains_key(&leaf) && !observed.deployed.contains(&Deployment::Leaf(leaf)) {
            stale.insert(Deployment::Leaf(leaf));
        }
    }
    plan.steps.extend(stale.into_iter().map(Step::Deploy));
    plan
}

fn stale_deployments(
    observed: &Observed,
    new_keys: &BTreeSet<Key>,
    fresh: &BTreeSet<Authority>,
) -> BTreeSet<Deployment> {
    [Deployment::ApiserverKeys, Deployment::ControllerManagerKeys]
        .into_iter()
        .filter(|deployment| !new_keys.is_empty() || !fresh.is_empty() || !observed.deployed.contains(deployment))
        .collect()
}

fn reason(
    desired: &Profile,
    observed: Option<&ObservedLeaf>,
    fresh_authority: bool,
    now: SystemTime,
) -> Option<Reason> {
    let Some(ObservedLeaf { profile, validity, signed_by_authority }) = observed else {
        return Some(Reason::Missing);
    };
    if fresh_authority || !signed_by_authority {
        Some(Reason::Authority)
    } else if profile != desired {
        Some(Reason::Changed)
    } else if now < validity.not_before {
        Some(Reason::NotYetValid)
    } else if now >= validity.renewal() {
        Some(Reason::Renewal)
    } else {
        None
    }
}

/// When [`plan`] has something to do next if nothing else changes; none when there is nothing to wait for.
pub fn next_renewal(observed: &Observed) -> Option<SystemTime> {
    observed.leaves.values().map(|leaf| leaf.validity.renewal()).min()
}

/// The validity of a certificate for somebody's own key: `lifetime` from `now`, within that of the authority.
pub fn client_validity(authority: Validity, lifetime: Duration, now: SystemTime) -> Validity {
    Validity { not_before: now - BACKDATE, not_after: (now + lifetime).min(authority.not_after) }
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
