//! Keys that a TPM 2.0 makes and keeps, and the proof of which TPM it is.
//!
//! In: messages to sign. Out: keys, as files of which only the TPM that made them can make use, and ECDSA signatures.
//!
//! A [`TpmKey`] is a key on P-256 below the storage key that every TPM makes again from its seed by the template of the TCG. Nothing
//! stays in the TPM between two operations, and there is no password: who may use the device may use the key, and nobody can take it away.
//!
//! In: an [`Endorsement`], which a machine tells of its TPM, and an [`Answer`]. Out: a [`Question`], and whether the answer proves it.
//!
//! A [`Challenge`] needs no TPM. Its secret is sealed as a certifying authority seals a credential, by which one round trip is enough. What
//! it proves is that the machine which answers can use the TPM with this [`EndorsementKey`]; whether a vendor made that TPM, or somebody
//! at his desk, is for who compares the key with what he knows of it.

mod challenge;
mod endorsement;
mod exchange;
mod key;
mod point;
mod sealed;
mod session;
#[cfg(feature = "testing")]
pub mod testing;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

pub use challenge::{Answer, Challenge, Question};
pub use endorsement::{Endorsement, EndorsementError, EndorsementKey};
pub use exchange::ResponseCode;
pub use key::{KeyError, TpmKey};
pub use sealed::{SealedKey, SealedKeyError};

use exchange::Connection;
use session::Session;

/// The TPM of a machine, behind the kernel's resource manager: what one user loads is no other's (`drivers/char/tpm/tpmrm-dev.c`).
const DEVICE: &str = "/dev/tpmrm0";

/// Why a TPM has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is no way to it.
    #[error("cannot open {}", path.display())]
    Open {
        /// Its device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It has not taken a command, or not answered.
    #[error("the TPM does not answer to {operation}")]
    Exchange {
        /// What was asked for.
        operation: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It has said no.
    #[error("the TPM does not {operation}: {code}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// What it said.
        code: ResponseCode,
    },
    /// A command or its answer is not what the specification says.
    #[error("no proper exchange with the TPM to {operation}")]
    Protocol {
        /// What was asked for.
        operation: &'static str,
        /// What is wrong.
        #[source]
        source: tpm2_protocol::TpmError,
    },
    /// The answer to a command is well formed and makes no sense.
    #[error("the TPM has answered something else than was asked for: {operation}")]
    Answer {
        /// What was asked for.
        operation: &'static str,
    },
    /// The key is of no use here, now and later.
    #[error("the key belongs to another TPM, or this TPM was cleared")]
    ForeignKey,
    /// There is no answer to the question here, now and later.
    #[error("the question is for another TPM, or this TPM was cleared after it told of itself")]
    ForeignQuestion,
}

/// A TPM, by how it is reached. Each operation opens it for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm(Reached);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reached {
    Device(PathBuf),
    #[cfg(feature = "testing")]
    Socket(PathBuf),
}

impl Tpm {
    /// This machine's, if it has one.
    pub fn find() -> Option<Self> {
        Path::new(DEVICE).exists().then(|| Self(Reached::Device(DEVICE.into())))
    }

    /// Makes a key, and signs something with it: a TPM that cannot use what it has made has made nothing.
    ///
    /// # Errors
    /// [`TpmError`] of the first command that failed.
    pub fn create_key(&self) -> Result<TpmKey, TpmError> {
        let mut session = self.open()?;
        let key = session.create()?;
        session.sign(&key, digest(&SHA256, b"").as_ref())?;
        Ok(key)
    }

    /// Whether the TPM takes a key that it made.
    ///
    /// # Errors
    /// [`TpmError::ForeignKey`] when it never will, and others when it has not now.
    pub fn check(&self, key: &TpmKey) -> Result<(), TpmError> {
        self.open()?.check(key)
    }

    /// Signs a message: ECDSA with SHA-256, as DER (RFC 3279, section 2.2.3).
    ///
    /// It takes as long as the TPM needs to make its storage key and to sign: a tenth of a second to one, of a chip of its own.
    ///
    /// # Errors
    /// [`TpmError::ForeignKey`] when the TPM never will, and others when it has not now.
    pub fn sign(&self, key: &TpmKey, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.open()?.sign(key, digest(&SHA256, message).as_ref())
    }

    /// The public half of its endorsement key. A TPM without one on P-256 makes one, which no vendor has certified.
    ///
    /// # Errors
    /// [`TpmError`] of the first command that failed.
    pub fn endorsement_key(&self) -> Result<EndorsementKey, TpmError> {
        self.open()?.endorsement_key()
    }

    /// What a verifier needs to know to ask for a proof. It stays the same until the TPM is cleared.
    ///
    /// # Errors
    /// [`TpmError`] of the first command that failed.
    pub fn endorsement(&self) -> Result<Endorsement, TpmError> {
        self.open()?.endorsement()
    }

    /// Proves to who has asked that this TPM is here.
    ///
    /// `context`: what the proof is to be for. It must be the machine's own, such as the fingerprint of the key that it shows at its end of
    /// the connection, and nothing that the verifier has sent: the proof of another's context is a proof for him.
    ///
    /// # Errors
    /// [`TpmError::ForeignQuestion`] when the TPM never will, and others when it has not now.
    pub fn answer(&self, question: &Question, context: &[u8]) -> Result<Answer, TpmError> {
        self.open()?.open(question).map(|secret| Answer::new(&secret, context))
    }

    fn open(&self) -> Result<Session<Box<dyn Connection>>, TpmError> {
        let (path, opened): (_, io::Result<Box<dyn Connection>>) = match &self.0 {
            Reached::Device(path) => {
                (path, OpenOptions::new().read(true).write(true).open(path).map(|device| Box::new(device) as _))
            }
            #[cfg(feature = "testing")]
            Reached::Socket(path) => {
                (path, std::os::unix::net::UnixStream::connect(path).map(|socket| Box::new(socket) as _))
            }
        };
        opened.map(Session::new).map_err(|source| TpmError::Open { path: path.clone(), source })
    }
}
