//! Connection tracking: forgetting flows whose translation is out of date. UDP has no end that the kernel could see, so a
//! client that keeps sending would be sent to a pod that is gone, or not to one that came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::utils::{finalize_nested_header, find_attr, push_header, push_nested_header};

use super::{Batch, Connection, NetfilterError};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;
/// `struct nfgenmsg`, bytes.
const HEADER_LEN: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// A UDP flow as it is tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The port that its first packet was sent to.
    pub destination_port: u16,
    /// Who answers it.
    pub answered_by: IpAddr,
}

/// Forgets the UDP flows that `outdated` names, and returns how many they were.
///
/// # Errors
/// When the kernel refuses to list them, as it does without `nf_conntrack_netlink`. Flows that end meanwhile are no error.
pub fn forget(connection: &Connection, outdated: impl Fn(&Flow) -> bool) -> Result<usize, NetfilterError> {
    let mut flows = Vec::new();
    connection.dump(
        CT_GET,
        "list tracked connections",
        |buffer| buffer.extend_from_slice(&[0; HEADER_LEN]),
        |payload| {
            let attributes = payload.get(HEADER_LEN..).unwrap_or_default();
            if decode(attributes).is_some_and(|flow| outdated(&flow)) {
                flows.push(payload.to_vec());
            }
            Ok(())
        },
    )?;
    for flow in &flows {
        let mut batch = Batch::new();
        batch.push(CT_DELETE, 0, "forget a tracked connection", |buffer| encode_deletion(buffer, flow));
        match connection.run(&batch) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(flows.len())
}

fn decode(attributes: &[u8]) -> Option<Flow> {
    let original = find_attr(find_attr(attributes, CTA_TUPLE_ORIG)?, CTA_TUPLE_PROTO)?;
    if find_attr(original, CTA_PROTO_NUM)?.first() != Some(&UDP) {
        return None;
    }
    let port = find_attr(original, CTA_PROTO_DST_PORT)?.first_chunk()?;
    let addresses = find_attr(find_attr(attributes, CTA_TUPLE_REPLY)?, CTA_TUPLE_IP)?;
    let v4 = find_attr(addresses, CTA_IP_V4_SRC).and_then(<[u8]>::first_chunk::<4>);
    let v6 = find_attr(addresses, CTA_IP_V6_SRC).and_then(<[u8]>::first_chunk::<16>);
    let answered_by = match (v4, v6) {
        (Some(bytes), _) => IpAddr::V4(Ipv4Addr::from(*bytes)),
        (None, Some(bytes)) => IpAddr::V6(Ipv6Addr::from(*bytes)),
        (None, None) => return None,
    };
    Some(Flow { destination_port: u16::from_be_bytes(*port), answered_by })
}

/// The flow is named by its IP version, its first packet and its number, as the kernel told them.
fn encode_deletion(buffer: &mut Vec<u8>, flow: &[u8]) {
    let (header, attributes) = flow.split_at(flow.len().min(HEADER_LEN));
    buffer.extend_from_slice(header);
    if let Some(tuple) = find_attr(attributes, CTA_TUPLE_ORIG) {
        let start = push_nested_header(buffer, CTA_TUPLE_ORIG);
        buffer.extend_from_slice(tuple);
        finalize_nested_header(buffer, start);
    }
    if let Some(id) = find_attr(attributes, CTA_ID) {
        push_header(buffer, CTA_ID, id.len() as u16);
        buffer.extend_from_slice(id);
    }
}
