//! Rules that send packets to other tables of routes than the main one.

use std::fmt;

use garboard_api::machine::RoutingRule;
use ipnet::IpNet;

/// A rule of one address family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Whether it is about IPv6 packets; else it is about IPv4 packets.
    pub ipv6: bool,
    /// Where the packets come from, if that matters.
    pub from: Option<IpNet>,
    /// Where they go, if that matters.
    pub to: Option<IpNet>,
    /// Their mark and which of its bits count, if it matters.
    pub mark: Option<(u32, u32)>,
    /// The table in which their route is looked up.
    pub table: u32,
    /// Rules are tried from the lowest number on.
    pub priority: u32,
}

/// The rules that are declared, in their order; one that names no address is for both families.
pub fn rules(declared: &[RoutingRule]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for RoutingRule { from, to, fwmark, fwmask, table, priority } in declared {
        let (from, to) = (from.map(|from| from.net()), to.map(|to| to.net()));
        let mark = fwmark.map(|mark| (mark, fwmask.unwrap_or(u32::MAX)));
        for ipv6 in [false, true] {
            let fits = |net: Option<IpNet>| net.is_none_or(|net| net.addr().is_ipv6() == ipv6);
            let rule = Rule { ipv6, from, to, mark, table: *table, priority: *priority };
            if fits(from) && fits(to) && !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ipv6, from, to, mark, table, priority } = self;
        write!(f, "{priority} of IPv{}", if *ipv6 { 6 } else { 4 })?;
        for (word, net) in [("from", from), ("to", to)] {
            if let Some(net) = net {
                write!(f, " {word} {net}")?;
            }
        }
        if let Some((mark, mask)) = mark {
            write!(f, " with mark {mark:#x}/{mask:#x}")?;
        }
        write!(f, " to table {table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_of_its_addresses_family_or_of_both() {
        let declared: Vec<RoutingRule> = serde_json::from_value(serde_json::json!([
            { "from": "192.0.2.0/24", "table": 100, "priority": 10 },
            { "to": "2001:db8::/32", "fwmark": 7, "table": 101, "priority": 11 },
            { "fwmark": 0x70, "fwmask": 0xff, "table": 102, "priority": 12 },
        ]))
        .unwrap();
        let shown: Vec<String> = rules(&declared).iter().map(ToString::to_string).collect();
        let expected = [
            "10 of IPv4 from 192.0.2.0/24 to table 100",
            "11 of IPv6 to 2001:db8::/32 with mark 0x7/0xffffffff to table 101",
            "12 of IPv4 with mark 0x70/0xff to table 102",
            "12 of IPv6 with mark 0x70/0xff to table 102",
        ];
        assert_eq!(shown, expected);
    }
}
