//! What the image carries, in which versions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use garboard_api::machine::Versions;
use serde::Deserialize;

/// Where the image's build has written the versions of upstream's programs.
pub const UPSTREAM: &str = "/usr/share/garboard/upstream.json";

/// The versions of upstream's programs are not known.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not as the build writes it.
    #[error("cannot understand {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The programs of upstream.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    kubernetes: String,
    etcd: String,
    containerd: String,
    runc: String,
}

/// What runs in which version: the image `garboard`, the running kernel, and the programs that the file `upstream` names.
///
/// # Errors
/// When that file cannot be used.
pub fn versions(garboard: &str, upstream: &Path) -> Result<Versions, ReleaseError> {
    let path = || upstream.to_owned();
    let text = fs::read(upstream).map_err(|source| ReleaseError::Read { path: path(), source })?;
    let Upstream { kubernetes, etcd, containerd, runc } =
        serde_json::from_slice(&text).map_err(|source| ReleaseError::Parse { path: path(), source })?;
    Ok(Versions {
        kubernetes: Some(kubernetes),
        etcd: Some(etcd),
        containerd: Some(containerd),
        runc: Some(runc),
        ..own(garboard)
    })
}

/// The image and the kernel (`/proc/sys/kernel/osrelease`), which are known in any case.
pub fn own(garboard: &str) -> Versions {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Versions { garboard: garboard.to_owned(), kernel, ..Versions::default() }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_versions_are_those_that_the_images_build_writes() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let script = format!("root={root}; source $root/image/steps/upstream.sh; upstream_versions");
        let written = Command::new("bash").args(["-c", &script]).output().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), written.stdout).unwrap();
        let Versions { garboard, kernel, kubernetes, etcd, containerd, runc } = versions("0.1.0", file.path()).unwrap();
        assert_eq!(garboard, "0.1.0");
        assert!(!kernel.is_empty());
        for version in [kubernetes, etcd, containerd, runc] {
            let version = version.unwrap();
            let numbers = version.strip_prefix('v').unwrap().split('.').map(str::parse::<u32>);
            assert!(numbers.map(Result::unwrap).count() == 3, "{version}");
        }
    }

    #[test]
    fn without_the_file_the_image_and_the_kernel_are_known() {
        assert!(matches!(versions("0.1.0", Path::new("/nonexistent")), Err(ReleaseError::Read { .. })));
        assert_eq!(own("0.1.0").garboard, "0.1.0");
    }
}
