//! Where a machine without a fw_cfg entry finds its manifests; each of these machines carries Services in another mode.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use garboard_tests::host::run;
use garboard_tests::machine::Hardware;

use crate::scene::{Scenario, Scene, cold};
use crate::workloads;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        cold("sources::smbios_strings_and_iptables", smbios_strings_and_iptables),
        cold("sources::a_config_drive_and_ipvs", a_config_drive_and_ipvs),
    ]
}

fn smbios_strings_and_iptables() -> Result<()> {
    let mut scene = Scene::new(Hardware::default())?;
    set_proxy_mode(&scene, "iptables")?;
    // One string each: they are found apart and belong together.
    for name in ["cluster.yaml", "machine.yaml"] {
        let manifest = fs::read(scene.cluster.directory().join(name)).with_context(|| format!("read {name}"))?;
        let string = format!("type=11,value=dev.garboard.manifests={}", STANDARD.encode(manifest));
        scene.machine.add_arguments(["-smbios", &string]);
    }
    serves(&mut scene, "iptables")
}

fn a_config_drive_and_ipvs() -> Result<()> {
    let mut scene = Scene::new(Hardware::default())?;
    set_proxy_mode(&scene, "ipvs")?;
    let drive = scene.cluster.directory().join("drive.img");
    make_drive(&drive, scene.cluster.directory(), &["cluster.yaml", "machine.yaml"])?;
    let drive = format!("if=virtio,format=raw,readonly=on,file={}", drive.display());
    scene.machine.add_arguments(["-drive", &drive]);
    serves(&mut scene, "ipvs")
}

fn set_proxy_mode(scene: &Scene, mode: &str) -> Result<()> {
    scene.cluster.edit("cluster.yaml", "\nspec:\n", &format!("\nspec:\n  proxyMode: {mode}\n"))
}

/// A file system as cloud tools label it, with these files of `folder`.
fn make_drive(drive: &Path, folder: &Path, files: &[&str]) -> Result<()> {
    let file = fs::File::create(drive).context("make the drive")?;
    file.set_len(16 << 20).context("make the drive")?;
    run(Command::new("mkfs.vfat").args(["-n", "CIDATA"]).arg(drive), "")?;
    let files = files.iter().map(|file| folder.join(file));
    run(Command::new("mcopy").arg("-i").arg(drive).args(files).arg("::"), "").map(drop)
}

/// Boots without a fw_cfg entry, and shows that Services work in this mode.
fn serves(scene: &mut Scene, mode: &str) -> Result<()> {
    scene.machine.set_manifests(None);
    scene.boot()?;
    workloads::a_deployment_serves_through_its_service_and_name(scene)?;
    let log = scene.cluster.garboardctl_ok(&["logs", "kube-proxy", "-n", "1000"])?;
    let wanted = format!("Using {mode} Proxier");
    ensure!(log.contains(&wanted), "kube-proxy did not say {wanted:?}:\n{log}");
    Ok(())
}
