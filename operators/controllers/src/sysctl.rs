//! Kernel parameters under `/proc/sys`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::info;

/// Parameters that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set kernel parameters: {}", .0.iter().map(|(key, error)| format!("{key} ({error})")).collect::<Vec<_>>().join(", "))]
pub struct SysctlError(pub Vec<(String, io::Error)>);

/// Sets parameters, keys as sysctl(8) takes them (`vm.overcommit_memory`; a `/` separates where a part has a dot in it,
/// as in `net/ipv4/conf/eth0.1/forwarding`), in order. What has its value already is not written.
///
/// # Errors
/// All that could not be set; the others are set anyway.
pub fn apply<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), SysctlError> {
    apply_under(Path::new("/proc/sys"), parameters)
}

fn apply_under<'a>(root: &Path, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), SysctlError> {
    let mut failed = Vec::new();
    for (key, value) in parameters {
        match set(root, key, value) {
            Ok(false) => {}
            Ok(true) => info!(key, value, "kernel parameter set"),
            Err(error) => failed.push((key.to_owned(), error)),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(SysctlError(failed)) }
}

fn set(root: &Path, key: &str, value: &str) -> io::Result<bool> {
    let path = root.join(relative(key).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?);
    // Several values in one parameter are separated by tabs when read.
    let current = fs::read_to_string(&path)?;
    if current.split_whitespace().eq(value.split_whitespace()) {
        return Ok(false);
    }
    fs::write(&path, value)?;
    Ok(true)
}

/// The file of a key, or none for a key that leads elsewhere.
fn relative(key: &str) -> Option<PathBuf> {
    let separator = if key.contains('/') { '/' } else { '.' };
    let parts: Vec<&str> = key.split(separator).collect();
    parts.iter().all(|part| !part.is_empty() && *part != "..").then(|| parts.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_files() {
        let cases = [
            ("vm.overcommit_memory", Some("vm/overcommit_memory")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("", None),
            ("vm..x", None),
            ("/etc/passwd", None),
            ("../../etc/passwd", None),
        ];
        for (key, file) in cases {
            assert_eq!(relative(key), file.map(PathBuf::from), "{key:?}");
        }
    }

    #[test]
    fn one_failure_does_not_stop_the_others_and_names_itself() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("vm")).unwrap();
        for (file, content) in [("vm/a", "0\n"), ("vm/b", "1\t2\n")] {
            fs::write(root.path().join(file), content).unwrap();
        }
        let result = apply_under(root.path(), [("vm.missing", "1"), ("vm.a", "1"), ("vm.b", "1 2")]);
        assert!(result.unwrap_err().to_string().contains("vm.missing"));
        assert_eq!(fs::read_to_string(root.path().join("vm/a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(root.path().join("vm/b")).unwrap(), "1\t2\n", "written though it was the same");
    }
}
