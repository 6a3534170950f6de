//! `etcd restore`

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use garboard_machine_api::proto::etcd_restore_request::Source;
use garboard_machine_api::proto::{EtcdOwnData, EtcdRestoreRequest, EtcdSetAside};
use garboard_machine_api::snapshot::{Check, PIECE};

use crate::cli::EtcdRestore;
use crate::config::Contact;
use crate::output::{printable, size};

pub async fn run(contact: &Contact, arguments: &EtcdRestore) -> anyhow::Result<()> {
    let EtcdRestore { file, from_own_data: _, from_set_aside, yes } = arguments;
    // Whatever is wrong with the file is known before anybody is asked.
    let (source, what) = match file {
        Some(path) => {
            let bytes = check(path).with_context(|| path.display().to_string())?;
            (pieces(path)?, format!("{} ({})", path.display(), size(bytes)))
        }
        None if *from_set_aside => (only(Source::SetAside(EtcdSetAside {})), "what was set aside".to_owned()),
        None => (only(Source::OwnData(EtcdOwnData {})), "its own data".to_owned()),
    };
    let mut client = contact.connect().await?;
    let machine = client.version().machine.clone();
    if !yes {
        confirm(&machine, &what)?;
    }
    let mut steps = client.etcd_restore(source).await?;
    while let Some(step) = steps.next().await {
        eprintln!("{machine}: {}", printable(&step?));
    }
    eprintln!("{machine}: the store is made anew; `garboardctl status` tells when the control plane serves again");
    Ok(())
}

/// Whether the file is a whole snapshot; returns its size.
fn check(path: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(path)?;
    let (mut check, mut piece) = (Check::default(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => check.update(piece.get(..count).unwrap_or_default()),
        }
    }
    let bytes = check.bytes();
    check.finish()?;
    Ok(bytes)
}

/// The file as it is sent. One that cannot be read to its end is sent without its end, which the machine refuses.
fn pieces(path: &Path) -> anyhow::Result<BoxStream<'static, EtcdRestoreRequest>> {
    let file = File::open(path)?;
    let next = |mut file: File| async move {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece).ok().filter(|count| *count > 0)?;
        piece.truncate(count);
        Some((EtcdRestoreRequest { source: Some(Source::Piece(piece)) }, file))
    };
    Ok(stream::unfold(file, next).boxed())
}

fn only(source: Source) -> BoxStream<'static, EtcdRestoreRequest> {
    stream::iter([EtcdRestoreRequest { source: Some(source) }]).boxed()
}

/// Asks a person, who has to write the machine's name.
fn confirm(machine: &str, what: &str) -> anyhow::Result<()> {
    eprintln!(
        "{machine} makes a new store of {what}, with its member alone. What has changed since is gone from the cluster, and the other \
         control-plane machines have to join again. They must be off, or unable to reach each other."
    );
    if !io::stdin().is_terminal() {
        bail!("nobody is there to confirm it: give --yes");
    }
    eprint!("Write the machine's name to go on: ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != machine {
        bail!("nothing was done: {:?} is not {machine}", answer.trim());
    }
    Ok(())
}
