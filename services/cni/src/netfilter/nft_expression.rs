//! nftables expressions: what a rule looks at and does.

use netlink_bindings::nftables::{CmpOps, FibFlags, MetaKeys, PushExprAttrs, PushExprListAttrs, PushExprMasqAttrs};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

const NFTA_EXPR_DATA: u16 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; netlink-bindings counts these from 0, the kernel from 1.
const FIB_ADDRESS_TYPE: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: ports that cannot be guessed and seldom clash.
const RANDOM_FULLY: u32 = 1 << 4;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;

/// A register of four bytes, counted from 0 to 15.
pub type Register = u8;

/// A part of a packet that rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Name of the interface that it came in by, 16 bytes.
    InputInterface,
    /// Name of the interface that it leaves by, 16 bytes.
    OutputInterface,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    IpVersion,
    /// The transport protocol's number, one byte.
    Protocol,
    /// Bytes of the network header: offset and length.
    Network(u32, u32),
    /// Bytes of the transport header: offset and length.
    Transport(u32, u32),
}

/// Where a packet goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nowhere.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Through another chain and back.
    Jump(&'static str),
    /// Through another chain.
    Goto(&'static str),
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads a field.
    Load(Field, Register),
    /// Loads the type of the destination address as this machine's routes see it (`RTN_LOCAL` and so on), four bytes.
    LoadDestinationType(Register),
    /// Keeps the bits of a mask.
    Mask(Register, Vec<u8>),
    /// Goes on when the register holds these bytes.
    Equal(Register, Vec<u8>),
    /// Goes on when the set holds the key.
    Contains(&'static str, Register),
    /// Loads the value of a key from a map, or stops.
    Map(&'static str, Register, Register),
    /// Rewrites the destination: `NFPROTO_` number, registers of address and port.
    Dnat(u8, Register, Register),
    /// Rewrites the source to the address of the interface that the packet leaves by.
    Masquerade,
    /// Keeps connection tracking, and with it every translation, from the packet.
    Untracked,
    /// Ends the rule.
    Verdict(Verdict),
}

/// `NFT_REG32_00` and so on.
fn number(register: Register) -> u32 {
    8 + u32::from(register)
}

/// Appends an expression to a rule.
pub(super) fn push<P: Pusher>(list: PushExprListAttrs<P>, expression: &Expression) -> PushExprListAttrs<P> {
    let e: PushExprAttrs<PushExprListAttrs<P>> = list.nested_elem();
    match expression {
        Expression::Load(field, register) => {
            let (base, offset, length) = match *field {
                Field::InputInterface => return push_meta(e, MetaKeys::Iifname, *register),
                Field::OutputInterface => return push_meta(e, MetaKeys::Oifname, *register),
                Field::IpVersion => return push_meta(e, MetaKeys::Nfproto, *register),
                Field::Protocol => return push_meta(e, MetaKeys::L4Proto, *register),
                Field::Network(offset, length) => (1, offset, length),
                Field::Transport(offset, length) => (2, offset, length),
            };
            let e = e.nested_data_payload().push_dreg(number(*register)).push_base(base);
            e.push_offset(offset).push_len(length).end_nested().end_nested()
        }
        Expression::LoadDestinationType(register) => {
            let e = e.nested_data_fib().push_dreg(number(*register)).push_result(FIB_ADDRESS_TYPE);
            e.push_flags(FibFlags::Daddr as u32).end_nested().end_nested()
        }
        Expression::Mask(register, mask) => {
            let e = e.nested_data_bitwise().push_sreg(number(*register)).push_dreg(number(*register));
            let e = e.push_len(mask.len() as u32).nested_mask().push_value(mask).end_nested();
            e.nested_xor().push_value(&vec![0; mask.len()]).end_nested().end_nested().end_nested()
        }
        Expression::Equal(register, bytes) => {
            let e = e.nested_data_cmp().push_sreg(number(*register)).push_op(CmpOps::Eq as u32);
            e.nested_data().push_value(bytes).end_nested().end_nested().end_nested()
        }
        Expression::Contains(set, register) => push_lookup(e, set, *register, None),
        Expression::Map(set, key, value) => push_lookup(e, set, *key, Some(*value)),
        Expression::Dnat(family, address, port) => {
            let e = e.nested_data_nat().push_type(DNAT).push_family(u32::from(*family));
            e.push_reg_addr_min(number(*address)).push_reg_proto_min(number(*port)).end_nested().end_nested()
        }
        Expression::Masquerade => {
            // netlink-bindings knows the attributes of this expression but not that they belong to it.
            let mut e = e.push_name(c"masq");
            let data = push_nested_header(e.as_vec_mut(), NFTA_EXPR_DATA);
            drop(PushExprMasqAttrs::new(e.as_vec_mut()).push_flags(RANDOM_FULLY));
            finalize_nested_header(e.as_vec_mut(), data);
            e.end_nested()
        }
        Expression::Untracked => e.push_name(c"notrack").end_nested(),
        Expression::Verdict(verdict) => {
            let (code, chain) = match verdict {
                Verdict::Drop => (0, None),
                Verdict::Return => (-5, None),
                Verdict::Jump(chain) => (-3, Some(chain)),
                Verdict::Goto(chain) => (-4, Some(chain)),
            };
            let e = e.nested_data_immediate().push_dreg(0).nested_data().nested_verdict();
            let mut e = e.push_code(i32::cast_unsigned(code));
            if let Some(chain) = chain {
                e = e.push_chain_bytes(chain.as_bytes());
            }
            e.end_nested().end_nested().end_nested().end_nested()
        }
    }
}

/// Attributes as the kernel numbers them (`enum nft_lookup_attributes`): the specification that netlink-bindings is generated
/// from counts two of them wrongly.
fn push_lookup<P: Pusher>(
    e: PushExprAttrs<PushExprListAttrs<P>>,
    set: &str,
    key: Register,
    value: Option<Register>,
) -> PushExprListAttrs<P> {
    const NFTA_LOOKUP_SREG: u16 = 2;
    const NFTA_LOOKUP_DREG: u16 = 3;
    let mut e = e.nested_data_lookup().push_set_bytes(set.as_bytes());
    for (kind, register) in [(NFTA_LOOKUP_SREG, Some(key)), (NFTA_LOOKUP_DREG, value)] {
        if let Some(register) = register {
            push_header(e.as_vec_mut(), kind, 4);
            e.as_vec_mut().extend_from_slice(&number(register).to_be_bytes());
        }
    }
    e.end_nested().end_nested()
}

fn push_meta<P: Pusher>(
    e: PushExprAttrs<PushExprListAttrs<P>>,
    key: MetaKeys,
    register: Register,
) -> PushExprListAttrs<P> {
    e.nested_data_meta().push_key(key as u32).push_dreg(number(register)).end_nested().end_nested()
}
