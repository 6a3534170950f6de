//! The custom resource definitions.
//!
//! They are generated from the types, committed as `crds.yaml`, and part of each program that needs them in that form: the code that
//! makes schemas of types is larger than what it makes, and slower than to read it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::core::{CustomResourceExt, DynamicObject};
use serde_json::Value;

use crate::{Cluster, EtcdMember, Machine, MachinePool};

/// The committed definition of each kind, as the build has written it.
const COMMITTED: [(&str, &str); 4] = [
    ("Cluster", include_str!(concat!(env!("OUT_DIR"), "/Cluster.json"))),
    ("Machine", include_str!(concat!(env!("OUT_DIR"), "/Machine.json"))),
    ("MachinePool", include_str!(concat!(env!("OUT_DIR"), "/MachinePool.json"))),
    ("EtcdMember", include_str!(concat!(env!("OUT_DIR"), "/EtcdMember.json"))),
];

/// The definition of every kind.
pub fn definitions() -> Vec<DynamicObject> {
    COMMITTED.iter().filter_map(|(_, definition)| serde_json::from_str(definition).ok()).collect()
}

/// The schema of the objects of a kind; none of a kind that is not ours.
pub fn schema(kind: &str) -> Option<Value> {
    let (_, definition) = COMMITTED.iter().find(|(committed, _)| *committed == kind)?;
    let mut definition: Value = serde_json::from_str(definition).ok()?;
    definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").map(Value::take)
}

/// The definitions as the types have them, of which the committed ones are made.
pub fn of_types() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![Cluster::crd(), Machine::crd(), MachinePool::crd(), EtcdMember::crd()];
    for version in definitions.iter_mut().flat_map(|definition| &mut definition.spec.versions) {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            forget_unsigned_formats(schema);
        }
    }
    definitions
}

/// Kubernetes knows no formats of numbers without a sign, and warns of each. The bounds beside them say the same.
fn forget_unsigned_formats(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        forget_unsigned_formats(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(each)) = &mut schema.items {
        forget_unsigned_formats(each);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(each)) = &mut schema.additional_properties {
        forget_unsigned_formats(each);
    }
}

/// Those as YAML documents, which `kubectl apply -f` takes.
///
/// # Errors
/// None in practice: every definition is plain data.
pub fn yaml() -> Result<String, serde_yaml_ng::Error> {
    let mut text =
        String::from("# Generated from the types beside it, by `cargo run -p garboard-api --example generate crds`.\n");
    for definition in of_types() {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(&definition)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types;

    #[test]
    fn the_committed_definitions_are_those_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds.yaml");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == yaml().unwrap(),
            "crds.yaml is out of date: cargo run -p garboard-api --example generate crds >crds.new && mv crds.new operators/api/crds.yaml"
        );
    }

    #[test]
    fn programs_have_every_definition() {
        let of_types = of_types();
        assert_eq!(definitions().len(), of_types.len());
        for (program, types) in definitions().into_iter().zip(of_types) {
            assert_eq!(serde_json::to_value(&program).unwrap(), serde_json::to_value(&types).unwrap());
            let schema = schema(&types.spec.names.kind).unwrap();
            assert!(schema.pointer("/properties/spec").is_some(), "{}", types.spec.names.kind);
        }
        assert_eq!(schema("Pod"), None);
    }

    #[test]
    fn every_pattern_compiles_and_has_words() {
        let text = serde_json::to_value(of_types()).unwrap();
        let mut patterns = 0;
        let mut rest = vec![&text];
        while let Some(value) = rest.pop() {
            if let Some(pattern) = value.get("pattern").and_then(|pattern| pattern.as_str()) {
                patterns += 1;
                regex_lite::Regex::new(pattern).unwrap();
                assert!(types::pattern_words(pattern).is_some(), "{pattern}");
            }
            match value {
                serde_json::Value::Object(fields) => rest.extend(fields.values()),
                serde_json::Value::Array(items) => rest.extend(items),
                _ => {}
            }
        }
        assert!(patterns > 5, "{patterns}");
    }
}
