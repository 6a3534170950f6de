//! WireGuard links: their ports, and whom they talk to. That they are there is a matter of [`super::plan_made`].
//!
//! Keys are texts here, in base64; of private keys nothing is known but whether a link has its own.

use std::fmt;
use std::net::SocketAddr;

use garboard_api::machine::{Wireguard, WireguardPeer, WireguardStatus};
use ipnet::IpNet;

use super::{Config, Kind, Selector};

/// What a WireGuard link is observed to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardLink {
    /// Its interface name.
    pub name: String,
    /// Whether it has the private key that was made for it.
    pub has_key: bool,
    /// The public part of the key that it has.
    pub public_key: Option<String>,
    /// The port that it listens at.
    pub listen_port: u16,
    /// Whom it talks to.
    pub peers: Vec<ObservedPeer>,
}

/// A peer as it is observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPeer {
    /// What it is set to, the endpoint that was heard from last included.
    pub peer: Peer,
    /// Whether it was heard from lately: then its endpoint is where it is, whatever was declared.
    pub heard: bool,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub public_key: String,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Time between two packets that keep the way to it open, seconds; 0 for none.
    pub keepalive_seconds: u16,
    /// What it may send from and is sent.
    pub allowed: Vec<IpNet>,
}

/// A change of a WireGuard link, by its interface name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireguardStep {
    /// Give a link its own private key, which is made if it never had one.
    SetKey(String),
    /// Have a link listen at a port.
    SetPort(String, u16),
    /// Remove a peer, by its key.
    RemovePeer(String, String),
    /// Add a peer or change it; without an endpoint, the one that it has stays.
    SetPeer(String, Peer),
}

/// The WireGuard links that are declared, by name.
pub fn wireguard_links(config: &Config) -> impl Iterator<Item = (&str, &Wireguard)> {
    config.links.iter().filter_map(|link| match &link.selector {
        Selector::Made(name, Kind::Wireguard(wireguard)) => Some((name.as_str(), wireguard)),
        _ => None,
    })
}

/// The changes that make links what they are to be; those that are not there are left out.
pub fn plan_wireguard(config: &Config, links: &[WireguardLink]) -> Vec<WireguardStep> {
    let mut steps = Vec::new();
    for (name, Wireguard { listen_port, peers }) in wireguard_links(config) {
        let Some(link) = links.iter().find(|link| link.name == name) else { continue };
        if !link.has_key {
            steps.push(WireguardStep::SetKey(name.to_owned()));
        }
        if let Some(port) = listen_port.filter(|port| *port != link.listen_port) {
            steps.push(WireguardStep::SetPort(name.to_owned(), port));
        }
        let is_declared = |key: &str| peers.iter().any(|peer| peer.public_key == key);
        let keys = link.peers.iter().map(|observed| &observed.peer.public_key);
        let strangers = keys.filter(|key| !is_declared(key));
        steps.extend(strangers.map(|key| WireguardStep::RemovePeer(name.to_owned(), key.clone())));
        for declared in peers {
            let observed = link.peers.iter().find(|observed| observed.peer.public_key == declared.public_key);
            steps.extend(change(declared, observed).map(|peer| WireguardStep::SetPeer(name.to_owned(), peer)));
        }
    }
    steps
}

/// What to set of a peer, if anything differs.
fn change(declared: &WireguardPeer, observed: Option<&ObservedPeer>) -> Option<Peer> {
    let WireguardPeer { public_key, endpoint, allowed_ips, persistent_keepalive_seconds } = declared;
    let mut wanted = Peer {
        public_key: public_key.clone(),
        endpoint: *endpoint,
        keepalive_seconds: persistent_keepalive_seconds.unwrap_or(0),
        allowed: allowed_ips.iter().map(|range| range.net()).collect(),
    };
    let Some(ObservedPeer { peer, heard }) = observed else { return Some(wanted) };
    if *heard || wanted.endpoint == peer.endpoint {
        wanted.endpoint = None;
    }
    let sorted = |ranges: &[IpNet]| {
        let mut ranges = ranges.to_vec();
        ranges.sort();
        ranges
    };
    let same = wanted.endpoint.is_none()
        && wanted.keepalive_seconds == peer.keepalive_seconds
        && sorted(&wanted.allowed) == sorted(&peer.allowed);
    (!same).then_some(wanted)
}

/// What is told of the links that have their key.
pub fn wireguard_status(links: &[WireguardLink]) -> Vec<WireguardStatus> {
    let status = |link: &WireguardLink| {
        let public_key = link.public_key.clone().filter(|_| link.has_key)?;
        Some(WireguardStatus { name: link.name.clone(), public_key })
    };
    links.iter().filter_map(status).collect()
}

impl fmt::Display for WireguardStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetKey(link) => write!(f, "give WireGuard link {link} its key"),
            Self::SetPort(link, port) => write!(f, "WireGuard link {link} port {port}"),
            Self::RemovePeer(link, key) => write!(f, "remove peer {key} from WireGuard link {link}"),
            Self::SetPeer(link, Peer { public_key, .. }) => write!(f, "set peer {public_key} of WireGuard link {link}"),
        }
    }
}

#[cfg(test)]
#[path = "wireguard_tests.rs"]
mod tests;
