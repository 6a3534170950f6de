//! kube-proxy: Services to pods, by packet filter rules of this machine.

use garboard_supervisor::spec::{ServiceSpec, Slice};
use serde_json::{Value, json};

use crate::base::{Args, blank, cgroup, http, liveness, private_file, readiness, ready};
use crate::kubeconfig::pretty;
use crate::paths::service_file;
use crate::pki::Leaf;
use crate::{CatalogError, CatalogInput, ProxyMode, balancer, kube_apiserver, kubeconfig, users};

/// The service's name.
pub const NAME: &str = "kube-proxy";
/// Port of its health, on loopback.
pub const HEALTH_PORT: u16 = 10256;
/// Port of its metrics, on loopback.
pub const METRICS_PORT: u16 = 10249;

/// The specification of kube-proxy.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let config_file = service_file(NAME, "config.json");
    let args = Args::new("/usr/bin/kube-proxy").flag("config", &config_file);
    let mut spec = blank(NAME, users::ROOT, cgroup(Slice::System, -998, 512, 16, 64), args.into_vec())?;
    // It calls nft, or iptables and ipset.
    spec.env.insert("PATH".to_owned(), "/usr/bin:/usr/sbin:/bin:/sbin".to_owned());
    spec.files = vec![
        private_file(config_file, pretty(&config(input)?)),
        kubeconfig::file(NAME, kubeconfig::APISERVERS, Leaf::KubeProxy),
    ];
    spec.isolation.capabilities = Some(match input.cluster.proxy_mode {
        ProxyMode::Nftables => vec!["CAP_NET_ADMIN".to_owned()],
        // iptables opens a raw socket to ask the kernel for its extensions.
        ProxyMode::Iptables | ProxyMode::Ipvs => vec!["CAP_NET_ADMIN".to_owned(), "CAP_NET_RAW".to_owned()],
    });
    if !matches!(input.cluster.proxy_mode, ProxyMode::Nftables) {
        // Both modes change settings of the network, and iptables takes a lock.
        spec.isolation.read_write.extend(["/proc/sys/net".into(), "/run".into()]);
    }
    // It tries again every half minute when nobody answers at first.
    spec.requires.push(ready(if input.founds_control_plane() { kube_apiserver::NAME } else { balancer::NAME })?);
    spec.readiness = Some(readiness(http(HEALTH_PORT, "/livez")));
    spec.liveness = Some(liveness(http(HEALTH_PORT, "/livez")));
    Ok(spec)
}

fn config(input: &CatalogInput) -> Result<Value, CatalogError> {
    let mode = match input.cluster.proxy_mode {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables => "iptables",
        ProxyMode::Ipvs => "ipvs",
    };
    Ok(json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig::path(NAME) },
        "hostnameOverride": input.node.name,
        // Which address is the node's, even if the node is registered late.
        "bindAddress": input.node_address()?,
        "mode": mode,
        "clusterCIDR": input.cluster.pod_cidr,
        "detectLocalMode": "ClusterCIDR",
        "healthzBindAddress": format!("127.0.0.1:{HEALTH_PORT}"),
        "metricsBindAddress": format!("127.0.0.1:{METRICS_PORT}"),
        "bindAddressHardFail": true,
        "enableProfiling": false,
        // The kernel sizes its connection table by the memory. Its timeouts stay too, so kube-proxy changes no settings of the kernel.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    }))
}
