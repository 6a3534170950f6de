//! Local manifests: YAML documents that lie on a machine or are handed to it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::validate::{self, FieldError};
use crate::{Cluster, Machine};

/// Largest text of manifests, bytes: more than any configuration needs, and little enough to read into memory.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Most documents in one text.
pub const MAX_DOCUMENTS: usize = 64;

/// Type of the Secret that gives a machine the key of its own API.
pub const IDENTITY_TYPE: &str = "garboard.dev/machine-identity";

/// The entry of that Secret.
pub const IDENTITY_KEY: &str = "identity.key";

/// What a text of manifests declares; valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// The machine.
    pub machine: Option<Machine>,
    /// The cluster.
    pub cluster: Option<Cluster>,
    /// The machine's own key.
    pub identity: Option<Identity>,
}

/// The private key with which a machine shows who it is on its own API.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the machine that it belongs to.
    pub machine: String,
    /// PKCS#8 in PEM.
    pub key: String,
}

impl fmt::Debug for Identity {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// Why a text of manifests is refused. The text's other documents are refused with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`MAX_BYTES`].
    #[error("manifest: {0} bytes; at most {MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// It has more documents than [`MAX_DOCUMENTS`].
    #[error("manifest: more than {MAX_DOCUMENTS} documents")]
    TooMany,
    /// It is no YAML.
    #[error("manifest document {document}: not valid YAML: {message}")]
    Syntax {
        /// Which document, from 1.
        document: usize,
        /// What the parser says, with line and column.
        message: String,
    },
    /// A document is of a kind that means nothing here.
    #[error("manifest document {document}: kind {kind:?} of {api_version:?} is not allowed: Machine and Cluster of garboard.dev/v1alpha1, Secret of v1")]
    Kind {
        /// Which document, from 1.
        document: usize,
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// A field is unknown, missing, or has a value of the wrong form.
    #[error("{object}: {field}: {value}{message}")]
    Form {
        /// Kind and name.
        object: String,
        /// Path of the field.
        field: String,
        /// The value, quoted and followed by a colon; empty when there is none.
        value: String,
        /// What is wrong.
        message: String,
    },
    /// Fields have values that are not allowed.
    #[error("{object}: {}", join(.errors))]
    Invalid {
        /// Kind and name.
        object: String,
        /// Each field.
        errors: Vec<FieldError>,
    },
    /// Two documents declare the same.
    #[error("{object}: declared twice")]
    Twice {
        /// Kind and name.
        object: String,
    },
}

fn join(errors: &[FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IdentitySecret {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: SecretMeta,
    #[serde(rename = "type")]
    kind_of: String,
    string_data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretMeta {
    name: String,
}

/// A document's outer form, so that unknown fields beside `spec` are refused too.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    spec: Value,
}

/// Reads and validates a text of manifests.
///
/// # Errors
/// The first thing wrong with it; nothing of the text is then to be used.
pub fn parse(text: &str) -> Result<Manifests, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge(text.len()));
    }
    let mut manifests = Manifests::default();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        if index == MAX_DOCUMENTS {
            return Err(ManifestError::TooMany);
        }
        let number = index + 1;
        let syntax = |message: String| ManifestError::Syntax { document: number, message };
        let value = Value::deserialize(document).map_err(|error| syntax(error.to_string()))?;
        if !value.is_null() {
            manifests.add(number, value)?;
        }
    }
    Ok(manifests)
}

impl Manifests {
    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.machine.is_none() && self.cluster.is_none() && self.identity.is_none()
    }

    fn add(&mut self, document: usize, value: Value) -> Result<(), ManifestError> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let object = format!("{kind} {name:?}");
        match (api_version.as_str(), kind.as_str()) {
            ("garboard.dev/v1alpha1", "Machine") => {
                let machine: Machine = resource(&object, &value)?;
                checked(&object, validate::machine(&machine))?;
                once(&object, self.machine.replace(machine))
            }
            ("garboard.dev/v1alpha1", "Cluster") => {
                let cluster: Cluster = resource(&object, &value)?;
                checked(&object, validate::cluster(&cluster))?;
                once(&object, self.cluster.replace(cluster))
            }
            ("v1", "Secret") => {
                let mut secret: IdentitySecret = form(&object, &value)?;
                let wrong = |field: &str, value: &str, allowed: &str| ManifestError::Invalid {
                    object: object.clone(),
                    errors: vec![FieldError { field: field.to_owned(), value: value.to_owned(), allowed: allowed.to_owned() }],
                };
                if secret.kind_of != IDENTITY_TYPE {
                    return Err(wrong("type", &secret.kind_of, IDENTITY_TYPE));
                }
                let key = secret.string_data.remove(IDENTITY_KEY);
                let key = key.ok_or_else(|| wrong("stringData", "", "the entry identity.key, a PKCS#8 key in PEM"))?;
                once(&object, self.identity.replace(Identity { machine: secret.metadata.name, key }))
            }
            _ => Err(ManifestError::Kind { document, api_version, kind }),
        }
    }
}

fn once<T>(object: &str, before: Option<T>) -> Result<(), ManifestError> {
    match before {
        None => Ok(()),
        Some(_) => Err(ManifestError::Twice { object: object.to_owned() }),
    }
}

fn checked(object: &str, errors: Vec<FieldError>) -> Result<(), ManifestError> {
    if errors.is_empty() { Ok(()) } else { Err(ManifestError::Invalid { object: object.to_owned(), errors }) }
}

fn resource<T: DeserializeOwned>(object: &str, value: &Value) -> Result<T, ManifestError> {
    let mut envelope: Envelope = form(object, value)?;
    if envelope.spec.is_null() {
        envelope.spec = Value::Object(serde_json::Map::new());
    }
    let whole = serde_json::json!({
        "apiVersion": envelope.api_version,
        "kind": envelope.kind,
        "metadata": envelope.metadata,
        "spec": envelope.spec,
    });
    form(object, &whole)
}

fn form<T: DeserializeOwned>(object: &str, value: &Value) -> Result<T, ManifestError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let at = error.path().iter().try_fold(value, |value, segment| match segment {
            serde_path_to_error::Segment::Map { key } => value.get(key),
            serde_path_to_error::Segment::Seq { index } => value.get(index),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
        });
        // A Secret's value must not be shown, and a whole object says nothing.
        let shown = at.filter(|value| !value.is_object() && !value.is_array() && !object.starts_with("Secret"));
        ManifestError::Form {
            object: object.to_owned(),
            field,
            value: shown.map(|value| format!("{value}: ")).unwrap_or_default(),
            message: error.into_inner().to_string(),
        }
    })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
