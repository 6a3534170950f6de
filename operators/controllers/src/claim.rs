//! Who may tell a machine what it should be that nobody has told yet: the first who does, and until the machine belongs to a cluster nobody
//! else.

use std::path::{Path, PathBuf};

use garboard_catalog::users;
use garboard_machine_api::Pin;
use garboard_runtime::applier::chain;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::pki::{FileError, files};

/// Who may claim the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claimants {
    /// Nobody: what it should be is declared, or should have been where it was looked for.
    #[default]
    Nobody,
    /// Anybody: it waits.
    Anybody,
    /// Who has this key, and has claimed it.
    Only(Pin),
}

/// A claim that is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It belongs to a cluster already, or its manifests lie with it.
    #[error("the machine does not wait: what it should be is declared")]
    NotWaiting,
    /// Somebody was faster.
    #[error("the machine was claimed with the key {0}")]
    ClaimedBy(Pin),
    /// Who claims it cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Knows who has claimed the machine, also after a restart.
#[derive(Debug)]
pub struct Claims {
    file: PathBuf,
    claimants: watch::Sender<Claimants>,
}

impl Claims {
    /// Begins with what was kept in `file`: whether the machine `waits` for its first declaration, or is declared and still `alone`, not
    /// belonging to a cluster.
    pub fn new(file: &Path, waits: bool, alone: bool) -> (Self, watch::Receiver<Claimants>) {
        let claimants = match (waits, kept(file)) {
            // What was begun with a claim was not finished.
            (true, _) => Claimants::Anybody,
            (false, Some(by)) if alone => Claimants::Only(by),
            (false, _) => Claimants::Nobody,
        };
        let (sender, receiver) = watch::channel(claimants);
        let claims = Self { file: file.to_owned(), claimants: sender };
        if !matches!(claimants, Claimants::Only(_)) {
            claims.forget();
        }
        (claims, receiver)
    }

    /// Whether who has this key may claim the machine.
    ///
    /// # Errors
    /// When another has, or nobody may.
    pub fn admit(&self, by: Pin) -> Result<(), ClaimError> {
        match *self.claimants.borrow() {
            Claimants::Nobody => Err(ClaimError::NotWaiting),
            Claimants::Only(other) if other != by => Err(ClaimError::ClaimedBy(other)),
            Claimants::Anybody | Claimants::Only(_) => Ok(()),
        }
    }

    /// Gives the machine to who has this key. What it returns gives it back, if the claim fails.
    ///
    /// # Errors
    /// As [`Self::admit`], and when that cannot be kept.
    pub fn take(&self, by: Pin) -> Result<Claimants, ClaimError> {
        self.admit(by)?;
        files::replace(&self.file, &by.to_string(), users::ROOT, 0o600)?;
        info!(fingerprint = %by, "claimed");
        Ok(self.claimants.send_replace(Claimants::Only(by)))
    }

    /// Gives the machine back.
    pub fn give_back(&self, former: Claimants) {
        if former == Claimants::Anybody {
            self.forget();
        }
        self.claimants.send_replace(former);
    }

    fn forget(&self) {
        if let Err(error) = files::remove(&self.file) {
            warn!(error = chain(&error), "who claimed the machine is still kept");
        }
    }
}

fn kept(file: &Path) -> Option<Pin> {
    match files::read(file) {
        Ok(text) => text?.trim().parse().ok(),
        Err(error) => {
            warn!(%error, "who claimed the machine is not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_claim_counts_and_is_remembered_until_the_machine_belongs_to_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("claimant");
        let [first, second] = [b"first", b"other"].map(|key| Pin::of_public_key(key));
        let (claims, seen) = Claims::new(&file, true, true);
        assert_eq!(*seen.borrow(), Claimants::Anybody);
        let former = claims.take(first).unwrap();
        assert!(matches!(claims.take(second), Err(ClaimError::ClaimedBy(by)) if by == first));
        claims.take(first).unwrap();
        claims.give_back(former);
        claims.take(second).unwrap();

        // It has become a machine of no cluster yet, and starts again.
        let (claims, _seen) = Claims::new(&file, false, true);
        claims.admit(second).unwrap();
        assert!(matches!(claims.admit(first), Err(ClaimError::ClaimedBy(by)) if by == second));
        // It belongs to one.
        let (claims, _seen) = Claims::new(&file, false, false);
        assert!(matches!(claims.admit(second), Err(ClaimError::NotWaiting)));
        assert!(!file.exists());
        // Its manifests lie with it.
        let (claims, _seen) = Claims::new(&file, false, true);
        assert!(matches!(claims.take(second), Err(ClaimError::NotWaiting)));
    }

    #[test]
    fn a_claim_that_was_cut_off_before_anything_was_declared_binds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("claimant");
        let (claims, _seen) = Claims::new(&file, true, true);
        claims.take(Pin::of_public_key(b"first")).unwrap();
        let (_claims, seen) = Claims::new(&file, true, true);
        assert_eq!(*seen.borrow(), Claimants::Anybody);
    }
}
