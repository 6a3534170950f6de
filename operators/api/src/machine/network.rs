//! Network of a machine.

use std::net::IpAddr;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::{Cidr, DOMAIN, INTERFACE, MacAddress, address_schema, addresses_schema, optional_address_schema};

/// Network of a machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineNetwork {
    /// The links to configure. When empty, all links with a carrier ask for a lease by DHCPv4, and the first that is granted
    /// one is used, until it loses its carrier or its lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub links: Vec<Link>,
    /// Name servers, asked before those that DHCP brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses_schema")]
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 6),
        inner(
            length(min = 1, max = 253),
            regex(pattern = DOMAIN)
        )
    )]
    pub search_domains: Vec<String>,
    /// Names that are looked up nowhere else: entries of `/etc/hosts` for the machine itself and for pods on its network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub hosts: Vec<HostEntry>,
}

/// Names of an address.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEntry {
    /// The address.
    #[schemars(schema_with = "address_schema")]
    pub address: IpAddr,
    /// Its names.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253), regex(pattern = DOMAIN)))]
    pub names: Vec<String>,
}

/// One network link of a machine.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.gateway) || self.addresses.exists(a, cidr(a).containsIP(self.gateway))")
        .message("gateway must be in the range of one of addresses")
)]
pub struct Link {
    /// Which link is meant: by name or by hardware address.
    #[serde(rename = "match")]
    pub matches: LinkMatch,
    /// Whether a DHCPv4 server configures the link. Default: true, unless `addresses` has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp4: Option<bool>,
    /// Addresses that the link has in any case, each with its prefix, such as `192.0.2.10/24`.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub addresses: Vec<Cidr>,
    /// Next hop of the default route, on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_address_schema")]
    pub gateway: Option<IpAddr>,
    /// Further routes over the link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub routes: Vec<LinkRoute>,
    /// MTU, bytes. Default: what DHCP says, else the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
}

impl Link {
    /// Whether a DHCPv4 server configures the link.
    pub fn dhcp4(&self) -> bool {
        self.dhcp4.unwrap_or(self.addresses.is_empty())
    }
}

/// A route over a link.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.via) || cidr(self.to).ip().family() == ip(self.via).family()")
        .message("to and via must be of one address family")
)]
pub struct LinkRoute {
    /// Where it leads: the start of a range, such as `198.51.100.0/24`.
    pub to: Cidr,
    /// Its next hop. Default: none, and the range is on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_address_schema")]
    pub via: Option<IpAddr>,
    /// Its metric: of routes to the same range the one with the lowest counts. Default: 100, and one more for each further link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub metric: Option<u32>,
}

/// Which link is meant: exactly one of the fields is given.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.mac)").message("give either name or mac"))]
pub struct LinkMatch {
    /// Name of the interface, such as `eth0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub name: Option<String>,
    /// Hardware address, such as `52:54:00:12:34:56`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}
