//! Makes the one-time token with which a machine joins.

use std::time::{Duration, SystemTime};

use garboard_api::machine::MachineRole;
use garboard_api::types::Token;
use garboard_plan::addons::ObjectKey;
use garboard_plan::{join as plan, removal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, PostParams};
use kube::{Client, ResourceExt as _};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use tracing::info;

use super::keys::{self, KeysError};
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
    /// There are no keys to hand on.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// A token for the machine of this name and role, valid for `lifetime` from `now`; and when it ends, seconds since 1970. Beside that of a
/// control-plane machine the cluster's keys are put, sealed.
///
/// # Errors
/// [`TokenError`].
pub async fn issue(
    pki: &PkiStore,
    machine: &str,
    role: MachineRole,
    lifetime: Duration,
    now: SystemTime,
) -> Result<(String, i64), TokenError> {
    let bearer = format!("{}.{}", random(6)?, random(16)?);
    let text = match role {
        MachineRole::ControlPlane => format!("{bearer}.{}", random_seal()?),
        MachineRole::Worker => bearer,
    };
    let token = Token::parse(&text).ok_or(TokenError::Random)?;
    let end = (now + lifetime).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = i64::try_from(end).unwrap_or(i64::MAX);
    let expiration = Timestamp::from_second(end).unwrap_or(Timestamp::MAX).to_string();
    let client = addons::administrator(pki, connect::local(), garboard_api_client::Outage::default(), now)?;
    if let Some(seal) = token.seal {
        let sealed = keys::seal(pki, machine, seal)?;
        let secret = plan::sealed_keys_secret(machine, token.id, &expiration, &sealed);
        create_with_right(&client, secret, |uid| plan::sealed_keys_role(machine, token.id, uid)).await?;
    }
    let secret = plan::token_secret(machine, role, token, &expiration);
    create_with_right(&client, secret, |uid| plan::token_role(token.id, uid)).await?;
    info!(machine, ?role, token = token.id, expiration, "token made");
    Ok((text, end))
}

/// Whether there is a Ready node of this name: while there is, no other machine is let in by it.
///
/// # Errors
/// [`TokenError`].
pub async fn is_alive(pki: &PkiStore, machine: &str, now: SystemTime) -> Result<bool, TokenError> {
    let client = addons::administrator(pki, connect::local(), garboard_api_client::Outage::default(), now)?;
    let found = Api::<Node>::all(client).get_opt(machine).await?;
    Ok(found.is_some_and(|found| removal::node(&found).ready))
}

/// Makes a Secret, and the right to it that goes with it: a role and its binding, for the Secret's uid.
async fn create_with_right(
    client: &Client,
    secret: Value,
    right: impl FnOnce(&str) -> [Value; 2],
) -> Result<(), TokenError> {
    let secret = create(client, secret).await?;
    for object in right(&secret.uid().unwrap_or_default()) {
        create(client, object).await?;
    }
    Ok(())
}

/// Makes one of the cluster's own objects.
async fn create(client: &Client, object: Value) -> Result<DynamicObject, TokenError> {
    let api = addons::api(client, &ObjectKey::of(&object));
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// 64 hexadecimal digits.
fn random_seal() -> Result<String, TokenError> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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
        assert!(Token::parse(&token).is_some_and(|token| token.seal.is_none()), "{token}");
        let sealed = format!("{token}.{}", random_seal().unwrap());
        assert!(Token::parse(&sealed).is_some_and(|token| token.seal.is_some()), "{sealed}");
        assert_ne!(random(16).unwrap(), random(16).unwrap());
    }
}
