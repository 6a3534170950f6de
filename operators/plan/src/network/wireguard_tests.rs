use proptest::prelude::*;
use serde_json::{Value, json};

use garboard_api::machine::MachineNetwork;

use super::*;

const ELSEWHERE: &str = "203.0.113.9:7";

fn key(number: u8) -> String {
    let last = b"AEIMQUYc"[usize::from(number)];
    format!("{}{}=", "A".repeat(42), char::from(last))
}

fn config(links: Value) -> Config {
    let network: MachineNetwork = serde_json::from_value(json!({ "links": links })).unwrap();
    Config::from(&network)
}

fn declare(wireguard: Value) -> Config {
    config(json!([
        { "match": { "name": "eth0" } },
        { "name": "wg0", "wireguard": wireguard, "addresses": ["192.0.2.1/24"] },
    ]))
}

fn bare() -> WireguardLink {
    WireguardLink { name: "wg0".to_owned(), has_key: false, public_key: None, listen_port: 0, peers: Vec::new() }
}

/// What a link knows after steps, as the kernel carries them out: a range that a peer is given is taken from others.
fn carry_out(mut link: WireguardLink, steps: &[WireguardStep]) -> WireguardLink {
    for step in steps {
        match step {
            WireguardStep::SetKey(_) => (link.has_key, link.public_key) = (true, Some("public".to_owned())),
            WireguardStep::SetPort(_, port) => link.listen_port = *port,
            WireguardStep::RemovePeer(_, key) => {
                assert!(link.peers.iter().any(|observed| observed.peer.public_key == *key), "{step}");
                link.peers.retain(|observed| observed.peer.public_key != *key);
            }
            WireguardStep::SetPeer(_, peer) => {
                for observed in &mut link.peers {
                    observed.peer.allowed.retain(|range| !peer.allowed.contains(range));
                }
                match link.peers.iter_mut().find(|observed| observed.peer.public_key == peer.public_key) {
                    Some(observed) => {
                        let endpoint = peer.endpoint.or(observed.peer.endpoint);
                        observed.peer = Peer { endpoint, ..peer.clone() };
                    }
                    None => link.peers.push(ObservedPeer { peer: peer.clone(), heard: false }),
                }
            }
        }
    }
    link
}

fn words(steps: &[WireguardStep]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_link_gets_its_key_its_port_and_its_peers() {
    let peers = json!([{ "publicKey": key(1), "endpoint": "192.0.2.7:51820" }, { "publicKey": key(2) }]);
    let config = declare(json!({ "listenPort": 51820, "peers": peers }));
    let steps = plan_wireguard(&config, &[bare()]);
    let expected = [
        "give WireGuard link wg0 its key".to_owned(),
        "WireGuard link wg0 port 51820".to_owned(),
        format!("set peer {} of WireGuard link wg0", key(1)),
        format!("set peer {} of WireGuard link wg0", key(2)),
    ];
    assert_eq!(words(&steps), expected);
    let link = carry_out(bare(), &steps);
    assert_eq!(plan_wireguard(&config, std::slice::from_ref(&link)), []);
    let status = WireguardStatus { name: "wg0".to_owned(), public_key: "public".to_owned() };
    assert_eq!(wireguard_status(&[link]), [status]);
    assert_eq!(wireguard_status(&[bare()]), [], "a key that is not its own is nobody's business");
}

#[test]
fn links_that_are_not_there_or_not_declared_are_left() {
    let config = declare(json!({ "listenPort": 51820 }));
    assert_eq!(plan_wireguard(&config, &[]), []);
    assert_eq!(plan_wireguard(&config, &[WireguardLink { name: "vpn0".to_owned(), ..bare() }]), []);
    assert_eq!(plan_wireguard(&Config::default(), &[bare()]), []);
}

#[test]
fn a_port_that_is_not_declared_is_the_kernels_to_choose() {
    let link = WireguardLink { has_key: true, listen_port: 40_000, ..bare() };
    assert_eq!(plan_wireguard(&declare(json!({})), &[link]), []);
}

/// What differs, and how it comes about.
type Spoilt = (&'static str, fn(&mut WireguardLink));

#[test]
fn each_difference_of_a_peer_is_repaired() {
    let peers = |peer: Value| declare(json!({ "peers": [peer] }));
    let declared = json!({
        "publicKey": key(1),
        "endpoint": "192.0.2.7:51820",
        "allowedIPs": ["198.51.100.0/24", "2001:db8::/32"],
        "persistentKeepaliveSeconds": 25,
    });
    let config = peers(declared);
    let whole = carry_out(bare(), &plan_wireguard(&config, &[bare()]));
    let spoilt: [Spoilt; 7] = [
        ("another key", |link| link.has_key = false),
        ("no peer", |link| link.peers.clear()),
        ("another peer", |link| link.peers[0].peer.public_key = key(2)),
        ("another endpoint", |link| link.peers[0].peer.endpoint = ELSEWHERE.parse().ok()),
        ("another interval", |link| link.peers[0].peer.keepalive_seconds = 0),
        ("a range less", |link| link.peers[0].peer.allowed.truncate(1)),
        ("a range more", |link| link.peers[0].peer.allowed.push("0.0.0.0/0".parse().unwrap())),
    ];
    for (what, spoil) in spoilt {
        let mut link = whole.clone();
        spoil(&mut link);
        let steps = plan_wireguard(&config, std::slice::from_ref(&link));
        assert!(!steps.is_empty(), "{what}");
        assert_eq!(carry_out(link, &steps), whole, "{what}: {:?}", words(&steps));
    }
    let mut link = whole;
    link.peers[0].peer.allowed.reverse();
    assert_eq!(plan_wireguard(&config, &[link]), [], "ranges have no order");
}

#[test]
fn a_peer_that_has_moved_is_followed_while_it_is_heard() {
    let declared = json!({ "publicKey": key(1), "endpoint": "192.0.2.7:51820" });
    let config = declare(json!({ "peers": [declared] }));
    let mut link = carry_out(bare(), &plan_wireguard(&config, &[bare()]));
    link.peers[0].peer.endpoint = ELSEWHERE.parse().ok();
    link.peers[0].heard = true;
    assert_eq!(plan_wireguard(&config, std::slice::from_ref(&link)), []);
    // What is changed of it otherwise leaves it where it is.
    link.peers[0].peer.keepalive_seconds = 7;
    let steps = plan_wireguard(&config, std::slice::from_ref(&link));
    let link = carry_out(link, &steps);
    assert_eq!((link.peers[0].peer.keepalive_seconds, link.peers[0].peer.endpoint), (0, ELSEWHERE.parse().ok()));
}

#[test]
fn a_peer_without_a_declared_endpoint_keeps_the_one_that_it_has() {
    let config = declare(json!({ "peers": [{ "publicKey": key(1) }] }));
    let mut link = carry_out(bare(), &plan_wireguard(&config, &[bare()]));
    link.peers[0].peer.endpoint = ELSEWHERE.parse().ok();
    assert_eq!(plan_wireguard(&config, &[link]), []);
}

/// Peers with ranges that are each one's own.
fn peers() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::btree_map(0..8u8, prop::option::of(0..4u8), 0..6).prop_map(|ranges| {
        let mut owners: std::collections::BTreeMap<u8, u8> = std::collections::BTreeMap::new();
        for (range, owner) in ranges {
            owner.map(|owner| owners.insert(range, owner));
        }
        let of = |owner: u8| {
            let ranges = owners.iter().filter(move |(_, other)| **other == owner);
            ranges.map(|(range, _)| format!("10.{range}.0.0/16")).collect::<Vec<_>>()
        };
        (0..4)
            .map(|owner| (owner, of(owner)))
            .filter(|(_, ranges)| !ranges.is_empty())
            .map(|(owner, ranges)| json!({ "publicKey": key(owner), "allowedIPs": ranges }))
            .collect()
    })
}

proptest! {
    #[test]
    fn planning_after_applying_is_empty(before in peers(), after in peers()) {
        let (before, after) = (declare(json!({ "peers": before })), declare(json!({ "peers": after })));
        let link = carry_out(bare(), &plan_wireguard(&before, &[bare()]));
        let link = carry_out(link.clone(), &plan_wireguard(&after, &[link]));
        prop_assert_eq!(words(&plan_wireguard(&after, &[link])), Vec::<String>::new());
    }
}
