//! What is read of others' TPMs, and of files with keys.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use garboard_tpm::{Answer, Challenge, Endorsement, Question, TpmKey};

#[test]
fn proofs() {
    garboard_fuzz::fuzz!("proofs", proof);
}

/// What is read is what came. Nobody proves a TPM by what he makes up.
fn proof(bytes: &[u8]) {
    if let Ok(question) = Question::try_from(bytes) {
        assert_eq!(question.to_bytes(), bytes);
    }
    if let Ok(endorsement) = Endorsement::try_from(bytes) {
        assert_eq!(endorsement.to_bytes(), bytes);
        let Ok((challenge, question)) = Challenge::new(&endorsement, b"context") else { return };
        assert_eq!(Question::try_from(question.to_bytes().as_slice()).unwrap(), question);
        let made_up = Answer::try_from(&bytes[..32]).unwrap();
        assert!(!challenge.accepts(&made_up));
    }
}

#[test]
fn keys() {
    garboard_fuzz::fuzz!("keys", key);
}

/// What is read as a key is written as one, and is the same.
fn key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(key) = TpmKey::from_pem(text) else { return };
    assert!(TpmKey::is_in(text));
    let written = key.to_pem().unwrap();
    let read = TpmKey::from_pem(&written).unwrap();
    assert_eq!((read.point(), read.to_pem().unwrap()), (key.point(), written));
}
