//! On which link the address is.

use std::cmp::Reverse;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A link as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Hardware address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Whether it is up and sees its medium.
    pub works: bool,
}

/// An address as observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its link.
    pub index: u32,
    /// The address and the length of its subnet's prefix.
    pub address: Ipv4Net,
    /// Whether it bears the mark of the virtual address.
    pub shared: bool,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links but the loopback one.
    pub links: Vec<Link>,
    /// Their IPv4 addresses.
    pub addresses: Vec<Address>,
    /// Index of the link of the default route.
    pub default: Option<u32>,
}

/// Where the machine has the virtual address, when it holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the link.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The machine's own address there, by which the others know it.
    pub own: Ipv4Addr,
}

/// Why the machine cannot have the virtual address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaced {
    /// The machine has it as its own.
    #[error("{address} is an address of this machine's link {link}; the virtual address must be nobody's")]
    Own {
        /// The address.
        address: Ipv4Addr,
        /// The link that has it.
        link: String,
    },
    /// No link is the right one.
    #[error(
        "no link of this machine has a subnet with {address}, and there is no default route over a link with an IPv4 address"
    )]
    NoLink {
        /// The address.
        address: Ipv4Addr,
    },
    /// The link does not work.
    #[error("the link {0} is down")]
    Down(String),
    /// The link is none on which machines find each other by ARP.
    #[error("the link {0} is no Ethernet")]
    NoEthernet(String),
}

/// Where the machine is to have a virtual address: on the link whose subnet has it, the smallest if there are several, or on that of the
/// default route.
///
/// # Errors
/// When there is no such link, or it cannot be used now.
pub fn place(address: Ipv4Addr, observed: &Observed) -> Result<Place, Unplaced> {
    let Observed { links, addresses, default } = observed;
    let link_of = |address: &Address| links.iter().find(|link| link.index == address.index);
    let own = || addresses.iter().filter(|own| !own.shared).filter_map(|own| Some((own.address, link_of(own)?)));
    if let Some((_, link)) = own().find(|(own, _)| own.addr() == address) {
        return Err(Unplaced::Own { address, link: link.name.clone() });
    }
    let subnet = own()
        .filter(|(own, _)| own.contains(&address))
        // Of two that are as good the first.
        .min_by_key(|(own, link)| (!link.works, Reverse(own.prefix_len())));
    let found = subnet.or_else(|| own().find(|(_, link)| Some(link.index) == *default));
    let Some((own, link)) = found else { return Err(Unplaced::NoLink { address }) };
    let Link { index, name, mac, works } = link.clone();
    match mac {
        None => Err(Unplaced::NoEthernet(name)),
        Some(_) if !works => Err(Unplaced::Down(name)),
        Some(mac) => Ok(Place { index, name, mac, own: own.addr() }),
    }
}

/// Virtual addresses that the machine must not have, each with the index of its link: all but the one that it is to have there.
pub fn stale(observed: &Observed, wanted: Option<(u32, Ipv4Addr)>) -> Vec<(u32, Ipv4Net)> {
    let shared = observed.addresses.iter().filter(|address| address.shared);
    let stale = shared.filter(|address| wanted != Some((address.index, address.address.addr())));
    stale.map(|address| (address.index, address.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIRTUAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);

    fn link(index: u32) -> Link {
        Link { index, name: format!("eth{index}"), mac: Some([2, 0, 0, 0, 0, index as u8]), works: true }
    }

    fn address(index: u32, address: &str) -> Address {
        Address { index, address: address.parse().unwrap(), shared: false }
    }

    fn observed(addresses: &[Address]) -> Observed {
        Observed { links: vec![link(1), link(2)], addresses: addresses.to_vec(), default: Some(1) }
    }

    #[test]
    fn the_link_is_the_one_whose_subnet_has_the_address() {
        let on = |addresses: &[Address]| {
            place(VIRTUAL, &observed(addresses)).map(|place| (place.index, place.own.to_string()))
        };
        let (own, other) = (address(2, "192.0.2.7/24"), address(1, "198.51.100.7/24"));
        for (what, addresses, expected) in [
            ("its subnet", vec![other, own], (2, "192.0.2.7")),
            ("the first of several", vec![address(2, "192.0.2.9/24"), own], (2, "192.0.2.9")),
            ("the smallest subnet", vec![address(1, "192.0.0.7/16"), own], (2, "192.0.2.7")),
            ("the default link", vec![other, address(2, "203.0.113.7/24")], (1, "198.51.100.7")),
            (
                "not by the virtual address itself",
                vec![other, Address { shared: true, ..address(2, "192.0.2.5/32") }],
                (1, "198.51.100.7"),
            ),
        ] {
            assert_eq!(on(&addresses), Ok((expected.0, expected.1.to_owned())), "{what}");
        }
        let mut broken = observed(&[address(1, "192.0.2.8/25"), own]);
        broken.links[0].works = false;
        assert_eq!(place(VIRTUAL, &broken).unwrap().index, 2, "a link that works");
    }

    #[test]
    fn what_keeps_a_machine_from_it_is_told() {
        let why = |observed: &Observed| place(VIRTUAL, observed).unwrap_err().to_string();
        let own = observed(&[address(2, "192.0.2.7/24")]);
        let (mut down, mut tunnel, mut bare) = (own.clone(), own.clone(), own.clone());
        down.links[1].works = false;
        tunnel.links[1].mac = None;
        bare.addresses.clear();
        for (observed, words) in [
            (observed(&[address(1, "192.0.2.5/24")]), "192.0.2.5 is an address of this machine's link eth1"),
            (down, "the link eth2 is down"),
            (tunnel, "the link eth2 is no Ethernet"),
            (bare, "no link of this machine has a subnet with 192.0.2.5"),
        ] {
            assert!(why(&observed).contains(words), "{}", why(&observed));
        }
    }

    #[test]
    fn only_marked_addresses_are_stale() {
        let shared = |index, text| Address { shared: true, ..address(index, text) };
        let observed = observed(&[address(1, "192.0.2.7/24"), shared(1, "192.0.2.5/32"), shared(2, "192.0.2.5/32")]);
        let net: Ipv4Net = "192.0.2.5/32".parse().unwrap();
        assert_eq!(stale(&observed, Some((1, VIRTUAL))), [(2, net)]);
        assert_eq!(stale(&observed, None), [(1, net), (2, net)]);
    }
}
