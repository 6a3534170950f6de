//! Proofs of which TPM it is, by emulated ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use garboard_tpm::testing::Emulator;
use garboard_tpm::{Answer, Challenge, Endorsement, EndorsementError, EndorsementKey, Question, TpmError};
use proptest::prelude::*;

/// What the machine at the other end is known by.
const CONTEXT: &[u8] = b"sha256:0123";
/// Sizes of a point, and of what else is sent.
const POINT: usize = 65;
const ENDORSEMENT: usize = 99;
const QUESTION: usize = 131;
const ANSWER: usize = 32;

#[test]
fn a_tpm_proves_that_it_is_there() {
    let emulator = Emulator::start().unwrap();
    // More often than there is room for keys in a TPM.
    for _ in 0..10 {
        // Each half has of the other what comes over the wire.
        let endorsement = emulator.tpm().endorsement().unwrap().to_bytes();
        let (challenge, question) = Challenge::new(&endorsement[..].try_into().unwrap(), CONTEXT).unwrap();
        let question = Question::try_from(&question.to_bytes()[..]).unwrap();
        let answer = emulator.tpm().answer(&question, CONTEXT).unwrap();
        assert!(challenge.accepts(&answer.to_bytes()[..].try_into().unwrap()));
    }
}

#[test]
fn a_tpm_keeps_its_endorsement_key_and_no_other_has_it() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let endorsement = one.tpm().endorsement().unwrap();
    assert_eq!(one.tpm().endorsement().unwrap(), endorsement);
    assert_eq!(&one.tpm().endorsement_key().unwrap(), endorsement.key());
    let foreign = other.tpm().endorsement_key().unwrap();
    assert_ne!((foreign.point(), foreign.digest()), (endorsement.key().point(), endorsement.key().digest()));
}

#[test]
fn another_tpm_proves_nothing() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let endorsement = one.tpm().endorsement().unwrap();
    let (challenge, question) = Challenge::new(&endorsement, CONTEXT).unwrap();
    // What is refused takes no room in the TPM either.
    for _ in 0..10 {
        let refused = other.tpm().answer(&question, CONTEXT);
        assert!(matches!(refused, Err(TpmError::ForeignQuestion)), "{refused:?}");
    }
    let (own, question) = Challenge::new(&other.tpm().endorsement().unwrap(), CONTEXT).unwrap();
    let answer = other.tpm().answer(&question, CONTEXT).unwrap();
    assert!(own.accepts(&answer) && !challenge.accepts(&answer));
}

#[test]
fn whose_name_is_told_makes_no_other_tpm_able_to_answer() {
    let (one, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let told = [one.tpm(), other.tpm()].map(|tpm| tpm.endorsement().unwrap().to_bytes());
    let mixed = [&told[0][..POINT], &told[1][POINT..]].concat();
    let (_, question) = Challenge::new(&mixed[..].try_into().unwrap(), CONTEXT).unwrap();
    for tpm in [one.tpm(), other.tpm()] {
        let refused = tpm.answer(&question, CONTEXT);
        assert!(matches!(refused, Err(TpmError::ForeignQuestion)), "{refused:?}");
    }
}

#[test]
fn an_answer_is_for_one_context() {
    let emulator = Emulator::start().unwrap();
    let tpm = emulator.tpm();
    let (challenge, question) = Challenge::new(&tpm.endorsement().unwrap(), CONTEXT).unwrap();
    for context in [&b""[..], b"sha256:4567", &CONTEXT[1..], &[CONTEXT, b"\0"].concat()] {
        assert!(!challenge.accepts(&tpm.answer(&question, context).unwrap()), "{context:?}");
    }
    assert!(challenge.accepts(&tpm.answer(&question, CONTEXT).unwrap()));
}

#[test]
fn an_answer_is_to_one_question() {
    let emulator = Emulator::start().unwrap();
    let endorsement = emulator.tpm().endorsement().unwrap();
    let (first, question) = Challenge::new(&endorsement, CONTEXT).unwrap();
    let answer = emulator.tpm().answer(&question, CONTEXT).unwrap();
    let (second, another) = Challenge::new(&endorsement, CONTEXT).unwrap();
    assert_ne!(question, another);
    assert!(first.accepts(&answer) && !second.accepts(&answer));
    for at in [0, ANSWER - 1] {
        let mut bytes = answer.to_bytes();
        bytes[at] ^= 1;
        assert!(!first.accepts(&bytes[..].try_into().unwrap()), "{at}");
    }
}

#[test]
fn a_question_that_was_changed_is_refused() {
    let emulator = Emulator::start().unwrap();
    let endorsement = emulator.tpm().endorsement().unwrap();
    let [question, another] = [(); 2].map(|()| Challenge::new(&endorsement, CONTEXT).unwrap().1.to_bytes());
    let changed = |at: usize| {
        let mut bytes = question.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (name, bytes) in [
        ("another key's seal", [&another[..POINT], &question[POINT..]].concat()),
        ("a key that is none", changed(POINT - 1)),
        ("the seal", changed(POINT)),
        ("the size of the secret", changed(POINT + 32)),
        ("the secret", changed(QUESTION - 1)),
    ] {
        let refused = emulator.tpm().answer(&bytes[..].try_into().unwrap(), CONTEXT);
        assert!(matches!(refused, Err(TpmError::ForeignQuestion | TpmError::Refused { .. })), "{name}: {refused:?}");
    }
    emulator.tpm().answer(&question[..].try_into().unwrap(), CONTEXT).unwrap();
}

#[test]
fn what_no_machine_sends_is_refused() {
    let emulator = Emulator::start().unwrap();
    let endorsement = emulator.tpm().endorsement().unwrap();
    let question = Challenge::new(&endorsement, CONTEXT).unwrap().1.to_bytes();
    let endorsement = endorsement.to_bytes();
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    for (name, bytes) in [
        ("nothing", vec![]),
        ("no name", endorsement[..POINT].to_vec()),
        ("less", endorsement[..ENDORSEMENT - 1].to_vec()),
        ("more", [&endorsement[..], &[0]].concat()),
        ("another form", with(&endorsement, 0, 6)),
        ("a compressed point", with(&endorsement, 0, 2)),
        ("a name by SHA-384", with(&endorsement, POINT + 1, 0x0c)),
    ] {
        assert!(Endorsement::try_from(&bytes[..]).is_err(), "{name}");
    }
    for (name, bytes) in [
        ("nothing", vec![]),
        ("a point", question[..POINT].to_vec()),
        ("no secret", question[..POINT + 32].to_vec()),
        ("less", question[..QUESTION - 1].to_vec()),
        ("more", [&question[..], &[0]].concat()),
        ("another form", with(&question, 0, 5)),
    ] {
        assert!(Question::try_from(&bytes[..]).is_err(), "{name}");
    }
    for length in [0, ANSWER - 1, ANSWER + 1] {
        assert!(Answer::try_from(&vec![0; length][..]).is_err(), "{length}");
    }
    for length in [0, 1, POINT - 1, POINT + 1] {
        assert!(EndorsementKey::try_from(&vec![4; length][..]).is_err(), "{length}");
    }
}

#[test]
fn a_key_that_no_tpm_can_have_is_not_asked_for() {
    let emulator = Emulator::start().unwrap();
    let endorsement = emulator.tpm().endorsement().unwrap().to_bytes();
    let (point, name) = endorsement.split_at(POINT);
    for (case, coordinates) in [
        ("beside the curve", [&point[1..POINT - 1], &[point[POINT - 1] ^ 1]].concat()),
        ("at infinity", vec![0; POINT - 1]),
        ("beyond the field", vec![0xff; POINT - 1]),
    ] {
        let endorsement = Endorsement::try_from(&[&[4], &coordinates[..], name].concat()[..]).unwrap();
        let refused = Challenge::new(&endorsement, CONTEXT);
        assert!(matches!(refused, Err(EndorsementError::Curve)), "{case}: {refused:?}");
    }
}

/// The point and the digest as OpenSSL has them of a key that it made.
#[test]
fn a_key_is_told_by_the_digest_of_its_subject_public_key_info() {
    let point = bytes(concat!(
        "04ce7f10c338eeb9bb422714cab6f07b52fc4f878962d3c12915901ed8776b7f9a",
        "693f140e30d9e5bcd8d356b96baba71e95595134c307267e668bb0a25509b007",
    ));
    let digest = bytes("bcd284e4215d1039569d943e6bd0d546667574391d821700a70c78774bf71419");
    assert_eq!(EndorsementKey::try_from(&point[..]).unwrap().digest()[..], digest);
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Any bytes, and such as are no longer refused for their size and their first byte.
fn sent() -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop_oneof![Just(ANSWER), Just(POINT), Just(ENDORSEMENT), Just(QUESTION), 0..200_usize];
    (sizes, any::<bool>()).prop_flat_map(|(size, is_point)| {
        proptest::collection::vec(any::<u8>(), size).prop_map(move |mut bytes| {
            if let Some(first) = bytes.first_mut().filter(|_| is_point) {
                *first = 4;
            }
            bytes
        })
    })
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_sent(sent in sent()) {
        let read = [
            EndorsementKey::try_from(&sent[..]).map(|key| key.point().to_vec()),
            Endorsement::try_from(&sent[..]).map(|endorsement| endorsement.to_bytes()),
            Question::try_from(&sent[..]).map(|question| question.to_bytes()),
            Answer::try_from(&sent[..]).map(|answer| answer.to_bytes()),
        ];
        for bytes in read.into_iter().flatten() {
            prop_assert_eq!(&bytes, &sent);
        }
    }

    #[test]
    fn any_endorsement_is_challenged_or_refused(point in proptest::collection::vec(any::<u8>(), POINT - 1)) {
        let endorsement = [&[4], &point[..], &[0x00, 0x0b], &[0; 32]].concat();
        let _ = Challenge::new(&endorsement[..].try_into().unwrap(), CONTEXT);
    }
}
