//! WireGuard links.

use std::net::SocketAddr;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{Cidr, RANGE, SOCKET_ADDRESS, WIREGUARD_KEY};

/// A link that has encrypted ways to peers, by WireGuard. The machine makes its private key itself, when the link is declared for the
/// first time, and shows it to nobody; `status.wireguard` has the public key, for the peers' configuration. The key stays when the link
/// goes, for when it comes again under its name.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wireguard {
    /// The UDP port at which peers find it; it has to be let through by whatever filters packets on the way. Default: one that the kernel
    /// chooses, which will do for a machine that only calls others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub listen_port: Option<u16>,
    /// Whom it talks to. Who is not here is not heard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["publicKey"])
    )]
    pub peers: Vec<WireguardPeer>,
}

/// A peer of a WireGuard link.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireguardPeer {
    /// Its public key, as `wg pubkey` writes it and `status.wireguard` of another machine has it.
    #[schemars(length(min = 44, max = 44), regex(pattern = WIREGUARD_KEY))]
    pub public_key: String,
    /// Where it is: an IP address and a port, such as `192.0.2.7:51820` or `[2001:db8::7]:51820`. A peer that is heard from elsewhere is
    /// answered there; when nothing has been heard of it for three minutes, this is tried again. Default: it is not called, and calls
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "endpoint_schema")]
    pub endpoint: Option<SocketAddr>,
    /// The ranges of addresses from which it may send, such as `198.51.100.0/24`, and for which it gets the packets that a route leads to
    /// the link: give the link `routes` to them, unless one of its `addresses` is in the same range.
    #[serde(default, rename = "allowedIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "ranges_schema")]
    pub allowed_ips: Vec<Cidr>,
    /// Time between two packets that keep the way to it open where a router or firewall on it forgets silent ones, seconds; 25 suits
    /// most. Default: none are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub persistent_keepalive_seconds: Option<u16>,
}

/// What a machine tells of a WireGuard link.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireguardStatus {
    /// Its name.
    pub name: String,
    /// The public key by which peers know it.
    pub public_key: String,
}

fn endpoint_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "maxLength": 64, "pattern": SOCKET_ADDRESS, "nullable": true })
}

/// A pattern instead of a rule: the API server counts the cost of rules, and this is the third list in another.
fn ranges_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": { "type": "string", "maxLength": 49, "pattern": RANGE },
    })
}
