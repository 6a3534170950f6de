//! Makes the committed definitions ready to be part of a program: one file of compact JSON for each kind.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use serde::Deserialize;
use serde_json::Value;

const DEFINITIONS: &str = "crds.yaml";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DEFINITIONS}");
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    for document in serde_yaml_ng::Deserializer::from_str(&fs::read_to_string(DEFINITIONS)?) {
        let definition = Value::deserialize(document)?;
        let kind = definition.pointer("/spec/names/kind").and_then(Value::as_str).ok_or("a definition of no kind")?;
        fs::write(folder.join(format!("{kind}.json")), definition.to_string())?;
    }
    Ok(())
}
