//! `join`

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use garboard_api::{JOIN_SECRET_TYPE, MachineRole};
use garboard_machine_api::Endpoint;
use garboard_machine_api::proto::{Access, JoinTokenResponse};

use super::new::{fill, give_to_waiting, is_label, key_document};
use crate::cli::{Join, Target};
use crate::config::{self, Contact, Found, Machine};
use crate::files;
use crate::output::{print, time};

const MACHINE: &str = include_str!("join/machine.yaml");
const TOKEN: &str = include_str!("join/token.yaml");
/// What lies between the documents of a file.
const SEPARATOR: &str = "\n---\n";

pub async fn run(target: &Target, Join { name, at, key, control_plane, valid }: &Join) -> anyhow::Result<()> {
    if !is_label(name) {
        bail!("{name:?}: a machine's name has lower-case letters, digits and hyphens, and starts with a letter");
    }
    let found = Found::find(target)?;
    let path = found.folder().join(format!("{name}.yaml"));
    let former = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    // What is renewed is of the role that it had.
    let role = match &former {
        Some(former) => role_of(former).with_context(|| format!("read {}", path.display()))?,
        None if *control_plane => MachineRole::ControlPlane,
        None => MachineRole::Worker,
    };
    if *control_plane && role == MachineRole::Worker {
        bail!("{}: the Machine is a worker: remove the file to make another", path.display());
    }
    // Whatever is wrong here is found before there is a token.
    let (secret, pin) = key_document(name, *key)?;
    let config = match (found.config.machines.iter().any(|machine| machine.name == *name), &former, at) {
        (true, Some(_), _) => None,
        (true, None, _) => {
            bail!("config.yaml names a machine {name} already, and there is no {} of it to renew", path.display())
        }
        (false, _, None) => bail!("say with --at HOST where you will reach the machine"),
        (false, _, Some(endpoint)) => {
            // The key of manifests that are there already is in them.
            let fingerprint = (former.is_none() || key.is_some()).then_some(pin);
            Some(found.with_machine(&Machine { name: name.clone(), endpoint: endpoint.clone(), fingerprint })?)
        }
    };
    let controls = role == MachineRole::ControlPlane;
    let answer = Contact::of_cluster(target)?.connect().await?.join_token(name, controls, *valid).await?;
    let text = match &former {
        Some(former) => renewed(former, name, &answer).with_context(|| format!("renew {}", path.display()))?,
        None => manifests(name, role, &secret, &answer)?,
    };
    replace(&path, &text, 0o600)?;
    if let Some(config) = config {
        replace(&found.folder().join(config::FILE), &config, 0o644)?;
    }
    let until = time(answer.not_after_unix_ms).unwrap_or_default();
    let give = match (key, &former) {
        (Some(_), _) => give_to_waiting(&format!("-m {name}"), &format!("-f {}", path.display())),
        (None, Some(_)) => give_again(name, &path.display().to_string()),
        (None, None) => attach(&path.display().to_string()),
    };
    let own_key = if key.is_some() { "" } else { " its own key," };
    print(&(next_steps(&path, name, own_key, &until, &give) + &warning(name, answer.node_ready)))
}

/// What the machine of manifests is for.
fn role_of(manifests: &str) -> anyhow::Result<MachineRole> {
    let manifests = garboard_api::manifest::parse(manifests)?;
    Ok(manifests.machine.context("there is no Machine in it")?.role())
}

/// The manifests of a machine that joins.
fn manifests(name: &str, role: MachineRole, secret: &str, answer: &JoinTokenResponse) -> anyhow::Result<String> {
    let endpoint: Endpoint = answer.endpoint.parse().context("the machine says where its cluster is")?;
    let machine = fill(
        MACHINE,
        &[
            ("@NAME@", name),
            ("@WHAT@", if role == MachineRole::Worker { "a worker" } else { "a control-plane machine" }),
            ("@ROLE@", if role == MachineRole::Worker { "Worker" } else { "ControlPlane" }),
            ("@HOST@", &format!("{:?}", endpoint.host())),
            ("@PORT@", &endpoint.port().to_string()),
            ("@CA_PIN@", &answer.ca_pin),
            ("@ACCESS@", &access(&answer.access)),
            ("@IDENTITY@", secret),
        ],
    );
    checked(format!("{}{SEPARATOR}{}", machine.trim_end(), token(name, answer)))
}

/// Who may use the machine API of one that has not joined.
fn access(list: &[Access]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let entry = |Access { name, role, public_key }: &Access| {
        format!("    - name: {name:?}\n      role: {role}\n      publicKey: {public_key}\n")
    };
    let entries: String = list.iter().map(entry).collect();
    format!(
        "    # Who may use garboardctl with it until it knows its cluster, whose own list counts from then on.\n    access:\n{entries}"
    )
}

/// The same with another token.
fn renewed(former: &str, name: &str, answer: &JoinTokenResponse) -> anyhow::Result<String> {
    let kept = former.split(SEPARATOR).filter(|document| !document.contains(JOIN_SECRET_TYPE)).map(str::trim_end);
    checked(kept.chain([token(name, answer).as_str()]).collect::<Vec<_>>().join(SEPARATOR))
}

fn token(name: &str, answer: &JoinTokenResponse) -> String {
    fill(TOKEN, &[("@NAME@", name), ("@TOKEN@", &answer.token)])
}

/// What a machine would refuse is refused here, while it is easy to mend.
fn checked(text: String) -> anyhow::Result<String> {
    garboard_api::manifest::parse(&text)?;
    Ok(text)
}

fn replace(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    files::replace(path, content, mode).with_context(|| format!("write {}", path.display()))
}

fn next_steps(path: &Path, name: &str, own_key: &str, until: &str, give: &str) -> String {
    let path = path.display();
    format!(
        "\
Made {path}: the Machine {name},{own_key} and a token with which it can join until {until}.

Next:
 1. Look through {path}.
{give}
      kubectl get machines,nodes --watch
"
    )
}

/// What is to be known of a name that is in use.
fn warning(name: &str, in_use: bool) -> String {
    if !in_use {
        return String::new();
    }
    format!(
        "
The node {name} is Ready: until it is not, another machine with this file is refused. The machine that is {name} now may use it.
"
    )
}

/// How a machine that is on gets another token.
fn give_again(name: &str, path: &str) -> String {
    format!(
        "\
 2. Give it to the machine, if it is on:
      garboardctl -m {name} apply -f {path}
    or else in place of what it was given at its first boot.
 3. Then:"
    )
}

/// How a machine gets its manifests at its first boot.
fn attach(path: &str) -> String {
    format!(
        "\
 2. Give it to the machine at its first boot, as cluster.yaml and machine.yaml to the first one: on a stick or disk with a file system
    labelled GARBOARD, by QEMU's -fw_cfg name=opt/dev.garboard/manifests,file={path}, or by SMBIOS.
 3. Start the machine, then:"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(token: &str) -> JoinTokenResponse {
        JoinTokenResponse {
            token: token.to_owned(),
            endpoint: "[fd00::10]:6443".to_owned(),
            ca_pin: format!("sha256:{}", "7".repeat(64)),
            not_after_unix_ms: 0,
            node_ready: false,
            access: vec![Access {
                name: "admin".to_owned(),
                role: "admin".to_owned(),
                public_key: format!("sha256:{}", "8".repeat(64)),
            }],
        }
    }

    #[test]
    fn who_takes_a_name_that_is_in_use_is_told() {
        assert_eq!(warning("node-2", false), "");
        assert!(warning("node-2", true).contains("node-2 is Ready"));
    }

    #[test]
    fn a_token_is_renewed_and_the_rest_stays() {
        let (secret, _) = key_document("node-2", None).unwrap();
        let first = manifests("node-2", MachineRole::Worker, &secret, &answer("abcdef.0123456789abcdef")).unwrap();
        let edited = first.replace("network: {}", "network: {nameservers: [192.0.2.1]}");
        let second = renewed(&edited, "node-2", &answer("bcdefg.0123456789abcdef")).unwrap();
        let parse = |text: &str| garboard_api::manifest::parse(text).unwrap();
        let (first, second) = (parse(&edited), parse(&second));
        assert_eq!(second.join_token.as_ref().unwrap().token, "bcdefg.0123456789abcdef");
        assert_eq!((&first.machine, &first.identity), (&second.machine, &second.identity));
        assert_eq!(role_of(&edited).unwrap(), MachineRole::Worker);
        let other = manifests("node-3", MachineRole::ControlPlane, "", &answer("abcdef.0123456789abcdef")).unwrap();
        assert_eq!(role_of(&other).unwrap(), MachineRole::ControlPlane);
        let join = first.machine.unwrap().spec.join.unwrap();
        assert_eq!(join.endpoints[0].to_string(), "[fd00::10]:6443");
        assert_eq!(join.access[0].name, "admin");
    }
}
