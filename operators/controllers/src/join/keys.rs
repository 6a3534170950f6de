//! The cluster's keys on their way to another control-plane machine: sealed with a key that is in the machine's token and nowhere else.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use garboard_api::types::Token;
use garboard_plan::join::{SEALED_KEYS, sealed_keys_name};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use kube::{Api, Client};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tracing::{debug, info};

use crate::pki::{PkiError, PkiStore};

/// The cluster's keys were not sealed, or not taken.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The token is none for a control-plane machine.
    #[error("the token is for a worker: `garboardctl join {0} --control-plane` makes one")]
    NotForControlPlane(String),
    /// They were not got from the API server.
    #[error("cannot fetch the cluster's keys")]
    Fetch(#[source] Box<kube::Error>),
    /// What was got is not what was sealed for this machine.
    #[error("the cluster's keys do not open with this token")]
    Sealed,
    /// They cannot be written as JSON.
    #[error("cannot write the cluster's keys")]
    Encode(#[from] serde_json::Error),
    /// They cannot be read or kept.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The cluster's keys for the machine of a name, in base64. A seal is used once.
pub(super) fn seal(pki: &PkiStore, machine: &str, seal: &str) -> Result<String, KeysError> {
    let mut text = serde_json::to_vec(&pki.cluster_keys()?)?;
    let key = key(seal).ok_or(KeysError::Sealed)?;
    key.seal_in_place_append_tag(nonce(), Aad::from(machine.as_bytes()), &mut text).map_err(|_| KeysError::Sealed)?;
    Ok(STANDARD.encode(text))
}

fn open(sealed: &[u8], machine: &str, seal: &str) -> Option<BTreeMap<String, String>> {
    let mut text = STANDARD.decode(sealed).ok()?;
    let opened = key(seal)?.open_in_place(nonce(), Aad::from(machine.as_bytes()), &mut text).ok()?;
    serde_json::from_slice(opened).ok()
}

/// Fetches the keys that were sealed for a token's machine, keeps them, and has the cluster forget them.
pub(super) async fn fetch(pki: &PkiStore, client: &Client, machine: &str, token: Token<'_>) -> Result<(), KeysError> {
    let seal = token.seal.ok_or_else(|| KeysError::NotForControlPlane(machine.to_owned()))?;
    let secrets = Api::<Secret>::namespaced(client.clone(), "kube-system");
    let name = sealed_keys_name(token.id);
    let secret = secrets.get(&name).await.map_err(|error| KeysError::Fetch(Box::new(error)))?;
    let sealed = secret.data.as_ref().and_then(|data| data.get(SEALED_KEYS)).ok_or(KeysError::Sealed)?;
    pki.take_cluster_keys(&open(&sealed.0, machine, seal).ok_or(KeysError::Sealed)?)?;
    info!("the cluster's keys are here");
    // It goes with its time at the latest.
    if let Err(error) = secrets.delete(&name, &DeleteParams::default()).await {
        debug!(%error, "the sealed keys are still in the cluster");
    }
    Ok(())
}

/// The key that a seal of 64 hexadecimal digits stands for.
fn key(seal: &str) -> Option<LessSafeKey> {
    let digits = seal.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> =
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes?).ok()?))
}

/// Each key seals one text, so one nonce is enough.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_for_their_machine_with_its_seal_alone() {
        let (own, other) = ("0f".repeat(32), "f0".repeat(32));
        let keys = BTreeMap::from([("a.pem".to_owned(), "secret".to_owned())]);
        let mut text = serde_json::to_vec(&keys).unwrap();
        key(&own).unwrap().seal_in_place_append_tag(nonce(), Aad::from(b"node-2"), &mut text).unwrap();
        let sealed = STANDARD.encode(text);
        assert!(!sealed.contains("secret"));
        assert_eq!(open(sealed.as_bytes(), "node-2", &own), Some(keys));
        for (machine, seal) in [("node-3", own.as_str()), ("node-2", other.as_str()), ("node-2", "0f"), ("node-2", "")]
        {
            assert_eq!(open(sealed.as_bytes(), machine, seal), None, "{machine} {seal}");
        }
        assert_eq!(open(b"noise", "node-2", &own), None);
    }
}
