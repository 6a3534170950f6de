//! `claim`

use garboard_machine_api::client::ClientError;

use super::apply::{Answer, read};
use crate::cli::Claim;
use crate::config::Contact;

pub async fn run(contact: &Contact, Claim { files, dry_run, output }: &Claim) -> anyhow::Result<()> {
    let manifests = files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?.join("\n---\n");
    // What the machine would refuse is refused here, with the same words.
    garboard_api::manifest::parse(&manifests)?;
    let mut machine = contact.connect().await.map_err(|error| match error.downcast_ref() {
        Some(ClientError::UnknownKey { .. }) => {
            error.context("the machine does not wait: another has claimed it, or it has had manifests")
        }
        _ => error,
    })?;
    let objects = machine.claim(manifests, *dry_run).await?;
    Answer::new(objects, *dry_run).show(output.output)
}
