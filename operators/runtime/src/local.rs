//! Manifests that lie at the machine, whatever they came on.

use garboard_api::manifest::{self, ManifestError, Manifests};

/// A text of manifests as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Where, in words that help to find it: `fw_cfg opt/dev.garboard/manifests`, `machine.yaml on /dev/sdb1`.
    pub origin: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Something found at the machine that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct LocalError {
    /// Where it was found.
    pub origin: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with something found at the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not a text.
    #[error("manifest: not a text in UTF-8")]
    NoText,
    /// It is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It could not be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Reads everything that was found as one declaration.
///
/// # Errors
/// Everything that is wrong. Nothing of what was found is then to be used: half a declaration is not what anybody meant.
pub fn read(found: &[Raw]) -> Result<Manifests, Vec<LocalError>> {
    let mut manifests = Manifests::default();
    let mut errors = Vec::new();
    for Raw { origin, bytes } in found {
        let parsed = std::str::from_utf8(bytes)
            .map_err(|_| Problem::NoText)
            .and_then(|text| manifest::parse(text).map_err(Problem::from))
            .and_then(|parsed| manifests.clone().join(parsed).map_err(Problem::from));
        match parsed {
            Ok(joined) => manifests = joined,
            Err(problem) => errors.push(LocalError { origin: origin.clone(), problem }),
        }
    }
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(origin: &str, bytes: &[u8]) -> Raw {
        Raw { origin: origin.to_owned(), bytes: bytes.to_owned() }
    }

    const MACHINE: &[u8] = b"apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {name: a}\n";
    const CLUSTER: &[u8] = b"apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {name: cluster}\n";

    #[test]
    fn several_places_make_one_declaration() {
        let manifests = read(&[raw("here", MACHINE), raw("there", CLUSTER)]).unwrap();
        assert!(manifests.machine.is_some() && manifests.cluster.is_some());
        assert_eq!(read(&[]).unwrap(), Manifests::default());
    }

    #[test]
    fn one_bad_place_makes_all_unusable_and_is_named() {
        let errors = read(&[raw("here", MACHINE), raw("there", b"kind: ["), raw("yonder", b"\xff")]).unwrap_err();
        let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert!(text[0].starts_with("there: ") && text[1].starts_with("yonder: "), "{text:?}");
    }

    #[test]
    fn the_same_object_in_two_places_is_refused() {
        let errors = read(&[raw("here", MACHINE), raw("there", MACHINE)]).unwrap_err();
        assert!(errors[0].to_string().contains("another Machine"), "{errors:?}");
    }
}
