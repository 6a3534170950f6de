use std::ffi::CString;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use netlink_bindings::nlctrl::OpGetfamilyDo;
use netlink_bindings::wireguard::{
    IterableWgdevice, OpGetDeviceDump, OpSetDeviceDo, PROTONAME, PushWgdevice, WgpeerFlags,
};
use rtnetlink::packet_core::{
    Emitable, ErrorBuffer, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, Parseable,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr as PortAddress};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{ANSWER_LIMIT, HEADER_BYTES, NetlinkError, reason};

/// `GENL_ID_CTRL`: who knows the numbers of the others.
const CONTROLLER: u16 = 16;

/// A public key.
pub type PublicKey = [u8; 32];

/// A private key, which is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// What a WireGuard link knows, besides what every link has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wireguard {
    /// Its own key.
    pub private_key: Option<PrivateKey>,
    /// The public part of that.
    pub public_key: Option<PublicKey>,
    /// The UDP port that it listens at; 0 before it is up for the first time.
    pub listen_port: u16,
    /// Whom it talks to.
    pub peers: Vec<WireguardPeer>,
}

/// A peer of a WireGuard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    /// Its key.
    pub public_key: PublicKey,
    /// Where it is, as it was told or where it was heard from last.
    pub endpoint: Option<SocketAddr>,
    /// Time between two packets that keep the way to it open, seconds; 0 for none.
    pub keepalive_seconds: u16,
    /// What it may send from and is sent.
    pub allowed: Vec<IpNet>,
    /// When it proved its key last.
    pub handshake: Option<SystemTime>,
}

/// A change of a WireGuard link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireguardChange {
    /// Give it this key.
    PrivateKey(PrivateKey),
    /// Have it listen at this UDP port.
    ListenPort(u16),
    /// Add a peer or make it what it is to be. Without an endpoint, the one that it has stays.
    Peer {
        /// Its key.
        public_key: PublicKey,
        /// Where it is.
        endpoint: Option<SocketAddr>,
        /// Time between two packets that keep the way to it open, seconds; 0 for none.
        keepalive_seconds: u16,
        /// What it may send from and is sent, and nothing else.
        allowed: Vec<IpNet>,
    },
    /// Remove a peer.
    RemovePeer(PublicKey),
}

/// What WireGuard links of a network namespace know, over generic netlink. The kernel answers while it is asked.
#[derive(Debug)]
pub struct WireguardLinks {
    socket: Socket,
    /// The number under which WireGuard is reached.
    family: u16,
}

impl WireguardLinks {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made, or the kernel has no WireGuard.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket.connect(&PortAddress::new(0, 0)).map_err(NetlinkError::Open)?;
        socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true)).map_err(NetlinkError::Open)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))
            .map_err(|errno| NetlinkError::Open(errno.into()))?;
        let mut payload = Vec::new();
        OpGetfamilyDo::encode_request(&mut payload).push_family_name_bytes(PROTONAME.as_bytes());
        let mut family = None;
        let operation = "find WireGuard";
        exchange(&socket, operation, CONTROLLER, NLM_F_ACK, &payload, |answer| {
            family = family.or(OpGetfamilyDo::decode_request(answer).get_family_id().ok());
        })?;
        let family = family.ok_or_else(|| NetlinkError::Unanswered { operation: operation.to_owned() })?;
        Ok(Self { socket, family })
    }

    /// What a link knows.
    ///
    /// # Errors
    /// When there is no such link ([`NetlinkError::is_missing`]), or it is another kind.
    pub fn get(&self, link: &str) -> Result<Wireguard, NetlinkError> {
        let mut payload = Vec::new();
        name(OpGetDeviceDump::encode_request(&mut payload), link);
        let mut found = Wireguard::default();
        exchange(&self.socket, &format!("read WireGuard link {link}"), self.family, NLM_F_DUMP, &payload, |answer| {
            found.read(&OpGetDeviceDump::decode_request(answer));
        })?;
        Ok(found)
    }

    /// Changes a link.
    ///
    /// # Errors
    /// When there is no such link ([`NetlinkError::is_missing`]), or the kernel refuses.
    pub fn change(&self, link: &str, change: &WireguardChange) -> Result<(), NetlinkError> {
        let operation = format!("{} WireGuard link {link}", change.words());
        exchange(&self.socket, &operation, self.family, NLM_F_ACK, &change.encode(link), |_| {})
    }
}

/// Adds the name of a link to a request.
fn name<'a>(request: PushWgdevice<&'a mut Vec<u8>>, link: &str) -> PushWgdevice<&'a mut Vec<u8>> {
    // No interface's name has a zero byte; one would end it.
    request.push_ifname(&CString::new(link).unwrap_or_default())
}

impl WireguardChange {
    fn words(&self) -> &'static str {
        match self {
            Self::PrivateKey(_) => "set the key of",
            Self::ListenPort(_) => "set the port of",
            Self::Peer { .. } => "set a peer of",
            Self::RemovePeer(_) => "remove a peer of",
        }
    }

    fn encode(&self, link: &str) -> Vec<u8> {
        let mut payload = Vec::new();
        let request = name(OpSetDeviceDo::encode_request(&mut payload), link);
        match self {
            Self::PrivateKey(PrivateKey(key)) => drop(request.push_private_key(key)),
            Self::ListenPort(port) => drop(request.push_listen_port(*port)),
            Self::Peer { public_key, endpoint, keepalive_seconds, allowed } => {
                let mut peer = request.array_peers().entry_nested().push_public_key(public_key);
                peer = peer.push_flags(WgpeerFlags::ReplaceAllowedips as u32);
                if let Some(endpoint) = endpoint {
                    peer = peer.push_endpoint(*endpoint);
                }
                let mut ranges = peer.push_persistent_keepalive_interval(*keepalive_seconds).array_allowedips();
                for range in allowed {
                    let family = if range.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                    ranges = ranges
                        .entry_nested()
                        .push_family(family as u16)
                        .push_ipaddr(range.addr())
                        .push_cidr_mask(range.prefix_len())
                        .end_nested();
                }
            }
            Self::RemovePeer(public_key) => {
                let peer = request.array_peers().entry_nested().push_public_key(public_key);
                drop(peer.push_flags(WgpeerFlags::RemoveMe as u32));
            }
        }
        payload
    }
}

impl Wireguard {
    /// Adds what a message tells. The first has all; the rest of a long list of peers, and of one peer's ranges, comes in others.
    fn read(&mut self, device: &IterableWgdevice<'_>) {
        let key = |bytes: &[u8]| bytes.try_into().ok();
        self.private_key = device.get_private_key().ok().and_then(key).map(PrivateKey).or(self.private_key.take());
        self.public_key = device.get_public_key().ok().and_then(key).or(self.public_key);
        self.listen_port = device.get_listen_port().unwrap_or(self.listen_port);
        for peer in device.get_peers().into_iter().flatten() {
            let Some(public_key) = peer.get_public_key().ok().and_then(key) else { continue };
            let ranges = peer.get_allowedips().into_iter().flatten();
            let ranges = ranges.filter_map(|range| net(range.get_ipaddr().ok()?, range.get_cidr_mask().ok()?));
            if let Some(last) = self.peers.last_mut().filter(|last| last.public_key == public_key) {
                last.allowed.extend(ranges);
                continue;
            }
            let handshake = peer.get_last_handshake_time().ok().map(|time| (time.sec, time.nsec));
            let handshake = handshake.filter(|time| *time != (0, 0)).and_then(|(seconds, nanoseconds)| {
                let since = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds))?;
                SystemTime::UNIX_EPOCH.checked_add(since)
            });
            self.peers.push(WireguardPeer {
                public_key,
                endpoint: peer.get_endpoint().ok(),
                keepalive_seconds: peer.get_persistent_keepalive_interval().unwrap_or(0),
                allowed: ranges.collect(),
                handshake,
            });
        }
    }
}

fn net(address: IpAddr, prefix: u8) -> Option<IpNet> {
    IpNet::new(address, prefix).ok()
}

/// Sends one request, hands what is answered to `each`, and waits for the end of the answers.
fn exchange(
    socket: &Socket,
    operation: &str,
    kind: u16,
    flags: u16,
    payload: &[u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), NetlinkError> {
    let silent = |_: io::Error| NetlinkError::Unanswered { operation: operation.to_owned() };
    socket.send(&message(kind, flags, payload), 0).map_err(silent)?;
    loop {
        let (datagram, _) = match socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received.map_err(silent)?,
        };
        let mut rest = &*datagram;
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let payload = message.payload();
            match message.message_type() {
                NLMSG_ERROR => return outcome(operation, payload),
                NLMSG_DONE => return Ok(()),
                _ => each(payload),
            }
            let length = usize::try_from(message.length()).unwrap_or(rest.len());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX);
    header.message_type = kind;
    header.flags = NLM_F_REQUEST | flags;
    let mut message = vec![0; HEADER_BYTES];
    header.emit(&mut message);
    message.extend_from_slice(payload);
    message
}

/// What the kernel says at the end: done, or why not.
fn outcome(operation: &str, payload: &[u8]) -> Result<(), NetlinkError> {
    let unexpected = || NetlinkError::Unexpected { operation: operation.to_owned(), kind: NLMSG_ERROR };
    let refusal = ErrorBuffer::new_checked(&payload).and_then(|buffer| ErrorMessage::parse(&buffer));
    let refusal = refusal.map_err(|_| unexpected())?;
    if refusal.code.is_none() {
        return Ok(());
    }
    Err(NetlinkError::Refused { operation: operation.to_owned(), reason: reason(&refusal), source: refusal.to_io() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = [7; 32];

    fn allowed(ranges: &[&str]) -> Vec<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    /// What a link would know after a change, if the kernel answered with what it was told.
    fn read_back(changes: &[WireguardChange]) -> Wireguard {
        let mut link = Wireguard::default();
        for change in changes {
            link.read(&OpSetDeviceDo::decode_request(&change.encode("wg0")));
        }
        link
    }

    #[test]
    fn what_is_told_is_what_is_read() {
        let private_key = PrivateKey([9; 32]);
        for endpoint in [None, Some("192.0.2.7:51820"), Some("[2001:db8::7]:51820")] {
            let endpoint = endpoint.map(|endpoint| endpoint.parse().unwrap());
            let allowed = allowed(&["198.51.100.0/24", "2001:db8:1::/48", "0.0.0.0/0", "::/0"]);
            let peer =
                WireguardChange::Peer { public_key: KEY, endpoint, keepalive_seconds: 25, allowed: allowed.clone() };
            let link = read_back(&[
                WireguardChange::PrivateKey(private_key.clone()),
                WireguardChange::ListenPort(51820),
                peer.clone(),
            ]);
            assert_eq!((link.private_key, link.listen_port), (Some(private_key.clone()), 51820));
            let peer = WireguardPeer { public_key: KEY, endpoint, keepalive_seconds: 25, allowed, handshake: None };
            assert_eq!(link.peers, [peer]);
        }
    }

    #[test]
    fn a_peer_that_comes_in_parts_is_one() {
        let part = |public_key, ranges: &[&str]| WireguardChange::Peer {
            public_key,
            endpoint: None,
            keepalive_seconds: 0,
            allowed: allowed(ranges),
        };
        let link = read_back(&[part(KEY, &["192.0.2.1/32"]), part(KEY, &["192.0.2.2/32"]), part([8; 32], &[])]);
        let found: Vec<_> = link.peers.iter().map(|peer| (peer.public_key, peer.allowed.len())).collect();
        assert_eq!(found, [(KEY, 2), ([8; 32], 0)]);
    }

    #[test]
    fn a_peer_is_removed_and_its_ranges_replaced_by_flags() {
        let flags = |change: WireguardChange| {
            let payload = change.encode("wg0");
            let request = OpSetDeviceDo::decode_request(&payload);
            assert_eq!(request.get_ifname(), Ok(c"wg0"));
            request.get_peers().unwrap().next().unwrap().get_flags().unwrap()
        };
        assert_eq!(flags(WireguardChange::RemovePeer(KEY)), 1);
        let peer = WireguardChange::Peer { public_key: KEY, endpoint: None, keepalive_seconds: 0, allowed: Vec::new() };
        assert_eq!(flags(peer), 2);
    }

    #[test]
    fn a_message_says_how_long_it_is() {
        let message = message(CONTROLLER, NLM_F_ACK, &[1, 2, 3, 4]);
        let buffer = NetlinkBuffer::new_checked(&*message).unwrap();
        assert_eq!((buffer.length(), buffer.message_type(), buffer.flags()), (20, CONTROLLER, 5));
        assert_eq!(buffer.payload(), [1, 2, 3, 4]);
    }

    #[test]
    fn the_end_of_answers_is_told_from_a_refusal() {
        let ended = |code: i32| outcome("read", &[&code.to_ne_bytes()[..], &[0; HEADER_BYTES]].concat());
        ended(0).unwrap();
        assert!(ended(-19).unwrap_err().is_missing(), "ENODEV");
    }

    #[test]
    fn a_private_key_is_shown_nowhere() {
        let shown = format!("{:?}", WireguardChange::PrivateKey(PrivateKey([171; 32])));
        assert_eq!(shown, "PrivateKey(PrivateKey)");
    }
}
