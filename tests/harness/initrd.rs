//! The image's kernel and first root, with files of a test in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::host::run;
use crate::image::Image;
use crate::machine::Kernel;

/// The image's kernel, its first root with the files of `tree` beside its own, and its command line, as files in `folder`. Where both
/// have a file, the image's counts.
///
/// # Errors
/// When a file cannot be made, or `objcopy` or `cpio` is missing.
pub fn with_files(image: &Image, tree: &Path, folder: &Path) -> Result<Kernel> {
    let section = |name: &str| -> Result<_> {
        let file = folder.join(name.trim_start_matches('.'));
        let mut objcopy = Command::new("objcopy");
        objcopy.args(["-O", "binary", &format!("--only-section={name}")]);
        run(objcopy.arg(image.directory.join("garboard.efi")).arg(&file), "")?;
        Ok(file)
    };
    let initrd = section(".initrd")?;
    // The kernel unpacks one archive after the other: ours, padded to full words by cpio, then the image's.
    let mut joined = archive(tree)?;
    joined.extend(fs::read(&initrd).context("read the image's initrd")?);
    fs::write(&initrd, joined).context("write the initrd")?;
    let command_line = fs::read_to_string(section(".cmdline")?).context("read the UKI's command line")?;
    let words = command_line.split(|end: char| end.is_whitespace() || end == '\0').filter(|word| !word.is_empty());
    Ok(Kernel { image: section(".linux")?, initrd, command_line: words.collect::<Vec<_>>().join(" ") })
}

/// A folder as a cpio archive.
fn archive(tree: &Path) -> Result<Vec<u8>> {
    let names = run(Command::new("find").arg(".").current_dir(tree), "")?.stdout;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--quiet", "--format=newc", "--owner=0:0"]).current_dir(tree);
    Ok(run(&mut cpio, &String::from_utf8_lossy(&names))?.stdout)
}
