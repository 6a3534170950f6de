//! Manifests on media: file systems labelled `GARBOARD` or `cidata`, in files `*.yaml` and `*.yml` at their top.
//!
//! A medium is mounted read only for as long as it is read, and nothing on it can do anything.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use garboard_api::manifest::MAX_BYTES;
use garboard_runtime::local::{LocalError, Problem, Raw};
use garboard_sys::filesystem::{Kind, Labelled, find_labelled};
use garboard_sys::modules::Modules;
use garboard_sys::mount::{self, Unmount};
use tracing::debug;

/// Labels of media that are looked at, in any case of letters.
const LABELS: [&str; 2] = ["GARBOARD", "cidata"];
/// Where a medium is mounted while it is read.
const TARGET: &str = "/run/garboard/media";

/// What lies on media. Blocks while disks are read.
pub fn find() -> (Vec<Raw>, Vec<LocalError>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    let media = match find_labelled(&LABELS) {
        Ok(media) => media,
        Err(error) => {
            errors.push(unreadable("disks", &error));
            return (found, errors);
        }
    };
    for medium in media {
        match read(&medium) {
            Ok(files) => found.extend(files),
            Err(error) => errors.push(unreadable(&medium.device.display().to_string(), &*error)),
        }
    }
    (found, errors)
}

fn unreadable(origin: &str, error: &dyn std::error::Error) -> LocalError {
    let problem = Problem::Unreadable(garboard_runtime::applier::chain(error));
    LocalError { origin: origin.to_owned(), problem }
}

fn read(medium: &Labelled) -> Result<Vec<Raw>, Box<dyn std::error::Error + Send + Sync>> {
    // The kernel asks modprobe for the modules of file systems, which this machine does not have.
    let modules: &[&str] = match medium.kind {
        Kind::Iso9660 => &["isofs"],
        Kind::Vfat => &["vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"],
        Kind::Ext4 => &["ext4"],
    };
    match Modules::of_running_kernel().load(modules.iter().copied()) {
        Ok(errors) => errors.iter().for_each(|error| debug!(%error, "module not loaded")),
        Err(error) => debug!(%error, "no modules"),
    }
    let target = Path::new(TARGET);
    medium.mount(target)?;
    let files = files(target, &medium.device);
    mount::unmount(target, Unmount::Detach)?;
    Ok(files?)
}

/// The manifests in a folder, in the order of their names.
fn files(folder: &Path, device: &Path) -> io::Result<Vec<Raw>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| is_manifest(path));
    paths.sort();
    let read = |path: &PathBuf| {
        let mut bytes = Vec::new();
        // One byte more than is allowed, so that too large a file is seen as that.
        fs::File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Raw { origin: format!("{name} on {}", device.display()), bytes })
    };
    paths.iter().map(read).collect()
}

/// Whether a file is one. Cloud tools write `user-data` and `meta-data` on the same media: those are not for us; and files
/// that begin with a dot are the leavings of desktops.
fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml")) && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.YML", "user-data", "._a.yaml", "notes.txt"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("folder.yaml")).unwrap();
        let origins: Vec<_> =
            files(folder.path(), Path::new("/dev/sdb1")).unwrap().into_iter().map(|raw| raw.origin).collect();
        assert_eq!(origins, ["a.YML on /dev/sdb1", "b.yaml on /dev/sdb1"]);
    }
}
