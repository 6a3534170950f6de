//! What is wrong with a field.

use std::fmt;

use serde_json::Value;

/// Longest part of a value that is repeated in an error, characters.
const SHOWN: usize = 80;

/// A field whose value is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.network.links[0].gateway`.
    pub field: String,
    /// The value that was given, as JSON; empty when there is none.
    pub value: String,
    /// What is allowed, in words.
    pub allowed: String,
}

impl FieldError {
    /// An error about a value that is shown.
    pub fn new(field: impl Into<String>, value: &Value, allowed: impl Into<String>) -> Self {
        let mut value = value.to_string();
        if value.chars().count() > SHOWN {
            value = value.chars().take(SHOWN).chain(['…']).collect();
        }
        Self { field: field.into(), value, allowed: allowed.into() }
    }

    /// An error about a field that is absent, or whose value is not to be shown.
    pub fn bare(field: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), value: String::new(), allowed: allowed.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}: {}", self.field, self.allowed),
            value => write!(f, "{}: {value} is not allowed: {}", self.field, self.allowed),
        }
    }
}

/// Errors in one line.
pub fn join(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
