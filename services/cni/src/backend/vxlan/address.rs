//! What follows from a machine's addresses alone, so that machines need not tell each other.

use std::net::IpAddr;

use garboard_sys::netlink::MacAddress;
use ipnet::IpNet;

/// The hardware address of the machine's end of the tunnels: locally administered, and the same each time.
///
/// An IPv4 address goes into it whole. Of an IPv6 address it has 46 bits of a hash, since addresses of different networks may
/// well end alike; two of 5,000 machines meet in it once in five million clusters, which the configuration's check tells.
pub fn hardware_address(underlay: IpAddr) -> MacAddress {
    match underlay {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            MacAddress([0x0a, 0x76, a, b, c, d])
        }
        IpAddr::V6(address) => {
            // FNV-1a, 64 bits: stable between builds, which the standard library's hasher does not promise.
            let hash = address
                .octets()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
            let [a, b, c, d, e, f, ..] = (hash ^ (hash >> 48)).to_le_bytes();
            MacAddress([a & 0xfc | 0x02, b, c, d, e, f])
        }
    }
}

/// The machine's own address in the pod network, for each IP version of its pods: the zero address of its first network, which no
/// pod ever gets. What the machine itself sends to other machines' pods bears it, so their answers come through the tunnel.
pub fn tunnel_addresses(pod_cidrs: &[IpNet]) -> impl Iterator<Item = IpAddr> + '_ {
    let first = |v4: bool| pod_cidrs.iter().find(move |network| network.addr().is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().map(IpNet::network)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hardware_addresses_stay_and_are_local_and_unicast() {
        let of = |text: &str| hardware_address(text.parse().unwrap()).to_string();
        // Machines of different releases must agree on these.
        assert_eq!(of("192.0.2.10"), "0a:76:c0:00:02:0a");
        assert_eq!(of("2001:db8::10"), "e6:fb:be:a3:b7:52");
        let alike = (0..2000u16).map(|network| hardware_address([0x2001, 0xdb8, network, 0, 0, 0, 0, 1].into()));
        let alike: BTreeSet<MacAddress> = alike.collect();
        assert_eq!(alike.len(), 2000);
        assert!(alike.iter().all(|mac| mac.0[0] & 0x03 == 0x02));
    }

    #[test]
    fn a_machine_has_one_tunnel_address_of_each_ip_version() {
        let networks = ["10.244.1.0/24", "10.244.9.0/24", "fd00:0:0:1::/64"].map(|text| text.parse().unwrap());
        let addresses: Vec<String> = tunnel_addresses(&networks).map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["10.244.1.0", "fd00:0:0:1::"]);
    }
}
