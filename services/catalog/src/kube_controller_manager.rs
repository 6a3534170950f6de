//! kube-controller-manager: the upstream controllers, and the signer of kubelets' serving certificates. It listens on loopback only.

use garboard_supervisor::spec::{ServiceSpec, Slice};
use ipnet::IpNet;

use crate::base::{Args, blank, cgroup, comma, https, liveness, readiness, ready};
use crate::pki::{Leaf, controller_manager as keys};
use crate::{CatalogError, CatalogInput, kube_apiserver, kubeconfig, tls, users};

/// The service's name.
pub const NAME: &str = "kube-controller-manager";
/// Port of health and metrics.
pub const PORT: u16 = 10257;

/// Length of the prefix of each node's part of the pod addresses.
pub fn node_block_prefix(pods: IpNet) -> u8 {
    pods.prefix_len().max(if pods.addr().is_ipv6() { 64 } else { 24 })
}

/// Flags that kube-controller-manager and kube-scheduler share.
pub(crate) fn controller_args(input: &CatalogInput, program: &str, name: &str, port: u16, leaf: Leaf) -> Args {
    let kubeconfig = kubeconfig::path(name);
    Args::new(program)
        .flag("kubeconfig", &kubeconfig)
        .flag("authentication-kubeconfig", &kubeconfig)
        .flag("authorization-kubeconfig", &kubeconfig)
        // The authority is given here, so there is nothing to look up (and nothing to wait for) in the API.
        .flag("authentication-skip-lookup", true)
        .flag("client-ca-file", leaf.ca_file())
        .flag("bind-address", "127.0.0.1")
        .flag("secure-port", port)
        .flag("tls-cert-file", leaf.cert_file())
        .flag("tls-private-key-file", leaf.key_file())
        .flag("tls-min-version", tls::MIN_VERSION)
        .flag("tls-cipher-suites", comma(&tls::CIPHER_SUITES))
        .flag("profiling", false)
        // Alone there is nobody to elect against, and after a crash the lease of the dead process would have to run out first.
        .flag("leader-elect", input.shares_control_plane())
}

/// The specification of kube-controller-manager.
///
/// # Errors
/// None in practice: the names in this crate are valid.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let leaf = Leaf::ControllerManager;
    let args = controller_args(input, "/usr/bin/kube-controller-manager", NAME, PORT, leaf)
        .flag("cluster-name", "garboard")
        // Tokens of machines that never joined are removed when they have expired.
        .flag("controllers", "*,token-cleaner-controller")
        .flag("allocate-node-cidrs", true)
        .flag("cluster-cidr", input.cluster.pod_cidr)
        .flag("node-cidr-mask-size", node_block_prefix(input.cluster.pod_cidr.net()))
        .flag("service-cluster-ip-range", input.cluster.service_cidr)
        .flag("cluster-signing-cert-file", leaf.ca_file())
        .flag("cluster-signing-key-file", keys::CA_KEY)
        .flag("root-ca-file", leaf.ca_file())
        .flag("service-account-private-key-file", keys::SERVICE_ACCOUNT_KEY)
        // Each controller acts under an account of its own, with only its own rights.
        .flag("use-service-account-credentials", true)
        // Getting those accounts is a hundred requests before the first controller runs; at the default of 20 a second a node
        // waits four seconds for its addresses. The API server's own fairness protects it.
        .flag("kube-api-qps", 100)
        .flag("kube-api-burst", 200)
        // The default lies in the read-only root; nothing is ever put here.
        .flag("flex-volume-plugin-dir", "/tmp/volume-plugins")
        .declared(&input.cluster.control_plane, &input.cluster.control_plane.controller_manager.extra_args);
    let mut limits = cgroup(Slice::ControlPlane, -997, 512, 48, 128);
    limits.cpu_weight = Some(200);

    let mut spec = blank(NAME, users::KUBE_CONTROLLER_MANAGER, limits, args.into_vec())?;
    spec.files.push(kubeconfig::file(NAME, kubeconfig::LOCAL_APISERVER, leaf));
    // It gives up when the API server does not answer within ten seconds.
    spec.requires.push(ready(kube_apiserver::NAME)?);
    spec.readiness = Some(readiness(https(PORT, "/healthz", leaf.ca_file(), None)));
    spec.liveness = Some(liveness(https(PORT, "/healthz", leaf.ca_file(), None)));
    Ok(spec)
}
