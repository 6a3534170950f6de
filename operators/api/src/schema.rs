//! Checks values against the schema of a custom resource, as the API server does: for manifests that it never sees.
//!
//! What the schemas here use is checked: types, required and unknown fields, enumerations, bounds, lengths, patterns
//! and the formats `cidr` and `mac`. CEL rules are not evaluated; [`crate::validate`] holds their equals.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;

use crate::field_error::FieldError;
use crate::types::{self, Cidr, MacAddress};

/// What is wrong with the `spec` of an object of the kind that `definition` defines; empty when nothing is.
pub fn check_spec(definition: &CustomResourceDefinition, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let versions = definition.spec.versions.iter();
    let schemas = versions.filter_map(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    for schema in schemas.filter_map(|schema| schema.properties.as_ref()?.get("spec")) {
        check(schema, spec, "spec", &mut errors);
    }
    errors
}

fn check(schema: &JSONSchemaProps, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.nullable == Some(true) {
        return;
    }
    let type_ = schema.type_.as_deref().unwrap_or_default();
    let (fits, words) = match type_ {
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
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|each| each.0 == *value)
    {
        let words: Vec<_> = allowed.iter().filter_map(|each| each.0.as_str()).collect();
        errors.push(FieldError::new(path, value, format!("one of {}", words.join(", "))));
    }
    match value {
        Value::Object(fields) => check_object(schema, fields, path, errors),
        Value::Array(items) => {
            check_size(items.len(), schema.min_items, schema.max_items, "items", path, errors);
            if let Some(JSONSchemaPropsOrArray::Schema(each)) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check(each, item, &format!("{path}[{index}]"), errors);
                }
            }
        }
        Value::String(text) => check_text(schema, value, text, path, errors),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let (low, high) = (schema.minimum.unwrap_or(f64::MIN), schema.maximum.unwrap_or(f64::MAX));
            if !(low..=high).contains(&number) {
                errors.push(FieldError::new(path, value, format!("{low} to {high}")));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn check_object(
    schema: &JSONSchemaProps,
    fields: &serde_json::Map<String, Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(JSONSchemaPropsOrBool::Schema(each)) = &schema.additional_properties {
        check_size(fields.len(), schema.min_properties, schema.max_properties, "entries", path, errors);
        for (name, value) in fields {
            check(each, value, &format!("{path}.{name}"), errors);
        }
        return;
    }
    let Some(known) = &schema.properties else { return };
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
    for name in schema.required.iter().flatten().filter(|name| !fields.contains_key(*name)) {
        errors.push(FieldError::bare(format!("{path}.{name}"), "is required"));
    }
}

fn check_text(schema: &JSONSchemaProps, value: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    check_size(text.chars().count(), schema.min_length, schema.max_length, "characters", path, errors);
    let format = match schema.format.as_deref() {
        Some("cidr") if text.parse::<Cidr>().is_err() => Some(Cidr::ALLOWED),
        Some("mac") if text.parse::<MacAddress>().is_err() => Some(MacAddress::ALLOWED),
        _ => None,
    };
    if let Some(words) = format {
        errors.push(FieldError::new(path, value, words));
    }
    if let Some(pattern) = &schema.pattern
        // A pattern that does not compile is found by the tests, which compile all of them.
        && regex_lite::Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
    {
        let words = types::pattern_words(pattern).map_or_else(|| format!("what matches {pattern}"), str::to_owned);
        errors.push(FieldError::new(path, value, words));
    }
}

fn check_size(size: usize, min: Option<i64>, max: Option<i64>, unit: &str, path: &str, errors: &mut Vec<FieldError>) {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    if max.is_some_and(|max| size > max) {
        errors.push(FieldError::bare(path, format!("{size} {unit}; at most {} are allowed", max.unwrap_or_default())));
    }
    if min.is_some_and(|min| size < min) {
        errors.push(FieldError::bare(path, format!("{size} {unit}; at least {} are needed", min.unwrap_or_default())));
    }
}
