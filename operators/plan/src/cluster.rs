//! What is said of a cluster.

use std::collections::BTreeMap;

use garboard_api::condition::{self, Observation};

use crate::machine::accepted;

/// What is observed of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Version of the API server, if it answers; else why it does not.
    pub api: Result<String, String>,
    /// Why the cluster's own objects (roles, cluster DNS) could not be kept.
    pub objects_problem: Option<String>,
    /// Declarations that were refused, by where they came from.
    pub refusals: BTreeMap<String, String>,
}

/// The conditions of a cluster.
pub fn conditions(observed: &Observed) -> Vec<Observation> {
    let Observed { api, objects_problem, refusals } = observed;
    let api = match api {
        Ok(version) => {
            Observation::new(condition::API_AVAILABLE, true, "Answering", format!("Kubernetes {version} answers"))
        }
        Err(reason) => Observation::new(condition::API_AVAILABLE, false, "NotAnswering", reason),
    };
    let ready = match (api.holds, objects_problem) {
        (Some(true), None) => Observation::new(condition::READY, true, "Serving", "the API and cluster DNS are set up"),
        (Some(true), Some(problem)) => Observation::new(condition::READY, false, "ObjectsNotKept", problem),
        _ => Observation::new(condition::READY, false, api.reason.clone(), api.message.clone()),
    };
    vec![api, ready, accepted(refusals)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_ready_when_its_api_answers_and_its_objects_are_kept() {
        let ready =
            |observed: &Observed| conditions(observed).into_iter().find(|each| each.type_ == condition::READY).unwrap();
        let observed = Observed { api: Ok("v1.37.2".into()), objects_problem: None, refusals: BTreeMap::new() };
        assert_eq!(ready(&observed).holds, Some(true));
        let problem = Observed { objects_problem: Some("forbidden".into()), ..observed.clone() };
        assert_eq!((ready(&problem).holds, ready(&problem).message.as_str()), (Some(false), "forbidden"));
        let away = Observed { api: Err("connection refused".into()), ..observed };
        assert_eq!((ready(&away).holds, ready(&away).message.as_str()), (Some(false), "connection refused"));
    }
}
