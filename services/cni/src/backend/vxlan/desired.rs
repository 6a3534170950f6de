//! What a configuration asks the kernel to hold: a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use garboard_sys::netlink::Vxlan;
use ipnet::IpNet;

use super::address::{hardware_address, tunnel_addresses};
use super::plan::{Desired, Hop, RouteKey, Tunnel};
use crate::config::{self, Config, Peer};

/// What the kernel makes of an IPv6 route's metric 0.
const METRIC_V6: u32 = 1024;

/// What the kernel should hold. `direct` names the machines that are reached without a tunnel, and the links that they are on.
pub fn desire(own: &config::Vxlan, config: &Config, mtu_bytes: u32, direct: &BTreeMap<IpAddr, u32>) -> Desired {
    let mut desired = Desired {
        tunnel: Some(Tunnel {
            vxlan: Vxlan::told(own.vni, own.address, own.port),
            mac: hardware_address(own.address),
            mtu_bytes,
        }),
        addresses: tunnel_addresses(&config.pod_cidrs).map(IpNet::from).collect(),
        ..Desired::default()
    };
    for peer in &config.peers {
        add(&mut desired, peer, direct.get(&peer.address).copied());
    }
    desired
}

fn add(desired: &mut Desired, peer: &Peer, link: Option<u32>) {
    let Peer { name: _, address, pod_cidrs } = peer;
    for network in pod_cidrs {
        let v4 = network.addr().is_ipv4();
        let hop = match link {
            // A route's next hop is of its own IP version.
            Some(index) if v4 == address.is_ipv4() => Hop::Direct { index, gateway: *address },
            _ => {
                let Some(gateway) = tunnel_addresses(pod_cidrs).find(|gateway| gateway.is_ipv4() == v4) else {
                    continue;
                };
                let mac = hardware_address(*address);
                desired.neighbours.insert(gateway, mac);
                desired.forwards.insert(mac, *address);
                Hop::Tunnel(gateway)
            }
        };
        let metric = if v4 { 0 } else { METRIC_V6 };
        desired.routes.insert(RouteKey { destination: *network, metric }, hop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backend;

    fn desired(peers: serde_json::Value, direct: &[(&str, u32)]) -> Desired {
        let config = serde_json::json!({
            "podCIDRs": ["10.244.0.0/24", "fd00:0:0:1::/64"], "clusterCIDRs": ["10.244.0.0/16", "fd00::/48"],
            "backend": "vxlan", "vxlan": {"address": "192.0.2.10"}, "peers": peers,
        });
        let config = Config::parse(&config.to_string()).unwrap();
        let Backend::Vxlan(own) = &config.backend else { unreachable!() };
        let direct = direct.iter().map(|(address, index)| (address.parse().unwrap(), *index)).collect();
        desire(own, &config, 1450, &direct)
    }

    fn routes(desired: &Desired) -> Vec<String> {
        desired.routes.iter().map(|(key, hop)| format!("{} {hop}", key.destination)).collect()
    }

    #[test]
    fn a_machine_has_its_zero_addresses_and_each_peer_its_entries() {
        let peers = serde_json::json!([
            {"name": "b", "address": "192.0.2.11", "podCIDRs": ["10.244.1.0/24", "10.244.9.0/24", "fd00:0:0:2::/64"]},
            {"name": "new", "address": "192.0.2.12"},
        ]);
        let through = desired(peers.clone(), &[]);
        let addresses: Vec<String> = through.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.244.0.0/32", "fd00:0:0:1::/128"]);
        assert_eq!(
            routes(&through),
            [
                "10.244.1.0/24 through the tunnel to 10.244.1.0",
                "10.244.9.0/24 through the tunnel to 10.244.1.0",
                "fd00:0:0:2::/64 through the tunnel to fd00:0:0:2::",
            ]
        );
        assert_eq!(through.neighbours.len(), 2, "one of each IP version");
        assert_eq!(through.forwards.len(), 1);

        let direct = desired(peers, &[("192.0.2.11", 7)]);
        assert_eq!(
            routes(&direct),
            [
                "10.244.1.0/24 to 192.0.2.11 on link 7",
                "10.244.9.0/24 to 192.0.2.11 on link 7",
                // Its next hop would have to be an IPv6 address.
                "fd00:0:0:2::/64 through the tunnel to fd00:0:0:2::",
            ]
        );
        assert_eq!((direct.neighbours.len(), direct.forwards.len()), (1, 1));
    }

    #[test]
    fn a_peer_that_is_reached_directly_needs_no_tunnel() {
        let peers = serde_json::json!([{"name": "b", "address": "192.0.2.11", "podCIDRs": ["10.244.1.0/24"]}]);
        let direct = desired(peers, &[("192.0.2.11", 7)]);
        assert_eq!((direct.routes.len(), direct.neighbours.len(), direct.forwards.len()), (1, 0, 0));
    }
}
