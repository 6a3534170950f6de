//! Checks values against the schema of a custom resource, as the API server does: for manifests that it never sees.
//!
//! What the schemas here use is checked: types, required and unknown fields, enumerations, bounds, lengths, patterns
//! and the formats `cidr` and `mac`. CEL rules are not evaluated; [`crate::validate`] holds their equals.

use serde_json::{Map, Value};

use crate::field_error::FieldError;
use crate::types::{self, Cidr, MacAddress};

/// What is wrong with the `spec` of an object whose kind has this schema; empty when nothing is.
pub fn check_spec(schema: &Value, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(schema) = schema.pointer("/properties/spec") {
        check(schema, spec, "spec", &mut errors);
    }
    errors
}

fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
        return;
    }
    let (fits, words) = match text_of(schema, "type").unwrap_or_default() {
        "object" => (value.is_object(), "a mapping of fields"),
        "array" => (value.is_array(), "a list"),
        "string" => (value.is_string(), "text"),
        "boolean" => (value.is_boolean(), "true or false"),
        "integer" => (value.is_i64() || value.is_u64(), "a whole number"),
        "number" => (value.is_number(), "a number"),
        _ => (true, ""),
    };
    if !fits {
        errors.push(FieldError::new(path, value, words));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let words: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        errors.push(FieldError::new(path, value, format!("one of {}", words.join(", "))));
    }
    match value {
        Value::Object(fields) => check_object(schema, fields, path, errors),
        Value::Array(items) => {
            check_size(schema, ["minItems", "maxItems"], (items.len(), "items"), path, errors);
            if let Some(each) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(each, item, &format!("{path}[{index}]"), errors);
                }
            }
        }
        Value::String(text) => check_text(schema, value, text, path, errors),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            let (low, high) = (bound("minimum").unwrap_or(f64::MIN), bound("maximum").unwrap_or(f64::MAX));
            if !(low..=high).contains(&number) {
                errors.push(FieldError::new(path, value, format!("{low} to {high}")));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn check_object(schema: &Value, fields: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(each) = schema.get("additionalProperties").filter(|each| each.is_object()) {
        check_size(schema, ["minProperties", "maxProperties"], (fields.len(), "entries"), path, errors);
        for (name, value) in fields {
            check(each, value, &format!("{path}.{name}"), errors);
        }
        return;
    }
    let Some(known) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        match known.get(name) {
            Some(schema) => check(schema, value, &path, errors),
            None => {
                let known: Vec<_> = known.keys().map(String::as_str).collect();
                errors.push(FieldError::bare(path, format!("there is no such field; there are {}", known.join(", "))));
            }
        }
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in required.filter(|name| !fields.contains_key(*name)) {
        errors.push(FieldError::bare(format!("{path}.{name}"), "is required"));
    }
}

fn check_text(schema: &Value, value: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    check_size(schema, ["minLength", "maxLength"], (text.chars().count(), "characters"), path, errors);
    let format = match text_of(schema, "format") {
        Some("cidr") if text.parse::<Cidr>().is_err() => Some(Cidr::ALLOWED),
        Some("mac") if text.parse::<MacAddress>().is_err() => Some(MacAddress::ALLOWED),
        _ => None,
    };
    if let Some(words) = format {
        errors.push(FieldError::new(path, value, words));
    }
    if let Some(pattern) = text_of(schema, "pattern")
        // A pattern that does not compile is found by the tests, which compile all of them.
        && regex_lite::Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
    {
        let words = types::pattern_words(pattern).map_or_else(|| format!("what matches {pattern}"), str::to_owned);
        errors.push(FieldError::new(path, value, words));
    }
}

/// Checks a size in a unit against the bounds of these names.
fn check_size(
    schema: &Value,
    [min, max]: [&str; 2],
    (size, unit): (usize, &str),
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let bound =
        |name: &str| schema.get(name).and_then(Value::as_u64).map(|bound| usize::try_from(bound).unwrap_or(usize::MAX));
    if let Some(max) = bound(max).filter(|max| size > *max) {
        errors.push(FieldError::bare(path, format!("{size} {unit}; at most {max} are allowed")));
    }
    if let Some(min) = bound(min).filter(|min| size < *min) {
        errors.push(FieldError::bare(path, format!("{size} {unit}; at least {min} are needed")));
    }
}

fn text_of<'a>(schema: &'a Value, name: &str) -> Option<&'a str> {
    schema.get(name).and_then(Value::as_str)
}
