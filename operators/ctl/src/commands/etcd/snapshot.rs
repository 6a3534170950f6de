//! `etcd snapshot`

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use garboard_machine_api::client::Client;
use garboard_machine_api::proto::EtcdSnapshotResponse;
use garboard_machine_api::snapshot::Check;

use crate::cli::EtcdSnapshot;
use crate::config::Contact;
use crate::output::size;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(2);

pub async fn run(contact: &Contact, EtcdSnapshot { file, force }: &EtcdSnapshot) -> anyhow::Result<()> {
    if !force && file.symlink_metadata().is_ok() {
        bail!("{} is there already: give another name, or --force to replace it", file.display());
    }
    let mut client = contact.connect().await?;
    let mut name =
        file.file_name().with_context(|| format!("{}: this is not a file's name", file.display()))?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = file.with_file_name(name);
    let taken = take(&mut client, &unfinished).await.and_then(|bytes| {
        keep(&unfinished, file, *force)?;
        Ok(bytes)
    });
    if taken.is_err() {
        // The first error counts; what cannot be removed was not made.
        let _ = fs::remove_file(&unfinished);
    }
    let bytes = taken?;
    eprintln!("{}: {} of etcd's store in {}, whole", client.version().machine, size(bytes), file.display());
    Ok(())
}

/// Writes the snapshot to a file that is not there yet, and checks that it is whole.
async fn take(client: &mut Client, path: &Path) -> anyhow::Result<u64> {
    let mut pieces = client.etcd_snapshot().await?;
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = created.with_context(|| format!("write {}", path.display()))?;
    let (mut check, mut told) = (Check::default(), Instant::now());
    while let Some(next) = pieces.next().await {
        let EtcdSnapshotResponse { piece, remaining_bytes } = next?;
        check.update(&piece);
        file.write_all(&piece).with_context(|| format!("write {}", path.display()))?;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("{} of {}", size(check.bytes()), size(check.bytes().saturating_add(remaining_bytes)));
        }
    }
    let bytes = check.bytes();
    check.finish().context("what came is not kept")?;
    file.sync_all().with_context(|| format!("write {}", path.display()))?;
    Ok(bytes)
}

/// Gives the file its name, and makes that outlast a power cut.
fn keep(unfinished: &Path, path: &Path, force: bool) -> anyhow::Result<()> {
    let named = if force {
        fs::rename(unfinished, path)
    } else {
        // Unlike a rename, a link replaces nothing that has come meanwhile.
        fs::hard_link(unfinished, path).and_then(|()| fs::remove_file(unfinished))
    };
    named.with_context(|| format!("write {}", path.display()))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("write {}", folder.display()))
}
