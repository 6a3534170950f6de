//! Kernel parameters: which to set, and which to give back what they were before.

use std::collections::BTreeMap;

/// Parameters and values.
pub type Parameters = BTreeMap<String, String>;

/// A change of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The parameter.
    pub name: String,
    /// Its value before, if it can be read.
    pub before: Option<String>,
    /// Its value from now on.
    pub value: String,
    /// Why.
    pub cause: Cause,
}

/// Why a parameter is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is declared, and was not before.
    Declared,
    /// Somebody else has changed it since it was set.
    Drifted,
    /// It is no longer declared.
    Withdrawn,
}

/// What to change, given what is `declared`, what was `set` last, and the values of both kinds of parameters now; `originals` are the
/// values before the first setting.
pub fn plan(declared: &Parameters, set: &Parameters, originals: &Parameters, now: &Parameters) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, value) in originals.iter().filter(|(name, _)| !declared.contains_key(*name)) {
        let before = now.get(name).cloned();
        steps.push(Step { name: name.clone(), before, value: value.clone(), cause: Cause::Withdrawn });
    }
    for (name, value) in declared {
        let before = now.get(name).cloned();
        if before.as_deref().is_some_and(|before| same(before, value)) {
            continue;
        }
        let cause = if set.get(name) == Some(value) { Cause::Drifted } else { Cause::Declared };
        steps.push(Step { name: name.clone(), before, value: value.clone(), cause });
    }
    steps
}

/// Whether two values are the same to the kernel, which separates numbers by tabs.
pub fn same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

/// Where a parameter lies below `/proc/sys`: dots separate folders, a slash stands for a dot in a name.
pub fn path(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_differs_is_set_and_what_is_withdrawn_is_given_back() {
        let declared = parameters(&[("a", "1"), ("b", "2 3"), ("c", "4"), ("d", "5")]);
        let set = parameters(&[("c", "4"), ("d", "0"), ("z", "9")]);
        let originals = parameters(&[("c", "3"), ("d", "0"), ("z", "8")]);
        let now = parameters(&[("a", "0"), ("b", "2\t3"), ("c", "7"), ("d", "0"), ("z", "9")]);
        let steps = plan(&declared, &set, &originals, &now);
        let told: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.value.as_str(), step.cause)).collect();
        let expected = [
            ("z", "8", Cause::Withdrawn),
            ("a", "1", Cause::Declared),
            ("c", "4", Cause::Drifted),
            ("d", "5", Cause::Declared),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn dots_are_folders_and_slashes_are_dots() {
        assert_eq!(path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
    }

    proptest! {
        /// Once the steps are carried out nothing is left to do.
        #[test]
        fn the_steps_reach_what_is_declared(
            declared in proptest::collection::btree_map("[a-e]", "[0-3]", 0..5),
            originals in proptest::collection::btree_map("[a-e]", "[0-3]", 0..5),
            mut now in proptest::collection::btree_map("[a-e]", "[0-3]", 0..5),
        ) {
            for step in plan(&declared, &Parameters::new(), &originals, &now) {
                now.insert(step.name, step.value);
            }
            let mut originals = originals;
            originals.retain(|name, _| declared.contains_key(name));
            prop_assert_eq!(plan(&declared, &declared, &originals, &now), vec![]);
        }
    }
}
