//! Which declaration of an object counts.
//!
//! The API server's object counts before the ledger's, which counts before a local manifest. A local manifest that
//! differs from the one that was seen last is an edit that somebody made at the machine: it counts once, goes to the
//! ledger, and from there to the API server as soon as that answers. So a config drive left in the machine does not undo
//! what was changed through the API since, and a changed one is not ignored.

/// What the ledger knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Digest of the local manifest that was seen last.
    pub local_digest: Option<String>,
    /// Whether the API server has yet to be told.
    pub pending: bool,
    /// Whether the API server had it, and the machine has nothing more to do here once it has it no longer.
    pub ends: bool,
}

/// What counts before the API server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing is declared.
    Nothing,
    /// What was accepted before.
    Ledger,
    /// The local manifest, if it may replace what was accepted before.
    Local,
}

/// What counts, given what the ledger has and the digest of the local manifest.
pub fn choose(recorded: Option<&Recorded>, local_digest: Option<&str>) -> Choice {
    match (recorded, local_digest) {
        (None, None) => Choice::Nothing,
        (None, Some(_)) => Choice::Local,
        (Some(_), None) => Choice::Ledger,
        (Some(recorded), Some(digest)) if recorded.local_digest.as_deref() == Some(digest) => Choice::Ledger,
        (Some(_), Some(_)) => Choice::Local,
    }
}

/// What to do with the API server's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// There is none, and nothing is declared here: wait.
    Wait,
    /// Create it from what is declared here.
    Create,
    /// Give it what was declared here while the API server was away.
    Push,
    /// Take it.
    Take,
    /// Somebody has deleted it, and with it this machine's place in the cluster.
    Leave,
}

/// What to do when the API server has or lacks the object.
pub fn sync(recorded: Option<&Recorded>, in_api: bool) -> Sync {
    match (recorded, in_api) {
        (None, false) => Sync::Wait,
        (Some(Recorded { ends: true, .. }), false) => Sync::Leave,
        (Some(_), false) => Sync::Create,
        (Some(Recorded { pending: true, .. }), true) => Sync::Push,
        (Some(Recorded { pending: false, .. }) | None, true) => Sync::Take,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recorded() -> impl Strategy<Value = Option<Recorded>> {
        proptest::option::of(
            (proptest::option::of("[ab]"), any::<bool>(), any::<bool>())
                .prop_map(|(local_digest, pending, ends)| Recorded { local_digest, pending, ends }),
        )
    }

    proptest! {
        #[test]
        fn a_manifest_counts_once(before in recorded(), digest in "[ab]") {
            if choose(before.as_ref(), Some(&digest)) == Choice::Local {
                let after = Recorded { local_digest: Some(digest.clone()), pending: true, ends: false };
                prop_assert_eq!(choose(Some(&after), Some(&digest)), Choice::Ledger);
            }
        }

        #[test]
        fn something_declared_is_never_dropped(before in recorded(), digest in proptest::option::of("[ab]")) {
            let nothing = choose(before.as_ref(), digest.as_deref()) == Choice::Nothing;
            prop_assert_eq!(nothing, before.is_none() && digest.is_none());
        }

        #[test]
        fn a_machine_leaves_only_when_its_object_is_gone(before in recorded(), in_api: bool) {
            let ends = before.as_ref().is_some_and(|before| before.ends) && !in_api;
            prop_assert_eq!(sync(before.as_ref(), in_api) == Sync::Leave, ends);
        }

        #[test]
        fn after_a_push_the_api_servers_object_is_taken(before in recorded()) {
            if sync(before.as_ref(), true) == Sync::Push {
                let after = before.map(|before| Recorded { pending: false, ..before });
                prop_assert_eq!(sync(after.as_ref(), true), Sync::Take);
            }
        }
    }
}
