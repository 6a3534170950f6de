//! Kubeconfigs that refer to certificate files, so that clients follow a renewal without a restart.

use std::path::PathBuf;

use garboard_supervisor::spec::RenderedFile;
use serde_json::json;

use crate::paths::service_file;
use crate::pki::Leaf;

/// This machine's own API server, for what belongs to the control plane of the same machine.
pub const LOCAL_APISERVER: &str = "https://127.0.0.1:6443";
/// Whichever API servers serve, for what every machine has.
pub const APISERVERS: &str = "https://127.0.0.1:6444";

/// Path of a service's kubeconfig.
pub fn path(service: &str) -> String {
    service_file(service, "kubeconfig")
}

/// A kubeconfig for the bearer of `leaf`. JSON, which is YAML too.
pub fn render(server: &str, leaf: Leaf) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "local",
            "cluster": { "server": server, "certificate-authority": leaf.ca_file() },
        }],
        "users": [{
            "name": leaf.name(),
            "user": { "client-certificate": leaf.cert_file(), "client-key": leaf.key_file() },
        }],
        "contexts": [{ "name": "local", "context": { "cluster": "local", "user": leaf.name() } }],
        "current-context": "local",
    });
    pretty(&config)
}

/// The kubeconfig of `service` for `server`, as a file that only its user reads.
pub fn file(service: &str, server: &str, leaf: Leaf) -> RenderedFile {
    RenderedFile { path: PathBuf::from(path(service)), mode: 0o400, owner: None, content: render(server, leaf) }
}

/// JSON as a person would want to find it on the machine.
pub(crate) fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}
