//! `config.yaml`: where the machines are, their fingerprints, and which key is the user's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use garboard_machine_api::client::Client;
use garboard_machine_api::{Endpoint, Identity, Pin};
use serde::{Deserialize, Serialize};

use crate::cli::Target;

/// Name of the file in the folder that `garboardctl new` makes.
pub const FILE: &str = "config.yaml";

const API_VERSION: &str = "garboard.dev/v1alpha1";
const KIND: &str = "ClientConfig";

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    api_version: String,
    kind: String,
    /// Name of the cluster among the user's clusters: the context in the kubeconfig.
    pub cluster: String,
    /// The user's key; relative to the folder of the file.
    pub key: PathBuf,
    /// HOST:PORT at which the user reaches the Kubernetes API; what the machine says when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_endpoint: Option<String>,
    /// The machines.
    pub machines: Vec<Machine>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Where its machine API is.
    pub endpoint: Endpoint,
    /// Fingerprint of its key; must be given on the command line when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Pin>,
}

/// A file that was found, and where.
#[derive(Clone, Debug)]
pub struct Found {
    pub config: Config,
    folder: PathBuf,
}

/// Everything that a connection needs.
#[derive(Debug)]
pub struct Contact {
    pub endpoint: Endpoint,
    pub fingerprint: Pin,
    pub identity: Identity,
    pub config: Config,
}

impl Contact {
    /// The contact that the command line and the file that it names, or the first that is found, describe together.
    pub fn find(target: &Target) -> anyhow::Result<Self> {
        let Found { config, folder } = find(target.config.as_deref())?;
        let machine = select(&config.machines, target.machine.as_deref())?;
        let endpoint = target.endpoint.clone().unwrap_or_else(|| machine.endpoint.clone());
        let Some(fingerprint) = target.fingerprint.or(machine.fingerprint) else {
            bail!(
                "the fingerprint of {} is not known: the machine's console shows it; give it with --fingerprint, or \
                 write it into {}",
                machine.name,
                folder.join(FILE).display()
            );
        };
        let identity = Identity::load(&folder.join(&config.key))?;
        Ok(Self { endpoint, fingerprint, identity, config })
    }

    /// Connects.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.endpoint, self.fingerprint, &self.identity).await?)
    }
}

fn select<'a>(machines: &'a [Machine], name: Option<&str>) -> anyhow::Result<&'a Machine> {
    let names = || machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, machines) {
        (None, [only]) => Ok(only),
        (None, []) => bail!("config.yaml names no machine"),
        (None, _) => bail!("config.yaml names several machines: choose with -m one of {}", names()),
        (Some(name), _) => {
            let found = machines.iter().find(|machine| machine.name == name);
            found.with_context(|| format!("config.yaml names no machine {name:?}, but these: {}", names()))
        }
    }
}

/// What the first lines of a file say it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: String,
    kind: String,
}

fn parse(text: &str) -> anyhow::Result<Config> {
    let header: Header = serde_yaml_ng::from_str(text)?;
    if (header.api_version.as_str(), header.kind.as_str()) != (API_VERSION, KIND) {
        bail!("it is a {} of {}, not a {KIND} of {API_VERSION}", header.kind, header.api_version);
    }
    Ok(serde_yaml_ng::from_str(text)?)
}

fn find(given: Option<&Path>) -> anyhow::Result<Found> {
    if let Some(path) = given {
        let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        return read(&path).with_context(|| format!("read {}", path.display()));
    }
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let here = PathBuf::from(FILE);
    // Many programs have a config.yaml: one in the current folder that is not ours is not meant.
    if fs::read_to_string(&here).is_ok_and(|text| text.contains(KIND)) {
        return read(&here).with_context(|| format!("read {}", here.display()));
    }
    if let Some(path) = home.map(|home| home.join("garboard").join(FILE)) {
        match read(&path) {
            Err(error) if is_absent(&error) => {}
            other => return other.with_context(|| format!("read {}", path.display())),
        }
    }
    bail!(
        "no config.yaml of garboardctl here or in ~/.config/garboard: make a new cluster with `garboardctl new DIR`, or \
         say where it is with --config DIR"
    )
}

fn is_absent(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read(path: &Path) -> anyhow::Result<Found> {
    let config = parse(&fs::read_to_string(path)?)?;
    Ok(Found { config, folder: path.parent().unwrap_or(Path::new("")).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: garboard.dev/v1alpha1
kind: ClientConfig
cluster: lab
key: admin.key
machines:
- {name: a, endpoint: 192.0.2.1}
- {name: b, endpoint: '192.0.2.2:1'}
";

    #[test]
    fn a_machine_is_chosen_by_name_and_need_not_be_when_there_is_one() {
        let machines = parse(TEXT).unwrap().machines;
        assert_eq!(select(&machines, Some("b")).unwrap().endpoint.to_string(), "192.0.2.2:1");
        assert_eq!(select(&machines[..1], None).unwrap().name, "a");
        for (machines, name) in [(&machines[..], None), (&machines[..], Some("c")), (&machines[..0], None)] {
            assert!(select(machines, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn other_files_and_unknown_fields_are_refused_with_their_name() {
        for (text, named) in [
            ("apiVersion: v1\nkind: Config\n".to_owned(), "Config of v1"),
            (TEXT.replace("cluster:", "clutser: x\ncluster:"), "clutser"),
            (TEXT.replace("192.0.2.1", "https://x"), "https://x"),
            (TEXT.replace("endpoint: 192.0.2.1", "endpoint: a, fingerprint: md5:1"), "fingerprint"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
