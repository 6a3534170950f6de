//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_bindings::consts::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::rt_addr::{Ifaddrmsg, OpGetaddrDump, OpNewaddrDo};
use netlink_bindings::traits::NetlinkRequest;

use super::{Batch, Connection, NetlinkError};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `IFA_F_NODAD`: usable at once, without asking the neighbours whether it is taken.
const NO_DAD: u8 = 2;

/// `AF_INET` or `AF_INET6`.
pub(super) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    /// The address with the length of its network's prefix.
    pub address: IpNet,
}

/// Gives a link an address; EEXIST when it has it.
pub fn add(batch: &mut Batch, link: u32, address: IpNet) {
    push(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, "add", link, address);
}

/// Takes an address from a link; EADDRNOTAVAIL when it does not have it.
pub fn delete(batch: &mut Batch, link: u32, address: IpNet) {
    push(batch, RTM_DELADDR, 0, "delete", link, address);
}

fn push(batch: &mut Batch, kind: u16, flags: i32, verb: &str, link: u32, address: IpNet) {
    let header = Ifaddrmsg {
        ifa_family: family(address.addr()),
        ifa_prefixlen: address.prefix_len(),
        ifa_flags: NO_DAD,
        ifa_index: link,
        ..Default::default()
    };
    batch.push(kind, flags, format!("{verb} address {address}"), |buffer| {
        drop(OpNewaddrDo::encode_request(buffer, &header).push_local(address.addr()).push_address(address.addr()));
    });
}

/// All addresses of the namespace.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn list(connection: &Connection) -> Result<Vec<Address>, NetlinkError> {
    let mut addresses = Vec::new();
    connection.dump(
        RTM_GETADDR,
        "list addresses",
        |buffer| drop(OpGetaddrDump::encode_request(buffer, &Ifaddrmsg::default())),
        |payload| {
            let (header, attributes) = OpGetaddrDump::decode_reply(payload);
            let address = attributes.get_local().or_else(|_| attributes.get_address());
            let address = address.ok().and_then(|address| IpNet::new(address, header.ifa_prefixlen).ok());
            addresses.extend(address.map(|address| Address { link: header.ifa_index, address }));
            Ok(())
        },
    )?;
    Ok(addresses)
}
