//! Brings the custom resource definitions into the API.

use std::time::Duration;

use garboard_api::crds;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::status::FIELD_MANAGER;

/// Time between two looks at a definition that is not established yet.
const LOOK: Duration = Duration::from_millis(100);
/// Longest time until a definition is established.
const LIMIT: Duration = Duration::from_secs(60);

/// The definitions could not be brought into the API.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
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

/// Applies every definition and waits until the API server serves all of them. Repeating it changes nothing.
///
/// # Errors
/// [`CrdError`] of the first definition that failed.
pub async fn apply(client: &Client) -> Result<(), CrdError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let mut names = Vec::new();
    for definition in crds::definitions() {
        let name = definition.name_any();
        if let Err(source) = api.patch(&name, &parameters, &Patch::Apply(&definition)).await {
            return Err(CrdError::Apply { name, source });
        }
        names.push(name);
    }
    let limit = Instant::now() + LIMIT;
    for name in names {
        while !api.get(&name).await.is_ok_and(|definition| is_established(&definition)) {
            if Instant::now() >= limit {
                return Err(CrdError::NotEstablished { name });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}
