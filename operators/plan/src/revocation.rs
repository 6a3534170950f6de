//! Whose certificates count no longer: those of machines that were removed.
//!
//! A certificate is valid until it ends, and kube-apiserver asks nobody whether it still is. What its bearer may do it asks at each request:
//! first an authorizer that is never there, which by the policy for its absence denies everything. Only what removed machines ask for comes
//! to it. A watch that is open is not asked about again: by it a machine learns that it was removed.

use garboard_api::cluster::RemovedMachine;
use garboard_catalog::kube_apiserver::ABSENT_AUTHORIZER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::join::LIFETIME;
use crate::pki;

/// The machines that are removed at `now`, with this one among them: until the last certificate that it can have has ended.
pub fn with(removed: &[RemovedMachine], machine: &str, now: Timestamp) -> Vec<RemovedMachine> {
    let lifetime = SignedDuration::try_from(LIFETIME).unwrap_or(SignedDuration::MAX);
    let until = Time(now.checked_add(lifetime).unwrap_or(Timestamp::MAX));
    let mut after = without(removed, machine, now);
    after.push(RemovedMachine { machine: machine.to_owned(), until });
    after
}

/// The machines that are removed at `now`, without this one: it has joined again.
pub fn without(removed: &[RemovedMachine], machine: &str, now: Timestamp) -> Vec<RemovedMachine> {
    removed.iter().filter(|one| one.machine != machine && one.until.0 > now).cloned().collect()
}

/// kube-apiserver's configuration of authorizers, given the names of the machines that are removed.
pub fn authorization<'a>(removed: impl Iterator<Item = &'a str>) -> Value {
    let users: Vec<String> =
        removed.flat_map(|machine| pki::of_worker(machine).into_values().map(|profile| profile.common_name)).collect();
    let mut authorizers = vec![json!({ "type": "Node", "name": "node" }), json!({ "type": "RBAC", "name": "rbac" })];
    if !users.is_empty() {
        let absent = json!({
            "type": "Webhook",
            "name": "removed-machines",
            "webhook": {
                "timeout": "1s",
                "authorizedTTL": "1s",
                "unauthorizedTTL": "1s",
                "subjectAccessReviewVersion": "v1",
                "matchConditionSubjectAccessReviewVersion": "v1",
                "failurePolicy": "Deny",
                "connectionInfo": { "type": "KubeConfigFile", "kubeConfigFile": ABSENT_AUTHORIZER },
                "matchConditions": [{ "expression": format!("request.user in {users:?}") }],
            },
        });
        authorizers.insert(0, absent);
    }
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthorizationConfiguration",
        "authorizers": authorizers,
    })
}

/// How kube-apiserver would reach the authorizer that is never there.
pub fn absent_authorizer() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        // No program takes connections at this port (tcpmux, RFC 1078).
        "clusters": [{ "name": "absent", "cluster": { "server": "https://127.0.0.1:1" } }],
        "users": [{ "name": "absent", "user": {} }],
        "contexts": [{ "name": "absent", "context": { "cluster": "absent", "user": "absent" } }],
        "current-context": "absent",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + days * 86_400).unwrap()
    }

    fn names(removed: &[RemovedMachine]) -> Vec<&str> {
        removed.iter().map(|one| one.machine.as_str()).collect()
    }

    #[test]
    fn a_machine_is_removed_until_its_last_certificate_ends_or_it_joins_again() {
        let one = with(&[], "node-2", at(0));
        let two = with(&one, "node-3", at(10));
        assert_eq!(names(&two), ["node-2", "node-3"]);
        assert_eq!(names(&with(&two, "node-4", at(31))), ["node-3", "node-4"], "the first has no certificate left");
        assert_eq!(names(&without(&two, "node-2", at(11))), ["node-3"]);
        assert_eq!(names(&with(&two, "node-2", at(11))), ["node-3", "node-2"], "once each");
    }

    #[test]
    fn everybody_else_is_asked_about_as_ever() {
        let types = |config: &Value| -> Vec<String> {
            let each = config["authorizers"].as_array().unwrap().iter();
            each.map(|authorizer| authorizer["type"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(types(&authorization([].into_iter())), ["Node", "RBAC"]);
        let config = authorization(["node-2"].into_iter());
        assert_eq!(types(&config), ["Webhook", "Node", "RBAC"]);
        let webhook = &config["authorizers"][0]["webhook"];
        assert_eq!(webhook["failurePolicy"], "Deny");
        let condition = webhook["matchConditions"][0]["expression"].as_str().unwrap();
        for profile in pki::of_worker("node-2").values() {
            assert!(condition.contains(&format!("{:?}", profile.common_name)), "{condition}");
            assert!(profile.common_name.ends_with(":node-2"), "{}: others have it too", profile.common_name);
        }
    }
}
