use proptest::prelude::*;

use super::super::lease::reply;
use super::*;

const START: Duration = Duration::from_secs(10);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client that got its first lease at `START`.
fn bound() -> Client {
    let mut client = Client::new(None, 7);
    let discover = client.handle(Event::CarrierUp, START).unwrap();
    let request = client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), START).unwrap();
    assert_eq!(client.handle(Event::Received(reply(ReplyKind::Ack, request.xid)), START), None);
    assert!(client.is_bound());
    client
}

/// Lets timers fire until the client sends or `limit` passes.
fn next_message(client: &mut Client, limit: Duration) -> Option<(Duration, Message)> {
    while let Some(now) = client.deadline().filter(|deadline| *deadline <= limit) {
        if let Some(message) = client.handle(Event::Timer, now) {
            return Some((now, message));
        }
    }
    None
}

#[test]
fn carrier_asks_at_once_and_the_first_offer_is_requested() {
    let mut client = Client::new(None, 1);
    assert_eq!(client.deadline(), None);
    let discover = client.handle(Event::CarrierUp, START).unwrap();
    assert_eq!((discover.kind, discover.destination, discover.secs), (MessageKind::Discover, Destination::Link, 0));
    let request = client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), START).unwrap();
    let select = MessageKind::Select { address: Ipv4Addr::new(192, 0, 2, 10), server: Ipv4Addr::new(192, 0, 2, 1) };
    assert_eq!((request.kind, request.xid), (select, discover.xid));
    assert_eq!(client.lease(), None, "an offer is not a lease");
}

#[test]
fn answers_to_others_are_ignored() {
    let mut client = Client::new(None, 1);
    let discover = client.handle(Event::CarrierUp, START).unwrap();
    assert_eq!(client.handle(Event::Received(reply(ReplyKind::Offer, !discover.xid)), START), None);
    assert_eq!(client.handle(Event::Received(reply(ReplyKind::Ack, discover.xid)), START), None);
    client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), START).unwrap();
    let mut other = reply(ReplyKind::Nak, discover.xid);
    other.server = Some(Ipv4Addr::new(192, 0, 2, 99));
    assert_eq!(client.handle(Event::Received(other), START), None);
    assert_eq!(client.phase(), "requesting");
}

#[test]
fn discovery_backs_off_to_a_minute() {
    let mut client = Client::new(None, 1);
    client.handle(Event::CarrierUp, START);
    let mut last = START;
    for nominal in [1, 2, 4, 8, 16, 32, 64, 64] {
        let (now, message) = next_message(&mut client, secs(9999)).unwrap();
        assert_eq!(message.kind, MessageKind::Discover);
        let waited = (now - last).as_secs_f64() / f64::from(nominal);
        assert!((0.9..=1.1).contains(&waited), "{waited} of {nominal}");
        last = now;
    }
}

#[test]
fn an_offer_that_is_not_honoured_is_given_up() {
    let mut client = Client::new(None, 1);
    let discover = client.handle(Event::CarrierUp, START).unwrap();
    client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), START).unwrap();
    let mut kinds = Vec::new();
    for _ in 0..OFFER_ATTEMPTS {
        kinds.push(next_message(&mut client, secs(99)).unwrap().1.kind);
    }
    assert!(kinds[..3].iter().all(|kind| matches!(kind, MessageKind::Select { .. })));
    assert_eq!(kinds[3], MessageKind::Discover);
}

#[test]
fn a_lease_is_renewed_then_rebound_then_lost() {
    let mut client = bound();
    let server = Ipv4Addr::new(192, 0, 2, 1);
    let (now, renew) = next_message(&mut client, secs(9999)).unwrap();
    assert!((now - START) <= secs(1800) && (now - START) >= secs(1687), "renewed at {now:?}");
    assert_eq!(renew.destination, Destination::Server(server));
    let mut last = now;
    let mut rebound = false;
    let lost = loop {
        let (now, message) = next_message(&mut client, secs(9999)).unwrap();
        if message.kind == MessageKind::Discover {
            break now;
        }
        assert_eq!(message.kind, MessageKind::Extend { address: Ipv4Addr::new(192, 0, 2, 10) });
        assert!(client.lease().is_some());
        rebound |= message.destination == Destination::AnyServer;
        assert_eq!(message.destination == Destination::AnyServer, now >= START + secs(3150));
        assert!(now - last >= secs(1));
        last = now;
    };
    assert!(rebound);
    assert_eq!((lost, client.lease()), (START + secs(3600), None));
}

#[test]
fn renewing_extends_from_the_request() {
    let mut client = bound();
    let (now, renew) = next_message(&mut client, secs(9999)).unwrap();
    client.handle(Event::Received(reply(ReplyKind::Ack, renew.xid)), now + secs(3));
    assert_eq!(client.lease().unwrap().term.unwrap().expire, now + secs(3600));
    assert_eq!(client.phase(), "bound");
}

#[test]
fn a_lease_for_ever_is_never_renewed() {
    let mut client = Client::new(None, 7);
    let discover = client.handle(Event::CarrierUp, START).unwrap();
    client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), START);
    let mut ack = reply(ReplyKind::Ack, discover.xid);
    ack.lease = Some(u32::MAX);
    client.handle(Event::Received(ack), START);
    assert!(client.is_bound());
    assert_eq!(client.deadline(), None);
}

#[test]
fn a_refusal_ends_the_use_of_the_address_at_once() {
    let mut client = bound();
    let (now, renew) = next_message(&mut client, secs(9999)).unwrap();
    let again = client.handle(Event::Received(reply(ReplyKind::Nak, renew.xid)), now).unwrap();
    assert_eq!((again.kind, client.lease()), (MessageKind::Discover, None));
}

#[test]
fn a_server_that_keeps_refusing_is_asked_ever_less() {
    let mut client = Client::new(None, 3);
    let mut discover = client.handle(Event::CarrierUp, START).unwrap();
    let mut now = START;
    let mut waits = Vec::new();
    for _ in 0..9 {
        client.handle(Event::Received(reply(ReplyKind::Offer, discover.xid)), now).unwrap();
        let refused = now;
        discover = match client.handle(Event::Received(reply(ReplyKind::Nak, discover.xid)), now) {
            Some(message) => message,
            None => {
                let (at, message) = next_message(&mut client, secs(9999)).unwrap();
                now = at;
                message
            }
        };
        waits.push((now - refused).as_secs());
    }
    assert_eq!(waits[0], 0);
    assert!(waits[8] >= 57, "{waits:?}");
}

#[test]
fn the_address_is_kept_and_confirmed_when_the_carrier_returns() {
    let mut client = bound();
    assert_eq!(client.handle(Event::CarrierDown, secs(20)), None);
    assert!(client.lease().is_some());
    let reboot = client.handle(Event::CarrierUp, secs(30)).unwrap();
    assert_eq!(reboot.kind, MessageKind::Reboot { address: Ipv4Addr::new(192, 0, 2, 10) });
    for _ in 1..REBOOT_ATTEMPTS {
        assert!(matches!(next_message(&mut client, secs(60)).unwrap().1.kind, MessageKind::Reboot { .. }));
    }
    let (_, discover) = next_message(&mut client, secs(60)).unwrap();
    assert_eq!(discover.kind, MessageKind::Discover);
    assert!(client.lease().is_some(), "the lease has not ended");
}

#[test]
fn a_lease_ends_without_carrier_too() {
    let mut client = bound();
    client.handle(Event::CarrierDown, secs(20));
    assert_eq!(client.deadline(), Some(START + secs(3600)));
    assert_eq!(client.handle(Event::Timer, START + secs(3600)), None);
    assert_eq!(client.lease(), None);
}

#[derive(Clone, Debug)]
enum Happening {
    Carrier(bool),
    Reply { kind: ReplyKind, current: bool, lease: Option<u32>, renewal: Option<u32>, rebinding: Option<u32> },
    Wait,
    Pass(u32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let kind = prop_oneof![Just(ReplyKind::Offer), Just(ReplyKind::Ack), Just(ReplyKind::Nak)];
    let time = proptest::option::of(prop_oneof![Just(0), 1..100_u32, Just(u32::MAX)]);
    let reply = (kind, any::<bool>(), time.clone(), time.clone(), time).prop_map(
        |(kind, current, lease, renewal, rebinding)| Happening::Reply { kind, current, lease, renewal, rebinding },
    );
    let happening = prop_oneof![
        1 => any::<bool>().prop_map(Happening::Carrier),
        4 => reply,
        3 => Just(Happening::Wait),
        1 => (0..500_u32).prop_map(Happening::Pass),
    ];
    proptest::collection::vec(happening, 0..60)
}

proptest! {
    #[test]
    fn whatever_happens_the_client_acts_in_time_and_uses_no_ended_lease(steps in happenings(), seed: u64) {
        let mut client = Client::new(None, seed);
        let mut now = START;
        let mut carrier = false;
        for step in steps {
            let sent = match step {
                Happening::Carrier(up) => {
                    carrier = up;
                    client.handle(if up { Event::CarrierUp } else { Event::CarrierDown }, now)
                }
                Happening::Reply { kind, current, lease, renewal, rebinding } => {
                    let xid = if current { client.xid } else { !client.xid };
                    let reply = Reply { lease, renewal, rebinding, ..reply(kind, xid) };
                    client.handle(Event::Received(reply), now)
                }
                Happening::Wait => {
                    now = client.deadline().unwrap_or(now).max(now);
                    client.handle(Event::Timer, now)
                }
                Happening::Pass(seconds) => {
                    now += secs(seconds.into());
                    client.handle(Event::Timer, now)
                }
            };
            prop_assert!(carrier || sent.is_none(), "sent without carrier");
            prop_assert!(client.lease().is_none_or(|lease| !lease.is_expired(now)), "an ended lease is in use");
            prop_assert!(!client.is_bound() || client.lease().is_some(), "bound to nothing");
            if let Some(deadline) = client.deadline() {
                prop_assert!(deadline > now || step_again(&client, now), "a timer that does not advance");
            } else {
                prop_assert!(!carrier || client.is_bound(), "waits for nothing");
            }
        }
    }
}

/// Whether the due timer moves the deadline on.
fn step_again(client: &Client, now: Duration) -> bool {
    let mut client = client.clone();
    for _ in 0..3 {
        client.handle(Event::Timer, now);
        if client.deadline().is_none_or(|deadline| deadline > now) {
            return true;
        }
    }
    false
}
