//! Network of a machine.

mod made;
mod wireguard;

use std::net::IpAddr;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::made::{Bond, BondMode, Bridge, LacpRate, TransmitHashPolicy, Vlan, VlanProtocol};
pub use self::wireguard::{Wireguard, WireguardPeer, WireguardStatus};
use crate::types::{
    Cidr, DOMAIN, INTERFACE, MODULE, MacAddress, address_schema, addresses_schema, optional_address_schema,
};

/// Network of a machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.links) || self.links.all(l, \
         (has(l.vlan) ? [l.vlan.parent] : has(l.bond) ? l.bond.members : has(l.bridge) ? l.bridge.ports : []).all(n, \
         self.links.exists(o, has(o.name) ? o.name == n : has(o.match) && has(o.match.name) && o.match.name == n)))"
    )
    .message("a vlan's parent, a bond's members and a bridge's ports must each be a link of links, by its name or match.name")
)]
pub struct MachineNetwork {
    /// The links to configure, and links to make: VLANs, bonds, bridges, WireGuard. One that was made and is no longer here is removed.
    /// When empty, all links with a carrier ask for a lease by DHCPv4, and the first that is granted one is used, until it loses its
    /// carrier or its lease.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub links: Vec<Link>,
    /// Rules that send packets to another table of routes than the main one, by where they come from and go. Others' rules stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub rules: Vec<RoutingRule>,
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
        .message("gateway must be in the range of one of addresses"),
    validation = Rule::new("[has(self.match), has(self.vlan), has(self.bond), has(self.bridge), has(self.wireguard)].filter(x, x).size() == 1")
        .message(
            "give either match, for a link that the machine has, or one of vlan, bond, bridge and wireguard, for one to make"
        ),
    validation = Rule::new("has(self.match) || has(self.name)").message("a link to make needs a name")
)]
pub struct Link {
    /// Which link of the machine is meant: by name, hardware address or driver. A link to make has `name` and one of `vlan`, `bond`,
    /// `bridge` and `wireguard` instead.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<LinkMatch>,
    /// Name of the interface to make, such as `bond0`. For a link of the machine, what it is called where others of `links` refer to it;
    /// its interface keeps its name. Default: `match.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub name: Option<String>,
    /// Makes a link that has the frames with a tag of another link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// Makes a link of several links, which stand in for each other or share the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// Makes a switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// Makes a link that has encrypted ways to peers over other links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<Wireguard>,
    /// Whether a DHCPv4 server configures the link. Default: true, unless `addresses` has any, it is a bond's member or a bridge's port,
    /// or it is a WireGuard link, which no server reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp4: Option<bool>,
    /// Whether the link takes IPv6 addresses and routes from the advertisements of routers (SLAAC). Default: what the kernel does, and
    /// the addresses are none by which the cluster knows the machine.
    #[serde(default, rename = "acceptRA", skip_serializing_if = "Option::is_none")]
    pub accept_ra: Option<bool>,
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
    /// MTU, bytes. A VLAN's is at most its parent's. Default: what DHCP says, else the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
}

impl Link {
    /// Whether a DHCPv4 server configures the link, if it is no member and no port.
    pub fn dhcp4(&self) -> bool {
        self.dhcp4.unwrap_or(self.addresses.is_empty() && self.wireguard.is_none())
    }

    /// What other links call it, if they can.
    pub fn label(&self) -> Option<&str> {
        let matched = self.matches.as_ref().and_then(|matches| matches.name.as_deref());
        self.name.as_deref().or(matched)
    }

    /// Names of a bond's members, or a bridge's ports.
    pub fn ports(&self) -> &[String] {
        let members = self.bond.as_ref().map(|bond| &*bond.members);
        members.or(self.bridge.as_ref().map(|bridge| &*bridge.ports)).unwrap_or_default()
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
    /// The table that it is in: 254 is the main one, and others count where `rules` lead to them. Default: 254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_table_schema")]
    pub table: Option<u32>,
}

/// A rule that sends packets to a table of routes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.from) || has(self.to) || has(self.fwmark)")
        .message("give at least one of from, to and fwmark"),
    validation = Rule::new("!has(self.from) || !has(self.to) || cidr(self.from).ip().family() == cidr(self.to).ip().family()")
        .message("from and to must be of one address family"),
    validation = Rule::new("!has(self.fwmask) || has(self.fwmark)").message("fwmask belongs to a fwmark")
)]
pub struct RoutingRule {
    /// Where the packets come from: the start of a range, such as `192.0.2.0/24`. Default: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Cidr>,
    /// Where they go: the start of a range. Default: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Cidr>,
    /// The mark that they bear (nftables' `meta mark`). Without `from` and `to` the rule is for IPv4 and IPv6. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// Which bits of the mark count. kube-proxy has 0x4000 and 0x8000 for itself. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub fwmask: Option<u32>,
    /// The table in which their route is looked up; the `table` of routes puts them there. Where it has none for a packet, the next rule
    /// counts.
    #[schemars(schema_with = "table_schema")]
    pub table: u32,
    /// Rules are tried from the lowest number on; the main table comes at 32766.
    #[schemars(range(min = 1, max = 32765))]
    pub priority: u32,
}

/// A table's number: 255 is the kernel's own, and 253 is looked up after the main one in any case.
fn table_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "integer",
        "format": "int64",
        "minimum": 1,
        "maximum": u32::MAX,
        "x-kubernetes-validations": [{ "rule": "self != 255", "message": "table 255 is the kernel's own" }],
    })
}

fn optional_table_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = table_schema(generator);
    schema.insert("nullable".into(), true.into());
    schema
}

/// Which link is meant: exactly one of the fields is given.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.name), has(self.mac), has(self.driver)].filter(x, x).size() == 1")
        .message("give one of name, mac and driver")
)]
pub struct LinkMatch {
    /// Name of the interface, such as `eth0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub name: Option<String>,
    /// Hardware address, such as `52:54:00:12:34:56`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Name of the driver, such as `virtio_net`: the first Ethernet of it, in the kernel's order, that nothing else of `links` means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 31), regex(pattern = MODULE))]
    pub driver: Option<String>,
}
