//! What a machine decides about its own node.

use garboard_catalog::kube_controller_manager::node_block_prefix;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_as_long_as_the_controller_manager_makes_it() {
        for (cluster, expected) in
            [("10.244.0.0/16", "10.244.0.0/24"), ("10.244.3.0/24", "10.244.3.0/24"), ("fd00:1::/56", "fd00:1::/64")]
        {
            assert_eq!(first_block(cluster.parse().unwrap()), Some(expected.parse().unwrap()), "{cluster}");
        }
    }
}
