//! Keys of an emulated TPM.

use garboard_tpm::testing::Emulator;
use garboard_tpm::{KeyError, TpmError, TpmKey};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

#[test]
fn a_key_signs_and_its_public_half_verifies() {
    let emulator = Emulator::start().unwrap();
    let tpm = emulator.tpm();
    let key = tpm.create_key().unwrap();
    let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.point());
    // More often than there is room for loaded keys, and with numbers that begin with a high bit or with zeros.
    for round in 0..40_u32 {
        let message = round.to_be_bytes();
        verifier.verify(&message, &tpm.sign(&key, &message).unwrap()).unwrap();
        assert!(verifier.verify(b"something else", &tpm.sign(&key, &message).unwrap()).is_err());
    }
}

#[test]
fn a_key_is_used_from_its_file() {
    let emulator = Emulator::start().unwrap();
    let tpm = emulator.tpm();
    let key = tpm.create_key().unwrap();
    let text = key.to_pem().unwrap();
    assert!(TpmKey::is_in(&text) && text.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"), "{text}");
    let read = TpmKey::from_pem(&text).unwrap();
    assert_eq!((read.point(), read.to_pem().unwrap()), (key.point(), text));
    tpm.check(&read).unwrap();
    let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.point());
    verifier.verify(b"message", &tpm.sign(&read, b"message").unwrap()).unwrap();
    assert_ne!(tpm.create_key().unwrap().point(), key.point());
}

#[test]
fn a_key_of_another_tpm_is_told_from_one_that_fails() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let key = one.tpm().create_key().unwrap();
    assert!(matches!(other.tpm().check(&key), Err(TpmError::ForeignKey)));
    assert!(matches!(other.tpm().sign(&key, b"message"), Err(TpmError::ForeignKey)));
    one.tpm().check(&key).unwrap();
    let gone = one.tpm();
    drop(one);
    assert!(matches!(gone.check(&key), Err(TpmError::Open { .. })));
}

#[test]
fn what_is_no_key_of_a_tpm_is_refused() {
    let emulator = Emulator::start().unwrap();
    let text = emulator.tpm().create_key().unwrap().to_pem().unwrap();
    let block = pem::parse(&text).unwrap();
    let der = |bytes: &[u8]| pem::encode(&pem::Pem::new("TSS2 PRIVATE KEY", bytes));
    let changed = |from: &[u8], to: &[u8]| {
        let at = block.contents().windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = block.contents().to_vec();
        bytes[at..at + from.len()].copy_from_slice(to);
        der(&bytes)
    };
    for (name, text) in [
        ("nothing", String::new()),
        ("half", text[..text.len() / 2].to_owned()),
        ("another label", text.replace("TSS2 PRIVATE KEY", "PRIVATE KEY")),
        ("no DER", der(b"a key")),
        ("more than one", der(&[block.contents(), &[0]].concat())),
        ("another kind", changed(&[0x67, 0x81, 0x05, 0x0a, 0x01, 0x03], &[0x67, 0x81, 0x05, 0x0a, 0x01, 0x05])),
        ("with a password", changed(&[0x01, 0x01, 0xff], &[0x01, 0x01, 0x00])),
        ("below another key", changed(&[0x40, 0x00, 0x00, 0x01], &[0x40, 0x00, 0x00, 0x0b])),
        ("on another curve", changed(&[0x00, 0x03, 0x00, 0x10], &[0x00, 0x04, 0x00, 0x10])),
    ] {
        assert!(TpmKey::from_pem(&text).is_err(), "{name}");
    }
    let long = text + &"\n".repeat(10_000);
    assert!(matches!(TpmKey::from_pem(&long), Err(KeyError::Long)));
}
