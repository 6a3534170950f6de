//! `kubeconfig`

mod merge;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use garboard_machine_api::proto::KubeconfigResponse;

use crate::cli::Kubeconfig;
use crate::config::Contact;
use crate::files;
use crate::output::{print, time};
use crate::wait::{Progress, until};

use merge::Entry;

/// The service whose readiness means that `kubectl` gets answers.
const API_SERVER: &str = "kube-apiserver";

pub async fn run(contact: &Contact, arguments: &Kubeconfig) -> anyhow::Result<()> {
    let limit = arguments.wait.map(Duration::from_secs);
    let answer = match limit {
        Some(limit) => {
            until("the machine's kubeconfig", limit, async || {
                Ok(Progress::Done(contact.connect().await?.kubeconfig().await?))
            })
            .await?
        }
        None => contact.connect().await?.kubeconfig().await?,
    };
    let valid_until = time(answer.not_after_unix_ms);
    let entry = entry(contact, answer)?;
    write(arguments.file.as_deref(), &entry)?;
    if let Some(valid_until) = valid_until {
        eprintln!("the context {} is valid until {valid_until}", entry.name);
    }
    if let Some(limit) = limit {
        until("the API server", limit, async || api_server(contact).await).await?;
    }
    Ok(())
}

async fn api_server(contact: &Contact) -> anyhow::Result<Progress<()>> {
    let services = contact.connect().await?.services().await?;
    let Some(server) = services.into_iter().find(|service| service.name == API_SERVER) else {
        return Ok(Progress::Missing(format!("{API_SERVER} is not started yet")));
    };
    if server.ready {
        return Ok(Progress::Done(()));
    }
    let waits = match server.waiting_on.join(", ") {
        on if on.is_empty() => server.message,
        on => format!("waits for {on}"),
    };
    let remark = if waits.is_empty() { waits } else { format!(": {waits}") };
    Ok(Progress::Missing(format!("{API_SERVER} is {} and not ready{remark}", server.state)))
}

fn entry(contact: &Contact, answer: KubeconfigResponse) -> anyhow::Result<Entry> {
    let KubeconfigResponse { cluster: _, server, ca, certificate, not_after_unix_ms: _ } = answer;
    let server = match &contact.config.api_endpoint {
        Some(endpoint) => format!("https://{endpoint}"),
        None => server,
    };
    if server.is_empty() {
        bail!("the machine does not know where its API server is reached: write apiEndpoint into config.yaml");
    }
    Ok(Entry { name: contact.config.cluster.clone(), server, ca, certificate, key: contact.identity.pem() })
}

fn write(file: Option<&Path>, entry: &Entry) -> anyhow::Result<()> {
    if file.is_some_and(|file| file.as_os_str() == "-") {
        return print(&merge::merge("", entry)?);
    }
    let file = match file {
        Some(file) => file.to_owned(),
        None => default_file()?,
    };
    // A link stays one: what it points to is replaced.
    let file = fs::canonicalize(&file).unwrap_or(file);
    let merged = (|| {
        let known = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        replace(&file, &merge::merge(&known, entry)?)
    })();
    merged.with_context(|| format!("write {}", file.display()))?;
    eprintln!("wrote the context {} to {}", entry.name, file.display());
    Ok(())
}

/// Where kubectl looks: the first file of `$KUBECONFIG`, or `~/.kube/config`.
fn default_file() -> anyhow::Result<PathBuf> {
    let listed = std::env::var_os("KUBECONFIG");
    if let Some(first) =
        listed.as_ref().and_then(|list| std::env::split_paths(list).find(|p| !p.as_os_str().is_empty()))
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("HOME is not set: name the file with --file")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// Replaces the kubeconfig as a whole; only its owner reads it, because a private key is in it.
fn replace(file: &Path, content: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    Ok(files::replace(file, content, 0o600)?)
}
