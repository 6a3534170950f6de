//! Answers of DHCP servers, which anybody on the link can send.

use std::collections::BTreeSet;
use std::time::Duration;

use garboard_controllers::network::wire::decode;
use garboard_plan::network::dhcp::{Client, Event};
use garboard_plan::network::lease::{Lease, Reply};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Time since boot of the request.
const ASKED: Duration = Duration::from_secs(100);

#[test]
fn dhcp() {
    for seed in [
        &include_bytes!("__fuzz__/dhcp/corpus/ack-with-routes.bin")[..],
        include_bytes!("__fuzz__/dhcp/corpus/ack-overloaded.bin"),
    ] {
        assert!(decode(seed, MAC).is_some_and(|reply| Lease::from_reply(&reply, ASKED).is_ok()));
    }
    garboard_fuzz::fuzz!("dhcp", answer);
}

/// What is read of an answer fits into it, what is taken of it can be used, and the client goes on whatever comes.
fn answer(bytes: &[u8]) {
    let Some(reply) = decode(bytes, MAC) else { return };
    let Reply { routers, routes, nameservers, time_servers, domain, .. } = &reply;
    let lists = 4 * (routers.len() + nameservers.len() + time_servers.len()) + 5 * routes.len();
    // The two fields that options may lie in as well are read once, too.
    assert!(lists + domain.as_ref().map_or(0, String::len) <= bytes.len(), "{reply:?}");
    if let Ok(lease) = Lease::from_reply(&reply, ASKED) {
        can_be_used(&lease);
    }
    let mut client = Client::new(None, 1);
    let mut now = ASKED;
    let mut message = client.handle(Event::CarrierUp, now);
    for _ in 0..4 {
        let Some(asked) = message else { break };
        message = client.handle(Event::Received(Reply { xid: asked.xid, ..reply.clone() }), now);
        if let Some(deadline) = client.deadline().filter(|_| message.is_none()) {
            assert!(client.is_bound() || deadline > now, "{reply:?}: it is asked again at once");
            now = deadline;
            message = client.handle(Event::Timer, now);
        }
    }
}

fn can_be_used(lease: &Lease) {
    let address = lease.address.addr();
    assert!(!(address.is_unspecified() || address.is_multicast() || address.is_loopback()), "{lease:?}");
    assert!(lease.mtu.is_none_or(|mtu| mtu >= 576), "{lease:?}");
    assert!(lease.routes.iter().all(|route| route.destination == route.destination.trunc()), "{lease:?}");
    // It gets into a file of lines and words.
    let known: BTreeSet<char> = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['.', '-']).collect();
    assert!(lease.domain.iter().all(|domain| domain.chars().all(|c| known.contains(&c))), "{lease:?}");
    if let Some(term) = lease.term {
        assert!(ASKED <= term.renew && term.renew <= term.rebind && term.rebind <= term.expire, "{lease:?}");
    }
}
