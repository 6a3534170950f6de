//! `apply`

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use garboard_machine_api::proto::AppliedObject;
use serde::Serialize;

use crate::cli::Apply;
use crate::config::Contact;
use crate::output::{Format, show, table};

/// What the machine takes in one request, bytes, with a little for the request itself.
const MAX_MANIFEST: u64 = 1024 * 1024 - 1024;

/// What became of manifests.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    dry_run: bool,
    objects: Vec<Object>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    name: String,
    outcome: String,
}

pub async fn run(contact: &Contact, arguments: &Apply) -> anyhow::Result<()> {
    let manifest = read(&arguments.file)?;
    let objects = contact.connect().await?.apply_manifest(manifest, arguments.dry_run).await?;
    Answer::new(objects, arguments.dry_run).show(arguments.output.output)
}

impl Answer {
    pub fn new(objects: Vec<AppliedObject>, dry_run: bool) -> Self {
        let object = |AppliedObject { kind, name, outcome }| Object { kind, name, outcome };
        Self { dry_run, objects: objects.into_iter().map(object).collect() }
    }

    pub fn show(&self, format: Format) -> anyhow::Result<()> {
        show(format, self, |_| {
            let suffix = if self.dry_run { " (dry run)" } else { "" };
            let row =
                |object: &Object| [format!("{}/{}", object.kind, object.name), format!("{}{suffix}", object.outcome)];
            table(["OBJECT", "OUTCOME"], self.objects.iter().map(row))
        })
    }
}

/// The content of a file, or of standard input for `-`.
pub fn read(file: &Path) -> anyhow::Result<String> {
    read_all(file).with_context(|| format!("read {}", file.display()))
}

fn read_all(file: &Path) -> anyhow::Result<String> {
    let source: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(file)?),
    };
    let mut text = String::new();
    source.take(MAX_MANIFEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_MANIFEST {
        bail!("larger than the {MAX_MANIFEST} bytes that a machine accepts");
    }
    Ok(text)
}
