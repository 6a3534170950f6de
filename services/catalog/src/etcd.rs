//! etcd: the cluster's store, one member per control-plane machine. The API server reaches it by a socket that only members of its
//! group may open, everybody else on loopback by mutual TLS; the members reach each other by mutual TLS under an authority of their own.
//!
//! The API server opens a connection for each kind of object, one after the other, and its start would wait for as many handshakes of
//! TLS.

use std::net::{IpAddr, SocketAddr};

use garboard_supervisor::spec::{ProbeAction, ServiceSpec, Slice, Stop};

use crate::base::{Args, blank, cgroup, comma, https, liveness, private_directory, readiness};
use crate::paths::{service_dir, service_file};
use crate::pki::Leaf;
use crate::users;
use crate::{CatalogError, CatalogInput, EtcdFacts, tls};

/// The service's name.
pub const NAME: &str = "etcd";
/// Where other clients than the machine's own API server connect.
pub const CLIENT_URL: &str = "https://127.0.0.1:2379";
/// Port of [`CLIENT_URL`].
pub const CLIENT_PORT: u16 = 2379;
/// Port on which other members connect.
pub const PEER_PORT: u16 = 2380;
/// The member's data.
pub const DATA_DIR: &str = "/var/lib/etcd";

/// Where the machine's own API server connects: as a member of the group [`users::ETCD`].
pub fn local_url() -> String {
    format!("unix://{}", service_file(NAME, "client.sock"))
}

/// Where the other members connect to a machine with this address.
pub fn peer_url(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, PEER_PORT))
}

/// The specification of etcd.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address at which the others could reach it.
pub fn service(input: &CatalogInput, facts: &EtcdFacts) -> Result<ServiceSpec, CatalogError> {
    let name = &input.node.name;
    let peer_url = peer_url(input.node_address()?);
    // What follows from these has been written when there is data, and they count no more.
    let (state, initial_cluster) = match facts {
        EtcdFacts { initial_cluster: Some(members), .. } => {
            let members: Vec<_> = members.iter().map(|(name, url)| format!("{name}={url}")).collect();
            ("existing", members.join(","))
        }
        EtcdFacts { initial_cluster: None, .. } => ("new", format!("{name}={peer_url}")),
    };
    let args = Args::new("/usr/bin/etcd")
        .flag("name", name)
        .flag("data-dir", DATA_DIR)
        .flag("listen-client-urls", comma(&[CLIENT_URL, &local_url()]))
        .flag("advertise-client-urls", CLIENT_URL)
        .flag("listen-peer-urls", &peer_url)
        .flag("initial-advertise-peer-urls", &peer_url)
        .flag("initial-cluster", initial_cluster)
        .flag("initial-cluster-state", state)
        .flag("initial-cluster-token", "garboard")
        .flag("client-cert-auth", true)
        .flag("cert-file", Leaf::EtcdServer.cert_file())
        .flag("key-file", Leaf::EtcdServer.key_file())
        .flag("trusted-ca-file", Leaf::EtcdServer.ca_file())
        .flag("peer-client-cert-auth", true)
        .flag("peer-cert-file", Leaf::EtcdPeer.cert_file())
        .flag("peer-key-file", Leaf::EtcdPeer.key_file())
        .flag("peer-trusted-ca-file", Leaf::EtcdPeer.ca_file())
        .flag("cipher-suites", comma(&tls::CIPHER_SUITES))
        .flag("tls-min-version", tls::ETCD_MIN_VERSION)
        // Twice the default: a machine that is busy for a second has not failed, and each election stops all writes.
        .flag("heartbeat-interval", 200)
        .flag("election-timeout", 2000)
        // kube-apiserver speaks gRPC; the JSON gateway is a second door that nobody uses.
        .flag("enable-grpc-gateway", false)
        // Compaction leaves holes in the file that nothing else gives back.
        .flag("bootstrap-defrag-threshold-megabytes", 100)
        .flag("quota-backend-bytes", 8u64 << 30)
        .flag("log-format", "console")
        .flag("logger", "zap");

    let mut limits = cgroup(Slice::ControlPlane, -997, 512, 64, 192);
    limits.cpu_weight = Some(400);
    limits.io_weight = Some(1000);

    let mut spec = blank(NAME, users::ETCD, limits, args.into_vec())?;
    spec.directories.push(private_directory(DATA_DIR));
    spec.isolation.read_write.extend([DATA_DIR.into(), service_dir(NAME)]);
    // The socket is its group's to write to; its files are made for it alone.
    spec.umask = 0o007;
    spec.readiness = Some(readiness(ProbeAction::Notify {}));
    spec.liveness =
        Some(liveness(https(CLIENT_PORT, "/livez", Leaf::EtcdProbe.ca_file(), Some(Leaf::EtcdProbe.client_files()))));
    // The write-ahead log of a long uptime is read at start.
    spec.start_timeout_ms = 600_000;
    spec.stop = Stop { grace_ms: 30_000, ..Stop::default() };
    Ok(spec)
}
