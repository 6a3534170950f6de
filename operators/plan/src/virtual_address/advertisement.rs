//! The protocol's messages (RFC 9568, section 5.2).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Declared;

/// Version 3 and the type of an advertisement, of which there is one.
const VERSION_AND_TYPE: u8 = 0x31;
/// Everything before the addresses, bytes.
const HEADER_BYTES: usize = 8;
/// Of the interval's field the upper four bits mean nothing.
const INTERVAL_BITS: u16 = 0xfff;
/// Longest interval that counts: who advertises less often would be missed for too long.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// What a machine says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Its own address.
    pub sender: Ipv4Addr,
    /// How well it can hold the address; 0 when it has just given it up.
    pub priority: u8,
    /// How often it says so.
    pub interval: Duration,
}

/// The message that advertises the declared address.
pub fn write(declared: Declared, priority: u8, interval: Duration) -> Vec<u8> {
    let Declared { address, router_id } = declared;
    let hundredths = u16::try_from(interval.as_millis() / 10).map_or(INTERVAL_BITS, |value| value.min(INTERVAL_BITS));
    let mut message = vec![VERSION_AND_TYPE, router_id, priority, 1];
    message.extend(hundredths.to_be_bytes());
    message.extend([0, 0]);
    message.extend(address.octets());
    let sum = checksum(&message).to_be_bytes();
    message.splice(6..HEADER_BYTES, sum);
    message
}

/// An advertisement of the declared address, and of it alone; none when the message is another, or damaged.
pub fn read(declared: Declared, sender: Ipv4Addr, message: &[u8]) -> Option<Advertisement> {
    let (header, addresses) = message.split_at_checked(HEADER_BYTES)?;
    let [VERSION_AND_TYPE, router_id, priority, 1, high, low, _, _] = *header else { return None };
    // Over IPv4 the sum is of the message alone (section 5.2.8).
    let whole = checksum(message) == 0;
    let ours = router_id == declared.router_id && addresses == declared.address.octets();
    let interval = Duration::from_millis(10 * u64::from(u16::from_be_bytes([high, low]) & INTERVAL_BITS));
    let counts = whole && ours && !interval.is_zero() && interval <= INTERVAL_MAX;
    counts.then_some(Advertisement { sender, priority, interval })
}

/// The internet checksum (RFC 1071); 0 of bytes that have theirs among them.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| {
        u32::from(pair.first().copied().unwrap_or_default()) << 8 | u32::from(pair.get(1).copied().unwrap_or_default())
    };
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Declared = Declared { address: Ipv4Addr::new(192, 0, 2, 5), router_id: 7 };
    const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
    const INTERVAL: Duration = Duration::from_millis(250);

    /// A message with a right checksum, of which a part was changed before.
    fn changed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = write(OURS, 200, INTERVAL);
        message[6..8].fill(0);
        change(&mut message);
        let sum = checksum(&message).to_be_bytes();
        message[6..8].copy_from_slice(&sum);
        message
    }

    #[test]
    fn what_is_written_is_as_the_protocol_has_it() {
        // The sum, added up by hand: 3107 + c801 + 0019 + c000 + 0205 = 1bb26, folded bb27, inverted 44d8.
        let expected = [0x31, 7, 200, 1, 0, 25, 0x44, 0xd8, 192, 0, 2, 5];
        assert_eq!(write(OURS, 200, INTERVAL), expected);
    }

    #[test]
    fn only_what_is_ours_and_whole_is_read() {
        let advertisement = Advertisement { sender: SENDER, priority: 200, interval: INTERVAL };
        for (what, message, expected) in [
            ("ours", changed(|_| {}), Some(advertisement)),
            ("bits that mean nothing", changed(|message| message[4] |= 0xf0), Some(advertisement)),
            ("given up", changed(|message| message[2] = 0), Some(Advertisement { priority: 0, ..advertisement })),
            ("version 2", changed(|message| message[0] = 0x21), None),
            ("another type", changed(|message| message[0] = 0x32), None),
            ("another router", changed(|message| message[1] = 8), None),
            ("another address", changed(|message| message[11] = 6), None),
            ("no address", changed(|message| message[3] = 0), None),
            ("more addresses than there are", changed(|message| message[3] = 2), None),
            (
                "one of several addresses",
                changed(|message| {
                    message[3] = 2;
                    message.extend([192, 0, 2, 6]);
                }),
                None,
            ),
            ("something behind it", changed(|message| message.extend([0, 0, 0, 0])), None),
            ("never again", changed(|message| message[4..6].fill(0)), None),
            ("seldom", changed(|message| message[4..6].copy_from_slice(&101_u16.to_be_bytes())), None),
            ("nothing", vec![], None),
        ] {
            assert_eq!(read(OURS, SENDER, &message), expected, "{what}");
        }
        for at in 0..12 {
            let mut damaged = write(OURS, 200, INTERVAL);
            damaged[at] ^= 4;
            assert_eq!(read(OURS, SENDER, &damaged), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(priority: u8, hundredths in 1..=100_u64) {
            let interval = Duration::from_millis(hundredths * 10);
            let read = read(OURS, SENDER, &write(OURS, priority, interval));
            prop_assert_eq!(read, Some(Advertisement { sender: SENDER, priority, interval }));
        }

        #[test]
        fn anything_may_come(message in proptest::collection::vec(any::<u8>(), 0..140)) {
            let _ = read(OURS, SENDER, &message);
        }
    }
}
