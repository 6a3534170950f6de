//! Advertisements of the virtual address, which anybody on the link can send.

use std::net::Ipv4Addr;

use garboard_plan::virtual_address::{Declared, read, write};

const OURS: Declared = Declared { address: Ipv4Addr::new(192, 0, 2, 5), router_id: 7 };
const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Bits of the interval that mean nothing.
const NOTHING: u8 = 0xf0;

#[test]
fn advertisements() {
    assert!(read(OURS, SENDER, include_bytes!("__fuzz__/advertisements/corpus/ours.bin")).is_some());
    garboard_fuzz::fuzz!("advertisements", advertisement);
}

/// What is read is what a machine of the same address would have written, but for what means nothing.
fn advertisement(bytes: &[u8]) {
    let Some(read) = read(OURS, SENDER, bytes) else { return };
    let mut plain = bytes.to_vec();
    plain[4] &= !NOTHING;
    let written = write(OURS, read.priority, read.interval);
    assert_eq!((&written[..6], &written[8..]), (&plain[..6], &plain[8..]));
    assert_eq!(garboard_plan::virtual_address::read(OURS, SENDER, &written), Some(read));
}
