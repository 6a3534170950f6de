//! What must not run does not run, and says why.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;

use crate::scene::{Scenario, Scene, cold, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        cold("refusal::a_changed_root_never_runs", a_changed_root_never_runs),
        on_ready("refusal::bad_manifests_are_named_and_change_nothing", bad_manifests_are_named_and_change_nothing),
    ]
}

/// Longest time from power-on to the first stage's words.
pub const EARLY_LIMIT: Duration = Duration::from_secs(120);

/// Bytes changed in each of the root's blocks, so that whatever is read first is damaged.
const BLOCK: u64 = 4096;

fn a_changed_root_never_runs() -> Result<()> {
    let mut scene = Scene::new(Hardware::default())?;
    let raw = scene.machine.disk().with_extension("raw");
    convert(&["-f", "qcow2", "-O", "raw"], &scene.machine.disk(), &raw)?;
    damage(&raw, &Image::latest()?)?;
    convert(&["-f", "raw", "-O", "qcow2"], &raw, &scene.machine.disk())?;
    fs::remove_file(&raw).context("remove the raw disk")?;
    scene.machine.start()?;
    scene.machine.wait_console("verity", EARLY_LIMIT)?;
    scene.machine.wait_console("corrupted", EARLY_LIMIT)?;
    ensure!(
        !scene.machine.console().contains("garboard-init"),
        "the changed root ran:\n{}",
        scene.machine.console_end()
    );
    Ok(())
}

fn convert(formats: &[&str], from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let status =
        Command::new("qemu-img").arg("convert").args(formats).arg(from).arg(to).status().context("run qemu-img")?;
    if !status.success() {
        bail!("qemu-img convert {} {}: {status}", from.display(), to.display());
    }
    Ok(())
}

/// Changes the last byte of each block of the root but its first, wherever the root lies on the disk.
fn damage(disk: &std::path::Path, image: &Image) -> Result<()> {
    let root = fs::read(image.directory.join("root.erofs")).context("read root.erofs")?;
    let start = root.get(..64 * 1024).context("root.erofs is too small")?;
    let mut file = OpenOptions::new().read(true).write(true).open(disk).context("open the disk")?;
    let offset = find(&mut file, start)?;
    for block in 1..(root.len() as u64 / BLOCK) {
        file.seek(SeekFrom::Start(offset + block * BLOCK + BLOCK - 1))?;
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        file.seek(SeekFrom::Current(-1))?;
        file.write_all(&[!byte[0]])?;
    }
    Ok(())
}

/// Where the disk holds these bytes; partitions start at whole MiB.
fn find(file: &mut fs::File, wanted: &[u8]) -> Result<u64> {
    const MIB: u64 = 1024 * 1024;
    let length = file.metadata()?.len();
    let mut seen = vec![0; wanted.len()];
    for offset in (0..length.saturating_sub(MIB)).step_by(MIB as usize) {
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut seen)?;
        if seen == wanted {
            return Ok(offset);
        }
    }
    bail!("the root is not on the disk")
}

/// Manifests that must be refused, and what the error must name.
const BAD: &[(&str, &str, &[&str])] = &[
    (
        "an unknown field",
        "apiVersion: garboard.dev/v1alpha1\nkind: Machine\nmetadata: {name: node-1}\nspec: {hostnam: other}\n",
        &["hostnam"],
    ),
    (
        "a bad address",
        "apiVersion: garboard.dev/v1alpha1\nkind: Cluster\nmetadata: {name: cluster}\nspec: {podCIDR: 10.244.0.0/99}\n",
        &["podCIDR", "10.244.0.0/99"],
    ),
    ("no YAML", "kind: [Machine\n", &["manifest"]),
];

fn bad_manifests_are_named_and_change_nothing(scene: &mut Scene) -> Result<()> {
    let outcome = each_is_refused(scene);
    // The next scenario starts from what the machine was given.
    scene.cluster.write_manifests("")?;
    outcome
}

fn each_is_refused(scene: &mut Scene) -> Result<()> {
    let before = spec(scene)?;
    for (what, manifest, names) in BAD {
        scene.machine.cut_power()?;
        scene.cluster.write_manifests(manifest)?;
        scene.machine.start()?;
        for name in *names {
            scene
                .machine
                .wait_console(name, EARLY_LIMIT)
                .with_context(|| format!("{what}: not named on the console"))?;
        }
        let after = wait::until("the API server to answer", READY_LIMIT, || spec(scene).map_err(|e| e.to_string()))?;
        let said = scene.cluster.garboardctl_ok(&["status"])?;
        ensure!(names.iter().all(|name| said.contains(name)), "{what}: not named by garboardctl status:\n{said}");
        ensure!(after == before, "{what}: changed what was declared");
    }
    scene.wait_ready()?;
    ensure!(spec(scene)? == before, "something changed what was declared after the API server answered");
    for (what, manifest, names) in BAD.iter().take(2) {
        let refused = scene.cluster.apply(manifest);
        let error = refused.err().with_context(|| format!("{what}: the API accepted it"))?.to_string();
        ensure!(names.iter().all(|name| error.contains(name)), "{what}: not named by the API: {error}");
        ensure!(spec(scene)? == before, "{what}: changed what was declared");
    }
    Ok(())
}

fn spec(scene: &Scene) -> Result<[serde_json::Value; 2]> {
    let machine = scene.cluster.get(&["machines.garboard.dev", "node-1"])?;
    let cluster = scene.cluster.get(&["clusters.garboard.dev", "cluster"])?;
    Ok([machine["spec"].clone(), cluster["spec"].clone()])
}
