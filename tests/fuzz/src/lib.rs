//! Tests of what comes from others: a function of bytes, of whatever kind, that must hold.
//!
//! [`fuzz!`] makes one of a test. `cargo test` gives it seeds, what is near them, and inputs at random for a second. A coverage-guided
//! engine goes on from the seeds for as long as it may with
//!
//! ```console
//! $ cargo install cargo-bolero
//! $ cargo bolero test -p PACKAGE TEST --rustc-bootstrap -T 1h
//! ```
//!
//! What fails it leaves in `crashes` beside the seeds, which `cargo test` tries too. The engine needs flags that a stable compiler takes only
//! with `--rustc-bootstrap`.

#![allow(clippy::panic, clippy::expect_used, reason = "what is for tests fails by panicking")]

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[doc(hidden)]
pub use bolero;

/// Inputs near the seeds that a test tries.
const NEAR: u32 = 1000;
/// Most changes of a seed at once.
const CHANGES: usize = 4;
/// Most bytes that are put in at once, or taken out.
const PIECE: usize = 40;

/// Has a function of bytes (`&[u8]`) hold for the seeds in `tests/__fuzz__/NAME/corpus` of the package, for what is near them, and for
/// anything.
///
/// # Panics
/// Where the function does, with the least input that was found.
#[macro_export]
macro_rules! fuzz {
    ($name:literal, $target:expr) => {{
        $crate::near(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/__fuzz__/", $name, "/corpus"), $target);
        $crate::bolero::check!(name = $name).for_each(|input: &[u8]| $target(input));
    }};
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    PutIn(Index, Vec<u8>),
    TakeOut(Index, usize),
    CutOff(Index),
    /// Goes on as another seed does from there.
    GoOnAs(Index, Index),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let index = any::<Index>;
        prop_oneof![
            4 => (index(), any::<u8>()).prop_map(|(at, byte)| Self::Set(at, byte)),
            2 => (index(), vec(any::<u8>(), 1..PIECE)).prop_map(|(at, bytes)| Self::PutIn(at, bytes)),
            2 => (index(), 1..PIECE).prop_map(|(at, count)| Self::TakeOut(at, count)),
            1 => index().prop_map(Self::CutOff),
            1 => (index(), index()).prop_map(|(seed, at)| Self::GoOnAs(seed, at)),
        ]
    }

    fn make(&self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        // The end is a place too.
        let place = |at: &Index, of: &[u8]| at.index(of.len() + 1);
        match self {
            Self::Set(at, byte) => {
                let at = place(at, input);
                if let Some(found) = input.get_mut(at) {
                    *found = *byte;
                }
            }
            Self::PutIn(at, bytes) => {
                let at = place(at, input);
                input.splice(at..at, bytes.iter().copied());
            }
            Self::TakeOut(at, count) => {
                let at = place(at, input);
                input.drain(at..(at + count).min(input.len()));
            }
            Self::CutOff(at) => input.truncate(place(at, input)),
            Self::GoOnAs(seed, at) => {
                let other = seed.get(seeds);
                let at = place(at, other);
                input.truncate(at);
                input.extend(other.iter().skip(at));
            }
        }
    }
}

/// Tries the seeds of a folder, and what is near them. Called by [`fuzz!`].
///
/// # Panics
/// Where `target` does, and when there are no seeds.
pub fn near(folder: &str, target: impl Fn(&[u8])) {
    let seeds = read(Path::new(folder));
    assert!(!seeds.is_empty(), "there are no seeds in {folder}");
    seeds.iter().for_each(|seed| target(seed));
    let inputs = (any::<Index>(), vec(Change::any(), 1..=CHANGES));
    let mut runner = TestRunner::new(Config { cases: NEAR, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&inputs, |(seed, changes)| {
        let mut input = seed.get(&seeds).clone();
        changes.iter().for_each(|change| change.make(&mut input, &seeds));
        target(&input);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn read(folder: &Path) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a seed")).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn seeds_are_tried_and_what_is_near_them() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let tried = RefCell::new(BTreeSet::new());
        near(folder, |input| {
            tried.borrow_mut().insert(input.to_vec());
        });
        let (tried, seed) = (tried.into_inner(), read(Path::new(folder)).remove(0));
        assert!(tried.contains(&seed) && tried.len() > usize::try_from(NEAR / 2).unwrap());
        let differs = |input: &&Vec<u8>| input.len().abs_diff(seed.len()) < PIECE && **input != seed;
        assert!(tried.iter().any(|input| differs(&input)));
    }

    #[test]
    fn what_does_not_hold_near_a_seed_is_told() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let seed = read(Path::new(folder)).remove(0);
        let holds = |input: &[u8]| assert!(input.starts_with(&seed[..100]), "another beginning");
        assert!(catch_unwind(AssertUnwindSafe(|| near(folder, holds))).is_err());
        assert!(catch_unwind(|| near("/nowhere", |_| ())).is_err());
    }
}
