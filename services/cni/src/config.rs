//! The daemon's configuration file.
//!
//! ```json
//! {"podCIDRs": ["10.244.0.0/24"], "clusterCIDRs": ["10.244.0.0/16"], "mtu": 1450, "bridge": "gb0", "backend": "vxlan",
//!  "vxlan": {"address": "192.0.2.10", "vni": 1, "port": 4789, "directRoutes": false},
//!  "peers": [{"name": "node-2", "address": "192.0.2.11", "podCIDRs": ["10.244.1.0/24"]}]}
//! ```
//! Only `podCIDRs` is required, and `vxlan.address` with that backend. An empty list of `podCIDRs` means that the machine has no
//! addresses for pods yet: the daemon then waits and is not ready. Backend `bridge` does not look at `vxlan` and `peers`.

mod vxlan;

use std::net::IpAddr;
use std::path::Path;

use garboard_sys::config::{ConfigError, each, load_within};
use ipnet::IpNet;
use serde::Deserialize;

pub use self::vxlan::{Peer, Vxlan};
use self::vxlan::{PeerDocument, VxlanDocument};
use crate::interface::InterfaceName;

/// The longest file, bytes: the most peers, each with the longest name of a node and a network of each IP version.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
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
    /// The largest packet of a pod's interface; `None`: what the machine's own links carry (see [`crate::backend::mtu`]).
    pub mtu_bytes: Option<u32>,
    /// The name of the bridge.
    pub bridge: InterfaceName,
    /// How pods of different machines reach each other.
    pub backend: Backend,
    /// The other machines; none with [`Backend::Bridge`].
    pub peers: Vec<Peer>,
}

/// How pods of different machines reach each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By nothing but this machine's bridge: one machine, or routes that somebody else makes.
    Bridge,
    /// By tunnels between all machines.
    Vxlan(Vxlan),
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BackendKind {
    #[default]
    Bridge,
    Vxlan,
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
    #[serde(default)]
    vxlan: Option<VxlanDocument>,
    #[serde(default)]
    peers: Vec<PeerDocument>,
}

impl Config {
    /// Reads and checks a file; `None` when there is none yet.
    ///
    /// # Errors
    /// When it cannot be read or used; the error names the field.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        load_within(MAX_BYTES, path, Self::parse)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// When it cannot be used; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let Document { pod_cidrs, cluster_cidrs, mtu, bridge, backend, vxlan, peers } = serde_json::from_str(text)?;
        let pod_cidrs = networks("podCIDRs", &pod_cidrs)?;
        pod_networks("podCIDRs", &pod_cidrs)?;
        for (index, network) in pod_cidrs.iter().enumerate() {
            let field = format!("podCIDRs[{index}]");
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
        let cluster_cidrs = networks("clusterCIDRs", &cluster_cidrs)?;
        let (backend, peers) = match backend {
            BackendKind::Bridge => (Backend::Bridge, Vec::new()),
            BackendKind::Vxlan => {
                let vxlan = Vxlan::check(vxlan)?;
                let peers = vxlan::check_peers(peers, &vxlan, &pod_cidrs, &cluster_cidrs)?;
                (Backend::Vxlan(vxlan), peers)
            }
        };
        Ok(Self { pod_cidrs, cluster_cidrs, mtu_bytes: mtu_bytes.transpose()?, bridge, backend, peers })
    }

    /// Whether this differs from the other in its peers at most.
    pub fn is_but_for_peers(&self, other: &Self) -> bool {
        let Self { pod_cidrs, cluster_cidrs, mtu_bytes, bridge, backend, peers: _ } = self;
        (pod_cidrs, cluster_cidrs, mtu_bytes) == (&other.pod_cidrs, &other.cluster_cidrs, &other.mtu_bytes)
            && (bridge, backend) == (&other.bridge, &other.backend)
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

/// Refuses what is too small for a machine's pods.
fn pod_networks(field: &str, networks: &[IpNet]) -> Result<(), ConfigError> {
    let small = |network: &IpNet| network.max_prefix_len() - network.prefix_len() < 2;
    match networks.iter().position(small) {
        Some(index) => {
            let reason = format!("{} has no room for a gateway and a pod", networks[index]);
            Err(ConfigError::field(format!("{field}[{index}]"), reason))
        }
        None => Ok(()),
    }
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
        assert_eq!((config.backend, config.peers), (Backend::Bridge, Vec::new()));
        let config = Config::parse(r#"{"podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]}"#).unwrap();
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
            (r#"{"podCIDRs": [], "backend": "geneve"}"#, "geneve"),
            (r#"{"podCIDRs": [], "backend": "vxlan"}"#, "vxlan.address"),
            (r#"{"podCIDRs": [], "backend": "vxlan", "vxlan": {"vni": 1}}"#, "vxlan.address"),
        ];
        for (text, field) in cases {
            let error = Config::parse(text).unwrap_err();
            let chain = format!("{:#}", anyhow::Error::new(error));
            assert!(chain.contains(field), "{text}: {chain}");
        }
    }

    fn with_peers(vxlan: serde_json::Value, peers: serde_json::Value) -> Result<Config, ConfigError> {
        let config = serde_json::json!({
            "podCIDRs": ["10.244.0.0/24", "fd00:0:0:1::/64"], "clusterCIDRs": ["10.244.0.0/16", "fd00::/48"],
            "backend": "vxlan", "vxlan": vxlan, "peers": peers,
        });
        Config::parse(&config.to_string())
    }

    #[test]
    fn tunnels_have_the_assigned_port_and_the_first_network() {
        let config = with_peers(serde_json::json!({"address": "192.0.2.10"}), serde_json::json!([])).unwrap();
        let address = [192, 0, 2, 10].into();
        let vxlan = Vxlan { address, vni: 1, port: 4789, direct_routes: false };
        assert_eq!((config.backend, config.peers), (Backend::Vxlan(vxlan), Vec::new()));
        let peers = serde_json::json!([{"name": "b", "address": "192.0.2.11", "podCIDRs": ["10.244.1.0/24"]}]);
        let config = with_peers(serde_json::json!({"address": "192.0.2.10", "directRoutes": true}), peers).unwrap();
        assert_eq!((config.peers.len(), config.peers[0].pod_cidrs.len()), (1, 1));
        let text = r#"{"podCIDRs": [], "vxlan": {"address": "192.0.2.10"}, "peers": [{"name": "b", "address": "192.0.2.11"}]}"#;
        assert_eq!(Config::parse(text).unwrap().peers, Vec::new(), "backend bridge has no use for them");
    }

    #[test]
    fn each_error_of_tunnels_and_peers_names_field_value_and_what_is_allowed() {
        use serde_json::json;
        let own = json!({"address": "192.0.2.10"});
        let peer = |address: &str, network: &str| json!({"name": "b", "address": address, "podCIDRs": [network]});
        let c = json!({"name": "c", "address": "192.0.2.12", "podCIDRs": ["10.244.1.128/25"]});
        let cases = [
            (json!({"address": "x"}), json!([]), ["vxlan.address", "\"x\"", "address of a machine"]),
            (json!({"address": "0.0.0.0"}), json!([]), ["vxlan.address", "0.0.0.0", "address of a machine"]),
            (json!({"address": "192.0.2.10", "vni": 0}), json!([]), ["vxlan.vni", "0", "from 1 to 16777215"]),
            (
                json!({"address": "192.0.2.10", "vni": 16777216}),
                json!([]),
                ["vxlan.vni", "16777216", "from 1 to 16777215"],
            ),
            (json!({"address": "192.0.2.10", "port": "x"}), json!([]), ["vxlan.port", "\"x\"", "from 1 to 65535"]),
            (
                json!({"address": "192.0.2.10", "directRoutes": 1}),
                json!([]),
                ["vxlan.directRoutes", "1", "true or false"],
            ),
            (own.clone(), json!([peer("a.b", "10.244.1.0/24")]), ["peers[0].address", "a.b", "address of a machine"]),
            (own.clone(), json!([peer("2001:db8::1", "10.244.1.0/24")]), ["peers[0].address", "2001:db8::1", "IPv4"]),
            (own.clone(), json!([peer("192.0.2.10", "10.244.1.0/24")]), ["peers[0].address", "192.0.2.10", "its own"]),
            (
                own.clone(),
                json!([peer("192.0.2.11", "10.244.1.1/24")]),
                ["peers[0].podCIDRs[0]", "10.244.1.1/24", "10.244.1.0/24"],
            ),
            (
                own.clone(),
                json!([peer("192.0.2.11", "10.245.1.0/24")]),
                ["peers[0].podCIDRs[0]", "10.245.1.0/24", "clusterCIDRs"],
            ),
            (
                own.clone(),
                json!([peer("192.0.2.11", "10.244.0.0/20")]),
                ["peers[0].podCIDRs[0]", "10.244.0.0/20", "this machine"],
            ),
            (
                own.clone(),
                json!([peer("192.0.2.11", "10.244.1.0/24"), c]),
                ["peers[1].podCIDRs[0]", "10.244.1.128/25", "must not overlap"],
            ),
            (
                own.clone(),
                json!([peer("192.0.2.11", "10.244.1.0/24"), peer("192.0.2.11", "10.244.2.0/24")]),
                ["peers[1].address", "192.0.2.11", "its own"],
            ),
            (own, json!(vec![peer("192.0.2.11", "10.244.1.0/24"); 5001]), ["peers", "5001", "5000"]),
        ];
        for (vxlan, peers, words) in cases {
            let error = with_peers(vxlan, peers).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
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
