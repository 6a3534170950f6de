//! Machines that want to join under a name that another machine has: what they say of themselves, whether they are let in, and what is
//! told of those that are not.
//!
//! A Machine belongs to the installation that tells its status, and before there is one to that which was let in. Keys do not tell machines
//! apart here: manifests bring one along, and copied manifests the same one twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use garboard_api::condition::{self, Observation};
use garboard_api::machine::MachineStatus;
use garboard_api::types::PublicKeyPin;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;

use crate::csr::Request;
use crate::events::Notable;
use crate::join::{Denial, Requester};

/// Why a request is denied whose machine is not the one that has the name, in one word.
pub const REASON: &str = "AnotherMachine";
/// Time after which a machine that was refused asks again. People have to do something first, and each request is kept for a while.
pub const ASK_AGAIN: Duration = Duration::from_secs(60);
/// For how long it is told that a machine was refused which does not ask again.
pub const KEPT: Duration = Duration::from_secs(180);

/// For how long a name is kept for a machine that was let in and has not told a status yet.
pub const UNTOLD: Duration = Duration::from_secs(120);

/// Annotations of a request in which its machine says who it is.
const MACHINE_ID: &str = "garboard.dev/machine-id";
const FINGERPRINT: &str = "garboard.dev/fingerprint";
const ADDRESSES: &str = "garboard.dev/addresses";

/// A machine by what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// Identifies its installation.
    pub machine_id: Option<String>,
    /// SHA-256 of its public key.
    pub fingerprint: Option<PublicKeyPin>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Claimant {
    /// The machine that tells a status.
    pub fn of_status(status: &MachineStatus) -> Self {
        Self {
            machine_id: status.machine_id.clone(),
            fingerprint: status.fingerprint.as_deref().and_then(|text| text.parse().ok()),
            addresses: status.addresses.clone(),
        }
    }

    /// Whether that is another machine, or may be.
    fn is_another_than(&self, other: &Self) -> bool {
        self.machine_id.is_none() || self.machine_id != other.machine_id
    }

    /// The same without its key: a screen has room for little.
    pub fn in_short(self) -> Self {
        Self { fingerprint: None, ..self }
    }

    /// What a request says. Whoever has a token can write anything there: what has not the form that it should have is left out.
    pub fn of_annotations(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key| annotations.get(key).map(String::as_str);
        let is_machine_id =
            |id: &&str| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        Self {
            machine_id: text(MACHINE_ID).filter(is_machine_id).map(str::to_owned),
            fingerprint: text(FINGERPRINT).and_then(|text| text.parse().ok()),
            addresses: text(ADDRESSES)
                .into_iter()
                .flat_map(|text| text.split(','))
                .filter_map(|one| one.parse().ok())
                .collect(),
        }
    }

    /// What it says in a request.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let texts = [
            (MACHINE_ID, self.machine_id.clone()),
            (FINGERPRINT, self.fingerprint.map(|fingerprint| fingerprint.to_string())),
            (ADDRESSES, Some(addresses.join(",")).filter(|text| !text.is_empty())),
        ];
        texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?))).collect()
    }
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the machine ")?;
        f.write_str(self.machine_id.as_deref().unwrap_or("without an id"))?;
        if let Some(fingerprint) = self.fingerprint {
            write!(f, " with the key {fingerprint}")?;
        }
        for (index, address) in self.addresses.iter().enumerate() {
            write!(f, "{} {address}", if index == 0 { " at" } else { "," })?;
        }
        Ok(())
    }
}

/// The machines that were let in a moment ago, by their names.
#[derive(Debug, Default)]
pub struct LetIn(BTreeMap<String, (Claimant, Instant)>);

impl LetIn {
    /// Adds one.
    pub fn add(&mut self, name: &str, claimant: Claimant, now: Instant) {
        self.0.retain(|_, (_, at)| now.duration_since(*at) < UNTOLD);
        self.0.insert(name.to_owned(), (claimant, now));
    }

    /// Forgets one, which was removed.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The one of this name.
    pub fn get(&self, name: &str, now: Instant) -> Option<&Claimant> {
        self.0.get(name).filter(|(_, at)| now.duration_since(*at) < UNTOLD).map(|(claimant, _)| claimant)
    }
}

/// Whether a machine that shows a token is let in as `name`, given the status of the Machine of that name, whether its node is Ready, and
/// who was let in a moment ago. The token is `spent` when it has let a machine in before.
///
/// One whose node is not Ready may be replaced: who made a token for its name has meant it.
///
/// # Errors
/// Why not.
pub fn admit(
    name: &str,
    spent: bool,
    claimant: &Claimant,
    known: Option<&MachineStatus>,
    ready: bool,
    let_in: Option<&Claimant>,
) -> Result<(), Denial> {
    let known = known.map(Claimant::of_status);
    let untold = let_in.filter(|let_in| known.as_ref().is_none_or(|known| known.is_another_than(let_in)));
    let awaited = untold.filter(|untold| untold.is_another_than(claimant)).cloned();
    let name = name.to_owned();
    match (known.filter(|known| known.is_another_than(claimant)), awaited) {
        (Some(other), _) if ready || spent => Err(Denial::Another { name, other: other.in_short() }),
        _ if spent => Err(Denial::Spent(name)),
        (_, Some(other)) => Err(Denial::Awaited { name, other: other.in_short() }),
        _ => Ok(()),
    }
}

/// A request that was denied because another machine has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The name.
    pub name: String,
    /// The machine that asked.
    pub claimant: Claimant,
    /// When it asked.
    pub at: Timestamp,
}

/// What a request says of this, if it is one of those.
pub fn refused(request: &CertificateSigningRequest) -> Option<Refused> {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if !conditions.into_iter().any(|found| found.type_ == "Denied" && found.reason.as_deref() == Some(REASON)) {
        return None;
    }
    let asked = Request {
        username: request.spec.username.as_deref().unwrap_or_default(),
        groups: request.spec.groups.as_deref().unwrap_or_default(),
        usages: &[],
        der: &[],
    };
    Some(Refused {
        name: Requester::of(&asked)?.machine().to_owned(),
        claimant: request.metadata.annotations.as_ref().map(Claimant::of_annotations).unwrap_or_default(),
        at: request.metadata.creation_timestamp.as_ref()?.0,
    })
}

/// The machines that dispute a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispute {
    /// Who they are.
    pub claimants: BTreeSet<Claimant>,
    /// For how long that is told if they do not ask again.
    pub remaining: Duration,
}

/// The disputed names at `now`, if a refused request is told for as long as `kept`.
pub fn disputes(refused: &[Refused], now: Timestamp, kept: Duration) -> BTreeMap<&str, Dispute> {
    let mut disputes = BTreeMap::<_, Dispute>::new();
    for Refused { name, claimant, at } in refused {
        let age = Duration::try_from(now.duration_since(*at)).unwrap_or_default();
        let remaining = kept.saturating_sub(age);
        if !remaining.is_zero() {
            let dispute = disputes.entry(name.as_str()).or_default();
            dispute.claimants.insert(claimant.clone());
            dispute.remaining = dispute.remaining.max(remaining);
        }
    }
    disputes
}

/// The condition of a Machine whose name is disputed. It does not change as the same machines ask again.
pub fn observation(dispute: &Dispute) -> Observation {
    let claimants: Vec<_> = dispute.claimants.iter().map(ToString::to_string).collect();
    let message = format!(
        "{} wants to join under this name and is refused: give it another name, or none of this Machine's manifests",
        claimants.join(" and ")
    );
    Observation::new(condition::UNDISPUTED, false, REASON, message)
}

/// The Event of it.
pub fn notable(observation: &Observation) -> Notable {
    let note = observation.message.clone();
    Notable { about: garboard_api::About::Machine, warning: true, reason: "AnotherMachineRefused", note }
}

#[cfg(test)]
#[path = "dispute_tests.rs"]
mod tests;
