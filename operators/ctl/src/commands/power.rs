//! `reboot` and `shutdown`

use std::time::Duration;

use crate::cli::{Reboot, Shutdown};
use crate::config::Contact;
use crate::wait::{Progress, until};

pub async fn reboot(contact: &Contact, arguments: &Reboot) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let machine = client.version().machine.clone();
    // Looked at only for a wait: a machine that cannot say much must still be possible to restart.
    let before = match arguments.wait {
        Some(_) => client.status().await?.boot_id,
        None => String::new(),
    };
    client.reboot(&arguments.reason).await?;
    eprintln!("{machine} reboots");
    let Some(seconds) = arguments.wait else { return Ok(()) };
    until("the machine to be back", Duration::from_secs(seconds), async || {
        let boot = contact.connect().await?.status().await?.boot_id;
        Ok(match boot == before {
            true => Progress::Missing(format!("{machine} stops its services")),
            false => Progress::Done(()),
        })
    })
    .await?;
    eprintln!("{machine} is back");
    Ok(())
}

pub async fn shutdown(contact: &Contact, arguments: &Shutdown) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    client.shutdown(&arguments.reason).await?;
    eprintln!("{} shuts down and switches itself off", client.version().machine);
    Ok(())
}
