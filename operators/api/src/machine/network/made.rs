//! Links that are made because they are declared.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::INTERFACE;

/// A link that has those frames of another link that bear a tag (IEEE 802.1Q).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vlan {
    /// Name of the link whose frames it has: one of `links`.
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub parent: String,
    /// The tag.
    #[schemars(range(min = 1, max = 4094))]
    pub id: u16,
    /// The protocol of the tag. Default: 802.1Q.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<VlanProtocol>,
}

/// The protocol of a VLAN's tag: 802.1Q, or 802.1ad, as providers use it around the tags of their customers. Default: 802.1Q.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VlanProtocol {
    /// The tag of customers.
    #[default]
    #[serde(rename = "802.1Q")]
    Ieee8021Q,
    /// The tag of providers.
    #[serde(rename = "802.1ad")]
    Ieee8021Ad,
}

/// Several links that are used as one. Its hardware address is that of the first member.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.primary) || self.mode in ['active-backup', 'balance-tlb', 'balance-alb']")
        .message("primary is for the modes active-backup, balance-tlb and balance-alb"),
    validation = Rule::new("!has(self.primary) || self.primary in self.members").message("primary must be one of members"),
    validation = Rule::new("!has(self.lacpRate) || self.mode == '802.3ad'").message("lacpRate is for the mode 802.3ad"),
    validation = Rule::new("!has(self.transmitHashPolicy) || self.mode in ['balance-xor', '802.3ad', 'balance-tlb']")
        .message("transmitHashPolicy is for the modes balance-xor, 802.3ad and balance-tlb")
)]
pub struct Bond {
    /// Which member carries a frame. `active-backup`: one, and another when that fails; nothing is asked of the switch. `802.3ad`:
    /// all, as the switch agrees by LACP. `balance-xor`: all, each its share of the flows, and the switch is told by hand. `balance-rr`:
    /// all in turn. `broadcast`: all the same. `balance-tlb` and `balance-alb`: all, by their load, and nothing is asked of the switch.
    pub mode: BondMode,
    /// Names of its members: each one of `links`, and a member of nothing else. They have no addresses and no MTU of their own.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 15), regex(pattern = INTERFACE)))]
    pub members: Vec<String>,
    /// Time between two looks at the carrier of each member, milliseconds. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10_000))]
    pub miimon: Option<u32>,
    /// The member that is used whenever it works. Default: whichever was used last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = INTERFACE))]
    pub primary: Option<String>,
    /// How often the switch is asked for signs of life. Default: slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// What of a frame decides which member carries it. Default: layer2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit_hash_policy: Option<TransmitHashPolicy>,
}

/// Which member of a bond carries a frame.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BondMode {
    /// All in turn.
    #[serde(rename = "balance-rr")]
    BalanceRr,
    /// One, and another when that fails.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// All, each its share of the flows.
    #[serde(rename = "balance-xor")]
    BalanceXor,
    /// All the same.
    #[serde(rename = "broadcast")]
    Broadcast,
    /// All, as the switch agrees by LACP.
    #[serde(rename = "802.3ad")]
    Ieee8023Ad,
    /// All, by their load, for what is sent.
    #[serde(rename = "balance-tlb")]
    BalanceTlb,
    /// All, by their load, for what is sent and received.
    #[serde(rename = "balance-alb")]
    BalanceAlb,
}

impl BondMode {
    /// Whether one member can be preferred to the others.
    pub fn has_primary(self) -> bool {
        matches!(self, Self::ActiveBackup | Self::BalanceTlb | Self::BalanceAlb)
    }

    /// Whether the contents of a frame can decide which member carries it.
    pub fn hashes(self) -> bool {
        matches!(self, Self::BalanceXor | Self::Ieee8023Ad | Self::BalanceTlb)
    }
}

/// How often the switch is asked for signs of life, in the mode 802.3ad: slow, every 30 seconds, or fast, every second. Default: slow.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LacpRate {
    /// Every 30 seconds.
    #[default]
    Slow,
    /// Every second.
    Fast,
}

/// What of a frame decides which member of a bond carries it: hardware addresses (layer2), IP addresses too (2+3), or IP addresses and
/// ports (3+4); `encap` looks into tunnels. Default: layer2.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransmitHashPolicy {
    /// Hardware addresses.
    #[default]
    #[serde(rename = "layer2")]
    Layer2,
    /// Hardware and IP addresses.
    #[serde(rename = "layer2+3")]
    Layer23,
    /// IP addresses and ports.
    #[serde(rename = "layer3+4")]
    Layer34,
    /// Hardware and IP addresses, within tunnels too.
    #[serde(rename = "encap2+3")]
    Encap23,
    /// IP addresses and ports, within tunnels too.
    #[serde(rename = "encap3+4")]
    Encap34,
    /// VLAN tag and hardware address of the sender.
    #[serde(rename = "vlan+srcmac")]
    VlanSrcMac,
}

/// A switch within the machine, which is itself connected to it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// Names of the links that are its ports: each one of `links`, and a port of nothing else. They have no addresses of their own. What
    /// others connect to it besides, such as virtual machines, stays.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 15), regex(pattern = INTERFACE)))]
    pub ports: Vec<String>,
    /// Whether it takes part in the spanning tree protocol, by which switches find loops; a port carries nothing for the first 30 seconds
    /// then. Default: false.
    #[serde(default)]
    pub stp: bool,
}
