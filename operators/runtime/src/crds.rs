//! Brings the custom resource definitions into the API.

use std::time::Duration;

use garboard_api::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;
use tracing::info;

use crate::status::FIELD_MANAGER;

/// Time between two looks at a definition that is not established yet.
const LOOK: Duration = Duration::from_millis(100);
/// A definition that is not established after this time is nudged, and again.
const NUDGE: Duration = Duration::from_secs(3);
/// Longest time until all definitions are established.
const LIMIT: Duration = Duration::from_secs(30);
/// What a nudge sets and takes back.
const NUDGED: &str = "garboard.dev/nudged";

/// The definitions could not be brought into the API.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The API server did not tell of one.
    #[error("cannot get the definition {name}")]
    Get {
        /// The definition.
        name: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// The API server refused one, or did not answer.
    #[error("cannot apply the definition {name}")]
    Apply {
        /// The definition.
        name: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// The API server does not serve one.
    #[error("the definition {name} is not established after {} seconds", LIMIT.as_secs())]
    NotEstablished {
        /// The definition.
        name: String,
    },
}

/// The definitions that the API server lacks, or has otherwise than they should be. To apply one costs the API server a good part of what
/// its own start does, above all for the rules that it compiles, even if nothing changes by it.
///
/// # Errors
/// When the API server does not tell what it has.
pub async fn due(client: &Client) -> Result<Vec<DynamicObject>, CrdError> {
    let api = api(client);
    let mut due = Vec::new();
    for definition in crds::definitions() {
        let name = definition.name_any();
        let found = api.get_opt(&name).await.map_err(|source| CrdError::Get { name, source })?;
        if !found.is_some_and(|found| is_established(&found) && is_as_declared(&found, &definition)) {
            due.push(definition);
        }
    }
    Ok(due)
}

/// Applies these definitions and waits until the API server serves all of them.
///
/// # Errors
/// [`CrdError`] of the first definition that failed.
pub async fn apply(client: &Client, definitions: &[DynamicObject]) -> Result<(), CrdError> {
    let api = api(client);
    for definition in definitions {
        bring(&api, definition).await?;
    }
    let limit = Instant::now() + LIMIT;
    for definition in definitions {
        establish(&api, definition, limit).await?;
    }
    Ok(())
}

fn api(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<CustomResourceDefinition>(&()))
}

/// Whether everything that is declared is there; the API server adds what it fills in.
fn is_as_declared(found: &DynamicObject, declared: &DynamicObject) -> bool {
    contains(found.data.get("spec").unwrap_or(&Value::Null), declared.data.get("spec").unwrap_or(&Value::Null))
}

/// Whether a value has each field of another, as it is there.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            // What is false the API server leaves out.
            let absent = Value::Bool(false);
            part.iter().all(|(name, part)| contains(whole.get(name).unwrap_or(&absent), part))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        // 1.0 comes back as 1.
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        (whole, part) => whole == part,
    }
}

async fn bring(api: &Api<DynamicObject>, definition: &DynamicObject) -> Result<(), CrdError> {
    let name = definition.name_any();
    match api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(definition)).await {
        Ok(_) => Ok(()),
        Err(source) => Err(CrdError::Apply { name, source }),
    }
}

/// Waits for a definition. An API server that ends between its acceptance of the names and its last step has forgotten that
/// step when it starts again (as of Kubernetes 1.37), until the definition changes: so it is changed, and changed back.
async fn establish(api: &Api<DynamicObject>, definition: &DynamicObject, limit: Instant) -> Result<(), CrdError> {
    let name = definition.name_any();
    let mut nudge = Instant::now() + NUDGE;
    while !api.get(&name).await.is_ok_and(|definition| is_established(&definition)) {
        let now = Instant::now();
        if now >= limit {
            return Err(CrdError::NotEstablished { name });
        }
        if now >= nudge {
            info!(name, "the definition is not established yet and nudged");
            let mut changed = definition.clone();
            changed.annotations_mut().insert(NUDGED.to_owned(), "true".to_owned());
            bring(api, &changed).await?;
            bring(api, definition).await?;
            nudge = now + NUDGE;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn is_established(definition: &DynamicObject) -> bool {
    let conditions = definition.data.pointer("/status/conditions").and_then(Value::as_array);
    let has = |condition: &Value, name: &str, value: &str| condition.get(name).and_then(Value::as_str) == Some(value);
    conditions.into_iter().flatten().any(|each| has(each, "type", "Established") && has(each, "status", "True"))
}
