//! `logs` and `dmesg`

use futures::StreamExt;
use garboard_machine_api::proto::LogLine;

use crate::cli::Lines;
use crate::config::Contact;
use crate::output::{is_screen, print, printable};

/// The machine API's name for the kernel's log.
pub const KERNEL: &str = "kernel";

pub async fn run(contact: &Contact, service: &str, arguments: &Lines) -> anyhow::Result<()> {
    let mut client = contact.connect().await?;
    let mut batches = client.logs(service, arguments.count, arguments.follow).await?;
    let screen = is_screen();
    while let Some(batch) = batches.next().await {
        let lines = batch?.into_iter().map(|line| written(line, arguments.timestamps, screen));
        print(&lines.collect::<String>())?;
    }
    Ok(())
}

/// A line as it is written, with its end.
pub fn written(line: LogLine, timestamps: bool, screen: bool) -> String {
    let LogLine { unix_usec, text } = line;
    let text = if screen { printable(&text) } else { text };
    match jiff::Timestamp::from_microsecond(unix_usec) {
        Ok(time) if timestamps => format!("{time:.6} {text}\n"),
        Ok(_) | Err(_) => text + "\n",
    }
}
