//! nftables: tables as values, replaced whole in one transaction, and the elements of their sets.

use netlink_bindings::consts::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::nftables::{
    CmpOps, FibFlags, MetaKeys, Nfgenmsg, OpDelsetelemDo, OpDeltableDo, OpGetsetelemDump, OpNewchainDo, OpNewruleDo,
    OpNewsetDo, OpNewsetelemDo, OpNewtableDo, PushExprAttrs, PushExprListAttrs, PushExprMasqAttrs,
    PushSetelemListAttrs, SetFlags,
};
use netlink_bindings::traits::{NetlinkRequest, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use super::{Batch, Connection, NetlinkError};

const SUBSYSTEM: u16 = 10 << 8;
const NFT_MSG_NEWTABLE: u16 = SUBSYSTEM;
const NFT_MSG_DELTABLE: u16 = SUBSYSTEM | 2;
const NFT_MSG_NEWCHAIN: u16 = SUBSYSTEM | 3;
const NFT_MSG_NEWRULE: u16 = SUBSYSTEM | 6;
const NFT_MSG_NEWSET: u16 = SUBSYSTEM | 9;
const NFT_MSG_NEWSETELEM: u16 = SUBSYSTEM | 12;
const NFT_MSG_GETSETELEM: u16 = SUBSYSTEM | 13;
const NFT_MSG_DELSETELEM: u16 = SUBSYSTEM | 14;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// `NFPROTO_INET`: one table for both IP versions.
const INET: u8 = 1;
/// An attribute holds 64 KiB; this many elements of the largest key and value stay far below.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: ports that cannot be guessed and seldom clash.
const RANDOM_FULLY: u32 = 1 << 4;
const NFTA_EXPR_DATA: u16 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; netlink-bindings counts these from 0, the kernel from 1.
const FIB_ADDRESS_TYPE: u32 = 3;
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
    /// Ends the rule.
    Verdict(Verdict),
}

/// Where and when the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_PRE_ROUTING` = 0, `NF_INET_LOCAL_OUT` = 3, `NF_INET_POST_ROUTING` = 4.
    pub number: u32,
    /// Smaller is earlier.
    pub priority: i32,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// `None`: only other chains call it.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Vec<Expression>>,
}

/// A set, or a map when it has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// The parts of its keys.
    pub key: &'static [Datatype],
    /// The parts of its values.
    pub value: Option<&'static [Datatype]>,
    /// What is in it.
    pub elements: Vec<Element>,
}

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key, each part padded to four bytes.
    pub key: Vec<u8>,
    /// The value of a map's element, padded alike.
    pub value: Option<Vec<u8>>,
}

/// The type of a part of a key or value: what `nft` calls it, and its length padded to four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
}

impl Datatype {
    fn number_and_length(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Protocol => (12, 4),
            Self::Port => (13, 4),
        }
    }

    /// The number by which `nft` recognises a concatenation (six bits a part), and its length in bytes.
    fn concatenation(parts: &[Self]) -> (u32, u32) {
        parts
            .iter()
            .map(|part| part.number_and_length())
            .fold((0, 0), |(n, l), (number, length)| (n << 6 | number, l + length))
    }
}

/// A table and all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name; the family is inet.
    pub name: &'static str,
    /// Its sets and maps.
    pub sets: Vec<Set>,
    /// Its chains, called ones before their callers.
    pub chains: Vec<Chain>,
}

/// A batch that takes effect whole or not at all.
pub fn transaction(fill: impl FnOnce(&mut Batch)) -> Batch {
    let bracket = |buffer: &mut Vec<u8>| {
        let mut header = Nfgenmsg::new();
        header.set_res_id(SUBSYSTEM >> 8);
        buffer.extend_from_slice(header.as_slice());
    };
    let mut batch = Batch::new();
    batch.push_silent(NFNL_MSG_BATCH_BEGIN, "begin nftables transaction", bracket);
    fill(&mut batch);
    batch.push_silent(NFNL_MSG_BATCH_END, "commit nftables transaction", bracket);
    batch
}

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: INET, ..Nfgenmsg::new() }
}

/// Replaces a table by this one, or makes it.
pub fn replace(batch: &mut Batch, table: &Table) {
    // The first line makes the deletion succeed when there is no table yet.
    add_table(batch, table.name);
    delete_table(batch, table.name);
    add_table(batch, table.name);
    for (id, set) in table.sets.iter().enumerate() {
        add_set(batch, table.name, set, id as u32 + 1);
    }
    for chain in &table.chains {
        add_chain(batch, table.name, chain);
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            add_rule(batch, table.name, chain.name, rule);
        }
    }
    for set in &table.sets {
        add_elements(batch, table.name, set.name, &set.elements);
    }
}

fn add_table(batch: &mut Batch, name: &str) {
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE, format!("create nftables table {name}"), |buffer| {
        drop(OpNewtableDo::encode_request(buffer, &header()).push_name_bytes(name.as_bytes()));
    });
}

/// Deletes a table; ENOENT when there is none.
pub fn delete_table(batch: &mut Batch, name: &str) {
    batch.push(NFT_MSG_DELTABLE, 0, format!("delete nftables table {name}"), |buffer| {
        drop(OpDeltableDo::encode_request(buffer, &header()).push_name_bytes(name.as_bytes()));
    });
}

fn add_set(batch: &mut Batch, table: &str, set: &Set, id: u32) {
    batch.push(NFT_MSG_NEWSET, NLM_F_CREATE, format!("create nftables set {}", set.name), |buffer| {
        let (key_type, key_len) = Datatype::concatenation(set.key);
        let mut attributes = OpNewsetDo::encode_request(buffer, &header())
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(set.name.as_bytes())
            .push_id(id)
            .push_key_type(key_type)
            .push_key_len(key_len);
        if let Some(value) = set.value {
            let (data_type, data_len) = Datatype::concatenation(value);
            attributes = attributes.push_flags(SetFlags::Map as u32).push_data_type(data_type).push_data_len(data_len);
        }
        drop(attributes);
    });
}

fn add_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE, format!("create nftables chain {}", chain.name), |buffer| {
        let mut attributes = OpNewchainDo::encode_request(buffer, &header())
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(chain.name.as_bytes());
        if let Some(hook) = chain.hook {
            attributes = attributes
                .nested_hook()
                .push_num(hook.number)
                .push_priority(hook.priority)
                .end_nested()
                .push_type_bytes(hook.kind.as_bytes());
        }
        drop(attributes);
    });
}

fn add_rule(batch: &mut Batch, table: &str, chain: &str, rule: &[Expression]) {
    batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, format!("add rule to nftables chain {chain}"), |buffer| {
        let mut expressions = OpNewruleDo::encode_request(buffer, &header())
            .push_table_bytes(table.as_bytes())
            .push_chain_bytes(chain.as_bytes())
            .nested_expressions();
        for expression in rule {
            expressions = push_expression(expressions, expression);
        }
        drop(expressions);
    });
}

/// Adds elements to a set; EEXIST, and no effect, when one is there.
pub fn add_elements(batch: &mut Batch, table: &str, set: &str, elements: &[Element]) {
    for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
        batch.push(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, format!("add to nftables set {set}"), |buffer| {
            push_elements(OpNewsetelemDo::encode_request(buffer, &header()), table, set, chunk);
        });
    }
}

/// Removes elements from a set; ENOENT, and no effect, when one is not there.
pub fn delete_elements(batch: &mut Batch, table: &str, set: &str, elements: &[Element]) {
    for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
        batch.push(NFT_MSG_DELSETELEM, 0, format!("delete from nftables set {set}"), |buffer| {
            push_elements(OpDelsetelemDo::encode_request(buffer, &header()), table, set, chunk);
        });
    }
}

fn push_elements<P: Pusher>(attributes: PushSetelemListAttrs<P>, table: &str, set: &str, elements: &[Element]) {
    let attributes = attributes.push_table_bytes(table.as_bytes()).push_set_bytes(set.as_bytes());
    let mut list = attributes.nested_elements();
    for element in elements {
        let mut entry = list.nested_elem().nested_key().push_value(&element.key).end_nested();
        if let Some(value) = &element.value {
            entry = entry.nested_data().push_value(value).end_nested();
        }
        list = entry.end_nested();
    }
    drop(list);
}

/// The elements of a set.
///
/// # Errors
/// When there is no such set, or the kernel refuses to list it.
pub fn elements(connection: &Connection, table: &str, set: &str) -> Result<Vec<Element>, NetlinkError> {
    let mut elements = Vec::new();
    connection.dump(
        NFT_MSG_GETSETELEM,
        &format!("list nftables set {set}"),
        |buffer| {
            drop(
                OpGetsetelemDump::encode_request(buffer, &header())
                    .push_table_bytes(table.as_bytes())
                    .push_set_bytes(set.as_bytes()),
            );
        },
        |payload| {
            let (_, attributes) = OpGetsetelemDump::decode_reply(payload);
            let Ok(list) = attributes.get_elements() else { return Ok(()) };
            for element in list.get_elem() {
                let key = element.get_key().and_then(|key| key.get_value().map(<[u8]>::to_vec));
                let value = element.get_data().and_then(|data| data.get_value().map(<[u8]>::to_vec));
                let key = key.map_err(|_| NetlinkError::Malformed("set element without key"))?;
                elements.push(Element { key, value: value.ok() });
            }
            Ok(())
        },
    )?;
    Ok(elements)
}

/// `NFT_REG32_00` and so on.
fn number(register: Register) -> u32 {
    8 + u32::from(register)
}

fn push_expression<P: Pusher>(list: PushExprListAttrs<P>, expression: &Expression) -> PushExprListAttrs<P> {
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
