//! Makes sure which TPM a machine has, over its machine API.

use garboard_api::types::PublicKeyPin;
use garboard_machine_api::Pin;
use garboard_machine_api::client::{Client, ClientError};
use garboard_tpm::{Answer, Challenge, Endorsement, EndorsementError};

/// Why a machine has not proved which TPM it has.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProofError {
    /// It does not tell, or is gone.
    #[error(transparent)]
    Machine(#[from] ClientError),
    /// What it tells makes no sense.
    #[error(transparent)]
    Endorsement(#[from] EndorsementError),
    /// It has another.
    #[error("its TPM has the key {0}")]
    Another(PublicKeyPin),
    /// It has only heard of it.
    #[error("its answer is wrong")]
    Wrong,
}

/// Has the machine with this key prove that its TPM has the endorsement key with this SHA-256. The answer is for that machine alone: one
/// that asks another machine, and passes on what it says, proves nothing.
pub(crate) async fn verify(client: &mut Client, machine: Pin, expected: PublicKeyPin) -> Result<(), ProofError> {
    let endorsement = Endorsement::try_from(client.endorsement().await?.as_slice())?;
    let found = PublicKeyPin::new(endorsement.key().digest());
    if found != expected {
        return Err(ProofError::Another(found));
    }
    let (challenge, question) = Challenge::new(&endorsement, machine.digest())?;
    let answer = client.prove_endorsement(question.to_bytes()).await?;
    let answer = Answer::try_from(answer.as_slice())?;
    if challenge.accepts(&answer) { Ok(()) } else { Err(ProofError::Wrong) }
}
