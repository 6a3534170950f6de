//! The words of the CNI specification 1.1: what a runtime hands to a plugin, and what it gets back.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A version of the specification. What differs: before 1.0 an address names its IP version; CHECK came with 0.4, STATUS
/// and GC with 1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.0
    #[serde(rename = "0.3.0")]
    V030,
    /// 0.3.1, which containerd asks of its loopback network.
    #[serde(rename = "0.3.1")]
    V031,
    /// 0.4.0
    #[serde(rename = "0.4.0")]
    V040,
    /// 1.0.0
    #[serde(rename = "1.0.0")]
    V100,
    /// 1.1.0
    #[default]
    #[serde(rename = "1.1.0")]
    V110,
}

impl Version {
    /// All supported versions, oldest first.
    pub const ALL: [Self; 5] = [Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];
}

/// An operation of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Tell whether it is still attached as it was.
    Check,
    /// Tell whether containers can be attached.
    Status,
    /// Name the supported versions.
    Version,
    /// Detach all but the listed.
    Gc,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            "GC" => Self::Gc,
            _ => return None,
        })
    }

    /// The first version that knows it.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V030,
            Self::Check => Version::V040,
            Self::Status | Self::Gc => Version::V110,
        }
    }
}

/// Why an operation failed: the codes of the specification, and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// The version is not supported.
    IncompatibleVersion = 1,
    /// A field that cannot be honoured.
    UnsupportedField = 2,
    /// No such container: the runtime need not clean up.
    UnknownContainer = 3,
    /// A necessary environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Standard input or a socket failed.
    Io = 5,
    /// Standard input is not the JSON that it should be.
    Decoding = 6,
    /// The network configuration is wrong.
    InvalidConfig = 7,
    /// The network namespace cannot be used.
    InvalidNetns = 8,
    /// It may work later.
    TryAgainLater = 11,
    /// STATUS: no container can be attached now.
    NotAvailable = 50,
    /// Every address for pods is taken.
    AddressesExhausted = 100,
    /// The interface is attached already.
    AlreadyAttached = 101,
    /// Another pod has the host port.
    HostPortTaken = 102,
    /// CHECK: something is not as ADD left it.
    Changed = 103,
    /// The kernel refused.
    Kernel = 104,
}

/// A failed operation, as the runtime gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}", .details.as_deref().map(|details| format!(": {details}")).unwrap_or_default())]
pub struct CniError {
    /// The kind.
    pub code: Code,
    /// What failed.
    pub msg: String,
    /// Why.
    pub details: Option<String>,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: None }
    }

    /// An error whose details are `source` and its causes.
    pub fn caused(code: Code, msg: impl Into<String>, source: &dyn std::error::Error) -> Self {
        Self { code, msg: msg.into(), details: Some(chain(source)) }
    }

    /// The JSON of the specification.
    pub fn render(&self, version: Version) -> String {
        #[derive(Serialize)]
        struct Rendered<'a> {
            #[serde(rename = "cniVersion")]
            version: Version,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            details: Option<&'a str>,
        }
        let Self { code, msg, details } = self;
        let rendered = Rendered { version, code: *code as u32, msg, details: details.as_deref() };
        serde_json::to_string(&rendered).unwrap_or_default()
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A network configuration as a plugin gets it on standard input. Runtimes add fields of their own, so unknown ones are
/// accepted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version of the specification.
    #[serde(default)]
    pub cni_version: Option<String>,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// The plugin.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// What the runtime fills in by capabilities.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// What the plugin before this one, or the ADD before this CHECK, returned.
    #[serde(default)]
    pub prev_result: Option<serde_json::Value>,
    /// GC: what is to stay.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same under the name that drafts of the specification had.
    #[serde(default, rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<ValidAttachment>>,
}

/// What the runtime fills in by capabilities.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Host ports.
    #[serde(default)]
    pub port_mappings: Vec<RuntimePort>,
}

/// A host port in the runtime's words.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimePort {
    /// The machine's port; 0 means none.
    pub host_port: i64,
    /// The pod's port.
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp` in any case.
    #[serde(default)]
    pub protocol: String,
    /// The machine's address; empty means all.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// An attachment in GC's list.
#[derive(Debug, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// What ADD returns.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResult {
    /// The version of the specification.
    pub cni_version: Version,
    /// Links that were made.
    pub interfaces: Vec<Interface>,
    /// Addresses that were given.
    pub ips: Vec<IpConfig>,
    /// Routes that were made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The resolver: kubelet's affair, so empty.
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its largest packet, from version 1.1 on, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its namespace; empty: the machine's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Serialize)]
pub struct IpConfig {
    /// `4` or `6`, before version 1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<&'static str>,
    /// Index of its link in `interfaces`.
    pub interface: usize,
    /// The address with its prefix.
    pub address: ipnet::IpNet,
    /// The gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Serialize)]
pub struct Route {
    /// Where to.
    pub dst: ipnet::IpNet,
    /// By which gateway.
    pub gw: IpAddr,
}

/// An empty resolver configuration.
#[derive(Debug, Serialize)]
pub struct Dns {}

/// How an address is told in `version`.
pub fn ip_version(version: Version, address: IpAddr) -> Option<&'static str> {
    (version < Version::V100).then_some(if address.is_ipv4() { "4" } else { "6" })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        })
    }
}
