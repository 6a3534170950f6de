//! DHCPv4 messages as bytes (RFC 2131, RFC 2132, RFC 3396, RFC 3442).
//!
//! Written out here because a message comes from anybody on the link, before there is any trust, and the decoder of
//! dhcproto 0.15 panics on some of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use garboard_plan::network::dhcp::{Message, MessageKind};
use garboard_plan::network::lease::{Reply, ReplyKind};
use ipnet::Ipv4Net;

/// The fixed fields up to the magic cookie.
const HEADER_BYTES: usize = 236;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// Largest message that the client takes, in bytes: what fits a frame of 1500.
const MAX_MESSAGE_BYTES: u16 = 1472;
/// BOOTP relays and some servers drop messages that are shorter than BOOTP's.
const MIN_MESSAGE_BYTES: usize = 300;

/// Option codes (RFC 2132).
mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAMESERVER: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const TIME_SERVER: u8 = 42;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// Values of the option `MESSAGE_TYPE`.
mod message_type {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
}

/// What the client understands, and so asks for; classless routes before the router, as RFC 3442 demands.
const PARAMETERS: [u8; 10] = [
    option::MASK,
    option::ROUTES,
    option::ROUTER,
    option::NAMESERVER,
    option::DOMAIN,
    option::MTU,
    option::TIME_SERVER,
    option::LEASE_TIME,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
];

/// The bytes of a message from the link with that hardware address; `hostname` is told to the server, which may put it
/// into its DNS.
pub fn encode(message: &Message, mac: [u8; 6], hostname: &str) -> Vec<u8> {
    let (kind, client_address) = match message.kind {
        MessageKind::Discover => (message_type::DISCOVER, Ipv4Addr::UNSPECIFIED),
        MessageKind::Select { .. } | MessageKind::Reboot { .. } => (message_type::REQUEST, Ipv4Addr::UNSPECIFIED),
        MessageKind::Extend { address } => (message_type::REQUEST, address),
    };
    let mut bytes = vec![BOOT_REQUEST, ETHERNET, 6, 0];
    bytes.extend(message.xid.to_be_bytes());
    bytes.extend(message.secs.to_be_bytes());
    // No flags: the packet socket takes answers by unicast before the link has an address.
    bytes.extend([0, 0]);
    bytes.extend(client_address.octets());
    bytes.resize(28, 0);
    bytes.extend(mac);
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(COOKIE);

    let mut put = |code: u8, value: &[u8]| {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        bytes.extend([code, length]);
        bytes.extend(value.iter().take(length.into()));
    };
    put(option::MESSAGE_TYPE, &[kind]);
    put(option::CLIENT, &[&[ETHERNET], mac.as_slice()].concat());
    match message.kind {
        MessageKind::Discover | MessageKind::Extend { .. } => {}
        MessageKind::Select { address, server } => {
            put(option::REQUESTED_ADDRESS, &address.octets());
            put(option::SERVER, &server.octets());
        }
        MessageKind::Reboot { address } => put(option::REQUESTED_ADDRESS, &address.octets()),
    }
    put(option::MAX_SIZE, &MAX_MESSAGE_BYTES.to_be_bytes());
    if !hostname.is_empty() {
        put(option::HOSTNAME, hostname.as_bytes());
    }
    put(option::PARAMETERS, &PARAMETERS);
    bytes.push(option::END);
    bytes.resize(bytes.len().max(MIN_MESSAGE_BYTES), 0);
    bytes
}

/// The reply in the bytes, or none if they are no server's message to that hardware address. An option that is not
/// well-formed counts as absent.
pub fn decode(bytes: &[u8], mac: [u8; 6]) -> Option<Reply> {
    let ours = bytes.starts_with(&[BOOT_REPLY, ETHERNET, 6])
        && bytes.get(28..34)? == mac
        && bytes.get(HEADER_BYTES..)?.starts_with(&COOKIE);
    if !ours {
        return None;
    }
    let options = options(bytes);
    let value = |code: u8| options.get(&code).map(Vec::as_slice);
    let kind = match *value(option::MESSAGE_TYPE)?.first()? {
        message_type::OFFER => ReplyKind::Offer,
        message_type::ACK => ReplyKind::Ack,
        message_type::NAK => ReplyKind::Nak,
        _ => return None,
    };
    let domain = value(option::DOMAIN).and_then(|value| std::str::from_utf8(value).ok());
    Some(Reply {
        kind,
        xid: u32::from_be_bytes(array(bytes.get(4..8)?)?),
        address: array(bytes.get(16..20)?)?.into(),
        server: value(option::SERVER).and_then(array).map(Ipv4Addr::from),
        mask: value(option::MASK).and_then(array).map(Ipv4Addr::from),
        routers: addresses(value(option::ROUTER)),
        routes: value(option::ROUTES).and_then(routes).unwrap_or_default(),
        nameservers: addresses(value(option::NAMESERVER)),
        time_servers: addresses(value(option::TIME_SERVER)),
        domain: domain.map(|domain| domain.trim_end_matches('\0').to_owned()),
        mtu: value(option::MTU).and_then(array).map(u16::from_be_bytes),
        lease: value(option::LEASE_TIME).and_then(array).map(u32::from_be_bytes),
        renewal: value(option::RENEWAL_TIME).and_then(array).map(u32::from_be_bytes),
        rebinding: value(option::REBINDING_TIME).and_then(array).map(u32::from_be_bytes),
    })
}

/// All options, one that comes in several parts put together (RFC 3396), those in overloaded fields included.
fn options(bytes: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut options = BTreeMap::new();
    read_options(bytes.get(HEADER_BYTES + COOKIE.len()..), &mut options);
    let overload = options.get(&option::OVERLOAD).and_then(|value: &Vec<u8>| value.first()).copied().unwrap_or(0);
    if overload & 1 != 0 {
        read_options(bytes.get(FILE), &mut options);
    }
    if overload & 2 != 0 {
        read_options(bytes.get(SNAME), &mut options);
    }
    options
}

fn read_options(bytes: Option<&[u8]>, options: &mut BTreeMap<u8, Vec<u8>>) {
    let mut rest = bytes.unwrap_or_default();
    loop {
        match rest {
            [option::PAD, tail @ ..] => rest = tail,
            [] | [_] | [option::END, ..] => return,
            [code, length, tail @ ..] => {
                let Some((value, tail)) = tail.split_at_checked((*length).into()) else { return };
                options.entry(*code).or_default().extend(value);
                rest = tail;
            }
        }
    }
}

fn array<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

fn addresses(value: Option<&[u8]>) -> Vec<Ipv4Addr> {
    value.unwrap_or_default().chunks_exact(4).filter_map(array::<4>).map(Ipv4Addr::from).collect()
}

/// Classless routes: the prefix's length, as many octets of the destination as it covers, the router.
fn routes(mut value: &[u8]) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let [length, rest @ ..] = value {
        let (significant, rest) = rest.split_at_checked(usize::from(*length).div_ceil(8))?;
        let (router, rest) = rest.split_at_checked(4)?;
        let mut destination = [0; 4];
        destination.get_mut(..significant.len())?.copy_from_slice(significant);
        let destination = Ipv4Net::new(destination.into(), *length).ok()?;
        routes.push((destination.trunc(), array::<4>(router)?.into()));
        value = rest;
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    use garboard_plan::network::dhcp::Destination;
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn answer(kind: u8, more: &[u8]) -> Vec<u8> {
        let mut bytes = vec![BOOT_REPLY, ETHERNET, 6, 0, 0, 0, 0, 77];
        bytes.resize(16, 0);
        bytes.extend(ADDRESS.octets());
        bytes.resize(28, 0);
        bytes.extend(MAC);
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(COOKIE);
        bytes.extend([option::MESSAGE_TYPE, 1, kind, option::SERVER, 4, 192, 0, 2, 1]);
        bytes.extend(more);
        bytes
    }

    /// RFC 2131 table 5: which fields a request has in which state.
    #[test]
    fn requests_say_what_their_state_demands() {
        let cases = [
            ("discover", MessageKind::Discover, false, false, false),
            ("select", MessageKind::Select { address: ADDRESS, server: SERVER }, true, true, false),
            ("reboot", MessageKind::Reboot { address: ADDRESS }, true, false, false),
            ("extend", MessageKind::Extend { address: ADDRESS }, false, false, true),
        ];
        for (name, kind, requested, server, client) in cases {
            let message = Message { kind, xid: 77, secs: 3, destination: Destination::Link };
            let bytes = encode(&message, MAC, "keel");
            assert!(bytes.len() >= MIN_MESSAGE_BYTES);
            assert_eq!(bytes[..12], [1, 1, 6, 0, 0, 0, 0, 77, 0, 3, 0, 0], "{name}");
            assert_eq!(bytes[12..16] == ADDRESS.octets(), client, "{name}");
            assert_eq!(bytes[28..34], MAC, "{name}");
            let options = options(&bytes);
            assert_eq!(options.contains_key(&option::REQUESTED_ADDRESS), requested, "{name}");
            assert_eq!(options.contains_key(&option::SERVER), server, "{name}");
            assert_eq!(options[&option::HOSTNAME], b"keel", "{name}");
        }
    }

    #[test]
    fn options_are_read() {
        let more = [
            &[option::MASK, 4, 255, 255, 255, 0, option::PAD, option::ROUTER, 8, 192, 0, 2, 1, 192, 0, 2, 2][..],
            &[option::ROUTES, 8, 24, 198, 51, 100, 192, 0, 2, 1],
            // The second route in a part of its own.
            &[option::ROUTES, 5, 0, 192, 0, 2, 3, option::NAMESERVER, 4, 192, 0, 2, 53],
            &[option::DOMAIN, 4, b'a', b'.', b'b', 0, option::MTU, 2, 5, 120, option::LEASE_TIME, 4, 0, 0, 0, 120],
            &[option::TIME_SERVER, 4, 192, 0, 2, 123],
            &[option::RENEWAL_TIME, 4, 0, 0, 0, 30, option::REBINDING_TIME, 4, 0, 0, 0, 60, option::END, 1, 2],
        ];
        let router = Ipv4Addr::new(192, 0, 2, 3);
        let expected = Reply {
            kind: ReplyKind::Ack,
            xid: 77,
            address: ADDRESS,
            server: Some(SERVER),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            routers: vec![SERVER, Ipv4Addr::new(192, 0, 2, 2)],
            routes: vec![("198.51.100.0/24".parse().unwrap(), SERVER), (Ipv4Net::default(), router)],
            nameservers: vec![Ipv4Addr::new(192, 0, 2, 53)],
            time_servers: vec![Ipv4Addr::new(192, 0, 2, 123)],
            domain: Some("a.b".to_owned()),
            mtu: Some(1400),
            lease: Some(120),
            renewal: Some(30),
            rebinding: Some(60),
        };
        assert_eq!(decode(&answer(message_type::ACK, &more.concat()), MAC), Some(expected));
    }

    #[test]
    fn overloaded_fields_hold_options_too() {
        let mut bytes = answer(message_type::ACK, &[option::OVERLOAD, 1, 3, option::END]);
        bytes[FILE][..4].copy_from_slice(&[option::MTU, 2, 5, 120]);
        bytes[SNAME][..6].copy_from_slice(&[option::LEASE_TIME, 4, 0, 0, 0, 9]);
        let reply = decode(&bytes, MAC).unwrap();
        assert_eq!((reply.mtu, reply.lease), (Some(1400), Some(9)));
    }

    #[test]
    fn what_is_not_for_us_is_no_reply() {
        let bytes = answer(message_type::OFFER, &[]);
        assert!(decode(&bytes, MAC).is_some());
        assert_eq!(decode(&bytes, [2, 0, 0, 0, 0, 8]), None, "another's hardware address");
        for (position, value, name) in [(0, 1, "another client"), (2, 16, "length"), (HEADER_BYTES, 0, "no cookie")] {
            let mut bytes = bytes.clone();
            bytes[position] = value;
            assert_eq!(decode(&bytes, MAC), None, "{name}");
        }
        assert_eq!(decode(&answer(message_type::DISCOVER, &[]), MAC), None, "no server's message");
    }

    #[test]
    fn routes_that_are_not_well_formed_are_none() {
        for value in [&[33, 1, 2, 3, 4, 5, 192, 0, 2, 1][..], &[24, 198, 51], &[0, 192, 0, 2], &[255]] {
            assert_eq!(routes(value), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            decode(&bytes, MAC);
        }

        #[test]
        fn any_options_are_survived(options in proptest::collection::vec(any::<u8>(), 0..400)) {
            decode(&answer(message_type::ACK, &options), MAC);
        }

        #[test]
        fn any_truncation_is_survived(length in 0..260_usize) {
            let mut bytes = answer(message_type::ACK, &[option::MASK, 4, 255, 255, 255, 0]);
            bytes.truncate(length);
            decode(&bytes, MAC);
        }
    }
}
