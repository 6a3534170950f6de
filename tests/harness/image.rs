//! The built image and the host's programs that go with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The files that `image/build` left.
#[derive(Clone, Debug)]
pub struct Image {
    /// `target/image/latest`.
    pub directory: PathBuf,
    /// `kubectl` for the host.
    pub kubectl: PathBuf,
    /// `garboardctl` for the host.
    pub garboardctl: PathBuf,
}

/// The clone's top folder.
pub fn top() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

impl Image {
    /// The newest built image.
    ///
    /// # Errors
    /// When a file of it is missing; says how to build it.
    pub fn latest() -> Result<Self> {
        let target = top().join("target");
        let image = Self {
            directory: target.join("image/latest"),
            kubectl: target.join("image/kubectl"),
            garboardctl: target.join("image/garboardctl"),
        };
        for file in [image.disk(), image.kubectl.clone(), image.garboardctl.clone()] {
            if !file.exists() {
                bail!("{} is missing: run image/build first", file.display());
            }
        }
        Ok(image)
    }

    /// The disk as qcow2, never written: machines get an overlay.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("garboard.qcow2")
    }

    /// A program that is in it, or a pod's image as an archive (OCI image layout).
    fn program(&self, name: &str) -> PathBuf {
        self.directory.with_file_name("programs").join(name)
    }

    /// The image of the sample program that is in it, as an archive (OCI image layout).
    pub fn sample(&self) -> PathBuf {
        self.program("sample.tar")
    }

    /// The sample program itself, which needs no other file.
    pub fn sample_program(&self) -> PathBuf {
        self.program("garboard-sample")
    }

    /// What `release.json` says.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON.
    pub fn release(&self) -> Result<serde_json::Value> {
        let path = self.directory.join("release.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The release's version.
    ///
    /// # Errors
    /// As [`Image::release`], and when it has no version.
    pub fn version(&self) -> Result<String> {
        self.release()?["version"].as_str().map(str::to_owned).context("release.json has no version")
    }
}
