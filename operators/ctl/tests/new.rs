//! What `garboardctl new` writes.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use garboard_api::{Cluster, Machine, manifest};
use garboard_machine_api::Identity;

fn new(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_garboardctl")).env_clear().arg("new").arg(folder).args(arguments).output().unwrap()
}

fn made(arguments: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("deep/lab");
    let output = new(&folder, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (home, folder)
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

/// Both manifests as a machine reads them.
fn manifests(cluster: &str, machine: &str) -> (Cluster, Machine, manifest::Identity) {
    let read = manifest::parse(&format!("{cluster}\n---\n{machine}")).unwrap();
    (read.cluster.unwrap(), read.machine.unwrap(), read.identity.unwrap())
}

/// The base64 lines of a key: each of them is part of the secret.
fn secret_lines(pem: &str) -> Vec<String> {
    pem.lines().filter(|line| !line.starts_with('-')).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_manifests_are_what_a_machine_accepts() {
    for arguments in [&[][..], &["--name", "rack1", "--endpoint", "192.0.2.10"], &["--api-endpoint", "api.example.org"]]
    {
        let (_home, folder) = made(arguments);
        let (cluster, machine, identity) = manifests(&read(&folder, "cluster.yaml"), &read(&folder, "machine.yaml"));
        let admin = Identity::load(&folder.join("admin.key")).unwrap();
        assert_eq!(cluster.spec.access.len(), 1);
        assert_eq!(cluster.spec.access[0].public_key.to_string(), admin.pin().to_string());
        assert_eq!(machine.metadata.name.as_ref(), Some(&identity.machine));
        let fingerprint = Identity::from_pem(&identity.key).unwrap().pin().to_string();
        assert!(read(&folder, "config.yaml").contains(&fingerprint), "config.yaml pins the machine's key");
    }
}

/// The values that are written out are the defaults, so that deleting a line changes nothing.
#[test]
fn the_manifests_teach_the_defaults() {
    let (_home, folder) = made(&[]);
    let (cluster, machine, _) = manifests(&read(&folder, "cluster.yaml"), &read(&folder, "machine.yaml"));
    let defaults = garboard_api::ClusterSpec { access: cluster.spec.access.clone(), ..Default::default() };
    assert_eq!(cluster.spec, defaults);
    assert_eq!(machine.spec, Default::default());
}

/// What stands in comments as an example is valid too, once the comment signs are taken away.
#[test]
fn the_examples_in_the_comments_are_valid() {
    let (_home, folder) = made(&[]);
    let cluster = read(&folder, "cluster.yaml")
        .replace("  # endpoint:\n  #   host:", "  endpoint:\n    host:")
        .replace("  #   port:", "    port:")
        .replace("  # virtualAddress:\n  #   address:", "  virtualAddress:\n    address:")
        .replace("  # certSANs:", "  certSANs:");
    let mut machine = read(&folder, "machine.yaml").replace("  #   ", "    ");
    for block in ["network", "kubelet", "kernel"] {
        machine = machine.replace(&format!("{block}: {{}}"), &format!("{block}:"));
    }
    let (cluster, machine, _) = manifests(&cluster, &machine);
    assert!(cluster.spec.endpoint.is_some() && cluster.spec.cert_sans.len() == 2);
    assert_eq!(cluster.spec.virtual_address.unwrap().router_id(), 5);
    assert_eq!((machine.spec.network.links.len(), machine.spec.network.nameservers.len()), (1, 1));
    assert_eq!(machine.spec.kubelet.max_pods, Some(110));
    assert_eq!((machine.spec.kernel.sysctls.len(), machine.spec.kernel.modules.len()), (1, 1));
}

#[test]
fn nothing_that_makes_one_admin_is_in_the_manifests() {
    let (_home, folder) = made(&[]);
    let secret = secret_lines(&read(&folder, "admin.key"));
    assert_eq!(fs::metadata(folder.join("admin.key")).unwrap().permissions().mode() & 0o777, 0o600);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("admin.key") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(secret.iter().all(|line| !text.contains(line)), "{}", path.display());
    }
    let machine = read(&folder, "machine.yaml");
    let keys =
        machine.matches("BEGIN PRIVATE KEY").count() + read(&folder, "cluster.yaml").matches("PRIVATE KEY").count();
    assert_eq!(keys, 1, "only the machine's own key");
    assert_eq!(fs::metadata(folder.join("machine.yaml")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn nothing_is_overwritten_and_every_call_makes_other_keys() {
    let (home, folder) = made(&[]);
    let before = read(&folder, "admin.key");
    let again = new(&folder, &[]);
    assert!(!again.status.success());
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(error.contains("admin.key is there already"), "{error}");
    assert_eq!(read(&folder, "admin.key"), before);

    fs::remove_file(folder.join("admin.key")).unwrap();
    assert!(!new(&folder, &[]).status.success());
    assert!(!folder.join("admin.key").exists(), "nothing is written when one file is there");

    let other = home.path().join("other");
    assert!(new(&other, &[]).status.success());
    assert_ne!(read(&other, "admin.key"), before);
}

#[test]
fn the_next_steps_are_told() {
    let home = tempfile::tempdir().unwrap();
    let text = String::from_utf8(new(&home.path().join("lab"), &[]).stdout).unwrap();
    for part in ["fw_cfg name=opt/dev.garboard/manifests", "GARBOARD", "kubeconfig --wait", "admin.key"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}
