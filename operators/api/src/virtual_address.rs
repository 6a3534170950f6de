//! The virtual address of the Kubernetes API, a part of `Cluster`.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the address may be, in words.
pub const VIRTUAL_ADDRESS_WORDS: &str =
    "an IPv4 address that a machine can have, not of loopback, link-local or multicast";

/// An address of the Kubernetes API that is always on a control-plane machine whose API server serves, so that no load balancer is needed
/// in front of them. When the machine, its API server or its link fails, another takes the address within two seconds, without asking
/// anybody. The machines agree on who holds it by VRRP (version 3, RFC 9568) on the link that they share; like ARP itself, that is not
/// authenticated: whoever is on the link can take the address, and what protects clients is the API server's certificate.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualAddress {
    /// The address: of the link that the control-plane machines share, and nobody's otherwise. The API is there at port 6443.
    #[schemars(schema_with = "ipv4_schema")]
    pub address: Ipv4Addr,
    /// The virtual router's number. Others on the link that speak VRRP, such as routers, must not have the same. Default: the last number
    /// of the address, or 255 if that is 0.
    #[serde(default, rename = "virtualRouterID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub virtual_router_id: Option<u8>,
}

impl VirtualAddress {
    /// The virtual router's number.
    pub fn router_id(&self) -> u8 {
        let [.., last] = self.address.octets();
        self.virtual_router_id.unwrap_or(if last == 0 { u8::MAX } else { last })
    }

    /// Whether a machine can have the address: the same as the schema's rule.
    pub(crate) fn is_usable(&self) -> bool {
        let address = self.address;
        !(address.is_unspecified()
            || address.is_loopback()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_broadcast())
    }

    /// Whether a range has the address.
    pub(crate) fn is_in(&self, range: IpNet) -> bool {
        matches!(range, IpNet::V4(range) if range.contains(&self.address))
    }
}

fn ipv4_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 15,
        "x-kubernetes-validations": [{
            "rule": "isIP(self) && ip(self).family() == 4 && ip(self).isGlobalUnicast()",
            "message": format!("must be {VIRTUAL_ADDRESS_WORDS}"),
        }],
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::machine::MachineJoin;
    use crate::{Cluster, ClusterSpec, Endpoint, Machine};

    use super::*;

    fn shared(text: &str) -> VirtualAddress {
        VirtualAddress { address: text.parse().unwrap(), virtual_router_id: None }
    }

    #[test]
    fn a_virtual_router_has_a_number_in_any_case() {
        assert_eq!(shared("192.0.2.5").router_id(), 5);
        assert_eq!(shared("192.0.3.0").router_id(), 255);
        assert_eq!(VirtualAddress { virtual_router_id: Some(7), ..shared("192.0.2.5") }.router_id(), 7);
    }

    #[test]
    fn the_api_is_reached_where_it_is_declared_to_be() {
        let endpoint = |host: &str| Endpoint { host: host.to_owned(), port: 6443 };
        let founder = Machine::new("node-1", Default::default());
        let mut joined = founder.clone();
        joined.spec.join = Some(MachineJoin { endpoints: vec![endpoint("192.0.2.10")], ..MachineJoin::default() });
        let own: IpAddr = [192, 0, 2, 7].into();
        for (what, declared, address, expected) in [
            ("nothing is", (None, None), Some(own), ("192.0.2.7:6443", "192.0.2.10:6443")),
            ("a virtual address", (None, Some(shared("192.0.2.5"))), None, ("192.0.2.5:6443", "192.0.2.5:6443")),
            (
                "an endpoint too",
                (Some(endpoint("api.example.org")), Some(shared("192.0.2.5"))),
                Some(own),
                ("api.example.org:6443", "api.example.org:6443"),
            ),
        ] {
            let (endpoint, virtual_address) = declared;
            let spec = ClusterSpec { endpoint, virtual_address, ..ClusterSpec::default() };
            let cluster = Cluster::new("cluster", spec);
            let of = |machine| cluster.endpoint_of(machine, address).unwrap().to_string();
            assert_eq!((of(&founder).as_str(), of(&joined).as_str()), expected, "{what}");
            assert_eq!(cluster.endpoint(address).unwrap().to_string(), expected.0, "{what}");
        }
    }
}
