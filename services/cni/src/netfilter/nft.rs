//! nftables: tables as values, replaced whole in one transaction, and the elements of their sets.

use netlink_bindings::consts::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::nftables::{
    Nfgenmsg, OpDelsetelemDo, OpDeltableDo, OpGetsetelemDump, OpNewchainDo, OpNewruleDo, OpNewsetDo, OpNewsetelemDo,
    OpNewtableDo, PushSetelemListAttrs, SetFlags,
};
use netlink_bindings::traits::{NetlinkRequest, Pusher};

use super::nft_expression::{Expression, push};
use super::{Batch, Connection, NetfilterError};

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
            expressions = push(expressions, expression);
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
pub fn elements(connection: &Connection, table: &str, set: &str) -> Result<Vec<Element>, NetfilterError> {
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
                let key = key.map_err(|_| NetfilterError::Malformed("set element without key"))?;
                elements.push(Element { key, value: value.ok() });
            }
            Ok(())
        },
    )?;
    Ok(elements)
}
