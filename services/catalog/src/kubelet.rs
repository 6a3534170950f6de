//! kubelet: runs this node's pods. It makes mounts and cgroups for others, so it sees the machine as it is.

use std::collections::BTreeMap;

use garboard_supervisor::spec::{ServiceSpec, Slice, Stop};
use serde_json::{Value, json};

use crate::base::{Args, MIB, blank, cgroup, http, liveness, private_directory, private_file, readiness, ready};
use crate::input::dns_service_address;
use crate::kubeconfig::pretty;
use crate::paths::{self, service_file};
use crate::pki::Leaf;
use crate::{CatalogError, CatalogInput, ProxyMode, bus, containerd, kubeconfig, logins, tls, users};

/// The service's name.
pub const NAME: &str = "kubelet";
/// Port of the API server's requests: logs, exec, metrics.
pub const PORT: u16 = 10250;
/// Port of its own health, on loopback.
pub const HEALTH_PORT: u16 = 10248;
/// Its data.
pub const DATA_DIR: &str = "/var/lib/kubelet";

/// The specification of kubelet.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address to register with.
pub fn service(input: &CatalogInput) -> Result<ServiceSpec, CatalogError> {
    let config_file = service_file(NAME, "config.json");
    let certificates = service_file(NAME, "pki");
    let args = Args::new("/usr/bin/kubelet")
        .flag("config", &config_file)
        .flag("kubeconfig", kubeconfig::path(NAME))
        .flag("root-dir", DATA_DIR)
        // It writes keys without waiting for the disk, and would never start again with what a power cut leaves of them.
        .flag("cert-dir", &certificates)
        .flag("hostname-override", &input.node.name)
        .flag("node-ip", input.node_address()?);
    let mut limits = cgroup(Slice::Node, -999, 8192, 48, 128);
    limits.cpu_weight = Some(300);
    limits.io_weight = Some(200);

    let mut spec = blank(NAME, users::ROOT, limits, args.into_vec())?;
    spec.env.insert("PATH".to_owned(), "/usr/bin:/usr/sbin:/bin:/sbin".to_owned());
    spec.env.insert("HOME".to_owned(), logins::HOME.to_owned());
    spec.env.insert("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), format!("unix:path={}", paths::SYSTEM_BUS_SOCKET));
    spec.directories.extend([private_directory(DATA_DIR), private_directory(certificates)]);
    spec.files = vec![
        private_file(config_file, pretty(&config(input))),
        kubeconfig::file(NAME, kubeconfig::APISERVERS, Leaf::Kubelet),
    ];
    containerd::open_isolation(&mut spec.isolation);
    // It gives up when the runtime does not answer within some seconds.
    spec.requires.push(ready(containerd::NAME)?);
    // kubelet asks logind once, at its start, for the right to delay a shutdown; without an answer pods get no time to end.
    spec.requires.push(ready(bus::NAME)?);
    spec.readiness = Some(readiness(http(HEALTH_PORT, "/healthz")));
    spec.liveness = Some(liveness(http(HEALTH_PORT, "/healthz")));
    spec.stop = Stop { grace_ms: 20_000, ..Stop::default() };
    Ok(spec)
}

fn config(input: &CatalogInput) -> Value {
    let node = &input.node;
    let settings = &input.machine.kubelet;
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": if node.addresses.first().is_some_and(std::net::IpAddr::is_ipv6) { "::" } else { "0.0.0.0" },
        "port": PORT,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": HEALTH_PORT,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": Leaf::Kubelet.ca_file() },
        },
        "authorization": { "mode": "Webhook" },
        "tlsMinVersion": tls::MIN_VERSION,
        "tlsCipherSuites": tls::CIPHER_SUITES,
        // The serving certificate is requested from the cluster; the client certificate's file is renewed by the node agent.
        "serverTLSBootstrap": true,
        "rotateCertificates": false,
        // Files below /var/log, the audit log among them, are not kubelet's to show.
        "enableSystemLogHandler": false,
        "enableProfilingHandler": false,
        "enableDebugFlagsHandler": false,
        "containerRuntimeEndpoint": format!("unix://{}", paths::CONTAINERD_SOCKET),
        "clusterDomain": input.cluster.dns_domain,
        "clusterDNS": dns_service_address(&input.cluster).as_slice(),
        "resolvConf": paths::RESOLV_CONF,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": paths::PODS_CGROUP,
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "kubeReserved": with(kube_reserved(node.memory_bytes), &settings.kube_reserved),
        "systemReserved": with(json!({ "cpu": "50m", "memory": "128Mi", "pid": "1024" }), &settings.system_reserved),
        "evictionHard": with(eviction_hard(), &settings.eviction_hard),
        "featureGates": settings.feature_gates,
        // The agent keeps them later.
        "registerWithTaints": settings.taints,
        "podPidsLimit": 4096,
        "maxPods": settings.max_pods(),
        "seccompDefault": true,
        "protectKernelDefaults": true,
        "serializeImagePulls": false,
        "maxParallelImagePulls": 3,
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 4,
        "makeIPTablesUtilChains": !matches!(input.cluster.proxy_mode, ProxyMode::Nftables),
        // The default lies in the read-only root.
        "volumePluginDir": format!("{DATA_DIR}/volume-plugins"),
        "shutdownGracePeriod": format!("{}s", settings.shutdown_grace_period_seconds()),
        "shutdownGracePeriodCriticalPods": format!("{}s", settings.shutdown_grace_period_critical_pods_seconds()),
    })
}

/// kubelet's own defaults, which it forgets when any is given.
fn eviction_hard() -> Value {
    json!({
        "memory.available": "100Mi",
        "nodefs.available": "10%",
        "nodefs.inodesFree": "5%",
        "imagefs.available": "15%",
        "imagefs.inodesFree": "5%",
    })
}

/// Amounts by default, and those that are declared in their place.
fn with(mut defaults: Value, declared: &BTreeMap<String, String>) -> Value {
    for (name, amount) in declared {
        defaults[name.as_str()] = json!(amount);
    }
    defaults
}

/// What the control plane and the node's daemons need, kept from pods: measured 550 MiB at rest, and more on machines whose
/// size promises more objects.
fn kube_reserved(memory_bytes: u64) -> Value {
    let memory_mib = (512 + memory_bytes / 16 / MIB).min(2560);
    json!({ "cpu": "250m", "memory": format!("{memory_mib}Mi"), "ephemeral-storage": "1Gi", "pid": "4096" })
}
