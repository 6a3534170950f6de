//! The daemon's configuration file.
//!
//! ```json
//! {"podCIDRs": ["10.244.0.0/24"], "clusterCIDRs": ["10.244.0.0/16"], "mtu": 1450, "bridge": "gb0", "backend": "bridge"}
//! ```
//! Only `podCIDRs` is required. An empty list means that the machine has no addresses for pods yet: the daemon then waits
//! and is not ready.

use std::net::IpAddr;
use std::path::Path;

use garboard_sys::config::{ConfigError, each};
use ipnet::IpNet;
use serde::Deserialize;

use crate::interface::InterfaceName;

/// The smallest MTU that IPv6 allows (RFC 8200), bytes.
const MTU_MIN: u32 = 1280;
const MTU_MAX: u32 = 65_535;
const BRIDGE: &str = "gb0";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The networks that this machine's pods get addresses from, at most one of each IP version.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks that pods reach with their own address: those of all pods of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// The largest packet of a pod's interface; `None`: that of the link with the default route.
    pub mtu_bytes: Option<u32>,
    /// The name of the bridge.
    pub bridge: InterfaceName,
    /// How pods of different machines reach each other.
    pub backend: BackendKind,
}

/// How pods of different machines reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// By nothing but this machine's bridge: one machine, or routes that somebody else makes.
    #[default]
    Bridge,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "clusterCIDRs", default)]
    cluster_cidrs: Vec<String>,
    #[serde(default)]
    mtu: Option<serde_json::Value>,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    backend: BackendKind,
}

impl Config {
    /// Reads and checks a file; `None` when there is none yet.
    ///
    /// # Errors
    /// When it cannot be read or used; the error names the field.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        garboard_sys::config::load(path, Self::parse)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// When it cannot be used; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let Document { pod_cidrs, cluster_cidrs, mtu, bridge, backend } = serde_json::from_str(text)?;
        let pod_cidrs = networks("podCIDRs", &pod_cidrs)?;
        for (index, network) in pod_cidrs.iter().enumerate() {
            let field = format!("podCIDRs[{index}]");
            if network.max_prefix_len() - network.prefix_len() < 2 {
                return Err(ConfigError::field(field, "has no room for a gateway and a pod"));
            }
            if pod_cidrs[..index].iter().any(|other| other.addr().is_ipv4() == network.addr().is_ipv4()) {
                return Err(ConfigError::field(field, "is a second network of the same IP version"));
            }
        }
        let mtu_bytes = mtu.map(|mtu| {
            let value = mtu.as_u64().and_then(|mtu| u32::try_from(mtu).ok());
            value.filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu)).ok_or_else(|| {
                ConfigError::field("mtu", format!("{mtu} is not a whole number from {MTU_MIN} to {MTU_MAX}"))
            })
        });
        let bridge = InterfaceName::try_from(bridge.unwrap_or_else(|| BRIDGE.to_owned()))
            .map_err(|error| ConfigError::field("bridge", error.to_string()))?;
        Ok(Self {
            pod_cidrs,
            cluster_cidrs: networks("clusterCIDRs", &cluster_cidrs)?,
            mtu_bytes: mtu_bytes.transpose()?,
            bridge,
            backend,
        })
    }

    /// The bridge's own addresses, which are the pods' gateways: the first of each network.
    pub fn gateways(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.pod_cidrs.iter().filter_map(|network| IpNet::new(gateway(network), network.prefix_len()).ok())
    }
}

/// The first usable address of a network.
pub fn gateway(network: &IpNet) -> IpAddr {
    match network {
        IpNet::V4(network) => IpAddr::V4((network.network().to_bits() + 1).into()),
        IpNet::V6(network) => IpAddr::V6((network.network().to_bits() + 1).into()),
    }
}

fn networks(field: &str, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let networks: Vec<IpNet> = each(field, texts, "a network such as 10.244.0.0/24")?;
    for (index, network) in networks.iter().enumerate() {
        if network.trunc() != *network {
            let reason = format!("{network} has bits beyond its prefix; {} is meant", network.trunc());
            return Err(ConfigError::field(format!("{field}[{index}]"), reason));
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = Config::parse(r#"{"podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]}"#).unwrap();
        assert_eq!(config.bridge.as_str(), "gb0");
        assert_eq!(config.mtu_bytes, None);
        assert_eq!(config.backend, BackendKind::Bridge);
        let gateways: Vec<String> = config.gateways().map(|gateway| gateway.to_string()).collect();
        assert_eq!(gateways, ["10.244.3.1/24", "fd00:3::1/64"]);
    }

    #[test]
    fn each_error_names_its_field() {
        let cases = [
            (r#"{}"#, "podCIDRs"),
            (r#"{"podCIDRs": ["10.244.0.0/24"], "podCidr": 1}"#, "podCidr"),
            (r#"{"podCIDRs": ["10.244.0.0"]}"#, "podCIDRs[0]"),
            (r#"{"podCIDRs": ["10.244.0.1/24"]}"#, "podCIDRs[0]"),
            (r#"{"podCIDRs": ["10.244.0.0/31"]}"#, "podCIDRs[0]"),
            (r#"{"podCIDRs": ["10.244.0.0/24", "10.245.0.0/24"]}"#, "podCIDRs[1]"),
            (r#"{"podCIDRs": [], "clusterCIDRs": ["10.0.0.0/8", "x"]}"#, "clusterCIDRs[1]"),
            (r#"{"podCIDRs": [], "mtu": 900}"#, "mtu"),
            (r#"{"podCIDRs": [], "mtu": "1500"}"#, "mtu"),
            (r#"{"podCIDRs": [], "bridge": "a/b"}"#, "bridge"),
            (r#"{"podCIDRs": [], "backend": "vxlan"}"#, "vxlan"),
        ];
        for (text, field) in cases {
            let error = Config::parse(text).unwrap_err();
            let chain = format!("{:#}", anyhow::Error::new(error));
            assert!(chain.contains(field), "{text}: {chain}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = Config::parse(&text);
        }

        #[test]
        fn a_gateway_lies_in_its_network(address in any::<u32>(), prefix in 8u8..=30) {
            let network = IpNet::new(IpAddr::V4(address.into()), prefix).unwrap().trunc();
            prop_assert!(network.contains(&gateway(&network)));
            prop_assert_ne!(gateway(&network), network.addr());
        }
    }
}
