//! `apply`

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::cli::Apply;
use crate::config::Contact;
use crate::output::{show, table};

/// What the machine takes in one request, bytes, with a little for the request itself.
const MAX_MANIFEST: u64 = 1024 * 1024 - 1024;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
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
    let manifest = read(&arguments.file).with_context(|| format!("read {}", arguments.file.display()))?;
    let objects = contact.connect().await?.apply_manifest(manifest, arguments.dry_run).await?;
    let objects = objects.into_iter().map(|object| {
        let garboard_machine_api::proto::AppliedObject { kind, name, outcome } = object;
        Object { kind, name, outcome }
    });
    let answer = Answer { dry_run: arguments.dry_run, objects: objects.collect() };
    show(arguments.output.output, &answer, |_| {
        let suffix = if answer.dry_run { " (dry run)" } else { "" };
        let row = |object: &Object| [format!("{}/{}", object.kind, object.name), format!("{}{suffix}", object.outcome)];
        table(["OBJECT", "OUTCOME"], answer.objects.iter().map(row))
    })
}

fn read(file: &Path) -> anyhow::Result<String> {
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
