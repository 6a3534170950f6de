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
    /// The file as it is, with its comments.
    text: String,
}

/// Everything that a connection needs.
#[derive(Debug)]
pub struct Contact {
    pub endpoint: Endpoint,
    pub fingerprint: Pin,
    pub identity: Identity,
    pub config: Config,
}

impl Found {
    /// The file that the command line names, or the first that is found.
    pub fn find(target: &Target) -> anyhow::Result<Self> {
        find(target.config.as_deref())
    }

    /// The folder of the file.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file's text with another machine at its end.
    pub fn with_machine(&self, machine: &Machine) -> anyhow::Result<String> {
        let Machine { name, endpoint, fingerprint } = machine;
        let mut text = format!("{}\n- name: {name}\n  endpoint: {:?}\n", self.text.trim_end(), endpoint.to_string());
        if let Some(fingerprint) = fingerprint {
            text += &format!("  fingerprint: {fingerprint}\n");
        }
        let mut wanted = self.config.clone();
        wanted.machines.push(machine.clone());
        // The list need not be the last thing in a file that a person has edited.
        match parse(&text) {
            Ok(found) if found == wanted => Ok(text),
            _ => bail!("`machines` is not the last list of {FILE}: move it to the end"),
        }
    }

    /// The contact that the command line and the file describe together, with the machine that `select` chooses.
    fn contact(
        self,
        target: &Target,
        select: impl Fn(&[Machine], Option<&str>) -> anyhow::Result<Machine>,
    ) -> anyhow::Result<Contact> {
        let Self { config, folder, text: _ } = self;
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
        Ok(Contact { endpoint, fingerprint, identity, config })
    }
}

impl Contact {
    /// The contact with the machine that is meant: named, or the only one.
    pub fn find(target: &Target) -> anyhow::Result<Self> {
        Found::find(target)?.contact(target, select)
    }

    /// The contact with a machine that speaks for the cluster: the named one, or the first, which founded it.
    pub fn of_cluster(target: &Target) -> anyhow::Result<Self> {
        Found::find(target)?.contact(target, |machines, name| match (name, machines) {
            (None, [first, ..]) => Ok(first.clone()),
            _ => select(machines, name),
        })
    }

    /// The contacts with all machines, or with the named one, each with its name.
    pub fn each(target: &Target) -> anyhow::Result<Vec<(String, anyhow::Result<Self>)>> {
        let found = Found::find(target)?;
        let machines = found.config.machines.iter().map(|machine| machine.name.clone());
        let names: Vec<String> = target.machine.clone().map_or_else(|| machines.collect(), |name| vec![name]);
        if target.endpoint.is_some() && names.len() > 1 {
            bail!("--endpoint is where one machine is: choose it with -m");
        }
        let contact = |name: String| {
            let contact = found.clone().contact(target, |machines, _| select(machines, Some(&name)));
            (name, contact)
        };
        Ok(names.into_iter().map(contact).collect())
    }

    /// Connects.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.endpoint, self.fingerprint, &self.identity).await?)
    }
}

fn select(machines: &[Machine], name: Option<&str>) -> anyhow::Result<Machine> {
    let names = || machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, machines) {
        (None, [only]) => Ok(only.clone()),
        (None, []) => bail!("config.yaml names no machine"),
        (None, _) => bail!("config.yaml names several machines: choose with -m one of {}", names()),
        (Some(name), _) => {
            let found = machines.iter().find(|machine| machine.name == name);
            let found = found.with_context(|| format!("config.yaml names no machine {name:?}, but these: {}", names()));
            found.cloned()
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
    let text = fs::read_to_string(path)?;
    Ok(Found { config: parse(&text)?, folder: path.parent().unwrap_or(Path::new("")).to_owned(), text })
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
    fn a_machine_is_added_and_comments_stay() {
        let found = |text: &str| Found { config: parse(text).unwrap(), folder: PathBuf::new(), text: text.to_owned() };
        let machine = Machine { name: "c".into(), endpoint: "[fd00::1]:7443".parse().unwrap(), fingerprint: None };
        let with_comment = TEXT.replace("- {name: a", "# The first one.\n- {name: a");
        let text = found(&with_comment).with_machine(&machine).unwrap();
        assert!(text.contains("# The first one."));
        assert_eq!(parse(&text).unwrap().machines.last(), Some(&machine));
        let (head, machines) = TEXT.split_at(TEXT.find("machines:").unwrap());
        let other_order = format!("{machines}{}", head.trim_start());
        assert!(found(&other_order).with_machine(&machine).is_err());
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
