//! Kernel settings under /proc/sys/net.

use super::BackendError;

/// Writes a setting that has another value.
///
/// # Errors
/// When there is no such setting or it cannot be written.
pub fn ensure_setting(path: &str, value: &str) -> Result<(), BackendError> {
    let path = format!("/proc/sys/net/{path}");
    let failed = |source| BackendError::Setting { path: path.clone(), source };
    if std::fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(failed)
}

/// The same for a setting that is missing when its part of the kernel is.
///
/// # Errors
/// When it is there and cannot be written.
pub fn ensure_setting_if_there(path: &str, value: &str) -> Result<(), BackendError> {
    match ensure_setting(path, value) {
        Err(BackendError::Setting { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
