//! What a machine decides about its own node.

use garboard_api::machine::{Taint, TaintEffect};
use garboard_catalog::Peer;
use garboard_catalog::kube_controller_manager::node_block_prefix;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1 as core;

/// The part of the pod addresses that the machine which founds a cluster takes for its node by itself.
///
/// kube-controller-manager gives the first node the same part, but only after the API server has finished its own start and all
/// controllers theirs, which takes longer than everything else between power-on and a Ready node. It respects what a node has.
pub fn first_block(cluster: IpNet) -> Option<IpNet> {
    let prefix = node_block_prefix(cluster);
    let block = match cluster {
        IpNet::V4(net) => Ipv4Net::new(net.network(), prefix).map(IpNet::V4),
        IpNet::V6(net) => Ipv6Net::new(net.network(), prefix).map(IpNet::V6),
    };
    block.ok()
}

/// A node as the pod network of others needs it; none while it lacks an address or a part of the pod addresses.
pub fn peer(node: &core::Node) -> Option<Peer> {
    let spec = node.spec.as_ref()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let address = internal.filter_map(|address| address.address.parse().ok()).next()?;
    let pod_cidrs: Vec<IpNet> = spec.pod_cidrs.iter().flatten().filter_map(|cidr| cidr.parse().ok()).collect();
    (!pod_cidrs.is_empty()).then(|| Peer { name: node.metadata.name.clone().unwrap_or_default(), address, pod_cidrs })
}

/// The taints that a node should have: those of others, and the declared ones in place of those that were declared `before`. None when
/// it has them and they are noted.
pub fn taints(declared: &[Taint], before: &[Taint], live: &[core::Taint]) -> Option<Vec<core::Taint>> {
    let is = |taint: &core::Taint, ours: &Taint| taint.key == ours.key && taint.effect == effect(ours.effect);
    let holds = |taint: &core::Taint, ours: &Taint| {
        is(taint, ours) && taint.value.as_deref().unwrap_or_default() == ours.value.as_deref().unwrap_or_default()
    };
    // What the node registered with is not noted yet.
    if before == declared && declared.iter().all(|ours| live.iter().any(|taint| holds(taint, ours))) {
        return None;
    }
    let others = live.iter().filter(|taint| !before.iter().chain(declared).any(|ours| is(taint, ours))).cloned();
    let declared = declared.iter().map(|ours| core::Taint {
        key: ours.key.clone(),
        value: ours.value.clone(),
        effect: effect(ours.effect).to_owned(),
        time_added: None,
    });
    Some(others.chain(declared).collect())
}

fn effect(effect: TaintEffect) -> &'static str {
    match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_taints_come_and_go_and_others_stay() {
        let ours = |key: &str, value: &str| Taint {
            key: key.into(),
            value: (!value.is_empty()).then(|| value.into()),
            effect: TaintEffect::NoSchedule,
        };
        let live = |key: &str, value: &str| core::Taint {
            key: key.into(),
            value: (!value.is_empty()).then(|| value.into()),
            effect: "NoSchedule".into(),
            time_added: None,
        };
        let other = live("node.kubernetes.io/unreachable", "");
        for (what, declared, before, now, expected) in [
            ("nothing", vec![], vec![], vec![other.clone()], None),
            ("new", vec![ours("a", "1")], vec![], vec![other.clone()], Some(vec![other.clone(), live("a", "1")])),
            ("there", vec![ours("a", "1")], vec![ours("a", "1")], vec![live("a", "1"), other.clone()], None),
            ("changed", vec![ours("a", "2")], vec![ours("a", "1")], vec![live("a", "1")], Some(vec![live("a", "2")])),
            ("removed by hand", vec![ours("a", "")], vec![ours("a", "")], vec![], Some(vec![live("a", "")])),
            ("withdrawn", vec![], vec![ours("a", "1")], vec![live("a", "1"), other.clone()], Some(vec![other.clone()])),
            ("withdrawn by hand", vec![], vec![ours("a", "1")], vec![other.clone()], Some(vec![other.clone()])),
            ("not noted", vec![ours("a", "1")], vec![], vec![live("a", "1")], Some(vec![live("a", "1")])),
        ] {
            assert_eq!(taints(&declared, &before, &now), expected, "{what}");
        }
    }

    #[test]
    fn the_first_block_is_as_long_as_the_controller_manager_makes_it() {
        for (cluster, expected) in
            [("10.244.0.0/16", "10.244.0.0/24"), ("10.244.3.0/24", "10.244.3.0/24"), ("fd00:1::/56", "fd00:1::/64")]
        {
            assert_eq!(first_block(cluster.parse().unwrap()), Some(expected.parse().unwrap()), "{cluster}");
        }
    }
}
