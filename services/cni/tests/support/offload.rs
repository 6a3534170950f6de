//! Interfaces that compute no checksums, as simple hardware: the kernel then does so itself before a packet leaves, and the
//! receiver verifies it. Between network namespaces it would otherwise be left out on both sides.

use netlink_sys::{Socket, SocketAddr};

use super::Netns;

const NETLINK_GENERIC: isize = 16;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
/// `struct nlmsghdr` and `struct genlmsghdr`, bytes.
const HEADERS: usize = 16 + 4;

impl Netns {
    /// Has an interface compute no checksums of what it sends.
    pub fn switch_checksums_off(&self, interface: &str) {
        self.run(|| {
            let mut socket = Socket::new(NETLINK_GENERIC).unwrap();
            socket.bind_auto().unwrap();
            socket.connect(&SocketAddr::new(0, 0)).unwrap();
            let named = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
            let family = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &named);
            let id = find(&family[HEADERS..], CTRL_ATTR_FAMILY_ID);
            let device = attribute(ETHTOOL_A_HEADER_DEV_NAME, format!("{interface}\0").as_bytes());
            // A bit that is named without a value is to be off.
            let bit =
                nest(ETHTOOL_A_BITSET_BITS_BIT, &attribute(ETHTOOL_A_BITSET_BIT_NAME, b"tx-checksum-ip-generic\0"));
            let wanted = nest(ETHTOOL_A_FEATURES_WANTED, &nest(ETHTOOL_A_BITSET_BITS, &bit));
            let payload = [nest(ETHTOOL_A_FEATURES_HEADER, &device), wanted].concat();
            ask(&socket, u16::from_ne_bytes([id[0], id[1]]), ETHTOOL_MSG_FEATURES_SET, &payload);
        });
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nest(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// The value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> &[u8] {
    loop {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        if u16::from_ne_bytes([attributes[2], attributes[3]]) == wanted {
            return &attributes[4..length];
        }
        attributes = &attributes[length.next_multiple_of(4)..];
    }
}

/// Asks the kernel; returns its first message, which is no refusal.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADERS + attributes.len()) as u32;
    let header = [&length.to_ne_bytes()[..], &family.to_ne_bytes(), &NLM_F_REQUEST_ACK.to_ne_bytes(), &[0; 8]].concat();
    socket.send(&[&header[..], &[command, 1, 0, 0], attributes].concat(), 0).unwrap();
    let mut first = None;
    loop {
        let mut answer = Vec::with_capacity(65_536);
        socket.recv(&mut answer, 0).unwrap();
        if answer[4..6] != [2, 0] {
            first.get_or_insert(answer);
            continue;
        }
        assert_eq!(
            answer[16..20],
            [0; 4],
            "refused: {:?}",
            std::io::Error::from_raw_os_error(-read_i32(&answer[16..]))
        );
        return first.unwrap_or(answer);
    }
}

fn read_i32(bytes: &[u8]) -> i32 {
    i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
