//! In which order servers are asked.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A server that did not answer is asked after the others for this long.
const AVOIDED: Duration = Duration::from_secs(10);

/// The servers, and which of them did not answer lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers(Vec<Server>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    address: SocketAddr,
    failed: Option<Instant>,
}

impl Servers {
    /// Has these servers from now on, the preferred one first. What is known of those that were there before is kept.
    /// Returns whether that is news.
    pub fn set(&mut self, addresses: &[SocketAddr]) -> bool {
        let mut servers: Vec<Server> = Vec::with_capacity(addresses.len());
        for &address in addresses {
            if servers.iter().all(|server| server.address != address) {
                servers.push(Server { address, failed: self.find(address).and_then(|server| server.failed) });
            }
        }
        let news = self.0 != servers;
        self.0 = servers;
        news
    }

    /// Every server: first those that answer, as they are preferred, then the others, the one that failed longest ago first.
    pub fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let avoided = |server: &Server| server.failed.filter(|failed| now.saturating_duration_since(*failed) < AVOIDED);
        let mut servers: Vec<&Server> = self.0.iter().collect();
        // None comes before all times, and equal ones stay as they are.
        servers.sort_by_key(|server| avoided(server));
        servers.into_iter().map(|server| server.address).collect()
    }

    /// Notes whether a server answered at `now`. Returns whether that is news.
    pub fn note(&mut self, address: SocketAddr, answered: bool, now: Instant) -> bool {
        let Some(server) = self.0.iter_mut().find(|server| server.address == address) else { return false };
        let news = server.failed.is_none() != answered;
        server.failed = (!answered).then_some(now);
        news
    }

    /// Whether this is one of them.
    pub fn has(&self, address: SocketAddr) -> bool {
        self.find(address).is_some()
    }

    fn find(&self, address: SocketAddr) -> Option<&Server> {
        self.0.iter().find(|server| server.address == address)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    fn addresses(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().copied().map(address).collect()
    }

    #[test]
    fn those_that_failed_come_last_for_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut servers = Servers::default();
        servers.set(&addresses(&[1, 2, 3]));
        assert!(servers.note(address(1), false, at(0)));
        assert!(!servers.note(address(1), false, at(0)));
        assert!(servers.note(address(2), false, at(1)));
        assert_eq!(servers.order(at(2)), addresses(&[3, 1, 2]));
        assert_eq!(servers.order(at(10)), addresses(&[1, 3, 2]), "the first has had its ten seconds");
        assert!(servers.note(address(2), true, at(10)));
        assert_eq!(servers.order(at(10)), addresses(&[1, 2, 3]));
    }

    #[test]
    fn what_is_known_of_a_server_outlasts_a_change_of_the_others() {
        let now = Instant::now();
        let mut servers = Servers::default();
        servers.set(&addresses(&[1, 2]));
        servers.note(address(1), false, now);
        servers.set(&addresses(&[1, 3, 1]));
        assert_eq!(servers.order(now), addresses(&[3, 1]));
        assert!(!servers.note(address(2), true, now), "a server that is none any more");
    }

    proptest! {
        #[test]
        fn every_server_is_asked_once(ports in prop::collection::vec(1u16..8, 0..6), failed in prop::collection::vec((1u16..8, 0u64..20), 0..9)) {
            let start = Instant::now();
            let mut servers = Servers::default();
            servers.set(&addresses(&ports));
            for (port, at) in failed {
                servers.note(address(port), false, start + Duration::from_secs(at));
            }
            let order = servers.order(start + Duration::from_secs(15));
            let asked: BTreeSet<_> = order.iter().copied().collect();
            prop_assert_eq!(order.len(), asked.len());
            prop_assert_eq!(asked, addresses(&ports).into_iter().collect());
        }
    }
}
