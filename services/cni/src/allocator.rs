//! Which addresses of a network are taken: a pure value.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// The addresses of one network. The network's own, the gateway's and (IPv4) the broadcast address are never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    network: IpNet,
    /// The first and last address that may be given out, as numbers.
    first: u128,
    last: u128,
    /// Where the search starts: behind the address given out last, so that one that was freed rests.
    next: u128,
    taken: BTreeSet<u128>,
}

/// Every address of a network is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} addresses of {network} are taken")]
pub struct Exhausted {
    /// The network.
    pub network: IpNet,
    /// How many addresses it has for pods.
    pub capacity: u128,
}

impl Allocator {
    /// All addresses of `network` but those that are `taken`; others than the network's are ignored.
    pub fn new(network: IpNet, taken: impl IntoIterator<Item = IpAddr>) -> Self {
        let broadcast = u128::from(network.addr().is_ipv4());
        let first = number(network.network()) + 2;
        let last = number(network.broadcast()) - broadcast;
        let mut allocator = Self { network, first, last, next: first, taken: BTreeSet::new() };
        allocator.taken = taken.into_iter().filter_map(|address| allocator.own(address)).collect();
        if let Some(&highest) = allocator.taken.last() {
            allocator.next = allocator.after(highest);
        }
        allocator
    }

    /// The network.
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Takes an address.
    ///
    /// # Errors
    /// When none is free.
    pub fn take(&mut self) -> Result<IpAddr, Exhausted> {
        let free = self.free_from(self.next).or_else(|| self.free_from(self.first));
        let Some(free) = free else {
            return Err(Exhausted { network: self.network, capacity: self.last - self.first + 1 });
        };
        self.taken.insert(free);
        self.next = self.after(free);
        Ok(self.address(free))
    }

    /// Gives an address back; does nothing when it is free or of another network.
    pub fn release(&mut self, address: IpAddr) {
        if let Some(number) = self.own(address) {
            self.taken.remove(&number);
        }
    }

    /// The first free address from `start`.
    fn free_from(&self, start: u128) -> Option<u128> {
        let mut candidate = start;
        for &taken in self.taken.range(start..) {
            if taken != candidate {
                break;
            }
            candidate += 1;
        }
        (candidate <= self.last).then_some(candidate)
    }

    fn after(&self, number: u128) -> u128 {
        if number >= self.last { self.first } else { number + 1 }
    }

    fn own(&self, address: IpAddr) -> Option<u128> {
        let own = self.network.contains(&address);
        own.then(|| number(address)).filter(|number| (self.first..=self.last).contains(number))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.network {
            // A number of an IPv4 network came from 32 bits.
            IpNet::V4(_) => IpAddr::V4((number as u32).into()),
            IpNet::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allocator(network: &str) -> Allocator {
        Allocator::new(network.parse().unwrap(), [])
    }

    #[test]
    fn a_small_network_gives_its_pods_addresses_once_each() {
        let mut small = allocator("10.0.0.0/29");
        let given: Vec<String> = (0..5).map(|_| small.take().unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(small.take().unwrap_err().to_string(), "all 5 addresses of 10.0.0.0/29 are taken");
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_used() {
        let mut small = allocator("10.0.0.0/29");
        let first = small.take().unwrap();
        small.release(first);
        assert_eq!(small.take().unwrap().to_string(), "10.0.0.3");
    }

    #[test]
    fn the_last_ipv6_address_is_an_address() {
        let mut small = allocator("fd00::/126");
        assert_eq!(small.take().unwrap().to_string(), "fd00::2");
        assert_eq!(small.take().unwrap().to_string(), "fd00::3");
        assert!(small.take().is_err());
    }

    proptest! {
        /// Whatever is taken and released, an address is never given to two, and none is lost.
        #[test]
        fn addresses_are_distinct_and_none_is_lost(steps in prop::collection::vec((any::<bool>(), any::<usize>()), 0..400)) {
            let mut allocator = allocator("10.1.0.0/27");
            let mut held: Vec<IpAddr> = Vec::new();
            for (take, which) in steps {
                if take {
                    match allocator.take() {
                        Ok(address) => {
                            prop_assert!(!held.contains(&address));
                            prop_assert!(allocator.network().contains(&address));
                            held.push(address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 29),
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(which % held.len());
                    allocator.release(address);
                }
                let restarted = Allocator::new(allocator.network(), held.iter().copied());
                prop_assert_eq!(&restarted.taken, &allocator.taken);
            }
        }
    }
}
