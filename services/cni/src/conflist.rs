//! The runtime's network configuration: written when the machine is ready for pods, so that its presence means just that.
//! It stays when the daemon stops: without it a runtime could not detach pods either, and STATUS tells about readiness.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;

/// Name of the network.
pub const NETWORK: &str = "garboard";
/// Name of the file; runtimes use the first in alphabetical order.
const FILE: &str = "10-garboard.conflist";
/// Runtimes read `.conf`, `.conflist` and `.json` only.
const TEMPORARY: &str = ".10-garboard.new";

/// The text: one plugin that does host ports too, so that a pod costs one start of a process.
pub fn render() -> String {
    let plugin = json!({"type": "garboard", "capabilities": {"portMappings": true}});
    format!("{:#}\n", json!({"cniVersion": "1.1.0", "name": NETWORK, "plugins": [plugin]}))
}

/// Writes the file, whole, unless it is there as it should be.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: &Path) -> io::Result<()> {
    let (path, text) = (directory.join(FILE), render());
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    fs::write(directory.join(TEMPORARY), text)?;
    fs::rename(directory.join(TEMPORARY), path)
}
