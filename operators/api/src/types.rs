//! Values that more than one kind uses: strings in YAML, checked types in Rust.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Reads a value as a type, by way of text, as whatever comes from an API server is read: each further way would be one more copy of the
/// readers of all types in a program.
///
/// # Errors
/// When the value is not one of the type; the position is that in the value's text.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
    serde_json::from_str(&value.to_string())
}

/// Why a string is not a value of its type. The message tells what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{allowed}")]
pub struct InvalidValue {
    /// What is allowed.
    pub allowed: &'static str,
}

/// An address with the length of its prefix, as `192.0.2.10/24` or `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNet);

impl Cidr {
    /// What is allowed, in words.
    pub const ALLOWED: &str = "an address and the length of its prefix, such as 192.0.2.10/24";

    /// A value of this type.
    pub const fn new(net: IpNet) -> Self {
        Self(net)
    }

    /// The address and its prefix.
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Whether it is the first address of its range, as the declaration of a range has to be.
    pub fn is_range(self) -> bool {
        self.0.addr() == self.0.network()
    }
}

impl FromStr for Cidr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| InvalidValue { allowed: Self::ALLOWED })
    }
}

/// A hardware address, as `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// What is allowed, in words.
    pub const ALLOWED: &str = "six hexadecimal octets, such as 52:54:00:12:34:56";

    /// Its octets.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidValue { allowed: Self::ALLOWED };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            // `from_str_radix` takes a sign, which an address never has.
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(invalid()),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The SHA-256 of a public key (of its SubjectPublicKeyInfo, DER), as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKeyPin([u8; 32]);

impl PublicKeyPin {
    /// What is allowed, in words.
    pub const ALLOWED: &str = "sha256: and 64 lower-case hexadecimal digits, as `garboardctl new` writes it";

    /// A pin of the given digest.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKeyPin {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidValue { allowed: Self::ALLOWED };
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(invalid)?;
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid());
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            let pair = hex.get(2 * index..2 * index + 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for PublicKeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A string in YAML: converted by `FromStr` and `Display`, described by `schema`.
macro_rules! string_type {
    ($type:ident, $schema:tt) => {
        impl TryFrom<String> for $type {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

// The lengths bound the cost of CEL rules; `cidr` and `mac` are formats that the API server checks.
string_type!(Cidr, { "type": "string", "format": "cidr", "maxLength": 49 });
string_type!(MacAddress, { "type": "string", "format": "mac", "maxLength": 17 });
string_type!(PublicKeyPin, { "type": "string", "pattern": PIN, "maxLength": 71 });

/// Schema of an address: the API server has no format for either family, hence the rule.
pub(crate) fn address_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 45,
        "x-kubernetes-validations": [{ "rule": "isIP(self)", "message": "must be an IPv4 or IPv6 address" }],
    })
}

/// Schema of an optional address.
pub(crate) fn optional_address_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = address_schema(generator);
    schema.insert("nullable".into(), true.into());
    schema
}

/// Schema of a list of addresses.
pub(crate) fn addresses_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 8, "items": address_schema(generator) })
}

/// Schema of texts by names, of which some are not the user's to give.
pub(crate) fn texts_schema(max: usize, max_length: usize, kept: &[&str], message: &str) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": max,
        "additionalProperties": { "type": "string", "maxLength": max_length },
        "x-kubernetes-validations": [{ "rule": format!("!self.exists(name, name in {kept:?})"), "message": message }],
    })
}

/// Pattern of a DNS label.
pub(crate) const LABEL: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// What a DNS label is, in words.
pub const LABEL_WORDS: &str = "one DNS label: at most 63 of a-z, 0-9 and -, not - at its ends";
/// Pattern of a DNS name.
pub(crate) const DOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// [`DOMAIN`] in words.
pub(crate) const DOMAIN_WORDS: &str = "a DNS name: labels of a-z, 0-9 and - joined by dots";
/// Pattern of a DNS name or an address.
pub(crate) const HOST: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|[0-9a-fA-F:.]+)$";
/// Pattern of a DNS name that may begin with a wildcard, or an address.
pub(crate) const WILDCARD_HOST: &str =
    r"^((\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*|[0-9a-fA-F:.]+)$";
/// A UUID as the kernel shows it.
pub(crate) const UUID: &str = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$";
/// [`HOST`] in words.
pub(crate) const HOST_WORDS: &str = "a DNS name or an IP address";
/// Pattern of the name of an interface.
pub(crate) const INTERFACE: &str = r"^[^\s/:]+$";
/// Pattern of the name of a kernel module.
pub(crate) const MODULE: &str = "^[A-Za-z0-9_-]+$";
/// Pattern of the name of a registry.
pub(crate) const REGISTRY: &str = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$";
/// Pattern of a key of WireGuard: base64 of 32 bytes.
pub(crate) const WIREGUARD_KEY: &str = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$";
/// Pattern of an address with a port.
pub(crate) const SOCKET_ADDRESS: &str = r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$";
/// [`SOCKET_ADDRESS`] in words.
pub(crate) const SOCKET_ADDRESS_WORDS: &str =
    "an IP address and a port of 1 to 65535, such as 192.0.2.7:51820 or [2001:db8::7]:51820";
/// Pattern of a range of addresses.
pub(crate) const RANGE: &str = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$";
/// Pattern of where a mirror is.
pub(crate) const URL: &str = r"^https?://[A-Za-z0-9][-A-Za-z0-9.:/_]*$";
/// Pattern of where an issuer of tokens is.
pub(crate) const HTTPS_URL: &str = r"^https://[A-Za-z0-9][-A-Za-z0-9.:/_~]*$";
/// Pattern of an amount.
pub(crate) const QUANTITY: &str = r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE])?$";
/// Pattern of an amount or a part.
pub(crate) const QUANTITY_OR_PERCENT: &str = r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE]|%)?$";
/// Names of kernel parameters in words.
pub(crate) const SYSCTL_WORDS: &str = "a kernel parameter's name, such as net.core.somaxconn";
/// Pattern of the name of somebody who has access.
pub(crate) const ACCESS_NAME: &str = r"^[a-z0-9]([-a-z0-9.@]*[a-z0-9])?$";
/// Pattern of a [`PublicKeyPin`].
const PIN: &str = "^sha256:[0-9a-f]{64}$";
/// Keys of labels in words.
pub(crate) const LABEL_KEY_WORDS: &str =
    "a label's key: a name of at most 63 letters, digits, - _ and ., after a DNS name and a slash if it has a prefix";
/// Values of labels in words.
pub(crate) const LABEL_VALUE_WORDS: &str = "a label's value: empty, or at most 63 letters, digits, - _ and .";

/// What a pattern of the schemas allows, in words.
pub(crate) fn pattern_words(pattern: &str) -> Option<&'static str> {
    match pattern {
        LABEL => Some(LABEL_WORDS),
        DOMAIN => Some(DOMAIN_WORDS),
        HOST | WILDCARD_HOST => Some(HOST_WORDS),
        INTERFACE => Some("the name of an interface: no blank, slash or colon"),
        REGISTRY => Some("a registry's name, such as docker.io or registry.example:5000"),
        HTTPS_URL => Some("an https URL, such as https://issuer.example"),
        WIREGUARD_KEY => Some("a public key as WireGuard writes it: 44 characters of base64"),
        SOCKET_ADDRESS => Some(SOCKET_ADDRESS_WORDS),
        RANGE => Some(Cidr::ALLOWED),
        UUID => Some("a UUID in lower case, such as 4c4c4544-0042-3510-8051-b4c04f333632"),
        URL => Some("where it is, such as https://mirror.example"),
        QUANTITY => Some("an amount, such as 500m, 2 or 1Gi"),
        QUANTITY_OR_PERCENT => Some("an amount, such as 100Mi, or a part in percent, such as 5%"),
        MODULE => Some("the name of a kernel module: letters, digits, - and _"),
        ACCESS_NAME => Some("a-z, 0-9, and - . @ between them"),
        PIN => Some(PublicKeyPin::ALLOWED),
        _ => None,
    }
}

/// Whether a text is one DNS label in lower case (RFC 1123).
pub fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || c == '-')
}

/// A token that lets a machine into a cluster: parts of a-z and 0-9 with dots between them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Its name: six characters.
    pub id: &'a str,
    /// What Kubernetes takes as a newcomer's token: the name, and a secret of sixteen characters.
    pub bearer: &'a str,
    /// The key, 64 hexadecimal digits, that opens the cluster's own keys to a machine of its control plane.
    pub seal: Option<&'a str>,
}

impl<'a> Token<'a> {
    /// Reads a token; none if the text is no such thing.
    pub fn parse(text: &'a str) -> Option<Self> {
        const BEARER: usize = 6 + 1 + 16;
        let is_plain = |part: &str| part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let bearer = text.get(..BEARER)?;
        let (id, secret) = bearer.split_once('.')?;
        let seal = match text.get(BEARER..)? {
            "" => None,
            rest => Some(
                rest.strip_prefix('.')
                    .filter(|seal| seal.len() == 64 && seal.chars().all(|c| c.is_ascii_hexdigit()))?,
            ),
        };
        (id.len() == 6 && is_plain(id) && is_plain(secret)).then_some(Self { id, bearer, seal })
    }
}

impl fmt::Debug for Token<'_> {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether a text is a DNS name in lower case.
pub fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Whether a text can be the name of a kernel parameter: parts joined by dots. A slash stands for a dot within a part.
pub(crate) fn is_sysctl(text: &str) -> bool {
    let is_part = |part: &str| {
        // A part that is only `.` or `..` would lead elsewhere.
        !part.replace('/', ".").chars().all(|c| c == '.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-@:/".contains(c))
    };
    (3..=128).contains(&text.len()) && text.contains('.') && text.split('.').all(is_part)
}

/// Whether a text can be the value of a label.
pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified(text)
}

/// Whether a text can be the key of a label.
pub(crate) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_domain(prefix) && is_qualified(name),
        None => is_qualified(text),
    }
}

fn is_qualified(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
