//! The files of `/etc` that depend on the network, written where the image's links point to.

use std::fs;
use std::io;
use std::path::Path;

use garboard_api::machine::HostEntry;

use super::NodeAddresses;
use crate::passing::replace;
use crate::{hostname, resolver};

/// Writes `hostname`, `hosts` and `resolv.conf` where they differ.
///
/// # Errors
/// The first that failed; the others are written anyway.
pub fn write(directory: &Path, hostname: &str, declared: &[HostEntry], node: &NodeAddresses) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // A machine without a declaration has no name of its own.
    let hostname = if hostname.is_empty() { "localhost" } else { hostname };
    let files = [
        ("hostname", format!("{hostname}\n")),
        ("hosts", hostname::hosts(hostname, &node.addresses, declared)),
        ("resolv.conf", resolver::resolv_conf(&node.nameservers, &node.search)),
    ];
    let mut result = Ok(());
    for (name, content) in files {
        let path = directory.join(name);
        let unchanged = fs::read(&path).is_ok_and(|current| current == content.as_bytes());
        if !unchanged {
            result = result.and(replace(&path, content.as_bytes()));
        }
    }
    result
}
