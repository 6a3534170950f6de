//! Who may send into the tunnels: packets to the VXLAN port are taken from the other machines only.
//!
//! An encapsulated packet is whatever its sender says it is: from any pod, past every rule for pods. So none is taken from
//! anybody but a peer, and none from a pod of this machine, whatever source it claims. Nor is one let through to another machine,
//! where it would come from this machine's address, which is a peer's, once it is masqueraded: not from a pod, and not from a
//! client of a Service that leads there. Only one address of a machine is in its peers' sets, so none is taken at another. What
//! comes out of a tunnel is as good as from a pod.
//!
//! Between machines encapsulated packets are not tracked, so nobody translates them: the kernel leaves a changed port out of the
//! outer UDP checksum when the inner one is still to be computed (`inet_proto_csum_replace4` takes it for the one that counts;
//! seen with 6.18), and the receiver drops what comes. Nor does each connection of a pod take the place of two more in the
//! tracking table.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    FORWARD, LOCAL_IN, LOCAL_OUT, PRE_ROUTING, PRIORITY_FILTER, PRIORITY_RAW, TABLE, Version, interface, octets,
    version, within,
};
use crate::backend::vxlan::LINK;
use crate::config::{Peer, Vxlan};
use crate::interface::InterfaceName;
use crate::netfilter::nft::{self, Chain, Datatype, Element, Hook, Set};
use crate::netfilter::nft_expression::{Expression, Field, Verdict};
use crate::netfilter::{Connection, NetfilterError};

/// Name of the set of the other machines' addresses.
pub const PEERS: &str = "tunnel-peers";
const UDP: u8 = 17;

/// The set of the other machines' addresses.
pub(super) fn peers(own: &Vxlan, peers: &[Peer]) -> Set {
    let key: &[Datatype] = if own.address.is_ipv4() { &[Datatype::Ipv4] } else { &[Datatype::Ipv6] };
    Set { name: PEERS, key, value: None, elements: peers.iter().map(element).collect() }
}

fn element(peer: &Peer) -> Element {
    Element { key: octets(peer.address), value: None }
}

/// What is dropped is so after the translation of addresses, so that no Service leads a pod there.
pub(super) fn chains(own: &Vxlan, bridge: &InterfaceName) -> [Chain; 4] {
    let v = Version::of(own.address);
    let to_port = || {
        vec![
            Expression::Load(Field::Protocol, 0),
            Expression::Equal(0, vec![UDP]),
            Expression::Load(Field::Transport(2, 2), 0),
            Expression::Equal(0, own.port.to_be_bytes().to_vec()),
        ]
    };
    let pods = [bridge.as_str(), LINK].map(|name| interface(Field::InputInterface, name));
    let is_peer = |field| [version(v), vec![Expression::Load(field, 8), Expression::Contains(PEERS, 8)]].concat();
    let is_own = |field| [version(v), within(field, IpNet::from(own.address))].concat();
    let verdict = |verdict| vec![Expression::Verdict(verdict)];
    let from_pods = |rest: &[Expression]| pods.clone().map(|pod| [&to_port(), &pod, rest].concat());
    let mut input = from_pods(&verdict(Verdict::Drop)).to_vec();
    input.push([to_port(), is_own(v.destination), is_peer(v.source), verdict(Verdict::Return)].concat());
    input.push([to_port(), verdict(Verdict::Drop)].concat());
    let to_peer = [is_peer(v.destination), verdict(Verdict::Drop)].concat();
    let mut forward = from_pods(&to_peer).to_vec();
    // Between machines that this one is a router for.
    forward.push([to_port(), is_peer(v.source), verdict(Verdict::Return)].concat());
    forward.push([to_port(), to_peer].concat());
    let untracked = |field| vec![[to_port(), is_own(field), vec![Expression::Untracked]].concat()];
    let raw = |number| Some(Hook { kind: "filter", number, priority: PRIORITY_RAW });
    let hook = |number| Some(Hook { kind: "filter", number, priority: PRIORITY_FILTER });
    [
        Chain { name: "tunnel-arriving", hook: raw(PRE_ROUTING), rules: untracked(v.destination) },
        Chain { name: "tunnel-leaving", hook: raw(LOCAL_OUT), rules: untracked(v.source) },
        Chain { name: "tunnel-input", hook: hook(LOCAL_IN), rules: input },
        Chain { name: "tunnel-forward", hook: hook(FORWARD), rules: forward },
    ]
}

/// Makes the set hold these machines' addresses, by its differences only.
///
/// # Errors
/// When the kernel refuses; the set is then as it was.
pub fn admit(peers: &[Peer]) -> Result<(), NetfilterError> {
    let connection = Connection::open()?;
    let present: BTreeSet<Element> = nft::elements(&connection, TABLE, PEERS)?.into_iter().collect();
    let wanted: BTreeSet<Element> = peers.iter().map(element).collect();
    let missing: Vec<Element> = wanted.difference(&present).cloned().collect();
    let stale: Vec<Element> = present.difference(&wanted).cloned().collect();
    if missing.is_empty() && stale.is_empty() {
        return Ok(());
    }
    connection.run(&nft::transaction(|batch| {
        nft::delete_elements(batch, TABLE, PEERS, &stale);
        nft::add_elements(batch, TABLE, PEERS, &missing);
    }))
}
