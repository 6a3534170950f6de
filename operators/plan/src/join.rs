//! Whether a machine's request for a client certificate is approved, and what a machine may do that has one.
//!
//! A machine that joins shows a token that is for it alone, and gets the certificate of its node agent with it, once: a token is the
//! key's that was first to ask with it, and no other key's requests are approved. The machine has that key on its disk before it asks, so it
//! can ask again after a power cut; who comes with the token and another key is told why not. With that certificate a worker asks for those
//! of its other clients, and for each of them again before it ends, for as long as its Machine exists. A control-plane machine fetches the
//! cluster's keys with it, which lie beside its token, sealed with a key that the cluster does not have.

use std::time::Duration;

use garboard_api::PublicKeyPin;
use garboard_api::machine::MachineRole;
use garboard_api::types::Token;
use garboard_catalog::identity;
use serde_json::{Value, json};

use crate::csr::{self, Request};
use crate::dispute::{self, Claimant};
use crate::pki::{self, Profile};
use crate::{addons, addons::DNS_SERVICE};

/// The signer of clients' certificates.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// What a client's certificate is for.
pub const USAGES: [&str; 2] = ["digital signature", "client auth"];
/// Life of a worker's certificate. A machine that was away for longer joins again.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What the user names of those who show a token begin with; the token's identifier follows.
const TOKEN_PREFIX: &str = "system:bootstrap:";
/// Name of the policy that binds workers to what is theirs.
const POLICY: &str = "workers.garboard.dev";

/// A machine that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requester<'a> {
    /// One that joins.
    Joiner {
        /// The identifier of the token that it shows.
        token: &'a str,
        /// The machine that the token is for.
        machine: &'a str,
        /// What that machine is for.
        role: MachineRole,
    },
    /// The worker of this name.
    Worker(&'a str),
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// It is no request for a client's certificate.
    #[error(transparent)]
    Form(#[from] csr::Denial),
    /// The usages are not those of a client.
    #[error("usages {0:?}: client auth is needed, and beside it only digital signature is allowed")]
    Usages(Vec<String>),
    /// It asks to be somebody else.
    #[error("subject {subject:?}: {machine} may ask for {allowed}")]
    Subject {
        /// What it asks for.
        subject: String,
        /// The machine that asks.
        machine: String,
        /// What it may ask for.
        allowed: String,
    },
    /// It asks for names, which clients do not have.
    #[error("names are for servers")]
    Names,
    /// Another key was shown before it with the same token, or its time is over.
    #[error("the token was used before: one token lets one machine in, once; `garboardctl join {0}` makes another")]
    Spent(String),
    /// Another machine has the name.
    #[error(
        "{name} is {other}: give this one a name of its own with `garboardctl join`, or let that one go first with \
         `kubectl delete machine {name}`"
    )]
    Another {
        /// The name.
        name: String,
        /// Who has it.
        other: Claimant,
    },
    /// Another machine was let in under the name a moment ago, and has not told yet that it is there.
    #[error(
        "{other} was let in as {name} a moment ago: give this one a name of its own with `garboardctl join`; if that one does not come, \
         this one is let in two minutes after it"
    )]
    Awaited {
        /// The name.
        name: String,
        /// Who was let in.
        other: Claimant,
    },
    /// The machine is not declared.
    #[error("there is no Machine {0}")]
    Unknown(String),
}

impl Denial {
    /// Why, in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Another { .. } | Self::Awaited { .. } => dispute::REASON,
            Self::Form(_)
            | Self::Usages(_)
            | Self::Subject { .. }
            | Self::Names
            | Self::Spent(_)
            | Self::Unknown(_) => csr::NOT_ALLOWED,
        }
    }
}

impl<'a> Requester<'a> {
    /// Who asks, if it is a machine: others' requests are others' business.
    pub fn of(request: &Request<'a>) -> Option<Self> {
        let in_group = |group: &str| request.groups.iter().any(|found| found == group);
        if let Some(machine) = request.username.strip_prefix(identity::WORKER_PREFIX) {
            return in_group(identity::WORKERS_GROUP).then_some(Self::Worker(machine));
        }
        let token = request.username.strip_prefix(TOKEN_PREFIX)?;
        request.groups.iter().find_map(|group| {
            let (role, machine) = joiner(group)?;
            Some(Self::Joiner { token, machine, role })
        })
    }

    /// The machine's name.
    pub fn machine(self) -> &'a str {
        match self {
            Self::Joiner { machine, .. } | Self::Worker(machine) => machine,
        }
    }

    /// The certificates that it may ask for.
    fn allowed(self) -> Vec<Profile> {
        match self {
            Self::Joiner { machine, role, token: _ } => vec![agent(role, machine)],
            Self::Worker(machine) => pki::of_worker(machine).into_values().collect(),
        }
    }

    /// Whether it asks for what it may have.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(self, request: &Request<'_>) -> Result<(), Denial> {
        let known = |usage: &String| USAGES.contains(&usage.as_str());
        if !request.usages.iter().all(known) || !request.usages.iter().any(|usage| usage == "client auth") {
            return Err(Denial::Usages(request.usages.to_vec()));
        }
        let parsed = csr::parse(request.der)?;
        if parsed.requested_extensions().into_iter().flatten().next().is_some() {
            return Err(Denial::Names);
        }
        let allowed = self.allowed();
        let is_subject =
            |profile: &Profile| csr::has_subject(&parsed, &profile.common_name, profile.organization.as_deref());
        if allowed.iter().any(is_subject) {
            return Ok(());
        }
        let names: Vec<_> = allowed.into_iter().map(|profile| profile.common_name).collect();
        Err(Denial::Subject {
            subject: parsed.certification_request_info.subject.to_string(),
            machine: self.machine().to_owned(),
            allowed: names.join(", "),
        })
    }
}

/// The certificate of a machine's node agent.
pub fn agent(role: MachineRole, machine: &str) -> Profile {
    match role {
        MachineRole::ControlPlane => pki::control_plane_agent(machine),
        MachineRole::Worker => pki::worker_agent(machine),
    }
}

/// The machine that a group of those who show a token is of.
fn joiner(group: &str) -> Option<(MachineRole, &str)> {
    let worker = group.strip_prefix(identity::JOINER_PREFIX).map(|machine| (MachineRole::Worker, machine));
    let of_control_plane = || group.strip_prefix(identity::CONTROL_PLANE_JOINER_PREFIX);
    worker.or_else(|| of_control_plane().map(|machine| (MachineRole::ControlPlane, machine)))
}

/// The public key of a request, DER (SubjectPublicKeyInfo).
///
/// # Errors
/// When it is no request that is signed by its own key.
pub fn public_key(request: &Request<'_>) -> Result<Vec<u8>, Denial> {
    Ok(csr::parse(request.der)?.certification_request_info.subject_pki.raw.to_vec())
}

/// Which key asks with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The first that does: the token is its own from now on.
    First,
    /// The one that was first, which may not have had the answer.
    Again,
    /// One that comes after another.
    Late,
}

impl Asks {
    /// Who `key` is to a token whose Secret says `first` in [`KEY`].
    pub fn of(key: PublicKeyPin, first: Option<&str>) -> Self {
        match first {
            None => Self::First,
            Some(first) if first.parse() == Ok(key) => Self::Again,
            Some(_) => Self::Late,
        }
    }
}

/// The annotation of a token's Secret that says which key was first to ask with it.
pub const KEY: &str = "garboard.dev/key";
/// The type of Secrets that hold tokens. kube-controller-manager takes those away whose time is over.
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Where, in their Secret, the cluster's sealed keys are.
pub const SEALED_KEYS: &str = "sealed-keys";

/// The Secret of a token, as kube-apiserver takes them. `expiration` is in RFC 3339.
pub fn token_secret(machine: &str, role: MachineRole, token: Token<'_>, expiration: &str) -> Value {
    let prefix = match role {
        MachineRole::ControlPlane => identity::CONTROL_PLANE_JOINER_PREFIX,
        MachineRole::Worker => identity::JOINER_PREFIX,
    };
    let Token { id, bearer, seal: _ } = token;
    let secret = bearer.split_once('.').map_or("", |(_, secret)| secret);
    let data = json!({
        "description": format!("lets the machine {machine} join, once"),
        "token-id": id,
        "token-secret": secret,
        "expiration": expiration,
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": format!("{},{prefix}{machine}", identity::JOINERS_GROUP),
    });
    secret_that_ends(&token_secret_name(id), &data)
}

/// The Secret with the cluster's keys for the control-plane machine that a token is for. It lets nobody in, and goes at the same time.
pub fn sealed_keys_secret(machine: &str, id: &str, expiration: &str, sealed: &str) -> Value {
    let data = json!({
        "description": format!("the cluster's keys for the machine {machine}, sealed"),
        "expiration": expiration,
        SEALED_KEYS: sealed,
    });
    secret_that_ends(&sealed_keys_name(id), &data)
}

/// A Secret that kube-controller-manager takes away when its time is over.
fn secret_that_ends(name: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": "kube-system", "labels": addons::labels() },
        "type": TOKEN_TYPE,
        "stringData": data,
    })
}

/// The name of the Secret with the cluster's keys that belongs to a token.
pub fn sealed_keys_name(id: &str) -> String {
    format!("garboard-keys-{id}")
}

/// What lets the control-plane machine that a token is for, once it is in, fetch the keys and take their Secret away, with whose `uid` the
/// right goes.
pub fn sealed_keys_role(machine: &str, id: &str, uid: &str) -> [Value; 2] {
    let secret = sealed_keys_name(id);
    let metadata = belonging(&format!("garboard:keys:{id}"), &secret, uid);
    let user = agent(MachineRole::ControlPlane, machine).common_name;
    addons::role_in(&metadata, &json!([addons::rule_for(&secret, "", "secrets", &["get", "delete"])]), "User", &user)
}

/// What lets the operators write down whose a token is; the right goes with the token's Secret, which has this `uid`.
pub fn token_role(id: &str, uid: &str) -> [Value; 2] {
    let secret = token_secret_name(id);
    let metadata = belonging(&format!("garboard:token:{id}"), &secret, uid);
    let rules = json!([addons::rule_for(&secret, "", "secrets", &["get", "patch"])]);
    addons::role_in(&metadata, &rules, "Group", identity::OPERATORS_GROUP)
}

/// The metadata of what goes with a Secret.
fn belonging(name: &str, secret: &str, uid: &str) -> Value {
    json!({
        "name": name,
        "namespace": "kube-system",
        "labels": addons::labels(),
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid }],
    })
}

/// The name of a token's Secret.
pub fn token_secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// What holds workers to their own objects, and what binds it. Roles cannot: they know no names of those who ask.
pub fn policies() -> [Value; 2] {
    let rule = |group: &str, version: &str, resources: &[&str]| {
        json!({
            "apiGroups": [group],
            "apiVersions": [version],
            "operations": ["CREATE", "UPDATE"],
            "resources": resources,
        })
    };
    let prefix = identity::WORKER_PREFIX;
    let spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": { "resourceRules": [
            rule(garboard_api::GROUP, garboard_api::VERSION, &["machines", "machines/status"]),
            rule("", "v1", &["nodes"]),
            rule("discovery.k8s.io", "v1", &["endpointslices"]),
        ] },
        "matchConditions": [{
            "name": "workers",
            "expression": format!("{:?} in request.userInfo.groups", identity::WORKERS_GROUP),
        }],
        "variables": [{
            "name": "own",
            "expression": format!(
                "request.userInfo.username.startsWith({prefix:?}) ? request.userInfo.username.substring({}) : ''",
                prefix.len(),
            ),
        }],
        "validations": [
            {
                "expression": format!(
                    "object.metadata.name == (request.resource.resource == 'endpointslices' ? '{DNS_SERVICE}-' : '') + variables.own"
                ),
                "message": "a worker changes only what is its own",
            },
            {
                "expression": "request.resource.resource != 'endpointslices' || (object.endpoints.all(endpoint, \
                    has(endpoint.nodeName) && endpoint.nodeName == variables.own && \
                    has(endpoint.hints) && has(endpoint.hints.forNodes) && \
                    endpoint.hints.forNodes.all(node, node.name == variables.own)) \
                    && object.metadata.?labels[?'kubernetes.io/service-name'].orValue('') == 'kube-dns')",
                "message": "a worker serves cluster DNS to its own pods alone",
            },
        ],
    });
    addons::policy(POLICY, "Deny", spec)
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
