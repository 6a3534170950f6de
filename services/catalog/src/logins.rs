//! What kubelet shows to registries that ask who it is.
//!
//! Kubelet looks for a machine's own credentials in `config.json`, in the form of Docker's, below its home: it takes those of the
//! longest prefix of an image's name, and hands them to containerd with the request to pull. It is the one way that needs no program
//! beside kubelet and serves all registries: containerd's `hosts.toml` can send a header, but to the registry itself and not to who
//! gives out its tokens, as those of most registries are; and containerd's own configuration of users is deprecated, and read only when
//! it starts. The file is in memory alone. Kubelet keeps what it has read for five minutes, so it is started again when the file changes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kubeconfig::pretty;

/// Kubelet's home, where it looks for [`FILE`].
pub const HOME: &str = "/run/garboard/registries";
/// Where the credentials are.
pub const FILE: &str = "/run/garboard/registries/.docker/config.json";

/// Who the machine is to a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Login {
    /// The user's name.
    pub username: String,
    /// The user's password or token.
    pub password: String,
}

/// Logins by the registry that they are for, such as `registry.example:5000`, or by repositories of one, such as `registry.example/team`.
pub type Logins = BTreeMap<String, Login>;

impl fmt::Debug for Login {
    /// Leaves the password out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The content of [`FILE`].
pub fn config(logins: &Logins) -> String {
    let entry = |login: &Login| json!({ "username": login.username, "password": login.password });
    let auths: BTreeMap<&str, Value> = logins.iter().map(|(place, login)| (place.as_str(), entry(login))).collect();
    pretty(&json!({ "auths": auths }))
}
