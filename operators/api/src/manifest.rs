//! Manifests: YAML documents that lie on a machine or are handed to it.

use std::collections::BTreeMap;
use std::fmt;

use kube::core::Resource;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field_error::{self, FieldError};
use crate::{
    API_VERSION, Cluster, IDENTITY_SECRET_KEY, IDENTITY_SECRET_TYPE, JOIN_SECRET_KEY, JOIN_SECRET_TYPE, Machine, crds,
    schema, types, validate,
};

/// Largest text of manifests, bytes: more than any declaration needs, and little enough to read into memory.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Most documents in one text.
const MAX_DOCUMENTS: usize = 64;

/// Fields of `metadata` that mean something in a manifest.
const METADATA: [&str; 3] = ["annotations", "labels", "name"];

/// Fields of `metadata` that the API server writes: what `kubectl get -o yaml` prints can be given back.
const SERVER_METADATA: [&str; 5] = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];

/// What a text of manifests declares; valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// The machine.
    pub machine: Option<Machine>,
    /// The cluster.
    pub cluster: Option<Cluster>,
    /// The machine's own key.
    pub identity: Option<Identity>,
    /// What lets the machine into the cluster that it joins.
    pub join_token: Option<JoinToken>,
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

/// The one-time token with which a machine asks to be let into a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Name of the machine that it is for.
    pub machine: String,
    /// The token, as [`types::Token`] reads it.
    pub token: String,
}

impl fmt::Debug for JoinToken {
    /// Leaves the token out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// Why manifests are refused. Nothing of what lies beside the refused document is used either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`MAX_BYTES`].
    #[error("manifest: {0} bytes; at most {MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// It has too many documents.
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
    #[error(
        "manifest document {document}: kind {kind:?} of {api_version:?} is not allowed: \
         Machine and Cluster of {API_VERSION}, Secret of v1"
    )]
    Kind {
        /// Which document, from 1.
        document: usize,
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// Fields have values that are not allowed.
    #[error("{object}: {}", field_error::join(.errors))]
    Invalid {
        /// Kind and name.
        object: String,
        /// Each field.
        errors: Vec<FieldError>,
    },
    /// Two documents declare the same kind, of which there can be one.
    #[error("{object}: there is another {kind} already; there can be one")]
    Twice {
        /// Kind and name.
        object: String,
        /// Its kind.
        kind: &'static str,
    },
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
        let document_number = index + 1;
        let value = Value::deserialize(document)
            .map_err(|error| ManifestError::Syntax { document: document_number, message: error.to_string() })?;
        if !value.is_null() {
            manifests.add(document_number, value)?;
        }
    }
    manifests.check_together()?;
    Ok(manifests)
}

impl Manifests {
    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what other manifests declare.
    ///
    /// # Errors
    /// When both declare the same, or when they do not fit together.
    pub fn join(mut self, other: Self) -> Result<Self, ManifestError> {
        let Self { machine, cluster, identity, join_token } = other;
        if let Some(machine) = machine {
            put(&mut self.machine, &describe("Machine", machine.metadata.name.as_deref()), "Machine", machine)?;
        }
        if let Some(cluster) = cluster {
            put(&mut self.cluster, &describe("Cluster", cluster.metadata.name.as_deref()), "Cluster", cluster)?;
        }
        if let Some(identity) = identity {
            put(&mut self.identity, &describe("Secret", Some(&identity.machine)), IDENTITY_SECRET_TYPE, identity)?;
        }
        if let Some(token) = join_token {
            put(&mut self.join_token, &describe("Secret", Some(&token.machine)), JOIN_SECRET_TYPE, token)?;
        }
        self.check_together()?;
        Ok(self)
    }

    fn add(&mut self, document: usize, value: Value) -> Result<(), ManifestError> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let object = describe(&kind, value.pointer("/metadata/name").and_then(Value::as_str));
        match (api_version.as_str(), kind.as_str()) {
            (API_VERSION, "Machine") => {
                let machine: Machine = resource(&object, &value)?;
                refuse(&object, validate::machine(&machine))?;
                put(&mut self.machine, &object, "Machine", machine)
            }
            (API_VERSION, "Cluster") => {
                let cluster: Cluster = resource(&object, &value)?;
                refuse(&object, validate::cluster(&cluster))?;
                put(&mut self.cluster, &object, "Cluster", cluster)
            }
            ("v1", "Secret") => match value.get("type").and_then(Value::as_str) {
                Some(JOIN_SECRET_TYPE) => {
                    put(&mut self.join_token, &object, JOIN_SECRET_TYPE, join_token(&object, &value)?)
                }
                _ => put(&mut self.identity, &object, IDENTITY_SECRET_TYPE, identity(&object, &value)?),
            },
            _ => Err(ManifestError::Kind { document, api_version, kind }),
        }
    }

    fn check_together(&self) -> Result<(), ManifestError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let name = machine.metadata.name.as_deref();
        let identity = self.identity.as_ref().map(|identity| &identity.machine);
        let token = self.join_token.as_ref().map(|token| &token.machine);
        if let Some(secret) = identity.into_iter().chain(token).find(|secret| Some(secret.as_str()) != name) {
            let error =
                FieldError::new("metadata.name", &Value::from(secret.as_str()), "the name of the Machine beside it");
            return refuse(&describe("Secret", Some(secret)), vec![error]);
        }
        match &self.cluster {
            Some(cluster) => refuse(&describe("Machine", name), validate::together(&machine.spec, &cluster.spec)),
            None => Ok(()),
        }
    }
}

fn describe(kind: &str, name: Option<&str>) -> String {
    format!("{kind} {:?}", name.unwrap_or_default())
}

fn put<T>(place: &mut Option<T>, object: &str, kind: &'static str, value: T) -> Result<(), ManifestError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ManifestError::Twice { object: object.to_owned(), kind }),
    }
}

fn refuse(object: &str, errors: Vec<FieldError>) -> Result<(), ManifestError> {
    if errors.is_empty() { Ok(()) } else { Err(ManifestError::Invalid { object: object.to_owned(), errors }) }
}

/// Reads one of our own kinds. What the API server writes (`status` and parts of `metadata`) is left out.
fn resource<T: Resource<DynamicType = ()> + DeserializeOwned>(object: &str, value: &Value) -> Result<T, ManifestError> {
    let empty = serde_json::Map::new();
    let mut errors = Vec::new();
    for name in value.as_object().unwrap_or(&empty).keys() {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&name.as_str()) {
            errors.push(FieldError::bare(name, "there is no such field; there are metadata, spec"));
        }
    }
    let mut metadata = value.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.retain(|name, _| !SERVER_METADATA.contains(&name.as_str()));
    for name in metadata.keys().filter(|name| !METADATA.contains(&name.as_str())) {
        let words = format!("there is no such field; there are {}", METADATA.join(", "));
        errors.push(FieldError::bare(format!("metadata.{name}"), words));
    }
    let spec = match value.get("spec") {
        None | Some(Value::Null) => Value::Object(empty),
        Some(spec) => spec.clone(),
    };
    errors.extend(crds::schema(&T::kind(&())).iter().flat_map(|schema| schema::check_spec(schema, &spec)));
    refuse(object, errors)?;
    let whole = serde_json::json!({
        "apiVersion": value.get("apiVersion"),
        "kind": value.get("kind"),
        "metadata": metadata,
        "spec": spec,
    });
    typed(&whole).map_err(|error| ManifestError::Invalid { object: object.to_owned(), errors: vec![error] })
}

/// Reads a value as a type, and names the field that it fails at.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    types::read(value).map_err(|error| {
        let text = error.to_string();
        let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
        let mut field = String::new();
        match field_at(value, error.column(), &mut field) {
            at if at.is_object() => FieldError::bare(field, words),
            at => FieldError::new(field, at, words),
        }
    })
}

/// The innermost field whose text, in that of `value`, ends at this byte or around it, and its path.
fn field_at<'a>(value: &'a Value, offset: usize, path: &mut String) -> &'a Value {
    let length = |value: &Value| value.to_string().len();
    let parts: Vec<(String, usize, &Value)> = match value {
        Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            // Its name has quotation marks, and a colon follows it.
            fields.iter().map(|(name, part)| (format!("{dot}{name}"), name.len() + 3, part)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(index, part)| (format!("[{index}]"), 0, part)).collect(),
        _ => Vec::new(),
    };
    let mut start = 1;
    for (step, before, part) in parts {
        start += before;
        let end = start + length(part);
        if offset <= end {
            path.push_str(&step);
            return field_at(part, offset.saturating_sub(start), path);
        }
        start = end + 1;
    }
    value
}

/// Reads the Secret with the machine's key.
fn identity(object: &str, value: &Value) -> Result<Identity, ManifestError> {
    let words = format!("one entry, {IDENTITY_SECRET_KEY}: a PKCS#8 key in PEM");
    let is_key = |key: &str| key.contains("-----BEGIN PRIVATE KEY-----");
    let types = format!("{IDENTITY_SECRET_TYPE} or {JOIN_SECRET_TYPE}");
    let (machine, key) = secret(object, value, (IDENTITY_SECRET_TYPE, &types), IDENTITY_SECRET_KEY, is_key, &words)?;
    Ok(Identity { machine, key })
}

/// Reads the Secret with the token by which the machine joins a cluster.
fn join_token(object: &str, value: &Value) -> Result<JoinToken, ManifestError> {
    let words = format!("one entry, {JOIN_SECRET_KEY}: the token that `garboardctl join` makes");
    let is_token = |text: &str| types::Token::parse(text).is_some();
    let (machine, token) =
        secret(object, value, (JOIN_SECRET_TYPE, JOIN_SECRET_TYPE), JOIN_SECRET_KEY, is_token, &words)?;
    Ok(JoinToken { machine, token })
}

/// The name of a Secret of a type, and its one entry. Nothing of its values is repeated in an error.
fn secret(
    object: &str,
    value: &Value,
    (type_, types): (&str, &str),
    entry: &str,
    is_valid: impl Fn(&str) -> bool,
    words: &str,
) -> Result<(String, String), ManifestError> {
    let refused = |field: &str, words: &str| ManifestError::Invalid {
        object: object.to_owned(),
        errors: vec![FieldError::bare(field, words)],
    };
    let empty = serde_json::Map::new();
    for field in value.as_object().unwrap_or(&empty).keys() {
        if !["apiVersion", "kind", "metadata", "type", "stringData"].contains(&field.as_str()) {
            return Err(refused(field, "there is no such field; there are metadata, type, stringData"));
        }
    }
    if value.get("type").and_then(Value::as_str) != Some(type_) {
        return Err(refused("type", &format!("must be {types}")));
    }
    let name = value.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.ok_or_else(|| refused("metadata.name", "is required"))?;
    let data: BTreeMap<String, String> = value
        .get("stringData")
        .and_then(|data| serde_json::from_value(data.clone()).ok())
        .ok_or_else(|| refused("stringData", words))?;
    let mut data = data.into_iter();
    match (data.next(), data.next()) {
        (Some((key, value)), None) if key == entry && is_valid(&value) => Ok((name.to_owned(), value)),
        _ => Err(refused("stringData", words)),
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
