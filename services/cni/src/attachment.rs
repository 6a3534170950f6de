//! One pod's interface: who has it, and what was given to it.

use std::fmt;
use std::net::IpAddr;

use garboard_sys::netlink::MacAddress;
use serde::{Deserialize, Serialize};

use crate::interface::InterfaceName;

/// The longest container identifier that is accepted; runtimes use 64 characters.
const CONTAINER_ID_MAX: usize = 128;

/// A container identifier as the CNI specification allows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// Text that is not a container identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a container identifier: a letter or digit, then letters, digits, '_', '.' or '-', at most 128")]
pub struct InvalidContainerId(pub String);

impl TryFrom<String> for ContainerId {
    type Error = InvalidContainerId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if first && rest && id.len() <= CONTAINER_ID_MAX { Ok(Self(id)) } else { Err(InvalidContainerId(id)) }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// What names an attachment: the container and its interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachmentId {
    /// The container.
    pub container: ContainerId,
    /// The interface inside of it.
    pub interface: InterfaceName,
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.container.0, self.interface)
    }
}

impl AttachmentId {
    /// The name of this machine's end of the veth pair: `gb` and 48 bits of a hash, so that it is the same each time.
    pub fn host_link(&self) -> String {
        // FNV-1a, 64 bits: stable between builds, which the standard library's hasher does not promise.
        let hash = self
            .to_string()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("gb{:012x}", hash >> 16)
    }
}

/// A transport protocol that a host port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the machine that leads to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMapping {
    /// The machine's port.
    pub host_port: u16,
    /// The machine's address that it is open on; `None` and unspecified: all of them.
    pub host_ip: Option<IpAddr>,
    /// The pod's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Whether both claim the same port of the machine.
    pub fn clashes(&self, other: &Self) -> bool {
        let specific = |address: Option<IpAddr>| address.filter(|address| !address.is_unspecified());
        (self.host_port, self.protocol) == (other.host_port, other.protocol)
            && specific(self.host_ip) == specific(other.host_ip)
    }
}

/// A reservation: what one interface of a pod was given. It is written before the kernel is asked for anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    /// Who has it.
    pub id: AttachmentId,
    /// The name of the network in the runtime's configuration.
    pub network: String,
    /// The pod, as `namespace/name`, when the runtime says so.
    pub pod: Option<String>,
    /// This machine's end of the veth pair.
    pub host_link: InterfaceName,
    /// The pod's hardware address.
    pub mac: MacAddress,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host ports.
    pub ports: Vec<PortMapping>,
}

/// A locally administered hardware address that belongs to an address, so that a neighbour's memory of an address that
/// went from one pod to another is still right.
pub fn mac_of(address: IpAddr) -> MacAddress {
    let [.., a, b, c, d] = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    MacAddress([0x0a, 0x58, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str) -> Result<ContainerId, InvalidContainerId> {
        ContainerId::try_from(container.to_owned())
    }

    #[test]
    fn identifiers_that_could_leave_their_directory_are_refused() {
        for wrong in ["", "..", ".a", "a/b", "a b", "a@b", &"a".repeat(129)] {
            assert!(id(wrong).is_err(), "{wrong:?}");
        }
        assert!(id("0a.b-c_D").is_ok());
    }

    #[test]
    fn a_host_link_has_a_name_that_fits_and_stays() {
        let id = AttachmentId {
            container: id(&"f".repeat(64)).unwrap(),
            interface: InterfaceName::try_from("eth0".to_owned()).unwrap(),
        };
        assert!(InterfaceName::try_from(id.host_link()).is_ok());
        assert_eq!(id.host_link(), id.clone().host_link());
        let other = AttachmentId { interface: InterfaceName::try_from("eth1".to_owned()).unwrap(), ..id.clone() };
        assert_ne!(id.host_link(), other.host_link());
    }

    #[test]
    fn host_ports_clash_on_the_same_address_only() {
        let port = |host_ip: Option<&str>| PortMapping {
            host_port: 80,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            container_port: 8080,
            protocol: Protocol::Tcp,
        };
        assert!(port(None).clashes(&port(Some("0.0.0.0"))));
        assert!(!port(None).clashes(&port(Some("10.0.0.1"))));
        assert!(!port(Some("10.0.0.2")).clashes(&port(Some("10.0.0.1"))));
        assert!(!port(None).clashes(&PortMapping { protocol: Protocol::Udp, ..port(None) }));
    }
}
