//! Prints what is generated from the types and committed beside them: `crds`, the custom resource definitions as YAML, or
//! `reference`, the reference of their fields as Markdown.

use std::error::Error;

use garboard_api::{crds, reference};

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("crds") => print!("{}", crds::yaml()?),
        Some("reference") => print!("{}", reference::markdown()),
        _ => return Err("usage: generate crds|reference".into()),
    }
    Ok(())
}
