//! What a machine decides about its own node.

use garboard_catalog::kube_controller_manager::node_block_prefix;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The part of the pod addresses that the first node of a cluster takes by itself; none when there are other nodes.
///
/// kube-controller-manager gives it the same part, but only after the API server has finished its own start and all controllers theirs,
/// which takes longer than everything else between power-on and a Ready node. It respects what a node has.
pub fn first_block(cluster: IpNet, nodes: usize) -> Option<IpNet> {
    let prefix = node_block_prefix(cluster);
    let block = match cluster {
        IpNet::V4(net) => Ipv4Net::new(net.network(), prefix).map(IpNet::V4),
        IpNet::V6(net) => Ipv6Net::new(net.network(), prefix).map(IpNet::V6),
    };
    block.ok().filter(|_| nodes == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_node_takes_the_first_block() {
        for (cluster, nodes, expected) in [
            ("10.244.0.0/16", 1, Some("10.244.0.0/24")),
            ("10.244.3.0/24", 1, Some("10.244.3.0/24")),
            ("fd00:1::/56", 1, Some("fd00:1::/64")),
            ("10.244.0.0/16", 2, None),
            ("10.244.0.0/16", 0, None),
        ] {
            let expected = expected.map(|block| block.parse().unwrap());
            assert_eq!(first_block(cluster.parse().unwrap(), nodes), expected, "{cluster} {nodes}");
        }
    }
}
