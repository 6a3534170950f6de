//! What the machine API reads of its callers beside TLS: their requests, and fingerprints as people write them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;

use garboard_machine_api::Pin;
use garboard_machine_api::proto::{
    ApplyManifestRequest, ClaimRequest, EtcdRestoreRequest, JoinTokenRequest, LogsRequest, ProveEndorsementRequest,
    ServiceRestartRequest, TrialDecideRequest,
};
use prost::Message;

#[test]
fn requests() {
    garboard_fuzz::fuzz!("requests", request);
}

/// What can be read as a request is one that can be written, and takes no more room than what came.
fn request(bytes: &[u8]) {
    fn same<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
        let Ok(read) = M::decode(bytes) else { return };
        let written = read.encode_to_vec();
        assert!(written.len() <= bytes.len(), "{read:?}");
        assert_eq!(M::decode(written.as_slice()).unwrap(), read);
    }
    same::<ApplyManifestRequest>(bytes);
    same::<ClaimRequest>(bytes);
    same::<EtcdRestoreRequest>(bytes);
    same::<JoinTokenRequest>(bytes);
    same::<LogsRequest>(bytes);
    same::<ProveEndorsementRequest>(bytes);
    same::<ServiceRestartRequest>(bytes);
    same::<TrialDecideRequest>(bytes);
}

#[test]
fn pins() {
    garboard_fuzz::fuzz!("pins", pin);
}

/// A text is a fingerprint in lower case, or the same in upper case.
fn pin(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(pin) = text.parse::<Pin>() {
        assert_eq!(pin.to_string(), text.to_lowercase());
        assert_eq!(pin.to_string().parse(), Ok(pin));
    }
}
