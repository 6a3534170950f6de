//! Rollouts of a pool's template.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::types::InvalidValue;

/// How a change of the template reaches the machines: those that are not Ready come first, then the others by their names. On each of
/// them the change is a trial. A machine that comes to the pool follows the template at once.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Most machines that try the change at a time, as a number or as a part of the pool such as `25%`, of which at least one is meant.
    /// Machines that are not Ready for another reason count too: while there are so many, none that is Ready follows.
    #[serde(default)]
    pub max_unavailable: MaxUnavailable,
    /// On how many machines the change may fail before the rollout stops by itself. The template goes no further then until it is
    /// changed: forward, or back to what it was.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_failures: u32,
    /// Whether no further machine follows. Those that try the change go on.
    #[serde(default)]
    pub paused: bool,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { max_unavailable: MaxUnavailable::default(), max_failures: one(), paused: false }
    }
}

fn one() -> u32 {
    1
}

/// A number of machines, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "IntOrString", into = "IntOrString")]
pub enum MaxUnavailable {
    /// So many: 1 to 1000000.
    Machines(u32),
    /// So many of a hundred: 1 to 100.
    Percent(u32),
}

impl MaxUnavailable {
    /// What is allowed, in words.
    const ALLOWED: &str = "a number of machines from 1 to 1000000, or a part of the pool from 1% to 100%";

    /// How many of so many machines that is: at least one, as a rollout would never end otherwise.
    pub fn of(self, machines: u32) -> u32 {
        match self {
            Self::Machines(count) => count,
            Self::Percent(percent) => (u64::from(machines) * u64::from(percent) / 100).try_into().unwrap_or(u32::MAX),
        }
        .max(1)
    }
}

impl Default for MaxUnavailable {
    fn default() -> Self {
        Self::Machines(1)
    }
}

impl TryFrom<IntOrString> for MaxUnavailable {
    type Error = InvalidValue;

    fn try_from(value: IntOrString) -> Result<Self, Self::Error> {
        let found = match value {
            IntOrString::Int(count) => u32::try_from(count).ok().map(Self::Machines),
            IntOrString::String(text) => {
                let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
                digits.and_then(|digits| digits.parse().ok()).map(Self::Percent)
            }
        };
        found
            .filter(|found| match found {
                Self::Machines(count) => (1..=1_000_000).contains(count),
                Self::Percent(percent) => (1..=100).contains(percent),
            })
            .ok_or(InvalidValue { allowed: Self::ALLOWED })
    }
}

impl From<MaxUnavailable> for IntOrString {
    fn from(value: MaxUnavailable) -> Self {
        match value {
            MaxUnavailable::Machines(count) => Self::Int(count.try_into().unwrap_or(i32::MAX)),
            MaxUnavailable::Percent(percent) => Self::String(format!("{percent}%")),
        }
    }
}

impl JsonSchema for MaxUnavailable {
    fn schema_name() -> Cow<'static, str> {
        "MaxUnavailable".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "nullable": false,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 1 && self <= 1000000 : self.matches('^([1-9][0-9]?|100)%$')",
                "message": Self::ALLOWED,
            }],
        })
    }
}

/// How far a template has come.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// The generation that brought the template. Later ones have changed something else.
    pub generation: i64,
    /// SHA-256 of the template, by which another is noticed.
    pub template: String,
    /// The machines that may follow it, while the rollout is neither paused nor stopped, and have yet to prove it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub machines: Vec<String>,
    /// The machines that have returned from it to what they were before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["machine"]))]
    pub failures: Vec<RolloutFailure>,
}

/// A machine on which a template has failed.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutFailure {
    /// Name of the Machine.
    pub machine: String,
    /// The first of what did not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
    /// Why.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_part_and_never_nothing() {
        for (text, of_ten) in
            [("1", Some(1)), ("7", Some(7)), (r#""25%""#, Some(2)), (r#""1%""#, Some(1)), (r#""100%""#, Some(10))]
                .into_iter()
                .chain(
                    ["0", "-1", "1000001", r#""0%""#, r#""101%""#, r#""+1%""#, r#""5""#, r#""""#]
                        .map(|bad| (bad, None)),
                )
        {
            let limit = serde_json::from_str::<MaxUnavailable>(text).ok();
            assert_eq!(limit.map(|limit| limit.of(10)), of_ten, "{text}");
            let written = limit.map(|limit| serde_json::to_string(&limit).unwrap());
            assert_eq!(written.as_deref(), of_ten.map(|_| text));
        }
    }
}
