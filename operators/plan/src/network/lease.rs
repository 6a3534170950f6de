//! What a DHCPv4 server grants.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A lease time that never ends (RFC 2131 section 3.3).
const INFINITE: u32 = u32::MAX;
/// Smallest MTU that a server may ask for: every IPv4 host accepts a datagram of this size (RFC 791).
const MIN_MTU: u16 = 576;

/// Which of the server's messages a [`Reply`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// DHCPOFFER
    Offer,
    /// DHCPACK
    Ack,
    /// DHCPNAK
    Nak,
}

/// A server's message with the options that Garboard uses, not yet judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Kind of message.
    pub kind: ReplyKind,
    /// Transaction that it answers.
    pub xid: u32,
    /// Address for the client (`yiaddr`).
    pub address: Ipv4Addr,
    /// The server's identifier (option 54).
    pub server: Option<Ipv4Addr>,
    /// Subnet mask (option 1).
    pub mask: Option<Ipv4Addr>,
    /// Routers (option 3), the preferred one first.
    pub routers: Vec<Ipv4Addr>,
    /// Classless static routes (option 121); a router of 0.0.0.0 means that the destination is on the link.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// Name servers (option 6).
    pub nameservers: Vec<Ipv4Addr>,
    /// NTP servers (option 42).
    pub time_servers: Vec<Ipv4Addr>,
    /// Domain name (option 15).
    pub domain: Option<String>,
    /// Interface MTU in bytes (option 26).
    pub mtu: Option<u16>,
    /// Lease time in seconds (option 51).
    pub lease: Option<u32>,
    /// Renewal time T1 in seconds (option 58).
    pub renewal: Option<u32>,
    /// Rebinding time T2 in seconds (option 59).
    pub rebinding: Option<u32>,
}

/// When a lease is to be renewed and when it ends, as times since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Term {
    /// T1: the server that granted the lease is asked for more.
    pub renew: Duration,
    /// T2: any server is asked for more.
    pub rebind: Duration,
    /// The address may no longer be used.
    pub expire: Duration,
}

/// A route that came with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LeaseRoute {
    /// Where it leads.
    pub destination: Ipv4Net,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A granted address and what came with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Lease {
    /// The address and the length of its subnet's prefix.
    pub address: Ipv4Net,
    /// The server that granted it.
    pub server: Ipv4Addr,
    /// Routes, the default route among them.
    pub routes: Vec<LeaseRoute>,
    /// Name servers, the preferred one first.
    pub nameservers: Vec<Ipv4Addr>,
    /// NTP servers, the preferred one first.
    #[serde(default)]
    pub time_servers: Vec<Ipv4Addr>,
    /// Domain in which short names are looked up.
    pub domain: Option<String>,
    /// MTU of the link in bytes, at least 576.
    pub mtu: Option<u16>,
    /// How long it lasts; none for ever.
    pub term: Option<Term>,
}

/// Why a reply grants nothing that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The address cannot belong to a host.
    #[error("the server offers {0}, which is no address of a host")]
    Address(Ipv4Addr),
    /// The mask has holes.
    #[error("the server offers the subnet mask {0}, which is none")]
    Mask(Ipv4Addr),
    /// The server does not say who it is.
    #[error("the server does not identify itself")]
    Server,
    /// The server does not say for how long.
    #[error("the server gives no lease time")]
    Time,
}

impl Lease {
    /// Judges an offer or acknowledgement that answers a request sent at `requested` (time since boot): times of a
    /// lease count from the request, so that the client never believes longer than the server (RFC 2131 4.4.1).
    ///
    /// # Errors
    /// When what it grants cannot be used.
    pub fn from_reply(reply: &Reply, requested: Duration) -> Result<Self, LeaseError> {
        let address = reply.address;
        let usable = !(address.is_unspecified()
            || address.is_broadcast()
            || address.is_multicast()
            || address.is_loopback()
            || address.octets()[0] == 0);
        if !usable {
            return Err(LeaseError::Address(address));
        }
        let mask = reply.mask.unwrap_or_else(|| class_mask(address));
        let address = Ipv4Net::with_netmask(address, mask).map_err(|_| LeaseError::Mask(mask))?;
        let server = reply.server.ok_or(LeaseError::Server)?;
        let seconds = reply.lease.filter(|seconds| *seconds > 0).ok_or(LeaseError::Time)?;

        // A client that understands classless routes ignores the router option beside them (RFC 3442).
        let routes = if reply.routes.is_empty() {
            let gateway = reply.routers.iter().find(|router| !router.is_unspecified()).copied();
            gateway
                .map(|gateway| LeaseRoute { destination: Ipv4Net::default(), gateway: Some(gateway) })
                .into_iter()
                .collect()
        } else {
            let route = |(destination, gateway): &(Ipv4Net, Ipv4Addr)| LeaseRoute {
                destination: destination.trunc(),
                gateway: (!gateway.is_unspecified()).then_some(*gateway),
            };
            reply.routes.iter().map(route).collect()
        };
        Ok(Self {
            address,
            server,
            routes,
            nameservers: reply.nameservers.clone(),
            time_servers: reply.time_servers.clone(),
            domain: reply.domain.clone().filter(|domain| is_domain(domain)),
            mtu: reply.mtu.filter(|mtu| *mtu >= MIN_MTU),
            term: (seconds != INFINITE).then(|| term(seconds, reply.renewal, reply.rebinding, requested)),
        })
    }

    /// Whether the address may no longer be used at `now` (time since boot).
    pub fn is_expired(&self, now: Duration) -> bool {
        self.term.is_some_and(|term| term.expire <= now)
    }
}

fn term(lease: u32, renewal: Option<u32>, rebinding: Option<u32>, requested: Duration) -> Term {
    let lease = Duration::from_secs(lease.into());
    let renewal = renewal.map(|seconds| Duration::from_secs(seconds.into()));
    let rebinding = rebinding.map(|seconds| Duration::from_secs(seconds.into()));
    let (renew, rebind) = match (renewal.unwrap_or(lease / 2), rebinding.unwrap_or(lease / 8 * 7)) {
        (renew, rebind) if !renew.is_zero() && renew <= rebind && rebind <= lease => (renew, rebind),
        _ => (lease / 2, lease / 8 * 7),
    };
    Term { renew: requested + renew, rebind: requested + rebind, expire: requested + lease }
}

/// The mask of the address's class, for servers from before subnets.
fn class_mask(address: Ipv4Addr) -> Ipv4Addr {
    match address.octets()[0] {
        0..=127 => Ipv4Addr::new(255, 0, 0, 0),
        128..=191 => Ipv4Addr::new(255, 255, 0, 0),
        _ => Ipv4Addr::new(255, 255, 255, 0),
    }
}

/// Whether the text is a domain name; anything else must not get into `/etc/resolv.conf`.
fn is_domain(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
pub(super) fn reply(kind: ReplyKind, xid: u32) -> Reply {
    Reply {
        kind,
        xid,
        address: Ipv4Addr::new(192, 0, 2, 10),
        server: Some(Ipv4Addr::new(192, 0, 2, 1)),
        mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        routers: vec![Ipv4Addr::new(192, 0, 2, 1)],
        routes: Vec::new(),
        nameservers: vec![Ipv4Addr::new(192, 0, 2, 1)],
        time_servers: Vec::new(),
        domain: Some("example.org".to_owned()),
        mtu: None,
        lease: Some(3600),
        renewal: None,
        rebinding: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTED: Duration = Duration::from_secs(100);

    fn judged(change: impl FnOnce(&mut Reply)) -> Result<Lease, LeaseError> {
        let mut reply = reply(ReplyKind::Ack, 1);
        change(&mut reply);
        Lease::from_reply(&reply, REQUESTED)
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for address in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            let address: Ipv4Addr = address.parse().unwrap();
            assert_eq!(judged(|reply| reply.address = address), Err(LeaseError::Address(address)));
        }
        let holes = Ipv4Addr::new(255, 0, 255, 0);
        assert_eq!(judged(|reply| reply.mask = Some(holes)), Err(LeaseError::Mask(holes)));
        assert_eq!(judged(|reply| reply.server = None), Err(LeaseError::Server));
        assert_eq!(judged(|reply| reply.lease = None), Err(LeaseError::Time));
        assert_eq!(judged(|reply| reply.lease = Some(0)), Err(LeaseError::Time));
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let on_link: Ipv4Net = "198.51.100.0/24".parse().unwrap();
        let router = Ipv4Addr::new(192, 0, 2, 254);
        let lease = judged(|reply| {
            reply.routes = vec![(Ipv4Net::default(), router), (on_link, Ipv4Addr::UNSPECIFIED)];
        });
        let routes = vec![
            LeaseRoute { destination: Ipv4Net::default(), gateway: Some(router) },
            LeaseRoute { destination: on_link, gateway: None },
        ];
        assert_eq!(lease.unwrap().routes, routes);
    }

    #[test]
    fn times_count_from_the_request_and_must_be_in_order() {
        let times = |renewal, rebinding| {
            let lease = judged(|reply| (reply.renewal, reply.rebinding) = (renewal, rebinding)).unwrap();
            let term = lease.term.unwrap();
            [term.renew, term.rebind, term.expire].map(|time| (time - REQUESTED).as_secs())
        };
        assert_eq!(times(None, None), [1800, 3150, 3600]);
        assert_eq!(times(Some(60), Some(120)), [60, 120, 3600]);
        assert_eq!(times(Some(120), Some(60)), [1800, 3150, 3600], "T1 after T2");
        assert_eq!(times(Some(60), Some(9999)), [1800, 3150, 3600], "T2 after the end");
        assert_eq!(times(Some(0), None), [1800, 3150, 3600], "T1 of zero");
        assert_eq!(judged(|reply| reply.lease = Some(u32::MAX)).unwrap().term, None);
    }

    #[test]
    fn small_mtus_and_strange_domains_are_ignored() {
        let mtu = |mtu| judged(|reply| reply.mtu = Some(mtu)).unwrap().mtu;
        assert_eq!([mtu(68), mtu(575), mtu(576), mtu(9000)], [None, None, Some(576), Some(9000)]);
        for domain in ["a b", "a\nnameserver 192.0.2.66", "", ".", "a..b", "a/b"] {
            assert_eq!(judged(|reply| reply.domain = Some(domain.to_owned())).unwrap().domain, None, "{domain:?}");
        }
    }
}
