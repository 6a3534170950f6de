//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_bindings::consts::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::rt_route::{OpGetrouteDump, OpNewrouteDo, Rtmsg};
use netlink_bindings::traits::NetlinkRequest;

use super::addr::family;
use super::{Batch, Connection, NetlinkError};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const TABLE_MAIN: u8 = 254;
/// `RTPROT_STATIC`.
const PROTOCOL_STATIC: u8 = 4;
/// `RTN_UNICAST`.
const UNICAST: u8 = 1;
/// `RT_SCOPE_UNIVERSE` and `RT_SCOPE_LINK`.
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the link.
    pub link: u32,
}

/// Adds a route; EEXIST when there is one.
pub fn add(batch: &mut Batch, route: &Route) {
    let header = Rtmsg {
        rtm_family: family(route.destination.addr()),
        rtm_dst_len: route.destination.prefix_len(),
        rtm_table: TABLE_MAIN,
        rtm_protocol: PROTOCOL_STATIC,
        rtm_scope: if route.gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK },
        rtm_type: UNICAST,
        ..Default::default()
    };
    batch.push(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, format!("add route to {}", route.destination), |buffer| {
        let mut attributes = OpNewrouteDo::encode_request(buffer, &header).push_oif(route.link);
        if route.destination.prefix_len() > 0 {
            attributes = attributes.push_dst(route.destination.addr());
        }
        if let Some(gateway) = route.gateway {
            attributes = attributes.push_gateway(gateway);
        }
        drop(attributes);
    });
}

/// All unicast routes of the main table that leave by one link.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn list(connection: &Connection) -> Result<Vec<Route>, NetlinkError> {
    let mut routes = Vec::new();
    connection.dump(
        RTM_GETROUTE,
        "list routes",
        |buffer| drop(OpGetrouteDump::encode_request(buffer, &Rtmsg::default())),
        |payload| {
            let (header, attributes) = OpGetrouteDump::decode_reply(payload);
            if header.rtm_table != TABLE_MAIN || header.rtm_type != UNICAST {
                return Ok(());
            }
            let unspecified = if header.rtm_family == 2 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            let destination = IpNet::new(attributes.get_dst().unwrap_or(unspecified), header.rtm_dst_len);
            if let (Ok(destination), Ok(link)) = (destination, attributes.get_oif()) {
                routes.push(Route { destination, gateway: attributes.get_gateway().ok(), link });
            }
            Ok(())
        },
    )?;
    Ok(routes)
}
