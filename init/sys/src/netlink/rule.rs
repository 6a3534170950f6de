use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{Netlink, NetlinkError};

/// A rule that sends packets to a table of routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is about IPv6 packets; else it is about IPv4 packets.
    pub ipv6: bool,
    /// Where the packets come from; none when that is irrelevant.
    pub from: Option<IpNet>,
    /// Where they go; none when that is irrelevant.
    pub to: Option<IpNet>,
    /// Their mark and which of its bits count; none when it is irrelevant.
    pub mark: Option<(u32, u32)>,
    /// The table in which their route is looked up.
    pub table: u32,
    /// Rules are tried from the lowest number on.
    pub priority: u32,
    /// Who made it (`FRA_PROTOCOL`); [`super::PROTOCOL`] for ours.
    pub protocol: u8,
}

impl Netlink {
    /// All rules of both address families that send packets to a table by nothing but these fields.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn rules(&mut self) -> Result<Vec<Rule>, NetlinkError> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let listed = self.handle.rule().get(version).execute();
            rules.extend(self.list("list rules", listed, Rule::read).await?);
        }
        Ok(rules)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// When there is such a rule ([`NetlinkError::is_taken`]), or the kernel refuses it.
    pub async fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.message();
        self.ask(format!("add a rule of priority {} for table {}", rule.priority, rule.table), request.execute()).await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// When there is no such rule ([`NetlinkError::is_missing`]).
    pub async fn remove_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule.message());
        let operation = format!("remove the rule of priority {} for table {}", rule.priority, rule.table);
        self.ask(operation, request.execute()).await
    }
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let Self { ipv6, from, to, mark, table, priority, protocol } = self;
        let mut message = RuleMessage::default();
        message.header.family = if *ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        if let Some(from) = from {
            message.header.src_len = from.prefix_len();
            message.attributes.push(RuleAttribute::Source(from.network()));
        }
        if let Some(to) = to {
            message.header.dst_len = to.prefix_len();
            message.attributes.push(RuleAttribute::Destination(to.network()));
        }
        if let Some((mark, mask)) = mark {
            message.attributes.push(RuleAttribute::FwMark(*mark));
            message.attributes.push(RuleAttribute::FwMask(*mask));
        }
        message.attributes.push(RuleAttribute::Table(*table));
        message.attributes.push(RuleAttribute::Priority(*priority));
        message.attributes.push(RuleAttribute::Protocol((*protocol).into()));
        message
    }

    fn read(message: RuleMessage) -> Option<Self> {
        let header = message.header;
        let mut rule = Self {
            ipv6: header.family == AddressFamily::Inet6,
            from: None,
            to: None,
            mark: None,
            table: header.table.into(),
            priority: 0,
            protocol: 0,
        };
        let (mut mark, mut mask) = (None, None);
        let net = |address: IpAddr, length| IpNet::new(address, length).ok();
        for attribute in message.attributes {
            match attribute {
                RuleAttribute::Source(address) => rule.from = Some(net(address, header.src_len)?),
                RuleAttribute::Destination(address) => rule.to = Some(net(address, header.dst_len)?),
                RuleAttribute::FwMark(value) => mark = Some(value),
                RuleAttribute::FwMask(value) => mask = Some(value),
                RuleAttribute::Table(table) => rule.table = table,
                RuleAttribute::Priority(priority) => rule.priority = priority,
                RuleAttribute::Protocol(protocol) => rule.protocol = protocol.into(),
                // The kernel says that nothing is suppressed.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => return None,
            }
        }
        rule.mark = mask.map(|mask| (mark.unwrap_or(0), mask));
        let plain = header.tos == 0 && header.flags.is_empty() && header.action == RuleAction::ToTable;
        plain.then_some(rule)
    }
}
