//! What is said of a cluster.

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
}

/// The conditions of a cluster.
pub fn conditions(observed: &Observed) -> Vec<Observation> {
    let Observed { api, objects_problem, account, refusals } = observed;
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
    vec![api, ready, accepted(refusals)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ready_when_its_api_answers_its_objects_are_kept_and_pods_are_taken() {
        let ready =
            |observed: &Observed| conditions(observed).into_iter().find(|each| each.type_ == condition::READY).unwrap();
        let observed =
            Observed { api: Ok("v1.37.2".into()), objects_problem: None, account: true, refusals: Refusals::new() };
        assert_eq!(ready(&observed).holds, Some(true));
        let early = Observed { account: false, ..observed.clone() };
        assert_eq!((ready(&early).holds, ready(&early).reason.as_str()), (Some(false), "ControllersAwaited"));
        let problem = Observed { objects_problem: Some("forbidden".into()), ..observed.clone() };
        assert_eq!((ready(&problem).holds, ready(&problem).message.as_str()), (Some(false), "forbidden"));
        let away = Observed { api: Err("connection refused".into()), ..observed };
        assert_eq!((ready(&away).holds, ready(&away).message.as_str()), (Some(false), "connection refused"));
    }
}
