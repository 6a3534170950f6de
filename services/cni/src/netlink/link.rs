//! Links: bridges, veth pairs and their settings.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_bindings::consts::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::rt_link::{Ifinfomsg, OpGetlinkDo, OpNewlinkDo, PushLinkAttrs};
use netlink_bindings::traits::{NetlinkRequest, Pusher};
use netlink_bindings::utils::{finalize_nested_header, find_attr, push_nested_header};
use serde::{Deserialize, Serialize};

use super::{Batch, Connection, NetlinkError};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// `IFLA_INFO_DATA` and `VETH_INFO_PEER`: the description of a veth's other end.
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `IFF_UP`.
const UP: u32 = 1;
/// The longest name of an interface (`IFNAMSIZ` without its NUL), bytes.
const NAME_MAX: usize = 15;

/// The name of a network interface: 1 to 15 bytes that the kernel accepts in a device name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// A name that no interface can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interface name: 1 to 15 letters, digits, '-', '_' or '.', and not \".\" or \"..\"")]
pub struct InvalidInterfaceName(pub String);

impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let fits = (1..=NAME_MAX).contains(&name.len()) && name != "." && name != "..";
        if fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            Ok(Self(name))
        } else {
            Err(InvalidInterfaceName(name))
        }
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A hardware address of six bytes, written `0a:58:0a:f4:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Text that is not a hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address")]
pub struct InvalidMac(String);

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(InvalidMac(text)),
        }
    }
}

/// What the kernel says of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias: the mark of who made it.
    pub alias: Option<String>,
    /// The index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its largest packet, bytes.
    pub mtu_bytes: u32,
    /// Whether it is switched on.
    pub up: bool,
}

impl Link {
    fn decode(payload: &[u8]) -> Self {
        let (header, attributes) = OpGetlinkDo::decode_reply(payload);
        let text = |text: &CStr| text.to_string_lossy().into_owned();
        Self {
            index: header.ifi_index.cast_unsigned(),
            name: attributes.get_ifname().map(text).unwrap_or_default(),
            alias: attributes.get_ifalias().ok().map(text),
            master: attributes.get_master().ok(),
            mac: attributes.get_address().ok().and_then(|bytes| bytes.try_into().ok()).map(Mac),
            mtu_bytes: attributes.get_mtu().unwrap_or_default(),
            up: header.ifi_flags & UP != 0,
        }
    }
}

/// A veth pair to make: one end a port of a bridge here, the other in a pod.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    /// Name of this end.
    pub host: &'a InterfaceName,
    /// Alias of this end.
    pub alias: &'a str,
    /// Index of the bridge.
    pub bridge: u32,
    /// Name of the pod's end.
    pub pod: &'a InterfaceName,
    /// Hardware address of the pod's end.
    pub pod_mac: Mac,
    /// The pod's network namespace.
    pub pod_netns: BorrowedFd<'a>,
    /// Largest packet of both ends, bytes.
    pub mtu_bytes: u32,
}

fn named(index: u32) -> Ifinfomsg {
    Ifinfomsg { ifi_index: index.cast_signed(), ..Default::default() }
}

fn encode<'a>(buffer: &'a mut Vec<u8>, header: &Ifinfomsg) -> PushLinkAttrs<&'a mut Vec<u8>> {
    OpNewlinkDo::encode_request(buffer, header)
}

/// The link with this name, when there is one.
///
/// # Errors
/// When the kernel refuses to say.
pub fn find(connection: &Connection, name: &str) -> Result<Option<Link>, NetlinkError> {
    connection.get(
        RTM_GETLINK,
        &format!("read link {name}"),
        |buffer| drop(encode(buffer, &named(0)).push_ifname_bytes(name.as_bytes())),
        |payload| Ok(Link::decode(payload)),
    )
}

/// All links of the namespace.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn list(connection: &Connection) -> Result<Vec<Link>, NetlinkError> {
    let mut links = Vec::new();
    connection.dump(
        RTM_GETLINK,
        "list links",
        |buffer| drop(encode(buffer, &named(0))),
        |payload| {
            links.push(Link::decode(payload));
            Ok(())
        },
    )?;
    Ok(links)
}

/// Makes a bridge without spanning tree; EEXIST when the name is taken.
pub fn add_bridge(batch: &mut Batch, name: &InterfaceName, mac: Mac, mtu_bytes: u32) {
    batch.push(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, format!("create bridge {name}"), |buffer| {
        let attributes = encode(buffer, &named(0))
            .push_ifname_bytes(name.as_str().as_bytes())
            .push_address(&mac.0)
            .push_mtu(mtu_bytes);
        // No pod speaks IGMP or MLD to the outside; snooping would only send queries and drop what it does not know.
        drop(attributes.nested_linkinfo().nested_data_bridge().push_stp_state(0).push_mcast_snooping(0));
    });
}

/// Sets the alias, MTU and hardware address of a link and switches it on.
pub fn configure(batch: &mut Batch, index: u32, what: &str, alias: &str, mac: Option<Mac>, mtu_bytes: Option<u32>) {
    let header = Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..named(index) };
    batch.push(RTM_NEWLINK, 0, format!("configure link {what}"), |buffer| {
        let mut attributes = encode(buffer, &header).push_ifalias_bytes(alias.as_bytes());
        if let Some(mac) = mac {
            attributes = attributes.push_address(&mac.0);
        }
        if let Some(mtu_bytes) = mtu_bytes {
            attributes = attributes.push_mtu(mtu_bytes);
        }
        drop(attributes);
    });
}

/// Switches a link on.
pub fn set_up(batch: &mut Batch, index: u32, what: &str) {
    let header = Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..named(index) };
    batch.push(RTM_NEWLINK, 0, format!("switch {what} on"), |buffer| drop(encode(buffer, &header)));
}

/// Makes a veth pair. This end comes up only once it is an isolated port, so that no frame passes before; the pod's end is
/// left off, because the kernel switches no end on that has no other yet. EEXIST when a name is taken.
pub fn add_veth(batch: &mut Batch, pair: &VethPair<'_>) {
    let create = format!("create veth {} with peer {}", pair.host, pair.pod);
    batch.push(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, create, |buffer| {
        let mut attributes = encode(buffer, &named(0))
            .push_ifname_bytes(pair.host.as_str().as_bytes())
            .push_mtu(pair.mtu_bytes)
            .push_master(pair.bridge)
            .nested_linkinfo()
            .push_kind(c"veth");
        // netlink-bindings has no type for the data of a veth.
        let data = push_nested_header(attributes.as_vec_mut(), IFLA_INFO_DATA);
        let peer = push_nested_header(attributes.as_vec_mut(), VETH_INFO_PEER);
        drop(
            encode(attributes.as_vec_mut(), &named(0))
                .push_ifname_bytes(pair.pod.as_str().as_bytes())
                .push_address(&pair.pod_mac.0)
                .push_mtu(pair.mtu_bytes)
                .push_net_ns_fd(pair.pod_netns.as_raw_fd().cast_unsigned()),
        );
        finalize_nested_header(attributes.as_vec_mut(), peer);
        finalize_nested_header(attributes.as_vec_mut(), data);
    });
    let header = Ifinfomsg { ifi_flags: UP, ifi_change: UP, ..named(0) };
    batch.push(RTM_NEWLINK, 0, format!("configure bridge port {}", pair.host), |buffer| {
        drop(
            encode(buffer, &header)
                .push_ifname_bytes(pair.host.as_str().as_bytes())
                .push_ifalias_bytes(pair.alias.as_bytes())
                .nested_linkinfo()
                .nested_slave_data_bridge()
                .push_mode(1)
                .push_isolated(1),
        );
    });
}

/// Deletes a link by name; ENODEV when there is none.
pub fn delete(batch: &mut Batch, name: &str) {
    batch.push(RTM_DELLINK, 0, format!("delete link {name}"), |buffer| {
        drop(encode(buffer, &named(0)).push_ifname_bytes(name.as_bytes()));
    });
}

/// How a link behaves as a bridge port: (hairpin, isolated); `None` when it is not a port.
///
/// # Errors
/// When the kernel refuses to say.
pub fn port_mode(connection: &Connection, name: &str) -> Result<Option<(bool, bool)>, NetlinkError> {
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_SLAVE_DATA: u16 = 5;
    const IFLA_BRPORT_MODE: u16 = 4;
    const IFLA_BRPORT_ISOLATED: u16 = 33;
    let mode = connection.get(
        RTM_GETLINK,
        &format!("read port {name}"),
        |buffer| drop(encode(buffer, &named(0)).push_ifname_bytes(name.as_bytes())),
        |payload| {
            let attributes = payload.get(Ifinfomsg::len()..).unwrap_or_default();
            let port = find_attr(attributes, IFLA_LINKINFO).and_then(|info| find_attr(info, IFLA_INFO_SLAVE_DATA));
            let flag = |port, kind| find_attr(port, kind).and_then(|value| value.first()) == Some(&1);
            Ok(port.map(|port| (flag(port, IFLA_BRPORT_MODE), flag(port, IFLA_BRPORT_ISOLATED))))
        },
    )?;
    Ok(mode.flatten())
}

/// The alias as the kernel keeps it: cut to what fits, without NUL.
pub fn alias(text: &str) -> String {
    /// `IFALIASZ` without its NUL, bytes.
    const ALIAS_MAX: usize = 255;
    let text: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(ALIAS_MAX).collect();
    CString::new(text).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_refused_here() {
        for name in ["", ".", "..", "a/b", "with space", "sixteen-letters-", "é"] {
            assert!(InterfaceName::try_from(name.to_owned()).is_err(), "{name:?}");
        }
        assert!(InterfaceName::try_from("eth0".to_owned()).is_ok());
        assert!(InterfaceName::try_from("fifteen-letters".to_owned()).is_ok());
    }

    #[test]
    fn a_hardware_address_survives_text() {
        let mac = Mac([0x0a, 0x58, 10, 244, 0, 2]);
        assert_eq!(mac.to_string(), "0a:58:0a:f4:00:02");
        assert_eq!(Mac::try_from(mac.to_string()), Ok(mac));
        for wrong in ["", "0a:58", "0a:58:0a:f4:00:zz", "0a:58:0a:f4:00:02:03", "a:58:0a:f4:00:02"] {
            assert!(Mac::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
