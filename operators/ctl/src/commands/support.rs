//! `support`

mod redact;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use futures::StreamExt;
use garboard_machine_api::client::Client;

use self::redact::Redact;
use super::logs::{KERNEL, written};
use super::status::Status;
use crate::cli::{Support, Target};
use crate::config::Contact;
use crate::files;
use crate::output::print;

pub async fn run(target: &Target, Support { dir, lines }: &Support) -> anyhow::Result<()> {
    let contacts = Contact::each(target)?;
    if fs::read_dir(dir).is_ok_and(|mut found| found.next().is_some()) {
        bail!("{} is there already and not empty: choose another folder", dir.display());
    }
    let mut answered = 0;
    let all = contacts.len();
    for (name, contact) in contacts {
        eprintln!("{name}: collecting");
        let folder = dir.join(&name);
        make(&folder)?;
        let collected = async { collect(&mut contact?.connect().await?, &folder, *lines).await };
        match collected.await {
            Ok(()) => answered += 1,
            // Why a machine does not answer is what a maintainer needs to know too.
            Err(error) => {
                eprintln!("{name}: {error:#}");
                write(&folder.join("error.txt"), &format!("{error:#}\n"))?;
            }
        }
    }
    if answered == 0 {
        bail!("no machine has answered; why is in {}", dir.display());
    }
    print(&format!("{}: {answered} of {all} machines. Look through it before you give it away.\n", dir.display()))
}

/// Everything of one machine.
async fn collect(client: &mut Client, folder: &Path, lines: u32) -> anyhow::Result<()> {
    let status = Status::new(client.status().await?, client.services().await?);
    write(&folder.join("status.json"), &(serde_json::to_string_pretty(&status)? + "\n"))?;
    let services = status.services.iter().map(|service| service.name.as_str());
    for service in services.chain([KERNEL]) {
        let mut batches = client.logs(service, lines, false).await?;
        let (mut redact, mut text) = (Redact::default(), String::new());
        while let Some(batch) = batches.next().await {
            text.extend(batch?.into_iter().map(|line| redact.line(&written(line, true, false))));
        }
        write(&folder.join(format!("{service}.log")), &text)?;
    }
    Ok(())
}

fn make(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("make {}", folder.display()))
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    files::create(path, content, 0o600).with_context(|| format!("write {}", path.display()))
}
