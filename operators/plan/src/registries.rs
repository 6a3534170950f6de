//! Credentials of registries: what of the Secrets that a machine names it can use, and what it lacks.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use garboard_api::machine::MachineSpec;
use garboard_api::{REGISTRIES_NAMESPACE, REGISTRY_SECRET_KEY, REGISTRY_SECRET_TYPE};
use garboard_catalog::logins::{Login, Logins};
use serde::Deserialize;

/// Largest configuration of logins, bytes: some hundred of them.
pub const MAX_BYTES: usize = 64 * 1024;

/// Base64 as kubelet reads it, with its padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Names of Secrets by the registry that they are for.
pub type Declared = BTreeMap<String, String>;

/// The credentials that a machine declares.
pub fn declared(spec: &MachineSpec) -> Declared {
    let with = |registry: &garboard_api::Registry| {
        Some((registry.host.clone(), registry.credentials.as_ref()?.secret_name.clone()))
    };
    spec.registries.iter().filter_map(with).collect()
}

/// Why a Secret cannot be used. Nothing of its values is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is of another type.
    #[error("it is of type {0}, and must be of type {REGISTRY_SECRET_TYPE}")]
    Type(String),
    /// The entry is not there.
    #[error("it has no entry {REGISTRY_SECRET_KEY}")]
    Empty,
    /// The entry is larger than [`MAX_BYTES`].
    #[error("its {REGISTRY_SECRET_KEY} has {0} bytes; at most {MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// The entry is something else.
    #[error("its {REGISTRY_SECRET_KEY} is no configuration of Docker: it is wrong at line {line}, column {column}")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// A server has no user.
    #[error("its server {0:?} has neither username and password nor auth, the base64 of USER:PASSWORD")]
    Login(String),
}

/// Docker's configuration, as far as kubelet reads it.
#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerLogin>,
}

#[derive(Deserialize)]
struct DockerLogin {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
}

/// The logins in a Secret, given its type and its entry.
///
/// # Errors
/// [`Unusable`]: none of them is to be used.
pub fn read(type_: &str, entry: Option<&[u8]>) -> Result<Logins, Unusable> {
    if type_ != REGISTRY_SECRET_TYPE {
        return Err(Unusable::Type(type_.to_owned()));
    }
    let entry = entry.ok_or(Unusable::Empty)?;
    if entry.len() > MAX_BYTES {
        return Err(Unusable::TooLarge(entry.len()));
    }
    // What the parser says may hold values.
    let DockerConfig { auths } = serde_json::from_slice(entry)
        .map_err(|error| Unusable::Syntax { line: error.line(), column: error.column() })?;
    let read = |(server, login): (String, DockerLogin)| match login.read() {
        Some(login) => Ok((place(&server), login)),
        None => Err(Unusable::Login(server)),
    };
    auths.into_iter().map(read).collect()
}

impl DockerLogin {
    /// Who it is; `auth` counts before the rest, as with kubelet.
    fn read(self) -> Option<Login> {
        match self.auth.filter(|auth| !auth.is_empty()) {
            Some(auth) => {
                let text = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
                let (username, password) = text.split_once(':')?;
                Some(Login { username: username.to_owned(), password: password.to_owned() })
            }
            None => Some(Login { username: self.username?, password: self.password? }),
        }
    }
}

/// What a server in Docker's configuration is in the names of images.
fn place(server: &str) -> String {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Docker's own registry has other names in its configuration than in those of images.
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let version = |version: &str| path.strip_prefix(version).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let path = version("v1").or_else(|| version("v2")).unwrap_or(path);
    match path.trim_matches('/') {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// What is seen of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Absent,
    /// It is there.
    Present(Result<Logins, Unusable>),
    /// The API server does not show it, for this reason.
    Refused(String),
}

/// What is known of Secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What those hold that can be used, by their names: what is kept for when no API server answers.
    pub logins: BTreeMap<String, Logins>,
    /// Why others cannot be used.
    problems: BTreeMap<String, String>,
}

impl Known {
    /// What was kept, before anything is seen.
    pub fn kept(logins: BTreeMap<String, Logins>) -> Self {
        Self { logins, problems: BTreeMap::new() }
    }

    /// A Secret is seen. One that is withdrawn or spoilt counts no longer; one that is not shown stays what it was.
    pub fn see(&mut self, secret: &str, seen: Seen) {
        let problem = match seen {
            Seen::Present(Ok(logins)) => {
                self.logins.insert(secret.to_owned(), logins);
                None
            }
            Seen::Present(Err(unusable)) => {
                self.logins.remove(secret);
                Some(unusable.to_string())
            }
            Seen::Absent => {
                self.logins.remove(secret);
                Some("there is none".to_owned())
            }
            Seen::Refused(reason) => Some(format!("the API server does not show it: {reason}")),
        };
        match problem {
            Some(problem) => self.problems.insert(secret.to_owned(), problem),
            None => self.problems.remove(secret),
        };
    }

    /// What is not declared is not to be known.
    pub fn forget_others(&mut self, declared: &Declared) {
        let is_declared = |secret: &String| declared.values().any(|name| name == secret);
        self.logins.retain(|secret, _| is_declared(secret));
        self.problems.retain(|secret, _| is_declared(secret));
    }

    /// The logins at the declared registries: of each Secret those that it is named for.
    pub fn logins(&self, declared: &Declared) -> Logins {
        let at = |(host, secret): (&String, &String)| self.at(host, secret);
        declared.iter().flat_map(at).collect()
    }

    fn at(&self, host: &str, secret: &str) -> Logins {
        let is_of = |place: &str| place.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let known = self.logins.get(secret).into_iter().flatten();
        known.filter(|(place, _)| is_of(place)).map(|(place, login)| (place.clone(), login.clone())).collect()
    }

    /// What is lacking, in words.
    pub fn problems(&self, declared: &Declared) -> Vec<String> {
        let problem = |(host, secret): (&String, &String)| {
            let problem = match (self.problems.get(secret), self.logins.get(secret)) {
                (Some(problem), _) => problem.clone(),
                (None, None) => "it has not been seen yet".to_owned(),
                (None, Some(_)) if !self.at(host, secret).is_empty() => return None,
                (None, Some(logins)) => {
                    let places: Vec<_> = logins.keys().map(String::as_str).collect();
                    let places = if places.is_empty() { "none".to_owned() } else { places.join(", ") };
                    format!("{host} is not among its servers: {places}")
                }
            };
            Some(format!("credentials of {host}, Secret {REGISTRIES_NAMESPACE}/{secret}: {problem}"))
        };
        declared.iter().filter_map(problem).collect()
    }
}

#[cfg(test)]
#[path = "registries_tests.rs"]
mod tests;
