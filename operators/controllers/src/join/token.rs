//! Makes the one-time token with which a machine joins.

use std::time::{Duration, SystemTime};

use garboard_plan::join as plan;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use ring::rand::{SecureRandom, SystemRandom};
use tracing::info;

use crate::addons::{self, AddonsError};
use crate::connect;
use crate::pki::PkiStore;

/// The characters of a token (Kubernetes: bootstrap tokens).
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// There is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nobody may make it here.
    #[error(transparent)]
    Administrator(#[from] AddonsError),
    /// The kernel gave no random bytes.
    #[error("there are no random bytes")]
    Random,
    /// It cannot be written.
    #[error("cannot write the token")]
    Encode(#[from] serde_json::Error),
    /// The API server did not take it.
    #[error("the API server has not taken the token")]
    Api(#[from] kube::Error),
}

/// A token for the machine of this name, valid for `lifetime` from `now`; and when it ends, seconds since 1970.
///
/// # Errors
/// [`TokenError`].
pub async fn issue(
    pki: &PkiStore,
    machine: &str,
    lifetime: Duration,
    now: SystemTime,
) -> Result<(String, i64), TokenError> {
    let (id, secret) = (random(6)?, random(16)?);
    let end = (now + lifetime).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = i64::try_from(end).unwrap_or(i64::MAX);
    let expiration = Timestamp::from_second(end).unwrap_or(Timestamp::MAX).to_string();
    let object: DynamicObject = serde_json::from_value(plan::token_secret(machine, &id, &secret, &expiration))?;
    let client = addons::administrator(pki, connect::local(), garboard_api_client::Outage::default(), now)?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"));
    Api::<DynamicObject>::namespaced_with(client, "kube-system", &resource)
        .create(&PostParams::default(), &object)
        .await?;
    info!(machine, token = id, expiration, "token made");
    Ok((format!("{id}.{secret}"), end))
}

/// Characters of a token, each as likely as any other.
fn random(length: usize) -> Result<String, TokenError> {
    let random = SystemRandom::new();
    let mut text = String::new();
    let mut bytes = [0; 32];
    while text.len() < length {
        random.fill(&mut bytes).map_err(|_| TokenError::Random)?;
        // 252 is the largest multiple of 36 in a byte: what lies above would make the first characters likelier.
        let fair = bytes.iter().filter(|byte| **byte < 252).filter_map(|byte| ALPHABET.get(usize::from(byte % 36)));
        text.extend(fair.map(|byte| char::from(*byte)).take(length - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_for_kubernetes() {
        let token = format!("{}.{}", random(6).unwrap(), random(16).unwrap());
        assert!(garboard_api::types::is_token(&token), "{token}");
        assert_ne!(random(16).unwrap(), random(16).unwrap());
    }
}
