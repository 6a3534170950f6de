//! What is said of a cluster.

use std::net::Ipv4Addr;

use garboard_api::Refusals;
use garboard_api::condition::{self, Observation};

use crate::machine::accepted;

/// The account of each namespace under which pods run that name none. The upstream controllers make it, and without it the
/// API server refuses such pods.
pub const ACCOUNT: &str = "default";

/// What is observed of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Version of the API server, if it answers; else why it does not.
    pub api: Result<String, String>,
    /// Why the cluster's own objects (roles, cluster DNS) could not be kept.
    pub objects_problem: Option<String>,
    /// Whether the namespace `default` has its [`ACCOUNT`].
    pub account: bool,
    /// Declarations that were refused.
    pub refusals: Refusals,
    /// The virtual address, where one is declared.
    pub virtual_address: Option<VirtualAddress>,
}

/// Who has the virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The own address of the machine that holds it.
    pub holder: Option<Ipv4Addr>,
    /// Its name, if that is known.
    pub machine: Option<String>,
    /// What keeps the machine that looks from taking part.
    pub problem: Option<String>,
}

/// The conditions of a cluster.
pub fn conditions(observed: &Observed) -> Vec<Observation> {
    let Observed { api, objects_problem, account, refusals, virtual_address } = observed;
    let api = match api {
        Ok(version) => {
            Observation::new(condition::API_AVAILABLE, true, "Answering", format!("Kubernetes {version} answers"))
        }
        Err(reason) => Observation::new(condition::API_AVAILABLE, false, "NotAnswering", reason),
    };
    let type_ = condition::READY;
    let ready = match (api.holds, objects_problem, account) {
        (Some(true), None, true) => {
            Observation::new(type_, true, "Serving", "pods, Services and cluster DNS can be used")
        }
        (Some(true), None, false) => {
            let message = "pods are refused: the controllers have not made their accounts yet";
            Observation::new(type_, false, "ControllersAwaited", message)
        }
        (Some(true), Some(problem), _) => Observation::new(type_, false, "ObjectsNotKept", problem),
        _ => Observation::new(type_, false, api.reason.clone(), api.message.clone()),
    };
    [api, ready, accepted(refusals)].into_iter().chain(virtual_address.as_ref().map(held)).collect()
}

fn held(virtual_address: &VirtualAddress) -> Observation {
    let VirtualAddress { address, holder, machine, problem } = virtual_address;
    let type_ = condition::VIRTUAL_ADDRESS_HELD;
    match (holder, machine, problem) {
        (Some(holder), Some(machine), _) => {
            Observation::new(type_, true, "Held", format!("{address} is on {machine} ({holder})"))
        }
        (Some(holder), None, _) => Observation::new(type_, true, "Held", format!("{address} is on {holder}")),
        // Others may see it.
        (None, _, Some(problem)) => {
            Observation::new(type_, None, "NotSeen", format!("who has {address} is not seen from here: {problem}"))
        }
        (None, _, None) => {
            let message = format!("no machine has {address}: none has an API server that serves and is on its link");
            Observation::new(type_, false, "NotHeld", message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ready_when_its_api_answers_its_objects_are_kept_and_pods_are_taken() {
        let ready =
            |observed: &Observed| conditions(observed).into_iter().find(|each| each.type_ == condition::READY).unwrap();
        let observed = Observed {
            api: Ok("v1.37.2".into()),
            objects_problem: None,
            account: true,
            refusals: Refusals::new(),
            virtual_address: None,
        };
        assert_eq!(ready(&observed).holds, Some(true));
        let early = Observed { account: false, ..observed.clone() };
        assert_eq!((ready(&early).holds, ready(&early).reason.as_str()), (Some(false), "ControllersAwaited"));
        let problem = Observed { objects_problem: Some("forbidden".into()), ..observed.clone() };
        assert_eq!((ready(&problem).holds, ready(&problem).message.as_str()), (Some(false), "forbidden"));
        let away = Observed { api: Err("connection refused".into()), ..observed };
        assert_eq!((ready(&away).holds, ready(&away).message.as_str()), (Some(false), "connection refused"));
    }

    #[test]
    fn who_has_the_virtual_address_is_told_where_one_is_declared() {
        let address = Ipv4Addr::new(192, 0, 2, 5);
        let holder = Some(Ipv4Addr::new(192, 0, 2, 7));
        let nobody = VirtualAddress { address, holder: None, machine: None, problem: None };
        for (what, told, expected) in [
            ("nobody", nobody.clone(), (Some(false), "no machine has 192.0.2.5: none has an API server")),
            (
                "a problem",
                VirtualAddress { problem: Some("the link eth0 is down".into()), ..nobody.clone() },
                (None, "who has 192.0.2.5 is not seen from here: the link eth0 is down"),
            ),
            ("a stranger", VirtualAddress { holder, ..nobody.clone() }, (Some(true), "192.0.2.5 is on 192.0.2.7")),
            (
                "a machine",
                VirtualAddress { holder, machine: Some("node-1".into()), ..nobody },
                (Some(true), "192.0.2.5 is on node-1 (192.0.2.7)"),
            ),
        ] {
            let Observation { holds, message, .. } = held(&told);
            assert!(holds == expected.0 && message.starts_with(expected.1), "{what}: {message}");
        }
    }
}
