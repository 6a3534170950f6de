//! Manifests as strangers may write them: on a config drive, or to claim a machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use garboard_api::manifest::{Identity, JoinToken, ManifestError, Manifests, parse};
use garboard_api::{IDENTITY_SECRET_KEY, IDENTITY_SECRET_TYPE, JOIN_SECRET_KEY, JOIN_SECRET_TYPE};
use serde_json::{Value, json};

/// Characters of a value that an error repeats, with the one that says that there were more.
const SHOWN: usize = 81;

#[test]
fn manifests() {
    for seed in [
        include_str!("__fuzz__/manifests/corpus/first-machine.yaml"),
        include_str!("__fuzz__/manifests/corpus/worker.yaml"),
    ] {
        parse(seed).unwrap();
    }
    garboard_fuzz::fuzz!("manifests", manifest);
}

/// What is accepted is the same when it is written and read again, and what is refused is a field that is named.
fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(text) {
        Ok(manifests) => assert_eq!(parse(&written(&manifests)), Ok(manifests)),
        Err(ManifestError::Invalid { object, errors }) => {
            assert!(!object.is_empty() && !errors.is_empty(), "{text}");
            for error in errors {
                assert!(!error.field.is_empty() && !error.allowed.is_empty(), "{error:?}: {text}");
                assert!(error.value.chars().count() <= SHOWN, "{error:?}: {text}");
            }
        }
        Err(error) => assert!(error.to_string().contains("manifest") || matches!(error, ManifestError::Twice { .. })),
    }
}

fn written(manifests: &Manifests) -> String {
    let Manifests { machine, cluster, identity, join_token } = manifests;
    let secret = |name: &str, type_: &str, entry: &str, value: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": type_, "stringData": { entry: value },
        })
    };
    let identity = identity
        .as_ref()
        .map(|Identity { machine, key }| secret(machine, IDENTITY_SECRET_TYPE, IDENTITY_SECRET_KEY, key));
    let token = join_token
        .as_ref()
        .map(|JoinToken { machine, token }| secret(machine, JOIN_SECRET_TYPE, JOIN_SECRET_KEY, token));
    let machine = machine.as_ref().map(|machine| serde_json::to_value(machine).unwrap());
    let cluster = cluster.as_ref().map(|cluster| serde_json::to_value(cluster).unwrap());
    let documents = [machine, cluster, identity, token];
    documents.iter().flatten().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}
