//! `new`

use std::fs::{self, DirBuilder};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use garboard_machine_api::{Endpoint, Identity, Pin};

use crate::cli::New;
use crate::config;
use crate::files;
use crate::output::print;

const CLUSTER: &str = include_str!("new/cluster.yaml");
const MACHINE: &str = include_str!("new/machine.yaml");
const IDENTITY: &str = include_str!("new/identity.yaml");
const CONFIG: &str = include_str!("new/config.yaml");

/// The Kubernetes API's port.
const API_PORT: u16 = 6443;

/// Words that YAML reads as something else than a text.
const YAML_WORDS: &[&str] = &["false", "n", "no", "null", "off", "on", "true", "y", "yes"];

/// What a new cluster consists of on the user's side.
struct Files {
    cluster: String,
    machine: String,
    config: String,
    key: String,
}

pub fn run(arguments: &New) -> anyhow::Result<()> {
    let files = make(arguments)?;
    let folder = &arguments.dir;
    write(folder, &files).with_context(|| format!("write the files of a new cluster to {}", folder.display()))?;
    print(&next_steps(arguments))
}

fn make(New { dir, name, endpoint, api_endpoint, key }: &New) -> anyhow::Result<Files> {
    if !is_label(name) {
        bail!("--name {name:?}: a machine's name has lower-case letters, digits and hyphens, and starts with a letter");
    }
    let admin = Identity::generate()?;
    let (secret, machine_pin) = key_document(name, *key)?;
    let api = match api_endpoint {
        Some(text) => Endpoint::with_default_port(text, API_PORT)?,
        None => Endpoint::with_default_port(&bracketed(endpoint.host()), API_PORT)?,
    };
    let sans = match is_loopback(api.host()) {
        // The certificate holds for the loopback addresses in any case.
        true => "  # certSANs: [api.example.org, 192.0.2.10]\n".to_owned(),
        false => format!("  certSANs: [{:?}]\n", api.host()),
    };
    let files = Files {
        cluster: fill(CLUSTER, &[("@SANS@", &sans), ("@ADMIN_PIN@", &admin.pin().to_string())]),
        machine: fill(MACHINE, &[("@NAME@", name), ("@IDENTITY@", &secret)]),
        config: fill(
            CONFIG,
            &[
                ("@CLUSTER@", &context_name(dir)),
                ("@API@", &quoted(&api)),
                ("@NAME@", name),
                ("@ENDPOINT@", &quoted(endpoint)),
                ("@MACHINE_PIN@", &machine_pin.to_string()),
            ],
        ),
        key: admin.pem(),
    };
    // What a machine would refuse is refused here, while it is easy to mend.
    garboard_api::manifest::parse(&format!("{}---\n{}", files.cluster, files.machine))?;
    Ok(files)
}

/// The document with a machine's own key, nothing if it has one (`key`) already; and the key's fingerprint.
pub fn key_document(name: &str, key: Option<Pin>) -> anyhow::Result<(String, Pin)> {
    if let Some(key) = key {
        return Ok((String::new(), key));
    }
    let identity = Identity::generate()?;
    let lines: String = identity.pem().lines().map(|line| format!("    {line}\n")).collect();
    Ok((fill(IDENTITY, &[("@NAME@", name), ("@MACHINE_KEY@\n", &lines)]), identity.pin()))
}

/// A DNS label: what the name of a machine must be, and a text that means the same in YAML.
pub fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.last().is_some_and(|byte| plain(*byte))
        && !YAML_WORDS.contains(&name)
}

/// A template with its values.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// An endpoint as YAML: one with brackets would be a list.
fn quoted(endpoint: &Endpoint) -> String {
    format!("{:?}", endpoint.to_string())
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The folder's name as the name of a context.
fn context_name(folder: &Path) -> String {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    match name.trim_matches('-') {
        "" => "garboard".to_owned(),
        name if is_label(name) => name.to_owned(),
        name => format!("garboard-{name}"),
    }
}

fn write(folder: &Path, files: &Files) -> anyhow::Result<()> {
    let Files { cluster, machine, config, key } = files;
    // The machine's key is in machine.yaml, so that file is not for others to read either.
    let entries = [
        ("admin.key", key, 0o600),
        ("cluster.yaml", cluster, 0o644),
        ("machine.yaml", machine, 0o600),
        (config::FILE, config, 0o644),
    ];
    if let Some((name, ..)) = entries.iter().find(|(name, ..)| fs::symlink_metadata(folder.join(name)).is_ok()) {
        bail!("{name} is there already, and nothing is overwritten: choose another folder, or move it away");
    }
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    for (name, content, mode) in entries {
        files::create(&folder.join(name), content, mode).with_context(|| name)?;
    }
    Ok(())
}

fn next_steps(New { dir, name, endpoint, api_endpoint: _, key }: &New) -> String {
    let dir = dir.display();
    let (and_key, give) = match key {
        Some(_) => {
            ("", give_to_waiting(&format!("--config {dir}"), &format!("-f {dir}/cluster.yaml -f {dir}/machine.yaml")))
        }
        None => (", and the machine's own key", attach(&dir.to_string())),
    };
    format!(
        "\
Made in {dir}:
  cluster.yaml   the Cluster: networks, and who may do what
  machine.yaml   the Machine {name}{and_key}
  admin.key      your key: keep it to yourself
  config.yaml    where garboardctl finds the machine ({endpoint}), and how it knows it

Next:
 1. Look through cluster.yaml and machine.yaml.
{give}
      garboardctl --config {dir} kubeconfig --wait 600
      kubectl get nodes
"
    )
}

/// How a machine that waits gets its manifests.
pub fn give_to_waiting(target: &str, files: &str) -> String {
    format!(
        " 2. Give it to the machine that waits:
      garboardctl {target} claim {files}
 3. Then:"
    )
}

/// How a machine gets its manifests at its first boot.
fn attach(dir: &str) -> String {
    format!(
        "\
 2. Attach both to the machine's first boot, in one of these ways:
      QEMU          cat {dir}/cluster.yaml <(echo ---) {dir}/machine.yaml > {dir}/manifests.yaml
                    qemu-system-x86_64 ... -fw_cfg name=opt/dev.garboard/manifests,file={dir}/manifests.yaml \\
                      -nic user,hostfwd=tcp:127.0.0.1:7443-:7443,hostfwd=tcp:127.0.0.1:6443-:6443
      config drive  a stick or disk with a file system labelled GARBOARD, and both files in its top folder:
                    mkfs.vfat -n GARBOARD -C {dir}/config.img 1440
                    mcopy -i {dir}/config.img {dir}/cluster.yaml {dir}/machine.yaml ::
 3. Start the machine, then:"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(name: &str, endpoint: &str, api_endpoint: Option<&str>) -> New {
        New {
            dir: "lab".into(),
            name: name.into(),
            endpoint: endpoint.parse().unwrap(),
            api_endpoint: api_endpoint.map(str::to_owned),
            key: None,
        }
    }

    #[test]
    fn the_context_is_named_after_the_folder() {
        for (folder, name) in [
            ("/a/lab", "lab"),
            ("/a/My Lab!", "my-lab"),
            ("/a/lab/.", "lab"),
            ("/", "garboard"),
            ("/true", "garboard-true"),
            ("/a/1", "garboard-1"),
        ] {
            assert_eq!(context_name(Path::new(folder)), name, "{folder}");
        }
    }

    #[test]
    fn a_name_that_a_machine_would_refuse_is_refused() {
        for name in ["", "Node", "a.b", "a b", "a: b", "x\ny: z", "-a", "true", "1"] {
            assert!(make(&arguments(name, "127.0.0.1", None)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_certificate_holds_for_where_the_api_is_reached() {
        let host = |endpoint, api| {
            let text = make(&arguments("node-1", endpoint, api)).unwrap().cluster;
            let cluster: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
            cluster["spec"]["certSANs"][0].as_str().map(str::to_owned)
        };
        assert_eq!(host("127.0.0.1:17443", Some("127.0.0.1:16443")), None);
        assert_eq!(host("192.0.2.1", None).as_deref(), Some("192.0.2.1"));
        assert_eq!(host("2001:db8::1", None).as_deref(), Some("2001:db8::1"));
        assert_eq!(host("192.0.2.1", Some("api.example.org")).as_deref(), Some("api.example.org"));
    }
}
