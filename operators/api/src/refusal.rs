//! Declarations that were refused: shown on the console, in statuses and as Events until they are mended.

use std::collections::BTreeMap;
use std::fmt;

/// One of the resources that declare a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The Machine.
    Machine,
    /// The Cluster.
    Cluster,
    /// The MachinePool.
    MachinePool,
}

/// Where a refused declaration came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// An object that is not valid, or may not follow the one that counts.
    Object {
        /// Which.
        about: About,
        /// Who holds it: `API server`, `local manifest`.
        holder: &'static str,
    },
    /// A text found at the machine that could not be read, in words that help to find it: `machine.yaml on /dev/sdb1`. It may be
    /// about any resource.
    Text(String),
}

/// What is wrong, in words, by where it came from.
pub type Refusals = BTreeMap<Origin, String>;

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "Machine",
            Self::Cluster => "Cluster",
            Self::MachinePool => "MachinePool",
        })
    }
}

impl Origin {
    /// The resource that it is about, if that is known.
    pub fn about(&self) -> Option<About> {
        match self {
            Self::Object { about, holder: _ } => Some(*about),
            Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { about, holder } => write!(f, "{about} of the {holder}"),
            Self::Text(place) => f.write_str(place),
        }
    }
}

/// Notes what is wrong with something, or that nothing is any more; says whether that is news.
pub fn note<K: Ord>(problems: &mut BTreeMap<K, String>, about: K, problem: Option<String>) -> bool {
    match problem {
        Some(problem) => problems.insert(about, problem.clone()) != Some(problem),
        None => problems.remove(&about).is_some(),
    }
}

/// Each refusal in a line.
pub fn lines(refusals: &Refusals) -> impl Iterator<Item = String> {
    refusals.iter().map(|(origin, problem)| format!("{origin}: {problem}"))
}
